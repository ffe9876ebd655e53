# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Bits of page table entries
--------------------------

Every bit of an entry of vmemmap that is no part of its address, and is not what the
processor or HVO changes, is that of its siblings, at all levels.
"""

import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.kernel.entry_bits import EntryBitsWatch
from drgn_hvo.kernel.translation import entries_to
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from tests.synth_support import describe


def check(machine):
    return check_document(hvo_of(program(machine)), "core", CheckScope())


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_each_bit_at_each_level(name, level):
    machine, _ = make_machine(describe(name))
    bound = hvo_of(program(machine))
    page_table = bound.kernel.page_table_format
    assert page_table is not None
    head = int(bound.hugetlb.folios.head_pfn[0])
    reader = bound.kernel.reader
    way = entries_to(
        reader.read_bytes,
        page_table,
        reader.byteorder,
        bound.vmemmap.page_address(head),
    )
    (entry,) = (e for e in way if e is not None and e.level == level)
    shared = page_table.shared_bits(level, is_mapping=level == 0)
    # The rest of the audit is about what is not there at all.
    present = page_table.levels[level].present[0].mask
    bits = [bit for bit in range(64) if (shared & ~present) >> bit & 1]
    assert {2, 3, 4, 8, 63} <= set(bits)
    for bit in bits:
        if level > 1 and bit == 7:
            continue  # a mapping of all of vmemmap, or none: it has no siblings
        value = entry.value ^ 1 << bit
        machine.image.write(entry.address, value.to_bytes(8, "little"))
        doc = check(machine)
        first = doc["findings"][0]
        assert first["rule"] == "vmemmap-entry-bits", bit
        assert int(first["physical_address"], 0) == entry.address
        assert int(first["actual"], 0) == value
        if bit != 7:  # which makes a large mapping of a table
            assert int(first["expected"], 0) == entry.value
            assert len(doc["findings"]) == 1
    machine.image.write(entry.address, entry.value.to_bytes(8, "little"))
    assert check(machine)["findings"] == []


@pytest.mark.parametrize("bit", [1, 5, 6, 58])
def test_what_the_processor_and_HVO_change(bit):
    """Of a slice that a folio has to itself, none of these says anything here."""
    machine, _ = make_machine(describe("shared-7.3"))
    pfn = hvo_of(program(machine)).hugetlb.folios.head_pfn[0]
    entry = machine.slice_entry(int(pfn))
    value = int.from_bytes(machine.image.read(entry, 8), "little") ^ 1 << bit
    machine.image.write(entry, value.to_bytes(8, "little"))
    rules = {finding["rule"] for finding in check(machine)["findings"]}
    assert "vmemmap-entry-bits" not in rules


@pytest.mark.parametrize("cut", [0, 1, 20, 50, 100])
def test_what_is_seen_in_two_parts(cut):
    """As where other processes read some of the page tables."""
    machine, _ = make_machine(describe("shared-7.3"))
    page_table = hvo_of(program(machine)).kernel.page_table_format
    assert page_table is not None
    usual, user, uncached = 0x8000000000000163, 0x8000000000000167, 0x8000000000000173
    values = np.array(
        [usual] * 45 + [user] * 25 + [uncached] * 3 + [usual] * 27, dtype=np.uint64
    )
    addresses = np.arange(len(values), dtype=np.uint64) << np.uint64(12)
    whole, first, second = (EntryBitsWatch(page_table) for _ in range(3))
    whole.look(0, values, addresses)
    for part, place in ((first, slice(cut)), (second, slice(cut, None))):
        if len(values[place]):
            part.look(0, values[place], addresses[place])
    first.add(second)
    assert first.odd() == whole.odd()
    assert sorted(odd.count for odd in whole.odd()) == [3, 25]
