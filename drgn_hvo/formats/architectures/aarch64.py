# SPDX-License-Identifier: LGPL-2.1-or-later

"""
arm64
-----

arch/arm64/include/asm/pgtable-hwdef.h and pgtable-prot.h.
"""

from __future__ import annotations

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.architectures.architecture import (
    WORD,
    LinearRange,
    base_page_shift,
    number,
    root_address,
    symbol,
)
from drgn_hvo.formats.page_table_formats import (
    Bits,
    EntryAddress,
    PageTableFormat,
    Protections,
    TableLevel,
)
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

__all__ = ("linear_ranges", "page_tables")

_VALID = 1 << 0
_TABLE = 1 << 1  # of an entry of the lowest level, a page
_READ_ONLY = 1 << 7  # AP[2]
_ACCESSED = 1 << 10
_TABLE_READ_ONLY = 1 << 62  # APTable[1]


def _va_bits(vmcoreinfo: Vmcoreinfo, page_shift: int) -> int:
    """
    How many bits of an address the tables decide about.

    A kernel for 52 bits falls back to 48 (16K pages: 47) on hardware without LPA2, with
    one level less; with 64K pages, the tables stay as they are. See Linux kernel commit
    0dd4f60a2c76 ("arm64: mm: Add support for folding PUDs at runtime") (in v6.9).
    """
    bits = number(vmcoreinfo, "VA_BITS")
    t1sz = vmcoreinfo.number("TCR_EL1_T1SZ")
    if page_shift != 16 and t1sz:
        bits = 64 - t1sz
    if not page_shift < bits <= 52:
        raise FormatError(f"VMCOREINFO says that addresses have {bits} bits")
    return bits


def _address(page_shift: int, va_bits: int) -> EntryAddress:
    """
    Where descriptors have bits 48 to 51 of an address: with 64K pages in bits that the
    address does not need, with LPA2 in those of shareability.
    """
    low = (1 << 48) - (1 << page_shift)
    if page_shift == 16:
        return EntryAddress(low, high_mask=0xF000, high_shift=36)
    if va_bits == 52:
        return EntryAddress(low | 3 << 48, high_mask=0x300, high_shift=42)
    return EntryAddress(low)


def page_tables(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """The tables of arm64: 4K, 16K and 64K pages, 36 to 52 bits of address."""
    page_shift = base_page_shift(vmcoreinfo, 12, 14, 16)
    va_bits = _va_bits(vmcoreinfo, page_shift)
    address = _address(page_shift, va_bits)
    root = symbol(vmcoreinfo, "swapper_pg_dir")
    root -= number(vmcoreinfo, "kimage_voffset")
    writable = Bits(_READ_ONLY, 0)
    page = Bits(_VALID | _TABLE, _VALID | _TABLE)
    bits = page_shift - 3
    index_bits = [bits] * ((va_bits - page_shift) // bits)
    if (va_bits - page_shift) % bits:
        index_bits.append((va_bits - page_shift) % bits)
    # Blocks of 1 GiB with 4K pages, else of one level above pages; LPA2 adds one.
    blocks = (2 if page_shift == 12 else 1) + (va_bits == 52 and page_shift != 16)
    upper = (
        TableLevel(
            index_bits=n,
            present=(Bits(_VALID, _VALID),),
            writable=writable,
            address=address,
            table=page,
            table_address=address,
            table_writable=Bits(_TABLE_READ_ONLY, 0),
            has_mappings=level <= blocks,
        )
        for level, n in enumerate(index_bits[1:], 1)
    )
    shareable = 0 if va_bits == 52 and page_shift != 16 else 0x300
    kernel = 0xE8 << 48 | _ACCESSED | shareable | 3
    read_only = 0x60 << 48 | _ACCESSED | shareable | 3 | _READ_ONLY
    page_table = PageTableFormat(
        page_shift=page_shift,
        levels=(TableLevel(index_bits[0], (page,), writable, address), *upper),
        root=root_address(root & WORD, 1 << page_shift),
        protections=Protections(
            kernel=kernel,
            read_only=read_only,
            text=read_only & ~(1 << 53),  # PTE_PXN
            rodata=read_only,
            table=3,
            large=0,
            not_large=_TABLE,
        ),
        accessed=_ACCESSED,
        dirty=1 << 55,
    )
    return (page_table,)


def linear_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    """The kernel image and the direct map, as far as VMCOREINFO tells where."""
    ranges = []
    stext = vmcoreinfo.symbol("_stext")
    voffset = vmcoreinfo.number("kimage_voffset")
    if stext is not None and voffset is not None:
        # The image begins in front of _stext, by SEGMENT_ALIGN.
        start = stext & -(2 << 20)
        physical = (start - voffset) & WORD
        ranges.append(LinearRange("kernel image", start, start + (1 << 28), physical))
    bits, base = vmcoreinfo.number("VA_BITS"), vmcoreinfo.number("PHYS_OFFSET")
    if bits is not None and 36 <= bits <= 52 and base is not None:
        # _PAGE_OFFSET(VA_BITS) and PAGE_END.
        start = (1 << 64) - (1 << bits)
        end = (1 << 64) - (1 << (min(bits, 48) - 1))
        ranges.append(
            LinearRange("direct map", start, end, base & WORD, is_direct_map=True)
        )
    return tuple(ranges)
