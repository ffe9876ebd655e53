# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The guide to logs
-----------------

Each log in ``docs/oops.md`` is explained as the line behind it says, and what commands
print there is what they print.
"""

import contextlib
import io
from pathlib import Path
import re

import pytest

from drgn_hvo.commands.oops import oops_document
from drgn_hvo.commands.oops_text import print_oopses
from drgn_hvo.formats.oops_log import parse_log, read_log
from drgn_hvo.kernel.printk import kernel_log
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from tests.command_support import run
from tests.cores import core_path

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "oops.md").read_text()

# A block of a log, and the line behind it.
EXAMPLES = re.findall(r"\n```\n(.+?)\n```\n\n→ (.+?)\n\n", GUIDE, re.DOTALL)


def test_each_form_has_an_example():
    logs = "\n".join(log for log, _ in EXAMPLES).splitlines()
    found = {report.form for report in parse_log(logs).reports}
    assert found >= {
        "page-fault", "general-protection-fault", "bad-page-state", "bad-page-map",
        "vm-bug-on", "memory-failure", "hugetlb-warning",
    }  # fmt: skip


@pytest.mark.parametrize(("log", "said"), EXAMPLES, ids=lambda text: text[:40])
def test_example(log, said):
    document = oops_document(None, "log", parse_log(log.splitlines()))
    (report,) = document["reports"]
    verdict, *others = re.findall(r"`([a-z-]+)`", said)
    assert report["verdict"] == verdict
    assert report["defect"] is None or report["defect"] in others


def test_sample():
    log = read_log(str(ROOT / "sample_vmcores" / "debian-7.1-boot-oops.txt"))
    bound = hvo_of(
        open_target(str(ROOT / "sample_vmcores" / "debian-7.1-boot-oops.kdump"))
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_oopses(oops_document(bound, "core", log))
    shown = re.search(r"--oops sample_vmcores\S+\n(.+?)\n\.\.\.", GUIDE, re.DOTALL)
    assert shown is not None
    assert out.getvalue().startswith(shown[1] + "\n")


def test_three_commands(tmp_path):
    """From the log of a real kernel to its defect, as the guide shows it."""
    core, log = core_path("6.12-mix"), tmp_path / "dmesg.txt"
    lines = kernel_log(hvo_of(open_target(str(core), [], None)).kernel).lines()
    log.write_text("\n".join(lines) + "\n")
    section = GUIDE[GUIDE.index("## Three commands") :]
    (shown,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)[:1]
    steps = re.findall(r"^\$ drgn-hvo (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert len(steps) == 3
    for command, output in steps:
        files = {"vmcore": str(core), "dmesg.txt": str(log)}
        printed = run(*(files.get(word, word) for word in command.split())).stdout
        for line in output.splitlines():
            assert line == "..." or line in printed.splitlines()
    assert "6.12.115 and later lose the memory of freed huge pages" in section
