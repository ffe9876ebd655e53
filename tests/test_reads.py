# SPDX-License-Identifier: LGPL-2.1-or-later

"""
How often frames are read
-------------------------

A program whose memory counts its readers: an audit reads each frame of vmemmap once
for all rules.
"""

from collections import Counter

from drgn import Architecture, Platform, Program
import numpy as np
import pytest

from drgn_hvo import memory
from drgn_hvo.hvo import hvo
from drgn_hvo.memory import joined, without
from drgn_hvo.report.check import CheckScope, check_document
from drgn_hvo.synth.description import HugePages
from drgn_hvo.synth.machine import build_machine
from tests.synth_support import ALL, describe


def counting_program(machine):
    """As containers.program(), with a counter of reads by PFN."""
    reads: Counter[int] = Counter()

    def read(address, count, offset, physical):
        reads.update(range(address // 4096, (address + count - 1) // 4096 + 1))
        return machine.image.read(address, count)

    prog = Program(Platform(Architecture.X86_64))
    for start, end in machine.image.memory:
        prog.add_memory_segment(start * 4096, (end - start) * 4096, read, True)
    prog.set_linux_kernel_custom(machine.vmcoreinfo, False)
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
    bound = hvo(prog)
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
    bound = hvo(prog)
    # These look at samples.
    assert bound.layout
    assert bound.mmzone.flags_layout
    assert bound.shared_tails is not None
    reads.clear()
    assert check_document(bound, "core", CheckScope())["status"] == "clean"
    folios = bound.hugetlb.folios
    assert len(folios) == 80
    assert {reads[pfn] for pfn in folios.head_frame.tolist()} == {1}


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
