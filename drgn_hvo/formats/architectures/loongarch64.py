# SPDX-License-Identifier: LGPL-2.1-or-later

"""
LoongArch
---------

arch/loongarch/include/asm/pgtable-bits.h and addrspace.h.
"""

from __future__ import annotations

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.architectures.architecture import (
    LinearRange,
    base_page_shift,
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

_WRITE = 1 << 8
_PRESENT = 1 << 7
_HUGE = 1 << 6
_HUGE_GLOBAL = 1 << 12
# Direct windows, uncached and cached: the address below is physical.
_WINDOWS = (0x8000 << 48, 0x9000 << 48)
_WINDOW = (1 << 48) - 1

# By page size, CONFIG_PGTABLE_?LEVEL.
_LEVELS = {12: (3, 4), 14: (3, 2), 16: (2, 3)}


def page_tables(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The tables of LoongArch, 2 to 4 levels of them, which VMCOREINFO does not tell.

    Entries that lead to tables hold their addresses in a direct window, and those that
    are not in use the address of ``invalid_pmd_table`` or ``invalid_pte_table``. There
    is no ``PAGE_KERNEL_RO``: shared tail pages are writable.
    """
    page_shift = base_page_shift(vmcoreinfo, *_LEVELS)
    root = symbol(vmcoreinfo, "swapper_pg_dir")
    if root & ~_WINDOW not in _WINDOWS:
        raise FormatError(f"VMCOREINFO has SYMBOL(swapper_pg_dir)={root:x}")
    present = Bits(_PRESENT, _PRESENT)
    writable = Bits(_WRITE, _WRITE)
    address = EntryAddress((1 << 48) - (1 << page_shift))
    # Both windows, and no flag of a mapping.
    table = Bits(0xEFFF << 48 | 0xFFF, _WINDOWS[0])
    huge = _HUGE | _PRESENT
    upper = TableLevel(
        index_bits=page_shift - 3,
        present=(table, Bits(huge, huge)),
        writable=writable,
        address=address,
        table=table,
        table_address=EntryAddress(_WINDOW - 0xFFF),
    )
    lowest = TableLevel(page_shift - 3, (present,), writable, address)
    protections = Protections(
        kernel=0x1D3,  # valid, dirty, coherent cached, global, present, write
        read_only=None,
        text=0xD1,
        rodata=0xD1 | 1 << 62,
        table=_WINDOWS[1],
        large=_HUGE | _HUGE_GLOBAL,
    )
    return tuple(
        PageTableFormat(
            page_shift=page_shift,
            levels=(lowest, *(upper for _ in range(levels - 1))),
            root=root_address(root & _WINDOW, 1 << page_shift),
            protections=protections,
            accessed=1 << 0,
            dirty=1 << 1 | 1 << 9,
            none_is_a_table=True,
        )
        for levels in _LEVELS[page_shift]
    )


def linear_ranges(_vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    """The two direct windows: below each, an address is the physical one."""
    return tuple(
        LinearRange(
            "direct window",
            window,
            window + (1 << 48),
            0,
            is_direct_map=window == _WINDOWS[1],
            by_page_tables=False,
        )
        for window in _WINDOWS
    )
