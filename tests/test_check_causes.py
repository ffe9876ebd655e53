# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The word that is wrong comes first
----------------------------------

One word is changed that contradicts others which are right; the first finding is at its
address, with the value that it had, and what follows from it points there.
"""

from pathlib import Path

import pytest

from drgn_hvo.audit.context import Context
from drgn_hvo.audit.defects import BOOT_TAIL_REFCOUNT
from drgn_hvo.audit.findings import Audit
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.kernel.target import open_target
from drgn_hvo.kernel.translation import entries_to
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.pools import FREE_LIST
from tests.damage_support import Case
from tests.overlay import Overlay

SHARED = ("shared-7.1", "shared-7.3", "seed-v5", "seed-v6")
SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
WRITABLE, PRESENT = 2, 1


def first(case):
    findings = case.check()["findings"]
    place = int(findings[0]["physical_address"], 0)
    return findings, place


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("step", [1, -1])
def test_a_slot_that_is_off_by_one_frame(name, step):
    """Whatever lies in the next frame, the folios of that order agree on another."""
    case = Case.of(name)
    found = hvo_of(case.prog)
    tail, array = found.shared_tails[0], found.layout.tails.array
    assert array is not None
    size = 1 if array.element == "pfn" else 64
    place = Context(found, Audit()).translate(tail.slot)
    case.put(place, tail.value + step * size)
    findings, at = first(case)
    assert (findings[0]["rule"], at) == ("shared-tail-entry", place)
    assert int(findings[0]["expected"], 0) == tail.value
    assert [f["caused_by"] for f in findings[1:]] == [0] * (len(findings) - 1)
    assert len(findings) == 2


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("nr_huge_pages", 8),
        ("nr_huge_pages_node[0]", 4),
        ("nr_huge_pages_node[1]", 4),
        ("free_huge_pages", 8),
        ("free_huge_pages_node[0]", 4),
        ("free_huge_pages_node[1]", 4),
        ("surplus_huge_pages", 8),
        ("surplus_huge_pages_node[0]", 4),
    ],
)
@pytest.mark.parametrize("more", [1, -1])
def test_a_counter_that_is_off_by_one(path, size, more):
    """Lists, nodes and totals say the same but for one."""
    case = Case.of("shared-7.3")
    place = case.targets.hstate(case.targets.any_folio().group.order, path)
    right = int.from_bytes(case.image.read(place, size), "little")
    case.put(place, right + more & (1 << 8 * size) - 1, size)
    findings, at = first(case)
    finding = findings[0]
    assert (finding["rule"], at) == ("hstate-counters", place)
    assert (int(finding["expected"], 0), int(finding["actual"], 0)) == (
        right,
        right + more,
    )


def table_entry(case, level):
    """The physical address of an entry above the lowest, on the way to a folio."""
    kernel = hvo_of(case.prog).kernel
    page_table = kernel.page_table_format
    assert page_table is not None
    head = case.groups(optimized=None, list="free")[0].first_pfn
    address = case.targets.plan.space.page_address(head)
    read = kernel.reader.read_bytes
    for entry in entries_to(read, page_table, "little", address):
        if entry is not None and entry.level == level:
            return entry.address
    raise AssertionError(level)


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12", "seed-v5"])
@pytest.mark.parametrize("level", [1, 2])
def test_a_table_that_allows_no_writes(name, level):
    """Not the entries below it, which are as they should be, are to blame."""
    case = Case.of(name)
    place = case.flip(table_entry(case, level), WRITABLE)
    findings, at = first(case)
    finding = findings[0]
    assert (finding["rule"], at) == ("vmemmap-head-frame", place)
    expected, actual = int(finding["expected"], 0), int(finding["actual"], 0)
    assert expected ^ actual == WRITABLE
    assert finding["affected"] > 1
    assert sum(f["rule"] == "vmemmap-head-frame" for f in findings) == 1


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
def test_a_table_that_is_not_there(name):
    case = Case.of(name)
    place = case.flip(table_entry(case, 1), PRESENT)
    findings, at = first(case)
    assert (findings[0]["rule"], at) == ("vmemmap-head-frame", place)


@pytest.mark.parametrize("name", ["shared-7.3", "seed-v5", "seed-v6"])
def test_a_node_that_is_offline_keeps_its_tails(name):
    """They are listed as before, and what is wrong with one is found."""
    case = Case.of(name)
    before = hvo_of(case.prog)
    prog = before.kernel.prog
    online = prog["node_states"][prog["N_ONLINE"]].bits[0]
    place = Context(before, Audit()).translate(online.address_)
    case.put(place, online.value_() & ~2)
    after = hvo_of(case.prog)
    assert after.mmzone.online_nids == {0}
    assert after.shared_tails == before.shared_tails
    assert {tail.nid for tail in after.shared_tails} == {0, 1}
    names = [
        [one.mmzone.zone_name(t.nid, t.zone_index or 0) for t in one.shared_tails]
        for one in (before, after)
    ]
    assert names[0] == names[1]
    assert case.check()["status"] == "clean"
    tail = next(tail for tail in after.shared_tails if tail.nid == 1)
    assert tail.pfn is not None
    word = case.flip(tail.pfn * 4096 + 7 * 64 + 8, 1)
    findings, at = first(case)
    assert (findings[0]["rule"], at) == ("shared-tail-info", word)


def test_reference_counts_of_a_part_follow_from_those_of_the_whole():
    """
    A free huge page that a gigantic one from boot was demoted to has the reference
    counts of the shared tail page as its own: one story, with the tail page first.
    """
    base = open_target(str(SAMPLES / "shared-7.3-boot-1g.kdump"))
    bound = hvo_of(base)
    folios, refcount = (
        bound.hugetlb.folios,
        bound.kernel.struct_page.require("refcount"),
    )
    free = (folios.order == 9) & (folios.on_list == FREE_LIST)
    frame = int(folios.head_frame[free.argmax()]) * 4096
    one = (1).to_bytes(4, "little")
    patches = {frame + 64 * i + refcount: one for i in range(64)}
    overlay = Overlay(base, patches=patches)
    doc = check_document(hvo_of(overlay.prog), "core", CheckScope())
    stories = {(f["rule"], f["defect"]): f["caused_by"] for f in doc["findings"]}
    assert stories == {
        ("shared-tail-refcount", BOOT_TAIL_REFCOUNT): None,
        ("folio-tail-refcount", BOOT_TAIL_REFCOUNT): 0,
        ("folio-list", BOOT_TAIL_REFCOUNT): 0,
    }
