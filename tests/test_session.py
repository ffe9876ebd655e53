# SPDX-License-Identifier: LGPL-2.1-or-later

"""What ``%hvo`` has in a session, and what a session is told of drgn's own helpers."""

import json
import logging
from pathlib import Path
import sys

from drgn import program_from_core_dump
from drgn.commands import CommandArgumentError, run_command
from drgn.helpers.linux import mm
import pytest

from drgn_hvo import plugin
from drgn_hvo.commands import session_start
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"
CORE = str(SAMPLES / "shared-7.3.kdump")


def session(name="shared-7.3"):
    prog = program_from_core_dump(str(SAMPLES / f"{name}.kdump"))
    plugin.drgn_prog_set(prog)
    return prog


def test_alone_it_lists_its_verbs(capsys):
    run_command(session(), "hvo")
    shown = capsys.readouterr().out
    for verb in (
        "show",
        "check",
        "page",
        "map",
        "who",
        "sharers",
        "diff",
        "heads",
        "extract",
        "rules",
        "defects",
    ):
        assert f"    {verb} " in shown


@pytest.mark.parametrize("verb", ["check -j 2", "check -j2 --deep", "check -j 1"])
def test_check_takes_the_options_of_the_command(verb, capsys):
    assert run_command(session(), f"hvo {verb}") is None
    assert ": clean" in capsys.readouterr().out


def test_catalogues(capsys):
    prog = session()
    for verb in ("rules", "defects"):
        run_command(prog, f"hvo {verb} --json")
        assert json.loads(capsys.readouterr().out)[verb]
        run_command(prog, f"hvo {verb}")
        assert capsys.readouterr().out.count("\n") > 20


def test_extract(tmp_path, capsys):
    path = tmp_path / "small"
    run_command(session(), f"hvo extract -o {path}")
    assert str(path) in capsys.readouterr().out
    known, small = (hvo_of(open_target(p, [], None)) for p in (CORE, str(path)))
    assert len(small.hugetlb.folios) == len(known.hugetlb.folios)


def test_what_is_no_verb():
    with pytest.raises(CommandArgumentError):
        run_command(session(), "hvo bogus")


def is_wrong(prog):
    """Whether drgn takes masks for pointers, or pointers for masks."""
    return mm._compound_info_has_mask(prog) != hvo_of(prog).layout.encoding.has_mask


OTHERS = ("arm64", "loong64", "ppc64", "riscv64", "s390x")


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(SAMPLES.glob("*.kdump")) if not p.stem.startswith(OTHERS)],
    ids=lambda p: p.stem,
)
def test_who_types_is_told_at_the_start(path, monkeypatch, caplog):
    """As drgn's own helper decides, and once."""
    monkeypatch.setattr(session_start, "is_at_terminal", lambda: True)
    caplog.set_level(logging.WARNING, "drgn")
    prog = session(path.stem)
    told = [r for r in caplog.records if "compound_head()" in r.getMessage()]
    assert len(told) == is_wrong(prog)


@pytest.mark.parametrize("name", ["seed-v5", "seed-v6", "shared-7.3", "plain-7.2"])
def test_a_script_is_told_with_its_types(name, caplog):
    caplog.set_level(logging.WARNING, "drgn")
    prog = session(name)
    assert not [r for r in caplog.records if "compound_head()" in r.getMessage()]
    prog.type("struct page")
    told = [r for r in caplog.records if "compound_head()" in r.getMessage()]
    assert len(told) == is_wrong(prog)


def test_a_terminal(monkeypatch):
    class Stream:
        def __init__(self, tty):
            self.isatty = lambda: tty

    for first, second in ((True, True), (True, False), (False, True)):
        monkeypatch.setattr(sys, "stdin", Stream(first))
        monkeypatch.setattr(sys, "stderr", Stream(second))
        assert session_start.is_at_terminal() is (first and second)
