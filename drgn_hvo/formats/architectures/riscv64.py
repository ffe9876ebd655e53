# SPDX-License-Identifier: LGPL-2.1-or-later

"""
riscv64
-------

arch/riscv/include/asm/pgtable-bits.h and pgtable-64.h.
"""

from __future__ import annotations

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.architectures.architecture import (
    WORD,
    LinearRange,
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

_PRESENT = 1 << 0
_WRITE = 1 << 2
# Of a mapping, at least one of read, write and execute is set.
_LEAF = 0xE
# Svpbmt and Svnapot are above.
_ADDRESS = EntryAddress(mask=(1 << 54) - (1 << 10), shift=2)


def page_tables(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The tables of Sv39, Sv48 and Sv57: ``VA_BITS`` is that of the mode in use.

    There is no ``PAGE_KERNEL_RO``: shared tail pages are writable.
    """
    levels, rest = divmod(number(vmcoreinfo, "VA_BITS") - 12, 9)
    if rest or not 3 <= levels <= 5:
        raise FormatError(f"VMCOREINFO has NUMBER(VA_BITS)={12 + 9 * levels + rest}")
    root = symbol(vmcoreinfo, "swapper_pg_dir")
    root -= number(vmcoreinfo, "va_kernel_pa_offset")
    present = Bits(_PRESENT, _PRESENT)
    writable = Bits(_WRITE, _WRITE)
    upper = TableLevel(
        index_bits=9,
        present=(present,),
        writable=writable,
        address=_ADDRESS,
        table=Bits(_PRESENT | _LEAF, _PRESENT),
        table_address=_ADDRESS,
    )
    page_table = PageTableFormat(
        page_shift=12,
        levels=(
            TableLevel(9, (present,), writable, _ADDRESS),
            *(upper for _ in range(levels - 1)),
        ),
        root=root_address(root & WORD, 4096),
        protections=Protections(
            kernel=0xE7,  # valid, read, write, global, accessed, dirty
            read_only=None,
            text=0xEB,
            rodata=0xE3,
            table=_PRESENT,
            large=0,
        ),
        accessed=1 << 6,
        dirty=1 << 7,
        # _PAGE_NAPOT: 64 KiB in 16 entries that are all alike.
        napot=Bits(1 << 63, 1 << 63),
        has_user_half=True,
    )
    return (page_table,)


def linear_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    """The kernel image and the direct map, as far as VMCOREINFO tells where."""
    ranges = []
    start = vmcoreinfo.number("KERNEL_LINK_ADDR")
    offset = vmcoreinfo.number("va_kernel_pa_offset")
    if start is not None and offset is not None:
        physical = (start - offset) & WORD
        ranges.append(LinearRange("kernel image", start, 1 << 64, physical))
    page_offset = vmcoreinfo.number("PAGE_OFFSET")
    base = vmcoreinfo.number("phys_ram_base")
    if page_offset is not None and base is not None:
        # The direct map is the last thing below modules and image.
        end = vmcoreinfo.number("MODULES_VADDR") or start or 1 << 64
        ranges.append(
            LinearRange("direct map", page_offset, end, base, is_direct_map=True)
        )
    return tuple(ranges)
