# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What makes a folio hugetlb, and names its type, in kernels between v6.2 and v6.11: a
destructor that only struct folio names, a flag of the first tail, a bit of page_type.
"""

import pytest

from drgn_hvo.commands.page import page_document
from drgn_hvo.memmap.heads import read_head
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from tests.damage_support import Case
from tests.synth_support import ALL

BETWEEN = ["fake-head-6.4", "fake-head-6.6", "fake-head-6.11"]
#: Offset of the mark from the head, its size and its value there, by hand.
MARKS = {
    "fake-head-6.1": (64 + 16, 1, 2),
    "fake-head-6.4": (64 + 16, 1, 2),
    "fake-head-6.6": (64, 8, 1 << 8),
    "fake-head-6.11": (48, 4, 0xFBFFFFFF),
    "fake-head-6.12": (48, 4, 0xF4000000),
}


def words(case, pfn):
    start = case.targets.machine.page_physical(pfn)
    return start, case.image.read(start, 128)


@pytest.mark.parametrize("name", MARKS)
def test_the_mark_is_where_that_kernel_has_it(name):
    offset, size, value = MARKS[name]
    case = Case.of(name)
    others = [
        placed
        for placed in case.targets.plan.pages
        if placed.group.kind in ("slab", "thp", "compound")
    ]
    assert others
    for placed in (*case.targets.plan.huge, *others):
        is_huge = placed in case.targets.plan.huge
        for pfn in placed.heads():
            _, data = words(case, pfn)
            found = int.from_bytes(data[offset : offset + size], "little")
            if name == "fake-head-6.6":
                assert bool(found & value) == is_huge
            else:
                assert (found == value) == is_huge


@pytest.mark.parametrize("name", MARKS)
def test_hugetlb_is_what_is_marked(name):
    """And nothing else, and nothing that has lost its mark."""
    offset, size, value = MARKS[name]
    case = Case.of(name)
    found = hvo_of(case.prog)
    heads = {
        pfn: read_head(found, pfn)
        for placed in (*case.targets.plan.huge, *case.targets.plan.pages)
        if placed.group.order
        for pfn in placed.heads()
    }
    huge = {pfn for placed in case.targets.plan.huge for pfn in placed.heads()}
    marked = {pfn for pfn, head in heads.items() if head is not None and head.hugetlb}
    assert marked == huge
    folios = found.hugetlb.folios
    assert folios.is_hugetlb is not None
    assert folios.is_hugetlb.all()
    head = case.groups(list="free")[0].first_pfn
    start, data = words(case, head)
    kept = int.from_bytes(data[offset : offset + size], "little")
    wrong = kept ^ value if name == "fake-head-6.6" else 1
    case.put(start + offset, wrong, size)
    again = read_head(hvo_of(case.prog), head)
    assert again is not None
    assert again.hugetlb is False
    assert case.first()[0] == "folio-head"


@pytest.mark.parametrize("name", ALL)
def test_types_of_pages_are_named(name):
    case = Case.of(name)
    found = hvo_of(case.prog)
    kinds = {placed.group.kind: placed for placed in case.targets.plan.pages}
    wanted = {
        kinds["slab"].first_pfn: "slab",
        kinds["compound"].first_pfn: None,
        kinds["thp"].first_pfn: None,
    }
    if name not in ("fake-head-6.1", "fake-head-6.4", "5.15"):
        wanted[kinds["buddy"].first_pfn] = "buddy"
    for pfn, kind in wanted.items():
        page = page_document(found, "core", [parse_page_spec(f"pfn:0d{pfn}")])
        assert page["pages"][0]["page_type"] == kind
    # A page that is mapped once has no type, whatever the numbers of types are.
    pfn = kinds["compound"].first_pfn
    case.put(case.field(pfn, "_mapcount"), 0, 4)
    page = page_document(hvo_of(case.prog), "core", [parse_page_spec(f"pfn:0d{pfn}")])
    assert page["pages"][0]["page_type"] is None


@pytest.mark.parametrize("name", BETWEEN)
def test_the_order_is_where_that_kernel_has_it(name):
    case = Case.of(name)
    found = hvo_of(case.prog)
    offset = 64 + 17 if name == "fake-head-6.4" else 64
    compound = [
        placed
        for placed in case.targets.plan.pages
        if placed.group.kind in ("slab", "thp", "compound")
    ]
    for placed in (*case.targets.plan.huge, *compound):
        _, data = words(case, placed.first_pfn)
        head = read_head(found, placed.first_pfn)
        assert head is not None
        assert data[offset] == head.order == placed.group.order
