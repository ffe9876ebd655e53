# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Samples in memory, and where what can be left out of them lies.
"""

from functools import lru_cache
from pathlib import Path

from drgn.helpers.linux.mm import follow_phys

from drgn_hvo.kernel.pagetables import find_entry
from drgn_hvo.memmap.hvo import hvo_of
from tools.holes import Dump

__all__ = ("a_folio", "dump_of", "frame_of", "table_of")

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"


@lru_cache(maxsize=2)
def dump_of(name):
    """A sample, and what is known of all of it."""
    dump = Dump(str(SAMPLES / f"{name}.kdump"))
    return dump, hvo_of(dump.program())


def a_folio(known, name="free"):
    """The last folio of the first list of a kind, and that list."""
    found = known.hugetlb
    wanted = next(one for one in found.lists if str(one).startswith(name))
    return int(wanted.heads[-1]), wanted


def frame_of(known, address):
    """The frame that holds a virtual address."""
    prog = known.kernel.prog
    return follow_phys(prog["init_mm"].address_of_(), address).value_() >> 12


def table_of(known, pfn):
    """The frame of the page table that maps the struct page of a page."""
    slice_ = pfn * known.vmemmap.size // known.vmemmap.page_size
    address = known.vmemmap.base + slice_ * known.vmemmap.page_size
    page_table = known.kernel.page_table_format
    assert page_table is not None
    entry = find_entry(known.kernel.reader, page_table, address)
    assert entry is not None
    return entry.address >> 12
