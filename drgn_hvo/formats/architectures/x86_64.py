# SPDX-License-Identifier: LGPL-2.1-or-later

"""
x86-64
------

arch/x86/include/asm/pgtable_types.h.
"""

from __future__ import annotations

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.architectures.architecture import (
    LinearRange,
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
_RW = 1 << 1
_ACCESSED = 1 << 5
_DIRTY = 1 << 6
_PSE = 1 << 7
_GLOBAL = 1 << 8
_SAVED_DIRTY = 1 << 58
_NX = 1 << 63
_PFN_MASK = (1 << 52) - (1 << 12)

# __START_KERNEL_map, arch/x86/include/asm/page_64_types.h. It has not moved
# since 2.6; KASLR moves what is mapped there and says so in phys_base.
_START_KERNEL_MAP = 0xFFFFFFFF80000000


def _root(vmcoreinfo: Vmcoreinfo) -> int:
    table = vmcoreinfo.symbol("swapper_pg_dir")
    if table is None:
        table = vmcoreinfo.symbol("init_top_pgt")
    phys_base = vmcoreinfo.number("phys_base")
    if table is None or phys_base is None:
        missing = "SYMBOL(swapper_pg_dir)" if table is None else "NUMBER(phys_base)"
        raise FormatError(f"VMCOREINFO has no {missing}")
    if table < _START_KERNEL_MAP:
        raise FormatError(f"VMCOREINFO has SYMBOL(swapper_pg_dir)={table:x}")
    root = table - _START_KERNEL_MAP + phys_base
    if root < 0 or root % 4096:
        raise FormatError(f"VMCOREINFO puts the top page table at {root:#x}")
    return root


def page_tables(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The tables of x86-64, 4 or 5 levels of them.

    AMD memory encryption marks entries with a bit of the address: ``sme_mask``.
    """
    root = _root(vmcoreinfo)
    address = EntryAddress(_PFN_MASK & ~(vmcoreinfo.number("sme_mask") or 0))
    present = Bits(_PRESENT, _PRESENT)
    writable = Bits(_RW, _RW)

    def upper(*, has_mappings: bool) -> TableLevel:
        return TableLevel(
            index_bits=9,
            present=(present,),
            writable=writable,
            address=address,
            table=Bits(_PRESENT | _PSE, _PRESENT),
            table_address=address,
            table_writable=writable,
            has_mappings=has_mappings,
        )

    kernel = _NX | _GLOBAL | _PRESENT | _RW | 0x60
    read_only = _NX | _GLOBAL | _PRESENT | _ACCESSED
    more = 2 if vmcoreinfo.number("pgtable_l5_enabled") else 1
    page_table = PageTableFormat(
        page_shift=12,
        levels=(
            TableLevel(9, (present,), writable, address),
            upper(has_mappings=True),
            upper(has_mappings=True),
            *(upper(has_mappings=False) for _ in range(more)),
        ),
        root=root,
        protections=Protections(
            kernel=kernel,
            read_only=read_only,
            text=_GLOBAL | _PRESENT | _ACCESSED,
            rodata=read_only,
            table=0x67,  # _PAGE_TABLE: present, writable, user, accessed, dirty
            large=_PSE,
            write_protected=_SAVED_DIRTY,
        ),
        accessed=_ACCESSED,
        dirty=_DIRTY,
        has_user_half=True,
    )
    return (page_table,)


def linear_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    """The kernel image, whose place in physical memory phys_base tells."""
    phys_base = vmcoreinfo.number("phys_base")
    if phys_base is None:
        return ()
    # KERNEL_IMAGE_SIZE is 1 GiB at most.
    end = _START_KERNEL_MAP + (1 << 30)
    return (LinearRange("kernel image", _START_KERNEL_MAP, end, phys_base),)
