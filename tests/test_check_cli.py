# SPDX-License-Identifier: LGPL-2.1-or-later

"""
check through the shell
-----------------------

Exit statuses alone and with several targets, output formats, and Ctrl-C.
"""

import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import jsonschema
import pytest

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.audit.rules import RULES
from drgn_hvo.cli import main
from drgn_hvo.commands import check_targets
from drgn_hvo.commands.schema import load_schema
from tests.command_support import COMMAND, run
from tests.ktap_support import parse_ktap
from tools.rules_page import rules_page

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
CLEAN = SAMPLES / "shared-7.3.kdump"
WRONG = SAMPLES / "shared-7.3-tail-bit-cleared.kdump"
WARNING = SAMPLES / "shared-7.3-boot-1g.kdump"


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory):
    core = tmp_path_factory.mktemp("core") / "core"
    description = SAMPLES / "shared-7.3.toml"
    command = ["synth", str(description), "-o", str(core), "--fault", "page-missing"]
    assert main([*command, "--container", "kdump"]) == 0
    return core


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    path = tmp_path_factory.mktemp("core") / "bad"
    path.write_bytes(b"nonsense")
    return path


def test_exit_statuses(incomplete, bad):
    assert run("check", CLEAN).returncode == 0
    assert run("check", WRONG).returncode == 1
    assert run("check", bad).returncode == 2
    assert run("check", incomplete).returncode == 3
    assert run("check", WARNING).returncode == 0
    assert run("check", WARNING, "--strict").returncode == 1
    assert run("check", WRONG, "--ignore", "shared-tail-info").returncode == 0
    assert run("check", WRONG, "--rules", "folio-head").returncode == 0
    assert run("check", WRONG, "--rules", "nonsense").returncode == 2
    assert run("check", CLEAN, "-j", "0").returncode == 2


def test_the_worst_of_several_targets(incomplete, bad):
    """The first of 1, 70, 2, 3, 0 that occurred."""
    assert run("check", CLEAN, CLEAN).returncode == 0
    assert run("check", CLEAN, incomplete).returncode == 3
    assert run("check", incomplete, bad, CLEAN).returncode == 2
    assert run("check", bad, incomplete, WRONG, CLEAN).returncode == 1


def test_a_bug_is_70_and_never_a_finding(monkeypatch, capsys, bad):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(check_targets, "check_document", broken)
    assert main(["check", str(WRONG)]) == 70
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "ZeroDivisionError" in captured.err
    assert main(["check", str(bad), str(WRONG)]) == 70


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_documents_come_in_the_order_of_the_targets(bad, incomplete, jobs):
    targets = [CLEAN, bad, WRONG, incomplete, WARNING]
    result = run("check", "-j", jobs, "--format", "json", *targets)
    docs = [json.loads(line) for line in result.stdout.splitlines()]
    assert [doc["target"] for doc in docs] == [str(target) for target in targets]
    assert [doc["status"] for doc in docs] == [
        "clean", "error", "findings", "incomplete", "findings",
    ]  # fmt: skip
    assert "ELF core" in docs[1]["error"]
    assert result.stderr.count("\n") == 1
    schema = load_schema("check")
    for doc in docs:
        jsonschema.validate(doc, schema)


@pytest.mark.parametrize("core", sorted(SAMPLES.glob("*.kdump")), ids=lambda c: c.name)
def test_show_is_what_its_schema_says(core):
    shown = json.loads(run("show", "--json", "--folios", core).stdout)
    jsonschema.validate(shown, load_schema("show"))


def test_ktap(bad, incomplete):
    targets = [CLEAN, WRONG, WARNING, incomplete, bad]
    results = parse_ktap(run("check", "--format", "ktap", *targets).stdout)
    assert [result[0] for result in results] == [True, False, True, False, False]
    clean, wrong, warning, missing, error = (result[4] for result in results)
    assert error == []
    for subtests in (clean, wrong, warning, missing):
        assert [test[2] for test in subtests] == [rule.id for rule in RULES]
    assert [t[2] for t in wrong if not t[0]] == ["shared-tail-info"]
    assert all(test[0] for test in warning)
    assert any("not in this dump" in (test[3] or "") for test in missing)


def test_ktap_with_strict_fails_on_warnings():
    ((ok, _, _, _, subtests),) = parse_ktap(
        run("check", "--format", "ktap", "--strict", WARNING).stdout
    )
    assert not ok
    assert [test[2] for test in subtests if not test[0]] == ["shared-tail-refcount"]


def test_text_names_the_defect_and_what_to_do():
    result = run("check", WARNING)
    assert "Known kernel defect: boot-tail-refcount" in result.stdout
    assert DEFECTS["boot-tail-refcount"].leads_to in result.stdout


def test_interrupt_leaves_no_process_behind(tmp_path):
    """It says how far it got, and the workers are gone."""
    process = subprocess.Popen(
        [*COMMAND, "check", "--deep", "-j", "2", *[str(WRONG)] * 400],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(
        r"drgn-hvo: interrupted: \d+ of 400 targets were done\n", stderr
    )
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_catalogues():
    rules = json.loads(run("rules", "--json").stdout)["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in RULES]
    text = run("rules").stdout
    assert all(rule.id in text for rule in RULES)
    defects = json.loads(run("defects", "--json").stdout)["defects"]
    assert {defect["name"] for defect in defects} == set(DEFECTS)
    assert all(name in run("defects").stdout for name in DEFECTS)


def test_the_page_on_rules_is_that_of_the_table():
    page = Path(__file__).resolve().parents[1] / "docs" / "rules.md"
    assert page.read_text() == rules_page()


def test_python_minus_m():
    command = [sys.executable, "-m", "tools.rules_page"]
    assert subprocess.check_output(command, text=True) == rules_page()
