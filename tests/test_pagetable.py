# SPDX-License-Identifier: LGPL-2.1-or-later

"""The walk of whole tables, against one address at a time."""

from functools import cache

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from drgn_hvo.kernel.arrays import distinct_index
from drgn_hvo.kernel.pagetables import find_entry, walk
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.synth_support import describe

PAGE = 4096
# Of vmemmap: what one entry of each level maps.
REACHES = (PAGE, 2 << 20, 1 << 30)


@cache
def machine(name: str) -> Hvo:
    return hvo_of(program(build_machine(describe(name))))


def mapped_by_walk(bound, start, end):
    found = walk(
        bound.kernel.reader,
        bound.kernel.page_table_format,
        start,
        end,
    )
    assert not found.missing
    runs = found.runs
    assert (runs.va[1:] > runs.va[:-1]).all()
    columns = (runs.va, runs.pfn, runs.count, runs.step, runs.writable)
    return {
        va + i * PAGE: (pfn + i * step, writable)
        for va, pfn, count, step, writable in zip(*(c.tolist() for c in columns))
        for i in range(count)
    }


def mapped_one_by_one(bound, start, end):
    kernel = bound.kernel
    pages = {}
    for va in range(start & -PAGE, end, PAGE):
        entry = find_entry(kernel.reader, kernel.page_table_format, va)
        if entry is not None and entry.value & 1:
            first = (entry.value & 0x000F_FFFF_FFFF_F000) >> 12
            large = (1 << 9 * entry.level) - 1
            pages[va] = (first & ~large) + (va // PAGE & large)
    return pages


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12", "plain-7.2"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_range_is_mapped_as_its_pages_are(name, data):
    bound = machine(name)
    near = st.sampled_from(REACHES).flatmap(
        lambda reach: st.integers(0, 3).map(lambda i: i * reach)
    )
    offset = data.draw(near) + data.draw(st.integers(-3 * PAGE, 3 * PAGE))
    start = bound.vmemmap.base + max(0, offset)
    end = start + data.draw(st.integers(1, 600 * PAGE))
    by_walk = mapped_by_walk(bound, start, end)
    one_by_one = mapped_one_by_one(bound, start, end)
    within = {va: pfn for va, (pfn, _) in by_walk.items() if va in one_by_one}
    assert within == one_by_one
    # A large page may reach beyond the range, nothing else may.
    for va in by_walk.keys() - one_by_one.keys():
        assert not start & -PAGE <= va < end
        assert start & -REACHES[2] <= va < -(-end // REACHES[2]) * REACHES[2]


@given(st.lists(st.integers(-3, 40)))
def test_distinct_values_and_where_they_are(values):
    found, index = distinct_index(np.array(values, dtype=np.int64))
    assert found.tolist() == sorted(set(values))
    assert found[index].tolist() == values
