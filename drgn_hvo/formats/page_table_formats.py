# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page table formats
------------------

How the kernel page tables of each architecture are laid out, one entry each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

__all__ = (
    "PAGE_TABLE_FORMATS",
    "PageTableFormat",
)


@dataclass(frozen=True)
class PageTableFormat:
    """
    How one architecture's kernel page tables are laid out.

    :param page_shift: Of the base page size.
    :param index_bits: Of the index into each table.
    :param present: Bits of an entry that must be set.
    :param writable: Bits that a writable mapping has at every level.
    :param leaf: Bits that make an entry above the lowest level a mapping.
    :param address: Bits that hold a physical address.
    :param max_leaf_level: The highest level (0 is the lowest) with mappings.
    :param levels: How many levels this kernel uses.
    :param root: Physical address of the kernel's top table.
    :param not_address: Bits inside *address* to ignore on this machine.
    """

    page_shift: int
    index_bits: int
    present: int
    writable: int
    leaf: int
    address: int
    max_leaf_level: int
    levels: Callable[[Vmcoreinfo], int]
    root: Callable[[Vmcoreinfo], int]
    not_address: Callable[[Vmcoreinfo], int]


def _x86_64_levels(vmcoreinfo: Vmcoreinfo) -> int:
    return 5 if vmcoreinfo.number("pgtable_l5_enabled") else 4


def _x86_64_root(vmcoreinfo: Vmcoreinfo) -> int:
    # __START_KERNEL_map, arch/x86/include/asm/page_64_types.h. It has not moved
    # since 2.6; KASLR moves what is mapped there and says so in phys_base.
    start_kernel_map = 0xFFFFFFFF80000000
    table = vmcoreinfo.symbol("swapper_pg_dir")
    if table is None:
        table = vmcoreinfo.symbol("init_top_pgt")
    phys_base = vmcoreinfo.number("phys_base")
    if table is None or phys_base is None:
        missing = "SYMBOL(swapper_pg_dir)" if table is None else "NUMBER(phys_base)"
        raise FormatError(f"VMCOREINFO has no {missing}")
    if table < start_kernel_map:
        raise FormatError(f"VMCOREINFO has SYMBOL(swapper_pg_dir)={table:x}")
    root = table - start_kernel_map + phys_base
    if root < 0 or root % 4096:
        raise FormatError(f"VMCOREINFO puts the top page table at {root:#x}")
    return root


def _sme_mask(vmcoreinfo: Vmcoreinfo) -> int:
    """AMD memory encryption marks entries with a bit of the address."""
    return vmcoreinfo.number("sme_mask") or 0


#: Architectures whose page tables we walk. HVO was never enabled on arm64 and
#: s390x; riscv64 and LoongArch can have it, but drgn 0.3 cannot translate there.
PAGE_TABLE_FORMATS = {
    # arch/x86/include/asm/pgtable_types.h: _PAGE_PRESENT, _PAGE_RW, _PAGE_PSE,
    # PTE_PFN_MASK.
    "x86_64": PageTableFormat(
        page_shift=12,
        index_bits=9,
        present=1 << 0,
        writable=1 << 1,
        leaf=1 << 7,
        address=(1 << 52) - (1 << 12),
        max_leaf_level=2,
        levels=_x86_64_levels,
        root=_x86_64_root,
        not_address=_sme_mask,
    ),
}
