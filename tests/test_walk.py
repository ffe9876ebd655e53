# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page tables made by hand, and what their entries say together: a dictionary of pages
that is filled while the tables are written, with the permissions of all levels.
"""

import random

import drgn
import numpy as np
import pytest

from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.pagetables import find_entry, walk

PAGE = 4096
ROOT = 0x5000
# SYMBOL(swapper_pg_dir) is in the kernel image, which phys_base moves.
NOTE = f"SYMBOL(swapper_pg_dir)={0xFFFFFFFF80000000 + ROOT:x}\nNUMBER(phys_base)=0\n"
FORMAT = ARCHITECTURES["x86_64"].page_tables(Vmcoreinfo(NOTE.encode()))[0]
START = 0xFFFFEA0000000000
PRESENT, WRITE, LARGE = 1, 2, 0x80


class Memory:
    """Frames that are tables; others the dump does not have."""

    def __init__(self):
        self.tables = {ROOT // PAGE: [0] * 512}
        self.missing = set()
        self.prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        self.prog.add_memory_segment(0, 1 << 40, self._read, True)

    def _read(self, address, count, offset, physical):
        data = b""
        first = address // PAGE
        for pfn in range(first, (address + count + PAGE - 1) // PAGE):
            if pfn in self.missing or pfn not in self.tables:
                raise drgn.FaultError("not in this dump", pfn * PAGE)
            words = self.tables[pfn]
            data += b"".join(word.to_bytes(8, "little") for word in words)
        return data[address % PAGE :][:count]

    def table(self, pfn):
        return self.tables.setdefault(pfn, [0] * 512)

    @property
    def reader(self):
        return FrameReader(self.prog, PAGE)

    def walk(self, start, end):
        return walk(self.reader, FORMAT, start, end)


def mapped(runs):
    """PFN and permission by address."""
    columns = (runs.va, runs.pfn, runs.count, runs.step, runs.writable)
    return {
        va + i * PAGE: (pfn + i * step, writable)
        for va, pfn, count, step, writable in zip(*(c.tolist() for c in columns))
        for i in range(count)
    }


def index(va, level):
    return va >> (12 + 9 * level) & 511


def tree(memory, chance):
    """Three 2 MiB stretches of pages, with any permission at any level."""
    expected = {}
    top = memory.table(ROOT // PAGE)
    p4_write, p3_write = chance.choice((0, WRITE)), chance.choice((0, WRITE))
    top[index(START, 3)] = 0x6000 | PRESENT | p4_write
    memory.table(6)[index(START, 2)] = 0x7000 | PRESENT | p3_write
    memory.table(7)
    above = p4_write and p3_write
    kinds = chance.choices(("table", "large", "none"), k=3)
    if set(kinds) == {"none"}:
        # A table that maps nothing reads as one that was left out.
        kinds[1] = "table"
    for i, kind in enumerate(kinds):
        va = START + (i << 21)
        p2_write = chance.choice((0, WRITE))
        if kind == "none":
            continue
        if kind == "large":
            memory.table(7)[i] = (512 * (i + 1) << 12) | PRESENT | LARGE | p2_write
            for page in range(512):
                expected[va + page * PAGE] = (
                    512 * (i + 1) + page,
                    bool(above and p2_write),
                )
            continue
        memory.table(7)[i] = (8 + i << 12) | PRESENT | p2_write
        pfn = 100
        for page in range(512):
            # Frames that follow each other, the same one again, holes.
            pfn += chance.choice((0, 0, 1, 1, 1, 7))
            write = chance.choice((0, WRITE, WRITE, WRITE))
            if chance.random() < 0.1:
                continue
            memory.table(8 + i)[page] = pfn << 12 | PRESENT | write
            expected[va + page * PAGE] = (pfn, bool(above and p2_write and write))
    return expected


@pytest.mark.parametrize("seed", range(24))
def test_pages_are_mapped_as_all_levels_say_together(seed):
    memory, chance = Memory(), random.Random(seed)
    expected = tree(memory, chance)
    # In front of the range and behind it there is something, too.
    first, last = chance.randrange(0, 300), chance.randrange(700, 1536)
    start, end = START + first * PAGE, START + last * PAGE
    found = memory.walk(start, end)
    assert found.missing == ()
    pages = mapped(found.runs)
    assert {va: pages[va] for va in pages if start <= va < end} == {
        va: page for va, page in expected.items() if start <= va < end
    }
    # Only large pages reach beyond the range.
    runs = found.runs
    small = runs.va[runs.level == 0]
    assert all(start <= va < end for va in small.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_one_entry_is_what_decides(seed):
    memory, chance = Memory(), random.Random(seed)
    expected = tree(memory, chance)
    for va in [START + page * PAGE for page in range(0, 1536, 37)]:
        entry = find_entry(memory.reader, FORMAT, va)
        assert entry is not None
        assert bool(entry.value & PRESENT) == (va in expected)
        table, at = divmod(entry.address, PAGE)
        assert memory.tables[table][at // 8] == entry.value


@pytest.mark.parametrize("level", [3, 2, 1])
def test_what_is_not_there_ends_at_its_level(level):
    """An upper entry without the present bit leads nowhere, whatever else it holds."""
    memory = Memory()
    tables = [0x5000, 0x6000, 0x7000, 0x8000]
    for depth, table in enumerate(tables[:-1]):
        place = index(START, 3 - depth)
        memory.table(table // PAGE)[place] = tables[depth + 1] | PRESENT | WRITE
    memory.table(8)[0] = 0x9000 | PRESENT | WRITE
    table = tables[3 - level] // PAGE
    memory.tables[table][index(START, level)] &= ~PRESENT
    entry = find_entry(memory.reader, FORMAT, START)
    assert entry is not None
    assert entry.level == level
    assert len(memory.walk(START, START + PAGE).runs) == 0


def test_a_table_that_the_dump_lacks_is_no_hole():
    memory = Memory()
    tree(memory, random.Random(0))
    memory.table(7)[0] = 0x8000 | PRESENT | WRITE
    memory.table(8)[5] = 0x123000 | PRESENT
    memory.missing.add(8)
    found = memory.walk(START, START + (1 << 21))
    ((address, start, end, reason),) = [
        (t.address, t.start, t.end, t.reason) for t in found.missing
    ]
    assert (address, start, end) == (0x8000, START, START + (1 << 21))
    assert reason == "not in this dump"
    assert find_entry(memory.reader, FORMAT, START + 5 * PAGE) is None


def test_tables_that_lead_back_to_themselves_are_left_out():
    """Each is walked once, and it is said which were not."""
    memory = Memory()
    memory.table(ROOT // PAGE)[index(START, 3)] = 0x6000 | PRESENT | WRITE
    memory.table(6)[0] = 0x7000 | PRESENT | WRITE
    memory.table(6)[1] = 0x7000 | PRESENT | WRITE
    memory.table(7)[0] = 0x8000 | PRESENT | WRITE
    memory.table(8)[0] = 0x9000 | PRESENT | WRITE
    found = memory.walk(START, START + (2 << 30))
    assert mapped(found.runs) == {START: (9, True)}
    ((address, start, reason),) = [
        (t.address, t.start, t.reason) for t in found.missing
    ]
    assert (address, start, reason) == (0x7000, START + (1 << 30), "named twice")


@pytest.mark.parametrize("gone", [[0], [6], [11], [2, 3, 4], [0, 11]])
def test_a_missing_frame_takes_no_neighbour_with_it(gone):
    memory = Memory()
    for pfn in range(100, 112):
        memory.table(pfn)[0] = pfn
    memory.missing.update(100 + i for i in gone)
    frames = memory.reader.read(np.arange(100, 112, dtype=np.int64))
    assert np.flatnonzero(~frames.present).tolist() == gone
    first = frames.data.view("<u8")[:, 0].tolist()
    assert first == [0 if i in gone else 100 + i for i in range(12)]
