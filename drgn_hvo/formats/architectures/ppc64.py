# SPDX-License-Identifier: LGPL-2.1-or-later

"""
ppc64 with the radix MMU
------------------------

arch/powerpc/include/asm/book3s/64/radix.h. Entries are big-endian whatever the
kernel is.
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

_PRESENT = 1 << 63
_MAPPING = 1 << 62  # _PAGE_PTE
_WRITE = 1 << 1
_KERNEL = 0xC << 60
# RADIX_PTE_INDEX_SIZE by page size; the others are the same.
_PTE_INDEX_BITS = {12: 9, 16: 5}


def page_tables(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The radix tables of ppc64. RADIX_MMU: since Linux kernel commit 36e826b568e4
    ("powerpc/vmcore: Add MMU information to vmcoreinfo") (in v6.7).
    """
    page_shift = base_page_shift(vmcoreinfo, *_PTE_INDEX_BITS)
    if not number(vmcoreinfo, "RADIX_MMU"):
        raise FormatError("the hash MMU of ppc64 has no page tables of the kernel")
    root = symbol(vmcoreinfo, "swapper_pg_dir") - _KERNEL
    present = Bits(_PRESENT, _PRESENT)
    writable = Bits(_WRITE, _WRITE)
    address = EntryAddress((1 << 53) - (1 << page_shift))
    leads = Bits(_PRESENT | _MAPPING, _PRESENT)
    bits = (_PTE_INDEX_BITS[page_shift], 9, 9, 13)
    upper = (
        TableLevel(
            index_bits=bits[level],
            present=(present,),
            writable=writable,
            address=address,
            table=leads,
            table_address=EntryAddress(WORD ^ (0xC0 << 56 | 0xFF)),
            has_mappings=level < 3,
            table_flags=bits[level - 1],
        )
        for level in (1, 2, 3)
    )
    base = _PRESENT | _MAPPING | 0x10C  # accessed, privileged, read
    page_table = PageTableFormat(
        page_shift=page_shift,
        levels=(TableLevel(bits[0], (present,), writable, address), *upper),
        root=root_address(root, 4096),
        protections=Protections(
            kernel=base | 0x82,  # dirty, write
            read_only=base,
            text=base | 0x1,
            rodata=base,
            table=_PRESENT,
            large=0,
        ),
        accessed=0x100,
        dirty=0x80,
        entry_byteorder="big",
    )
    return (page_table,)


def linear_ranges(_vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    """The direct map, which the radix MMU has at PAGE_OFFSET in every kernel."""
    # PAGE_OFFSET up to KERN_MAP_START.
    return (LinearRange("direct map", _KERNEL, 0xC008 << 48, 0, is_direct_map=True),)
