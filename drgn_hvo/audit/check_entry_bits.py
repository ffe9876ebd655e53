# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Bits of page table entries of vmemmap
-------------------------------------

Who may use a mapping and how it is cached, which is the same for all of vmemmap.
"""

from __future__ import annotations

from drgn_hvo.audit import subjects
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding, Place, Spot
from drgn_hvo.kernel.entry_bits import OddEntries
from drgn_hvo.kernel.translation import entries_to

__all__ = ("check_entry_bits",)


def check_entry_bits(context: Context) -> None:
    """Decide ``vmemmap-entry-bits``."""
    for odd in context.vmemmap.odd_entries:
        for i, address in enumerate(odd.addresses):
            if not _is_within(context, odd, address):
                continue
            is_last = i == len(odd.addresses) - 1
            folded = odd.count - len(odd.addresses) if is_last else 0
            _add(context, odd, address, folded)


def _is_within(context: Context, odd: OddEntries, address: int) -> bool:
    """Whether an entry maps any of the slices that are looked at."""
    page_table = context.kernel.page_table_format
    if context.within is None or page_table is None:
        return True
    first = (address - context.vmemmap.base) // context.page_size
    inside = context.within >= first
    inside &= context.within < first + page_table.pages(odd.level)
    return bool(inside.any())


def _add(context: Context, odd: OddEntries, address: int, folded: int) -> None:
    kernel = context.kernel
    page_table = kernel.page_table_format
    assert page_table is not None, "there are entries"
    reader = kernel.reader
    way = entries_to(reader.read_bytes, page_table, reader.byteorder, address)
    entry = next((e for e in way if e is not None and e.level == odd.level), None)
    if entry is None:
        return  # a running kernel has changed it
    pfn = (address - context.vmemmap.base) // context.size
    what = "entry" if not odd.level else f"entry of level {odd.level}"
    context.audit.add(
        Finding(
            "vmemmap-entry-bits",
            f"the page table {what} for the struct pages of PFN {pfn} on has bits "
            f"{odd.bits:#x}, its siblings have {odd.expected:#x}",
            subjects.EntryBits(entry.address),
            folded=folded,
            affected=0,
            place=Place().at(Spot(address, entry.address), pfn=max(pfn, 0)),
            expected=entry.value & ~odd.mask | odd.expected,
            actual=entry.value,
        )
    )
