# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Every rule, both ways
---------------------

On cores that every clone has: each rule holds in a sample of ``sample_vmcores/`` and is
broken in the same sample by a fault that says that it breaks that rule. A rule that
nothing here can break, or that no sample decides, fails.
"""

from functools import cache

import pytest

from drgn_hvo.audit.rules import RULES
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.errors import UsageError
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.description_file import load_description
from tests.cores import SAMPLES
from tests.overlay import Overlay

# One for each way in which tails are kept, in the order in which faults are tried.
NAMES = (
    "shared-7.3",
    "fake-head-6.12",
    "seed-v5",
    "5.15",
    "next",
    "plain-7.2",
    "riscv64-sv48",
)


@cache
def description(name):
    return load_description(SAMPLES / f"{name}.toml")


@cache
def sample(name):
    return open_target(str(SAMPLES / f"{name}.kdump"))


def audit(prog):
    return check_document(hvo_of(prog), "core", CheckScope(deep=True))


@cache
def healthy(name):
    return audit(sample(name))


def results(document):
    return {rule["id"]: rule["result"] for rule in document["rules"]}


def broken(rule, name):
    """
    A sample in which a fault breaks a rule, and the addresses that it changed; ``None``
    if no fault that does can be in that sample.
    """
    made = description(name)
    for fault in FAULTS:
        if fault.rule != rule.id or not fault.possible(made.kernel_generation):
            continue
        try:
            machine, (applied,) = make_machine(made, [fault.name])
        except UsageError:
            continue  # this machine has nothing of that kind
        patches = {change.address: change.new for change, _ in applied.changes}
        if not patches:
            # All of vmemmap lies elsewhere: no words of it would be the same.
            return program(machine), patches
        return Overlay(sample(name), patches=patches).prog, patches
    return None


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_broken_in_a_sample(name):
    document = healthy(name)
    assert (document["findings"], document["complete"]) == ([], True)
    for rule in document["rules"]:
        # What is skipped says why, and means nothing there.
        assert rule["result"] in ("pass", "skip"), rule
        assert (rule["reason"] is None) == (rule["result"] == "pass"), rule


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_holds_and_is_broken(rule):
    names = [name for name in NAMES if results(healthy(name))[rule.id] == "pass"]
    assert names, "no sample decides it"
    cases = [(name, found) for name in names if (found := broken(rule, name))]
    assert cases, "no fault breaks it"
    for name, (prog, patches) in cases[:2]:
        document = audit(prog)
        assert results(document)[rule.id] == "fail", name
        first = document["findings"][0]
        assert (first["rule"], first["severity"]) == (rule.id, rule.severity), name
        assert first["caused_by"] is None
        if patches:
            address = int(first["physical_address"], 0)
            assert any(
                start <= address < start + len(new) for start, new in patches.items()
            ), name


def test_the_samples_decide_all_rules():
    """Where HVO is not built, rules on what it makes mean nothing."""
    decided = {
        rule for rule, result in results(healthy("next")).items() if result == "pass"
    }
    assert decided == {rule.id for rule in RULES}
    plain = results(healthy("plain-7.2"))
    skipped = {rule for rule, result in plain.items() if result == "skip"}
    assert skipped > {"shared-tail-info", "vmemmap-tail-frame", "stray-head"}
