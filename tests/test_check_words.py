# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One wrong word
--------------

A machine is healthy but for one word, of a kind that no named fault has. The first
finding is about that word; what is not wrong, or was not read, is no finding.
"""

from pathlib import Path

import drgn
import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.errors import UsageError
from drgn_hvo.helpers.compound import compound_heads
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec, resolve_page
from drgn_hvo.synth.described.description import HugePages, Pages
from tests.damage_support import Case
from tests.overlay import Overlay, image_to_phys

WRITABLE = 2
SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"


def test_read_only_struct_pages_of_a_plain_huge_page():
    case = Case.of("shared-7.3")
    (restored,) = case.groups(origin="restored")
    entry = case.flip(case.entry(restored.first_pfn, 3), WRITABLE)
    assert case.first() == ("folio-unoptimized", entry)


def test_a_free_huge_page_that_names_another_node():
    case = Case.of("shared-7.3")
    (restored,) = case.groups(origin="restored")
    layout = hvo_of(case.prog).mmzone.flags_layout
    assert layout is not None
    node = 1 << layout.node_shift
    flags = case.flip(case.field(restored.first_pfn, "flags"), node)
    rule, place = case.first()
    assert (rule, place) == ("folio-node", flags)


def test_a_free_huge_page_on_the_list_of_another_node():
    case = Case.of("shared-7.3")
    targets = case.targets
    placed, head = targets.free_list()
    other = targets.hstate(placed.group.order, "hugepage_freelists[1]")
    first, second = (targets.lru(pfn) for pfn in placed.heads()[:2])
    own = targets.page_field(placed.first_pfn, "lru")
    # Addresses of the heads of both lists.
    here = targets.read(own + 8)
    there = here + other - head
    following = targets.read(other)
    next_own = targets.machine.page_physical(
        (following - targets.lru(0)) // targets.size
    ) + targets.page.offset("lru")
    case.put(head, second)
    case.put(targets.page_field(placed.heads()[1], "lru") + 8, here)
    case.put(other, first)
    case.put(own, following)
    case.put(own + 8, there)
    case.put(next_own + 8, first)
    flags = case.field(placed.first_pfn, "flags")
    assert case.first() == ("folio-list", flags)


@pytest.mark.parametrize("which", [{"list": "free"}, {"list": "active"}])
def test_a_list_and_the_flag_of_what_is_on_it(which):
    """HPG_freed is for free huge pages, for all of them and no others."""
    case = Case.of("shared-7.3")
    placed = case.groups(**which)[0]
    bit = hvo_of(case.prog).hugetlb.hpg_flags["freed"]
    private = case.flip(case.field(placed.first_pfn, "private"), 1 << bit)
    assert case.first() == ("folio-list", private)


def test_a_free_huge_page_that_is_used():
    case = Case.of("shared-7.3")
    (restored,) = case.groups(origin="restored")
    count = case.put(case.field(restored.first_pfn, "_refcount"), 1, 4)
    assert case.first() == ("folio-list", count)


@pytest.mark.parametrize("more", [1, -1])
def test_free_huge_pages_are_those_on_the_list(more):
    """One node counts another number than its list has, and the total agrees."""
    case = Case.of("shared-7.3")
    order = case.targets.any_folio().group.order
    for path in ("free_huge_pages", "free_huge_pages_node[0]"):
        at = case.targets.hstate(order, path)
        size = 8 if path == "free_huge_pages" else 4
        value = int.from_bytes(case.image.read(at, size), "little") + more
        case.put(at, value, size)
    assert case.first()[0] == "hstate-counters"


@pytest.mark.parametrize("is_locked", [False, True])
def test_counters_that_somebody_is_changing(is_locked):
    """Of a real kernel, whose types say where the lock is."""
    base = drgn.Program()
    base.set_core_dump(SAMPLES / "debian-7.2.kdump")
    install(base)
    pool = base["hstates"][0]
    free = pool.free_huge_pages
    patches = {
        image_to_phys(base, free.address_of_().value_()): (free.value_() + 1).to_bytes(
            8, "little"
        )
    }
    if is_locked:
        counter = base["hugetlb_lock"].rlock.raw_lock.val.counter
        patches[image_to_phys(base, counter.address_of_().value_())] = b"\1\0\0\0"
    doc = check_document(
        hvo_of(Overlay(base, patches=patches).prog), "core", CheckScope()
    )
    (finding,) = [f for f in doc["findings"] if f["rule"] == "hstate-counters"]
    assert finding["severity"] == ("warning" if is_locked else "error")


@pytest.mark.parametrize("entry", ["shared-7.1", "shared-7.3", "seed-v6"])
def test_a_shared_tail_in_memory_that_failed(entry):
    """PG_hwpoison is in the frame's own struct page."""
    case = Case.of(entry)
    tail = case.targets.tail()
    case.flip(case.field(tail.pfn, "flags"), case.flag("hwpoison"))
    assert case.first() == ("shared-tail-entry", case.targets.slot())


