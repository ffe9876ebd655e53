# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Rules, one by one
-----------------

A rule that is asked for alone finds what it finds among all others, and reads only
what it needs. Every slice that is wrong is counted, however many there are.
"""

from pathlib import Path
from typing import get_args

from drgn import Program, offsetof
import pytest

from drgn_hvo.audit.rules import RULES, RuleId
from drgn_hvo.cli import main
from drgn_hvo.commands.check import CheckScope, check_document, exit_status
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.overlay import Overlay
from tests.synth_support import describe

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
CLEAN = SAMPLES / "shared-7.3.kdump"
CASES = [
    (fault.name, entry.name)
    for fault in FAULTS
    for entry in GENERATIONS
    if entry.name in ("fake-head-6.12", "shared-7.3", "seed-v6")
    and fault.possible(entry)
    and fault.rule is not None
]


def damaged(fault: str, generation: str) -> Program:
    machine, _ = make_machine(describe(generation), [fault])
    return program(machine)


def without_cause(findings):
    return [{**finding, "caused_by": None} for finding in findings]


@pytest.mark.parametrize(("fault", "generation"), CASES)
def test_a_rule_alone_finds_the_same(fault, generation):
    prog = damaged(fault, generation)
    whole = check_document(hvo_of(prog), "core", CheckScope())
    for rule in {finding["rule"] for finding in whole["findings"]}:
        mine = [f for f in whole["findings"] if f["rule"] == rule]
        alone = check_document(hvo_of(prog), "core", CheckScope(only={rule}))
        assert alone["findings"] == without_cause(mine)
        assert exit_status(alone, strict=True) == 1


def test_the_rule_on_alignment_reads_no_folios(monkeypatch):
    prog = open_target(str(CLEAN))

    def read(self):
        raise AssertionError("folios were read")

    monkeypatch.setattr(Hvo, "hugetlb", property(read))
    doc = check_document(hvo_of(prog), "core", CheckScope(only={"vmemmap-alignment"}))
    assert doc["checked"]["folios"] == 0
    assert doc["findings"] == []


@pytest.mark.parametrize(
    "options",
    [
        ["--rules", "folio-head", "--ignore", "folio-head"],
        ["--rules", "folio-head,folio-list", "--ignore", "folio-list,folio-head"],
        ["--ignore", ",".join(rule.id for rule in RULES)],
        ["--rules", ","],
        ["--rules", "folio-head", "--rules", "folio-heda"],
        ["--ignore", "folio-heda"],
    ],
)
def test_options_that_leave_no_rule_are_a_usage_error(options, capsys):
    assert main(["check", str(CLEAN), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_rules_add_up(capsys):
    wrong = SAMPLES / "shared-7.3-tail-bit-cleared.kdump"
    for options in (
        ["--rules", "shared-tail-info", "--rules", "folio-head"],
        ["--rules", "folio-head", "--rules", "shared-tail-info"],
    ):
        assert main(["check", str(wrong), *options]) == 1
    both = ["--ignore", "shared-tail-info", "--ignore", "folio-head"]
    assert main(["check", str(wrong), *both]) == 0
    capsys.readouterr()


def test_names_of_rules_are_those_of_the_table():
    assert get_args(RuleId) == tuple(rule.id for rule in RULES)


def test_every_stray_slice_is_counted():
    """
    A head that names another zone, which seems to hold it as well: its 4095 tail
    slices belong to no folio of it.
    """
    base = open_target(str(SAMPLES / "shared-7.3-boot-1g.kdump"))
    bound = hvo_of(base)
    folios = bound.hugetlb.folios
    i = int(folios.order.argmax())
    layout = bound.mmzone.flags_layout
    assert folios.order[i] == 18
    assert layout is not None
    flags = int(folios.flags[i]) ^ (1 << layout.zone_shift)
    address = int(folios.head_frame[i]) * 4096 + bound.kernel.struct_page.flags
    nid, index = int(bound.folio_nids[i]), int(bound.folio_zones[i]) ^ 1
    (zone,) = (z for z in bound.mmzone.zones if (z.nid, z.index) == (nid, index))
    range_of = {"zone_start_pfn": 0, "spanned_pages": 1 << 30}
    patches = {address: flags.to_bytes(8, "little")}
    for member, value in range_of.items():
        at = zone.address + offsetof(base.type("struct zone"), member)
        physical = bound.kernel.translation.physical(at)
        assert physical is not None
        patches[physical[0]] = value.to_bytes(8, "little")
    patched = Overlay(base, patches=patches)
    doc = check_document(hvo_of(patched.prog), "core", CheckScope())
    strays = [f for f in doc["findings"] if f["rule"] == "stray-shared-tail"]
    assert sum(1 + finding["folded"] for finding in strays) == 4095
