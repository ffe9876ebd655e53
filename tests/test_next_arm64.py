# SPDX-License-Identifier: LGPL-2.1-or-later

"""
arm64 with HVO, which the next kernel has: masks, shared tails that are read-only by
AP[2] of an entry, three page sizes.
"""

from typing import Any

import pytest

from drgn_hvo.commands.map import map_document
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.formats.tail_words import max_folio_order
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.synth.damage.faults import FAULTS
from drgn_hvo.synth.described.description import HugePages, Node, Pages
from drgn_hvo.synth.described.generations import generation
from tests.damage_support import Case

PAGE_SIZES = {4096: 9, 16384: 11, 65536: 13}
AP2 = 1 << 7


def make(page_size, faults=()):
    order = PAGE_SIZES[page_size]
    first = 0x40000000 // page_size
    node = Node(0, ((first, first + (1 << 17)),), {"DMA": (first, first + (1 << 17))})
    return Case.of(
        "next",
        faults,
        architecture="aarch64",
        page_size=page_size,
        nodes=(node,),
        hstates=(order,),
        huge_pages=(
            HugePages(0, "DMA", order, 3),
            HugePages(
                0,
                "DMA",
                order,
                2,
                list="active",
                restored_slices=2,
                first_pfn=first + (12 << order),
            ),
            HugePages(0, "DMA", order, 1, origin="restored"),
        ),
        pages=(Pages(0, "DMA", "slab", 3, 2), Pages(0, "DMA", "buddy", 4, 2)),
        reserved={},
    )


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_show_and_check(page_size):
    case = make(page_size)
    shown: Any = show_document(hvo_of(case.prog), "core", folios=True)
    assert (shown["arch"], shown["page_size"]) == ("aarch64", page_size)
    assert shown["encoding"]["kind"] == "mask"
    layout = shown["tail_layout"]
    assert (layout["kind"], layout["where"]) == ("shared", "zone")
    smallest = (2 * page_size // 64).bit_length() - 1
    assert layout["min_order"] == smallest
    largest = max_folio_order(page_size.bit_length() - 1)
    assert layout["slots"] == largest - smallest + 1
    assert shown["hvo_enabled"]
    slices = (64 << PAGE_SIZES[page_size]) // page_size
    assert slices == 8
    shared = [folio["shared_ptes"] for folio in shown["folios"]]
    assert shared == [7, 7, 7, 0, 5, 5]
    assert all(folio["writable_shared_ptes"] == 0 for folio in shown["folios"])
    assert shown["saved"]["pages"] == sum(shared)
    checked = case.check(deep=True)
    assert (checked["status"], checked["complete"]) == ("clean", True)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_entries_are_read_only(page_size):
    """The generator's own bits, and what is said of them."""
    case = make(page_size)
    found = hvo_of(case.prog)
    head = case.groups(list="active")[0].heads()[1]
    rows = map_document(found, "core", parse_page_spec(f"pfn:0d{head}"))["rows"]
    for row in rows:
        entry = case.entry(head, row["first"])
        value = int.from_bytes(case.image.read(entry, 8), "little")
        assert bool(value & AP2) != row["writable"]
    assert [row["writable"] for row in rows] == [True] * 3 + [False] * 5
    per_slice = page_size // 64
    for slice_ in range(8):
        pfn = head + slice_ * per_slice + 7
        page = page_document(found, "core", [parse_page_spec(f"pfn:0d{pfn}")])
        one = page["pages"][0]
        assert one["head_pfn"] == head
        assert one["slice"]["writable"] == (slice_ < 3)
        assert (one["findings"], one["disagreements"]) == ([], [])


HERE = [
    fault
    for fault in FAULTS
    if fault.possible(generation("next")) and fault.rule is not None
]


@pytest.mark.parametrize("fault", HERE, ids=lambda fault: fault.name)
def test_faults_by_their_rule(fault):
    found = make(4096, [fault.name]).check(deep=fault.rule == "compound-heads")
    assert found["findings"][0]["rule"] == fault.rule