def test_the_first_tail():
    case = Case.of("shared-7.3")
    pfn = case.targets.optimized_head()
    word = case.put(case.field(pfn + 1, "tail_word"), 2**64 - 1 - 64 * 8)
    assert case.first() == ("folio-head", word)


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
@pytest.mark.parametrize("index", [2, 3, 4, 63])
def test_every_tail_in_the_frame_of_a_head(name, index):
    """No other struct page of that frame is wrong."""
    case = Case.of(name)
    pfn = case.targets.optimized_head() + index
    word = case.flip(case.field(pfn, "tail_word"), 1 << 20)
    assert case.first() == ("folio-tail-info", word)


@pytest.mark.parametrize("index", [64, 69, 300, 511])
def test_every_tail_of_a_plain_huge_page(index):
    case = Case.of("fake-head-6.12")
    (restored,) = case.groups(origin="restored")
    word = case.flip(case.field(restored.first_pfn + index, "tail_word"), 1 << 20)
    assert case.first() == ("folio-tail-info", word)


def make_head(case, pfn, head):
    """Give a page PG_head and order 3; the one behind it becomes a tail of *head*."""
    machine = case.targets.machine
    flags = case.flip(case.field(pfn, "flags"), case.flag("head"))
    word = machine.plan.space.page_address(head) | 1
    case.put(case.field(pfn + 1, "tail_word"), word)
    place = hvo_of(case.prog).fields.order_place
    assert place is not None
    case.put(machine.page_physical(pfn + 1) + place[0] - 64, 3, 1)
    return flags


def test_a_head_that_is_not_aligned():
    """It has PG_head, an order and a tail of its own, and is none."""
    case = Case.of("fake-head-6.12")
    pfn = case.targets.order_0_slice() + 1
    flags = make_head(case, pfn, pfn)
    assert case.first() == ("stray-head", flags)


def test_a_head_whose_tail_is_of_another():
    """It is aligned and has an order, and the tail behind it leads elsewhere."""
    case = Case.of("fake-head-6.12")
    pfn = case.targets.order_0_slice() + 8
    flags = make_head(case, pfn, pfn + 8)
    assert case.first() == ("stray-head", flags)


def test_a_tail_behind_the_end_of_its_folio():
    case = Case.of(
        "fake-head-6.12",
        pages=(
            Pages(1, "DMA32", "compound", 2, 1),
            Pages(1, "DMA32", "reserved", 0, 4),
        ),
    )
    placed = case.targets.plan.pages[0]
    head = placed.first_pfn
    word = case.targets.plan.space.page_address(head) | 1
    place = case.put(case.field(head + 4, "tail_word"), word)
    assert case.check()["findings"] == []
    assert case.first(deep=True) == ("compound-heads", place)


def test_errors_come_before_warnings():
    """Whatever rule they break: what boot left on a shared tail is a warning."""
    case = Case.of(
        "shared-7.3",
        huge_pages=(HugePages(0, "DMA32", 9, 6, origin="boot"),),
        reserved={},
    )
    case.flip(case.entry(case.groups()[0].first_pfn, 3), WRITABLE)
    findings = case.check()["findings"]
    assert [(f["rule"], f["severity"]) for f in findings] == [
        ("vmemmap-tail-writable", "error"),
        ("shared-tail-refcount", "warning"),
    ]


