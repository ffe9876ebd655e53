# SPDX-License-Identifier: LGPL-2.1-or-later

"""
s390x
-----

arch/s390/include/asm/pgtable.h. Tables of segments and regions fill four pages,
those of pages half of one.
"""

from __future__ import annotations

from drgn_hvo.formats.architectures.architecture import (
    WORD,
    LinearRange,
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

_LARGE = 0x400
_PROTECT = 0x200
_REGION_INVALID = 0x20
_PAGE_INVALID = 0x400
_TYPE = 0xC
_LENGTH = 0x3
_SEGMENT_PRESENT = 0x1


def _offset(vmcoreinfo: Vmcoreinfo) -> int:
    """
    How far the kernel image is above its physical address.

    Since Linux kernel commit c98d2ecae08f ("s390/mm: Uncouple physical vs virtual
    address spaces") (in v6.10) that can be any; before, both are equal.
    """
    physical = vmcoreinfo.integer("KERNELOFFPHYS", 16)
    if physical is None:
        return 0
    return (vmcoreinfo.integer("KERNELOFFSET", 16) or 0) - physical


def _upper(index: int, mask: int) -> TableLevel:
    """
    A table of segments (*index* 0) or regions, whose entries tell their type.

    :param mask: Of the address of the table that an entry leads to.
    """
    kind = index << 2
    # All entries of region tables lead to tables of full length.
    invalid = _REGION_INVALID | _TYPE
    return TableLevel(
        index_bits=11,
        present=(Bits(invalid, kind),),
        writable=Bits(_PROTECT, 0),
        address=EntryAddress(WORD ^ 0xFFF),
        table=Bits(invalid | _LARGE, kind),
        table_address=EntryAddress(WORD ^ mask),
        table_writable=Bits(_PROTECT, 0),
        has_mappings=index < 2,
        table_flags=kind | (_LENGTH if index else _SEGMENT_PRESENT),
        mapping_flags=kind,
    )


def page_tables(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """The tables of s390x, below a region-third, -second or -first table."""
    root = symbol(vmcoreinfo, "swapper_pg_dir") - _offset(vmcoreinfo)
    present = Bits(_PAGE_INVALID, 0)
    writable = Bits(_PROTECT, 0)
    return tuple(
        PageTableFormat(
            page_shift=12,
            levels=(
                TableLevel(8, (present,), writable, EntryAddress(WORD ^ 0xFFF)),
                _upper(0, 0x7FF),
                *(_upper(index, 0xFFF) for index in range(1, regions + 1)),
            ),
            root=root_address(root, 4096),
            protections=Protections(
                kernel=0x13D,  # present, read, write, young, dirty, noexec
                read_only=0x311,
                text=0x211,
                rodata=0x311,
                table=0,
                # Read, write, dirty, young: other bits than those of pages.
                large=_LARGE | 0x3003,
                not_large=0x3D,
                empty=(
                    _PAGE_INVALID,
                    *(_REGION_INVALID | index << 2 for index in range(4)),
                ),
            ),
            accessed=0x4,
            dirty=0x8,
        )
        for regions in (1, 2, 3)
    )


def linear_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    """The kernel image, and the direct map: the identity, from IDENTITYBASE on."""
    ranges = []
    stext = vmcoreinfo.symbol("_stext")
    offset = _offset(vmcoreinfo)
    if stext is not None and offset:
        start = stext & -(1 << 20)
        ranges.append(
            LinearRange("kernel image", start, start + (1 << 29), start - offset)
        )
    # Ends where vmemmap begins, or below: that is in the upper half of 4 TiB.
    base = vmcoreinfo.integer("IDENTITYBASE", 16) or 0
    end = vmcoreinfo.symbol("vmemmap") or vmcoreinfo.number("VMALLOC_START") or 1 << 41
    if base < end:
        ranges.append(LinearRange("identity mapping", base, end, 0, is_direct_map=True))
    return tuple(ranges)
