# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Every fault in every generation
-------------------------------

The table of faults says, from the kernel's rules, which rule should notice each and
what may follow from it. The audit has to agree: the cause first, at the address that
was changed, and nothing else.
"""

import pytest

from drgn_hvo.audit.rules import RULE_BY_ID
from drgn_hvo.commands.check import CheckScope, check_document, exit_status
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.generations import GENERATIONS
from drgn_hvo.synth.machine.machine import build_machine
from tests.damage_support import mending_pause
from tests.synth_support import ALL, describe

CASES = [
    (fault, entry.name)
    for fault in FAULTS
    for entry in GENERATIONS
    if fault.possible(entry) and fault.rule is not None
]


def audit(prog, *, deep=False):
    return check_document(hvo_of(prog), "core", CheckScope(deep=deep))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_nothing_in_a_healthy_machine(name, deep):
    machine, _ = make_machine(describe(name))
    doc = audit(program(machine), deep=deep)
    assert doc["findings"] == []
    assert doc["complete"] is True
    assert doc["in_transition"] == 0


@pytest.mark.parametrize(
    ("fault", "name"), CASES, ids=lambda value: getattr(value, "name", value)
)
def test_the_rule_that_the_table_names(fault, name):
    machine, (applied,) = make_machine(describe(name), [fault.name])
    prog = program(machine)
    is_deep = RULE_BY_ID[fault.rule].deep
    doc = audit(prog, deep=is_deep)
    assert exit_status(doc, strict=True) == 1
    first, *others = doc["findings"]
    assert first["rule"] == fault.rule
    assert first["caused_by"] is None
    if applied.changes:
        address = int(first["physical_address"], 0)
        assert any(
            change.address <= address < change.address + len(change.new)
            for change, _ in applied.changes
        )
    assert {finding["rule"] for finding in others} <= set(fault.consequences)
    assert len(others) <= 3
    assert all(finding["caused_by"] is not None for finding in others)
    if is_deep:
        assert audit(prog)["findings"] == []
        return
    deep = audit(prog, deep=True)["findings"]
    assert deep[0] == first
    more = {finding["rule"] for finding in deep} - {f["rule"] for f in doc["findings"]}
    assert more <= {"compound-heads"}


@pytest.mark.parametrize("name", ALL)
def test_a_page_that_is_missing_is_not_corruption(name):
    machine, _ = make_machine(describe(name), ["page-missing"])
    for deep in (False, True):
        doc = audit(program(machine), deep=deep)
        assert doc["findings"] == []
        assert doc["not_in_dump"] != []
        assert exit_status(doc, strict=True) == 3


@pytest.mark.parametrize("is_zero", [False, True])
@pytest.mark.parametrize("name", ["fake-head-6.1", "plain-7.2", "shared-7.3"])
def test_tails_whose_head_is_missing_are_not_corruption(name, is_zero):
    """
    The struct pages of a THP fill several pages; the first one is not there, or reads
    as zeros, as what an ELF core leaves out does.
    """
    machine = build_machine(describe(name))
    thp = next(p for p in machine.plan.pages if p.group.kind == "thp")
    frame = machine.page_physical(thp.first_pfn) >> 12
    if is_zero:
        machine.image.write(frame << 12, bytes(4096))
    else:
        machine.image.missing.add(frame)
    doc = audit(program(machine), deep=True)
    assert doc["findings"] == []
    (rule,) = (rule for rule in doc["rules"] if rule["id"] == "compound-heads")
    assert rule["result"] == "skip"
    assert exit_status(doc, strict=True) == 3


@pytest.mark.parametrize("reads", [1, 2])
def test_a_suspect_of_a_running_kernel_is_read_again(monkeypatch, reads):
    """What is right again when it is read a second or third time was a race."""
    machine, (applied,) = make_machine(describe("shared-7.3"), ["pte-writable"])
    pauses, pause = mending_pause(machine, applied, reads)
    monkeypatch.setattr("drgn_hvo.audit.confirm.time.sleep", pause)
    assert audit(program(machine, is_live=True))["findings"] == []
    assert len(pauses) == reads


def test_what_stays_wrong_in_a_running_kernel_is_reported(monkeypatch):
    machine, _ = make_machine(describe("shared-7.3"), ["pte-writable"])
    pauses: list[float] = []
    monkeypatch.setattr("drgn_hvo.audit.confirm.time.sleep", pauses.append)
    (finding,) = audit(program(machine, is_live=True))["findings"]
    assert finding["rule"] == "vmemmap-tail-writable"
    assert len(pauses) == 2