def give_a_frame(case, pfn):
    """Restoring begins with slice 1, which gets a frame of its own."""
    entry = case.entry(pfn, 1)
    old = int.from_bytes(case.image.read(entry, 8), "little")
    frame = case.targets.free_frame()
    return case.put(entry, old & ~(((1 << 40) - 1) << 12) | frame << 12 | WRITABLE)


@pytest.mark.parametrize("is_held", [False, True])
def test_huge_pages_in_transition_are_held_by_nobody(is_held):
    """On no list and frozen, a folio may be in either state; one in use may not."""
    case = Case.of("shared-7.3")
    (placed,) = case.groups(list="none")
    if is_held:
        case.put(case.field(placed.first_pfn, "_refcount"), 1, 4)
    entry = give_a_frame(case, placed.first_pfn)
    if is_held:
        assert case.first() == ("vmemmap-tail-frame", entry)
    else:
        doc = case.check()
        assert (doc["findings"], doc["in_transition"]) == ([], 1)


def test_huge_pages_behind_a_broken_list_are_not_in_transition():
    """They are on no list because nobody can follow it, and frozen as free ones are."""
    case = Case.of("shared-7.3", ["list-bad-pointer"])
    lists = hvo_of(case.prog).hugetlb.lists
    listed = {pfn for a_list in lists for pfn in a_list.heads}
    lost = [
        pfn
        for group in case.groups(list="free")
        if group.optimized
        for pfn in group.heads()
        if pfn not in listed
    ]
    assert lost
    entry = give_a_frame(case, lost[0])
    found = {
        (f["rule"], int(f["physical_address"], 0)) for f in case.check()["findings"]
    }
    assert ("vmemmap-tail-frame", entry) in found


def test_a_page_table_that_is_not_there_accuses_nobody():
    case = Case.of("shared-7.3")
    table = case.entry(case.targets.optimized_head(), 3) >> 12
    case.image.missing.add(table)
    doc = case.check()
    assert doc["findings"] == []
    assert not doc["complete"]


def test_a_shared_tail_of_zeros_is_not_there():
    """What an ELF core leaves out reads as zeros, and no tail is all zeros."""
    case = Case.of("shared-7.3")
    zero_frame(case, case.targets.tail().pfn)
    doc = case.check()
    assert doc["findings"] == []
    assert not doc["complete"]


def zero_frame(case, pfn):
    case.image.write(pfn << 12, bytes(4096))


def test_a_head_of_zeros_is_not_there():
    case = Case.of("shared-7.3")
    (placed,) = case.groups(list="none")
    zero_frame(case, case.targets.machine.page_physical(placed.first_pfn) >> 12)
    doc = case.check()
    assert doc["findings"] == []
    assert not doc["complete"]


def test_pages_without_struct_pages_have_no_head():
    """Where the dump lacks the frame, nothing says that a page is its own head."""
    case = Case.of("fake-head-6.12")
    pfn = case.targets.order_0_slice()
    case.image.missing.add(case.targets.machine.page_physical(pfn) >> 12)
    prog = case.prog
    heads = compound_heads(prog, range(pfn - 64, pfn + 128))
    assert heads[64:128].tolist() == [2**64 - 1] * 64
    assert (heads[:64] != 2**64 - 1).all()
    some = compound_heads(prog, np.array([pfn + 3, pfn - 1]))
    assert some.tolist() == [2**64 - 1, heads[63]]


@pytest.mark.parametrize("is_optimized", [False, True])
def test_a_back_link_that_is_damaged(is_optimized):
    case = Case.of("shared-7.3")
    (placed,) = [
        group
        for group in case.groups(list="free", node=0)
        if group.optimized == is_optimized and group.group.count > 2
    ]
    second = placed.heads()[1]
    back = case.field(second, "lru") + 8
    case.put(back, case.targets.lru(second))
    assert case.first() == ("hstate-lists", back)


