# SPDX-License-Identifier: LGPL-2.1-or-later

"""
How often frames are read
-------------------------

A program whose memory counts its readers: an audit reads each frame of vmemmap once
for all rules.
"""

from collections import Counter

from drgn import Architecture, Object, Platform, Program
import numpy as np
import pytest

from drgn_hvo import PageHuge, compound_head, page_to_nid, page_zonenum
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.kernel import frames as memory
from drgn_hvo.kernel.arrays import joined, without
from drgn_hvo.kernel.pagetables import find_entry
from drgn_hvo.memmap import heads
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.described.description import HugePages
from drgn_hvo.synth.machine.machine import build_machine
from tests.overlay import Overlay
from tests.synth_support import ALL, describe


def counting_program(machine, *, is_live=False):
    """As containers.program(), with a counter of reads by PFN."""
    reads: Counter[int] = Counter()

    def read(address, count, offset, physical):
        reads.update(range(address // 4096, (address + count - 1) // 4096 + 1))
        return machine.image.read(address, count)

    prog = Program(Platform(Architecture.X86_64))
    for start, end in machine.image.memory:
        prog.add_memory_segment(start * 4096, (end - start) * 4096, read, True)
    prog.set_linux_kernel_custom(machine.vmcoreinfo, is_live)
    return prog, reads


def vmemmap_frames(bound):
    runs = bound.vmemmap.runs
    return {
        pfn + i * step
        for pfn, count, step in zip(
            *(a.tolist() for a in (runs.pfn, runs.count, runs.step))
        )
        for i in range(count)
    }


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", [name for name in ALL if "odd-size" not in name])
def test_each_frame_of_vmemmap_is_read_once(name, deep):
    prog, reads = counting_program(build_machine(describe(name)))
    bound = hvo_of(prog)
    assert check_document(bound, "core", CheckScope(deep=deep))["status"] == "clean"
    frames = vmemmap_frames(bound)
    assert reads.keys() & frames
    assert {pfn for pfn in frames if reads[pfn] > 1} == set()


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12", "seed-v5"])
def test_heads_are_read_once_on_a_machine_of_any_size(name, monkeypatch):
    """Without the store of small reads, which a large machine outgrows."""
    monkeypatch.setattr(memory, "_SMALL_READ", 0)
    pages = (HugePages(0, "DMA32", 9, 60), HugePages(1, "DMA32", 9, 20, list="active"))
    machine = build_machine(describe(name, huge_pages=pages, pages=()))
    prog, reads = counting_program(machine)
    bound = hvo_of(prog)
    # These look at samples.
    assert bound.layout
    assert bound.mmzone.flags_layout
    assert bound.shared_tails is not None
    reads.clear()
    assert check_document(bound, "core", CheckScope())["status"] == "clean"
    folios = bound.hugetlb.folios
    assert len(folios) == 80
    assert {reads[pfn] for pfn in folios.head_frame.tolist()} == {1}


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12", "seed-v5"])
@pytest.mark.parametrize("helper", [page_to_nid, page_zonenum, compound_head, PageHuge])
def test_helpers_read_a_running_kernel_no_more_than_a_core(name, helper):
    """What no running kernel changes is read once: then a page costs a page."""
    machine = build_machine(describe(name))
    counts = []
    for is_live in (False, True):
        prog, reads = counting_program(machine, is_live=is_live)
        pages = [
            Object(prog, "struct page *", hvo_of(prog).vmemmap.page_address(pfn))
            for pfn in hvo_of(prog).hugetlb.folios.head_pfn[:2].tolist()
        ]
        helper(pages[0])
        reads.clear()
        helper(pages[1])
        counts.append(sum(reads.values()))
    core, live = counts
    assert 0 < core <= live <= 2 * core


def numbers(starts, ends):
    return {i for a, b in zip(starts.tolist(), ends.tolist()) for i in range(a, b)}


def test_ranges_are_joined_and_taken_out():
    random = np.random.default_rng(1)
    for _ in range(300):
        some, others = (
            (starts, starts + random.integers(0, 6, len(starts)))
            for starts in (random.integers(0, 30, random.integers(0, 6)) for _ in "12")
        )
        whole, holes = joined(*some), joined(*others)
        assert numbers(*whole) == numbers(*some)
        assert (whole[0][1:] > whole[1][:-1]).all()
        assert numbers(*without(*whole, holes)) == numbers(*some) - numbers(*others)


def heads_of(bound):
    chunks = bound.heads.range(0, bound.vmemmap.end_pfn)
    return np.concatenate(list(chunks))


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12", "plain-7.2"])
def test_heads_do_not_depend_on_which_frames_the_struct_pages_lie_in(name, monkeypatch):
    """Two frames change places, with what they hold: no head may change."""
    # A chunk that has no frame twice is a case of its own.
    monkeypatch.setattr(heads, "_SLICES_PER_CHUNK", 8)
    base = program(build_machine(describe(name)))
    bound = hvo_of(base)
    kernel, folios = bound.kernel, bound.hugetlb.folios
    assert kernel.page_table_format is not None
    own = np.flatnonzero((folios.shared_ptes == 0) & (folios.slices == 8))
    start = bound.vmemmap.page_address(int(folios.head_pfn[own[0]]))
    patches = {}
    entries = [
        find_entry(kernel.reader, kernel.page_table_format, va)
        for va in (start, start + 5 * 4096)
    ]
    for entry, other in zip(entries, entries[::-1]):
        assert entry is not None
        assert other is not None
        assert entry.level == other.level == 0
        patches[entry.address] = other.value.to_bytes(8, "little")
        frame, onto = (e.value & 0x000F_FFFF_FFFF_F000 for e in (entry, other))
        patches[onto] = base.read(frame, 4096, physical=True)
    permuted = hvo_of(Overlay(base, patches=patches).prog)
    index, _ = permuted.vmemmap.frames(
        np.arange(start, start + 8 * 4096, 4096) // 4096 - permuted.vmemmap.base // 4096
    )
    assert (np.diff(index) < 0).any(), "frames are out of order"
    assert np.array_equal(heads_of(permuted), heads_of(bound))


def test_pieces_are_everything_once_in_order():
    random = np.random.default_rng(2)
    for _ in range(300):
        gaps = random.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, 7], random.integers(0, 3000))
        pfns = np.cumsum(gaps)
        pieces = list(memory._pieces(pfns))
        places = [i for first, last in pieces for i in range(first, last)]
        assert places == list(range(len(pfns)))
        assert all(0 < last - first <= memory._STREAMED for first, last in pieces)
