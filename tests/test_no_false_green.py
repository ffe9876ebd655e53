# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What was not checked, left out or assumed never looks like a clean kernel.
"""

import json
from pathlib import Path

import pytest

from drgn_hvo.audit.rules import RULES
from tests.command_support import check_refused, run
from tests.ktap_support import parse_ktap

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
CLEAN = SAMPLES / "shared-7.3.kdump"
WRONG = SAMPLES / "shared-7.3-tail-bit-cleared.kdump"
POINTERS = SAMPLES / "fake-head-6.12.kdump"


def document(*args):
    result = run("check", *args, "--json")
    return result.returncode, json.loads(result.stdout)


@pytest.mark.parametrize(
    ("core", "rule", "why"),
    [
        (CLEAN, "compound-heads", "only with --deep"),
        (POINTERS, "shared-tail-info", None),
    ],
)
def test_a_rule_that_was_asked_for_and_did_not_run(core, rule, why):
    status, found = document(core, "--rules", rule)
    assert (status, found["status"], found["complete"]) == (3, "incomplete", False)
    (undecided,) = found["undecided"]
    assert undecided["rule"] == rule
    assert why in (None, undecided["why"])
    text = run("check", core, "--rules", rule)
    assert text.returncode == 3
    assert f"no error found, incomplete (only {rule})" in text.stdout
    assert f"could not be decided: {rule}: {undecided['why']}" in text.stdout
    ktap = run("check", core, "--rules", rule, "--format", "ktap")
    ((ok, *_),) = parse_ktap(ktap.stdout)
    assert not ok


def test_a_rule_that_nobody_asked_for_need_not_run():
    """--deep is asked for by name, too."""
    assert run("check", CLEAN).returncode == 0
    assert run("check", CLEAN, "--rules", "compound-heads", "--deep").returncode in (
        0,
        3,
    )
    status, _ = document(CLEAN, "--rules", ",".join(r.id for r in RULES), "--deep")
    assert status in (0, 3)


def test_options_that_leave_no_rule():
    words = "leave no rule"
    check_refused(run("check", CLEAN, "--rules", "a", "--rules", ""), "rule")
    check_refused(
        run("check", CLEAN, "--rules", "folio-list", "--ignore", "folio-list"), words
    )
    everything = ",".join(rule.id for rule in RULES)
    check_refused(run("check", CLEAN, "--ignore", everything), words)


def test_repeated_options_add_up():
    _, found = document(CLEAN, "--rules", "folio-list", "--rules", "folio-head")
    ran = {rule["id"] for rule in found["rules"] if rule["result"] == "pass"}
    assert ran == {"folio-list", "folio-head"}
    _, found = document(CLEAN, "--ignore", "folio-list", "--ignore", "folio-head")
    assert found["ignored"] == ["folio-head", "folio-list"]


def test_assumptions_that_contradict_each_other():
    check_refused(
        run(
            "check", CLEAN, "--assume", "encoding=mask", "--assume", "encoding=pointer"
        ),
        "encoding=mask and encoding=pointer",
    )


def test_what_was_left_out_is_said():
    status, found = document(WRONG, "--ignore", "shared-tail-info")
    assert (status, found["ignored"]) == (0, ["shared-tail-info"])
    text = run("check", WRONG, "--ignore", "shared-tail-info").stdout
    assert ": clean (ignored shared-tail-info)" in text.splitlines()[0]
    ktap = run(
        "check", WRONG, "--ignore", "shared-tail-info", "--format", "ktap"
    ).stdout
    assert "# (ignored shared-tail-info)" in ktap.splitlines()


def test_what_was_assumed_is_said():
    status, found = document(WRONG, "--assume", "tail_layout=plain")
    assert found["assumed"] == {"tail_layout": "plain"}
    text = run("check", WRONG, "--assume", "tail_layout=plain")
    assert text.returncode == status
    assert "(assumed tail_layout=plain)" in text.stdout.splitlines()[0]


def test_nothing_is_said_of_nothing():
    _, found = document(CLEAN)
    assert (found["assumed"], found["ignored"]) == ({}, [])
    assert run("check", CLEAN).stdout.splitlines()[0] == f"{CLEAN}: clean"