def test_a_list_that_leads_back_ends():
    """Each folio in front of the wrong link is on the list once."""
    case = Case.of("shared-7.3", ["list-loop"])
    placed, _ = case.targets.free_list()
    lists = hvo_of(case.prog).hugetlb.lists
    ((heads, link),) = [(list(a.heads), a.broken.address) for a in lists if a.broken]
    assert heads == [*dict.fromkeys(heads)]
    assert link == case.targets.lru(placed.heads()[1])


@pytest.mark.parametrize("bit", [0, 3])
def test_all_page_flags_of_a_shared_tail(bit):
    """Of those that the kernel has, the highest and others."""
    case = Case.of("shared-7.3")
    count = hvo_of(case.prog).kernel.constant("__NR_PAGEFLAGS")
    assert count is not None
    word = case.flip(case.targets.tail_field("flags"), 1 << (count - 1 - bit))
    assert case.first() == ("shared-tail-flags", word)


@pytest.mark.parametrize("offset", [32, 56])
def test_words_of_a_shared_tail_that_are_nothing(offset):
    case = Case.of("shared-7.3")
    word = case.flip((case.targets.tail().pfn << 12) + 7 * 64 + offset, 1 << 33)
    assert case.first() == ("shared-tail-rest", word)


def test_huge_pages_of_two_pages_of_struct_pages():
    """Only one of them is shared; the slot says which frame that is."""
    case = Case.of(
        "shared-7.3",
        hstates=(9, 7),
        huge_pages=(
            HugePages(0, "DMA32", 9, 1),
            HugePages(0, "DMA32", 7, 3, list="none", optimized=True),
        ),
        reserved={},
    )
    (small,) = case.groups(order=7)
    folios = hvo_of(case.prog).hugetlb.folios
    assert set(small.heads()) <= set(folios.head_pfn.tolist())


def test_the_page_behind_the_last_one():
    case = Case.of("shared-7.3")
    vmemmap = hvo_of(case.prog).vmemmap
    last = vmemmap.end_pfn - 1
    assert resolve_page(vmemmap, parse_page_spec(f"pfn:0d{last}")) == last
    with pytest.raises(UsageError, match="out of range"):
        resolve_page(vmemmap, parse_page_spec(f"pfn:0d{last + 1}"))


@pytest.mark.parametrize("name", ["shared-7.1", "shared-7.3", "seed-v6"])
def test_a_shared_tail_that_was_freed(name):
    """Free, and not yet back with the buddy allocator, which would give it a type."""
    case = Case.of(name)
    case.put(case.field(case.targets.tail().pfn, "_refcount"), 0, 4)
    assert case.first() == ("shared-tail-entry", case.targets.slot())


def test_counters_beside_a_broken_list_are_not_decided():
    """Nobody knows how many huge pages are behind the link."""
    doc = Case.of("shared-7.3", ["list-bad-pointer"]).check()
    assert "hstate-counters" not in {finding["rule"] for finding in doc["findings"]}
    results = {rule["id"]: rule["result"] for rule in doc["rules"]}
    assert results["hstate-lists"] == "fail"
    assert results["hstate-counters"] == "skip"


@pytest.mark.parametrize("count", [2, 0xFFFFFFFF])
def test_another_count_than_boot_left(count):
    """Behind the known defect, which leaves 1, it has a finding and a place."""
    group = HugePages(0, "DMA32", 9, 6, origin="boot")
    case = Case.of("shared-7.3", huge_pages=(group,), reserved={})
    tail = case.targets.tail()
    refcount = hvo_of(case.prog).kernel.struct_page.require("refcount")
    address = case.put(tail.pfn * 4096 + 17 * 64 + refcount, count, 4)
    found = [
        (f["defect"], int(f["physical_address"], 0), int(f["actual"], 0))
        for f in case.check()["findings"]
        if f["rule"] == "shared-tail-refcount"
    ]
    assert (None, address, count) in found
    known = [one for one in found if one[0] == "boot-tail-refcount"]
    assert len(known) == len(found) - 1 == 1
