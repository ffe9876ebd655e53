# SPDX-License-Identifier: LGPL-2.1-or-later

"""
How kernels recognise hugetlb, also those between the ones that there are cores of: a
machine of 6.1 says so in VMCOREINFO, and has the fields as those kernels fill them.
"""

import pytest

from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.heads import read_head
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.targets import Targets
from drgn_hvo.synth.machine.machine import build_machine
from tests.overlay import Overlay, vmcoreinfo_text
from tests.synth_support import ALL, describe

# Pages that are not compound.
SINGLE = ("buddy", "poisoned", "reserved")

# v6.6 to v6.9: enum pageflags, PG_hugetlb = PG_active, in flags of the first tail.
PG_HUGETLB = 8
# v6.10 and v6.11: page types are bits that are cleared; VMCOREINFO has ~PG_hugetlb.
PAGE_TYPE = 0xFFFFFEFF


def flag_in_the_first_tail(machine, targets, pfn):
    at = targets.page_field(pfn + 1, "flags")
    flags = int.from_bytes(machine.image.read(at, 8), "little") | 1 << PG_HUGETLB
    machine.image.write(at, flags.to_bytes(8, "little"))


def page_type_of_the_head(machine, targets, pfn):
    at = targets.page_field(pfn, "_mapcount")
    machine.image.write(at, PAGE_TYPE.to_bytes(4, "little"))


def hugetlb_heads(bound, machine):
    """Which compound pages are told to be hugetlb."""
    heads = {
        pfn: read_head(bound, pfn)
        for placed in (*machine.plan.huge, *machine.plan.pages)
        if getattr(placed.group, "kind", "huge") not in SINGLE
        for pfn in placed.heads()
    }
    found = {pfn for pfn, head in heads.items() if head is not None and head.hugetlb}
    assert None not in heads.values()
    return found


@pytest.mark.parametrize("name", ALL)
def test_hugetlb_and_no_other_compound_page(name):
    machine = build_machine(describe(name))
    huge = {pfn for placed in machine.plan.huge for pfn in placed.heads()}
    assert hugetlb_heads(hvo_of(program(machine)), machine) == huge


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        (f"NUMBER(PG_hugetlb)={PG_HUGETLB}", flag_in_the_first_tail),
        (
            f"NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)={PAGE_TYPE - (1 << 32)}",
            page_type_of_the_head,
        ),
    ],
    ids=["6.6 to 6.9", "6.10 and 6.11"],
)
def test_hugetlb_is_what_the_kernel_of_that_time_marks(line, mark):
    machine = build_machine(describe("fake-head-6.1"))
    targets = Targets(machine)
    huge = [pfn for placed in machine.plan.huge for pfn in placed.heads()]
    # One is not marked: it is none, whatever its destructor says.
    for pfn in huge[1:]:
        mark(machine, targets, pfn)
    base = program(machine)
    note = f"{vmcoreinfo_text(base).rstrip()}\n{line}\n"
    prog = Overlay(base, vmcoreinfo=note.encode()).prog
    install(prog)
    bound = hvo_of(prog)
    assert hugetlb_heads(bound, machine) == set(huge[1:])
    folios = bound.hugetlb.folios
    assert folios.is_hugetlb is not None
    listed = dict(zip(folios.head_pfn.tolist(), folios.is_hugetlb.tolist()))
    assert {pfn for pfn, is_hugetlb in listed.items() if is_hugetlb} == set(huge[1:])
