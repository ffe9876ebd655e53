# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What counts as a mask or a pointer when the encoding of a kernel is detected: one struct
page that is always sampled gets a word at a bound, and the counts say what it was taken
for.
"""

import re
import struct

import pytest

from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.overlay import Overlay
from tests.synth_support import describe

SIZE = 64
# 16 GiB of 4 KiB pages.
LARGEST_ORDER = 22


@pytest.fixture(scope="module", params=["shared-7.3", "fake-head-6.12"])
def case(request):
    machine = build_machine(describe(request.param))
    return machine, program(machine)


def counts(prog):
    """Struct pages sampled, masks, pointers."""
    evidence = hvo_of(prog).layout.encoding.evidence[1]
    found = re.fullmatch(
        r"data: of (\d+) struct pages sampled, (\d+) hold a mask and (\d+) a pointer "
        r"into vmemmap",
        evidence,
    )
    assert found is not None, evidence
    return [int(number) for number in found.groups()]


def taken_for(case, word):
    """How many masks and pointers there are more because of one word."""
    machine, base = case
    offset = hvo_of(base).kernel.struct_page.offset
    place = machine.page_physical(1) + offset
    assert base.read(place, 1, physical=True)[0] & 1 == 0, "PFN 1 is no tail"
    patched = Overlay(base, patches={place: struct.pack("<Q", word % 2**64)})
    before, after = counts(base), counts(patched.prog)
    assert before[0] == after[0]
    return after[1] - before[1], after[2] - before[2]


MASK, POINTER, NEITHER = (1, 0), (0, 1), (0, 0)


@pytest.mark.parametrize(
    ("order", "expected"),
    [(0, NEITHER), (1, MASK), (LARGEST_ORDER, MASK), (LARGEST_ORDER + 1, NEITHER)],
)
def test_masks_are_of_the_orders_that_kernels_have(case, order, expected):
    assert taken_for(case, 1 - (SIZE << order)) == expected


@pytest.mark.parametrize("word", [1, 2**64 - 1, -(3 * SIZE) + 1, -(SIZE << 9)])
def test_what_no_kernel_writes_is_neither(case, word):
    assert taken_for(case, word) == NEITHER


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, POINTER),
        (-SIZE, NEITHER),
        (SIZE, POINTER),
        (SIZE // 2, NEITHER),
        (8, NEITHER),
        (-1, NEITHER),
    ],
)
def test_pointers_are_to_struct_pages_from_the_first_one_on(case, offset, expected):
    base = hvo_of(case[1]).vmemmap.base
    assert taken_for(case, base + offset + 1) == expected


@pytest.mark.parametrize(("pages", "expected"), [(-1, POINTER), (0, NEITHER)])
def test_pointers_are_to_struct_pages_that_there_can_be(case, pages, expected):
    bound = hvo_of(case[1])
    # MAX_PHYSMEM_BITS is 46 with four levels of page tables, 52 with five.
    last = bound.kernel.max_pfn_limit
    assert last in (1 << 34, 1 << 40)
    assert taken_for(case, bound.vmemmap.base + (last + pages) * SIZE + 1) == expected


def test_slots_are_for_the_orders_between_the_smallest_and_the_largest():
    prog = program(build_machine(describe("shared-7.3")))
    array = hvo_of(prog).layout.tails.array
    assert array is not None
    # A folio of order 7 is the smallest that fills two pages of struct pages.
    indices = {order: array.index(order) for order in (6, 7, 9, 22, 23)}
    assert indices == {6: None, 7: 0, 9: 2, 22: array.slots - 1, 23: None}
    assert array.max_order == LARGEST_ORDER
    assert (array.owner_of(1, 2), array.where) == ((1, 2), "zone")
