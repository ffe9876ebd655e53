# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Architectures
-------------

What differs from architecture to architecture, one entry each in
:data:`ARCHITECTURES`; the reader and the generator use the same. What an entry lacks,
or cannot make of a kernel's VMCOREINFO, is a capability that is missing there: the
rest still works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.machine_models import MODELS, MachineModel
from drgn_hvo.formats.page_table_formats import (
    Bits,
    EntryAddress,
    PageTableFormat,
    Protections,
    TableLevel,
)
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

__all__ = ("ARCHITECTURES", "Architecture", "LinearRange")

_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class LinearRange:
    """
    Kernel addresses whose physical address is computed, without page tables.

    :param name: What is there.
    :param start: First address.
    :param end: End (exclusive).
    :param physical: Physical address behind *start*.
    :param is_direct_map: Whether all memory is there.
    :param by_page_tables: Whether page tables map it, too.
    """

    name: str
    start: int
    end: int
    physical: int
    is_direct_map: bool = False
    by_page_tables: bool = True


@dataclass(frozen=True)
class Architecture:
    """
    A port of the kernel.

    :param elf_machine: ``e_machine`` of its core files.
    :param page_tables: Makes the format of a kernel's page tables from VMCOREINFO; if
        that does not tell all, every format that it can be. Raises
        :exc:`~drgn_hvo.errors.FormatError` if VMCOREINFO lacks what is needed, or
        cannot be right.
    :param linear_ranges: What is mapped linearly, as far as VMCOREINFO tells.
    :param model: How machines of it are made up.
    :param illegal_pointer_value: ``CONFIG_ILLEGAL_POINTER_VALUE``, which no type
        records.
    :param lowest_kernel_address: Below it are those of processes; 0 where the kernel
        has an address space of its own.
    """

    elf_machine: int
    page_tables: Callable[[Vmcoreinfo], tuple[PageTableFormat, ...]]
    linear_ranges: Callable[[Vmcoreinfo], tuple[LinearRange, ...]]
    model: MachineModel
    illegal_pointer_value: int = 0xDEAD << 48
    lowest_kernel_address: int = 1 << 63


def _symbol(vmcoreinfo: Vmcoreinfo, name: str) -> int:
    value = vmcoreinfo.symbol(name)
    if value is None:
        raise FormatError(f"VMCOREINFO has no SYMBOL({name})")
    return value


def _number(vmcoreinfo: Vmcoreinfo, name: str) -> int:
    value = vmcoreinfo.number(name)
    if value is None:
        raise FormatError(f"VMCOREINFO has no NUMBER({name})")
    return value


def _page_shift(vmcoreinfo: Vmcoreinfo, *possible: int) -> int:
    size = vmcoreinfo.integer("PAGESIZE") or 0
    shift = size.bit_length() - 1
    if size != 1 << max(shift, 0) or shift not in possible:
        raise FormatError(f"VMCOREINFO has PAGESIZE={size}, which cannot be here")
    return shift


def _root(root: int, size: int) -> int:
    """The physical address of a top table, if it can be that."""
    if not 0 <= root < 1 << 56 or root % min(size, 4096):
        raise FormatError(f"VMCOREINFO puts the top page table at {root:#x}")
    return root


# x86-64: arch/x86/include/asm/pgtable_types.h.

_X86_PRESENT = 1 << 0
_X86_RW = 1 << 1
_X86_ACCESSED = 1 << 5
_X86_DIRTY = 1 << 6
_X86_PSE = 1 << 7
_X86_GLOBAL = 1 << 8
_X86_SAVED_DIRTY = 1 << 58
_X86_NX = 1 << 63
_X86_PFN_MASK = (1 << 52) - (1 << 12)

# __START_KERNEL_map, arch/x86/include/asm/page_64_types.h. It has not moved
# since 2.6; KASLR moves what is mapped there and says so in phys_base.
_START_KERNEL_MAP = 0xFFFFFFFF80000000


def _x86_64_root(vmcoreinfo: Vmcoreinfo) -> int:
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


def _x86_64(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The tables of x86-64, 4 or 5 levels of them.

    AMD memory encryption marks entries with a bit of the address: ``sme_mask``.
    """
    root = _x86_64_root(vmcoreinfo)
    address = EntryAddress(_X86_PFN_MASK & ~(vmcoreinfo.number("sme_mask") or 0))
    present = Bits(_X86_PRESENT, _X86_PRESENT)
    writable = Bits(_X86_RW, _X86_RW)

    def upper(*, has_mappings: bool) -> TableLevel:
        return TableLevel(
            index_bits=9,
            present=(present,),
            writable=writable,
            address=address,
            table=Bits(_X86_PRESENT | _X86_PSE, _X86_PRESENT),
            table_address=address,
            table_writable=writable,
            has_mappings=has_mappings,
        )

    kernel = _X86_NX | _X86_GLOBAL | _X86_PRESENT | _X86_RW | 0x60
    read_only = _X86_NX | _X86_GLOBAL | _X86_PRESENT | _X86_ACCESSED
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
            text=_X86_GLOBAL | _X86_PRESENT | _X86_ACCESSED,
            rodata=read_only,
            table=0x67,  # _PAGE_TABLE: present, writable, user, accessed, dirty
            large=_X86_PSE,
            write_protected=_X86_SAVED_DIRTY,
        ),
        accessed=_X86_ACCESSED,
        dirty=_X86_DIRTY,
        has_user_half=True,
    )
    return (page_table,)


def _x86_64_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    phys_base = vmcoreinfo.number("phys_base")
    if phys_base is None:
        return ()
    # KERNEL_IMAGE_SIZE is 1 GiB at most.
    end = _START_KERNEL_MAP + (1 << 30)
    return (LinearRange("kernel image", _START_KERNEL_MAP, end, phys_base),)


# riscv64: arch/riscv/include/asm/pgtable-bits.h and pgtable-64.h.

_RISCV_PRESENT = 1 << 0
_RISCV_WRITE = 1 << 2
# Of a mapping, at least one of read, write and execute is set.
_RISCV_LEAF = 0xE
# Svpbmt and Svnapot are above.
_RISCV_ADDRESS = EntryAddress(mask=(1 << 54) - (1 << 10), shift=2)


def _riscv64(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The tables of Sv39, Sv48 and Sv57: ``VA_BITS`` is that of the mode in use.

    There is no ``PAGE_KERNEL_RO``: shared tail pages are writable.
    """
    levels, rest = divmod(_number(vmcoreinfo, "VA_BITS") - 12, 9)
    if rest or not 3 <= levels <= 5:
        raise FormatError(f"VMCOREINFO has NUMBER(VA_BITS)={12 + 9 * levels + rest}")
    root = _symbol(vmcoreinfo, "swapper_pg_dir")
    root -= _number(vmcoreinfo, "va_kernel_pa_offset")
    present = Bits(_RISCV_PRESENT, _RISCV_PRESENT)
    writable = Bits(_RISCV_WRITE, _RISCV_WRITE)
    upper = TableLevel(
        index_bits=9,
        present=(present,),
        writable=writable,
        address=_RISCV_ADDRESS,
        table=Bits(_RISCV_PRESENT | _RISCV_LEAF, _RISCV_PRESENT),
        table_address=_RISCV_ADDRESS,
    )
    page_table = PageTableFormat(
        page_shift=12,
        levels=(
            TableLevel(9, (present,), writable, _RISCV_ADDRESS),
            *(upper for _ in range(levels - 1)),
        ),
        root=_root(root & _WORD, 4096),
        protections=Protections(
            kernel=0xE7,  # valid, read, write, global, accessed, dirty
            read_only=None,
            text=0xEB,
            rodata=0xE3,
            table=_RISCV_PRESENT,
            large=0,
        ),
        accessed=1 << 6,
        dirty=1 << 7,
        # _PAGE_NAPOT: 64 KiB in 16 entries that are all alike.
        napot=Bits(1 << 63, 1 << 63),
        has_user_half=True,
    )
    return (page_table,)


def _riscv64_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    ranges = []
    start = vmcoreinfo.number("KERNEL_LINK_ADDR")
    offset = vmcoreinfo.number("va_kernel_pa_offset")
    if start is not None and offset is not None:
        physical = (start - offset) & _WORD
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


# LoongArch: arch/loongarch/include/asm/pgtable-bits.h and addrspace.h.

_LOONGARCH_WRITE = 1 << 8
_LOONGARCH_PRESENT = 1 << 7
_LOONGARCH_HUGE = 1 << 6
_LOONGARCH_HUGE_GLOBAL = 1 << 12
# Direct windows, uncached and cached: the address below is physical.
_LOONGARCH_WINDOWS = (0x8000 << 48, 0x9000 << 48)
_LOONGARCH_WINDOW = (1 << 48) - 1

# By page size, CONFIG_PGTABLE_?LEVEL.
_LOONGARCH_LEVELS = {12: (3, 4), 14: (3, 2), 16: (2, 3)}


def _loongarch64(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The tables of LoongArch, 2 to 4 levels of them, which VMCOREINFO does not tell.

    Entries that lead to tables hold their addresses in a direct window, and those that
    are not in use the address of ``invalid_pmd_table`` or ``invalid_pte_table``. There
    is no ``PAGE_KERNEL_RO``: shared tail pages are writable.
    """
    page_shift = _page_shift(vmcoreinfo, *_LOONGARCH_LEVELS)
    root = _symbol(vmcoreinfo, "swapper_pg_dir")
    if root & ~_LOONGARCH_WINDOW not in _LOONGARCH_WINDOWS:
        raise FormatError(f"VMCOREINFO has SYMBOL(swapper_pg_dir)={root:x}")
    present = Bits(_LOONGARCH_PRESENT, _LOONGARCH_PRESENT)
    writable = Bits(_LOONGARCH_WRITE, _LOONGARCH_WRITE)
    address = EntryAddress((1 << 48) - (1 << page_shift))
    # Both windows, and no flag of a mapping.
    table = Bits(0xEFFF << 48 | 0xFFF, _LOONGARCH_WINDOWS[0])
    huge = _LOONGARCH_HUGE | _LOONGARCH_PRESENT
    upper = TableLevel(
        index_bits=page_shift - 3,
        present=(table, Bits(huge, huge)),
        writable=writable,
        address=address,
        table=table,
        table_address=EntryAddress(_LOONGARCH_WINDOW - 0xFFF),
    )
    lowest = TableLevel(page_shift - 3, (present,), writable, address)
    protections = Protections(
        kernel=0x1D3,  # valid, dirty, coherent cached, global, present, write
        read_only=None,
        text=0xD1,
        rodata=0xD1 | 1 << 62,
        table=_LOONGARCH_WINDOWS[1],
        large=_LOONGARCH_HUGE | _LOONGARCH_HUGE_GLOBAL,
    )
    return tuple(
        PageTableFormat(
            page_shift=page_shift,
            levels=(lowest, *(upper for _ in range(levels - 1))),
            root=_root(root & _LOONGARCH_WINDOW, 1 << page_shift),
            protections=protections,
            accessed=1 << 0,
            dirty=1 << 1 | 1 << 9,
            none_is_a_table=True,
        )
        for levels in _LOONGARCH_LEVELS[page_shift]
    )


def _loongarch64_ranges(_vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    return tuple(
        LinearRange(
            "direct window",
            window,
            window + (1 << 48),
            0,
            is_direct_map=window == _LOONGARCH_WINDOWS[1],
            by_page_tables=False,
        )
        for window in _LOONGARCH_WINDOWS
    )


# arm64: arch/arm64/include/asm/pgtable-hwdef.h and pgtable-prot.h.

_ARM64_VALID = 1 << 0
_ARM64_TABLE = 1 << 1  # of an entry of the lowest level, a page
_ARM64_READ_ONLY = 1 << 7  # AP[2]
_ARM64_ACCESSED = 1 << 10
_ARM64_TABLE_READ_ONLY = 1 << 62  # APTable[1]


def _arm64_va_bits(vmcoreinfo: Vmcoreinfo, page_shift: int) -> int:
    """
    How many bits of an address the tables decide about.

    A kernel for 52 bits falls back to 48 (16K pages: 47) on hardware without LPA2, with
    one level less; with 64K pages, the tables stay as they are. See Linux kernel commit
    0dd4f60a2c76 ("arm64: mm: Add support for folding PUDs at runtime") (in v6.9).
    """
    bits = _number(vmcoreinfo, "VA_BITS")
    t1sz = vmcoreinfo.number("TCR_EL1_T1SZ")
    if page_shift != 16 and t1sz:
        bits = 64 - t1sz
    if not page_shift < bits <= 52:
        raise FormatError(f"VMCOREINFO says that addresses have {bits} bits")
    return bits


def _arm64_address(page_shift: int, va_bits: int) -> EntryAddress:
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


def _arm64(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """The tables of arm64: 4K, 16K and 64K pages, 36 to 52 bits of address."""
    page_shift = _page_shift(vmcoreinfo, 12, 14, 16)
    va_bits = _arm64_va_bits(vmcoreinfo, page_shift)
    address = _arm64_address(page_shift, va_bits)
    root = _symbol(vmcoreinfo, "swapper_pg_dir")
    root -= _number(vmcoreinfo, "kimage_voffset")
    writable = Bits(_ARM64_READ_ONLY, 0)
    page = Bits(_ARM64_VALID | _ARM64_TABLE, _ARM64_VALID | _ARM64_TABLE)
    bits = page_shift - 3
    index_bits = [bits] * ((va_bits - page_shift) // bits)
    if (va_bits - page_shift) % bits:
        index_bits.append((va_bits - page_shift) % bits)
    # Blocks of 1 GiB with 4K pages, else of one level above pages; LPA2 adds one.
    blocks = (2 if page_shift == 12 else 1) + (va_bits == 52 and page_shift != 16)
    upper = (
        TableLevel(
            index_bits=n,
            present=(Bits(_ARM64_VALID, _ARM64_VALID),),
            writable=writable,
            address=address,
            table=page,
            table_address=address,
            table_writable=Bits(_ARM64_TABLE_READ_ONLY, 0),
            has_mappings=level <= blocks,
        )
        for level, n in enumerate(index_bits[1:], 1)
    )
    shareable = 0 if va_bits == 52 and page_shift != 16 else 0x300
    kernel = 0xE8 << 48 | _ARM64_ACCESSED | shareable | 3
    read_only = 0x60 << 48 | _ARM64_ACCESSED | shareable | 3 | _ARM64_READ_ONLY
    page_table = PageTableFormat(
        page_shift=page_shift,
        levels=(TableLevel(index_bits[0], (page,), writable, address), *upper),
        root=_root(root & _WORD, 1 << page_shift),
        protections=Protections(
            kernel=kernel,
            read_only=read_only,
            text=read_only & ~(1 << 53),  # PTE_PXN
            rodata=read_only,
            table=3,
            large=0,
            not_large=_ARM64_TABLE,
        ),
        accessed=_ARM64_ACCESSED,
        dirty=1 << 55,
    )
    return (page_table,)


def _arm64_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    ranges = []
    stext = vmcoreinfo.symbol("_stext")
    voffset = vmcoreinfo.number("kimage_voffset")
    if stext is not None and voffset is not None:
        # The image begins in front of _stext, by SEGMENT_ALIGN.
        start = stext & -(2 << 20)
        physical = (start - voffset) & _WORD
        ranges.append(LinearRange("kernel image", start, start + (1 << 28), physical))
    bits, base = vmcoreinfo.number("VA_BITS"), vmcoreinfo.number("PHYS_OFFSET")
    if bits is not None and 36 <= bits <= 52 and base is not None:
        # _PAGE_OFFSET(VA_BITS) and PAGE_END.
        start = (1 << 64) - (1 << bits)
        end = (1 << 64) - (1 << (min(bits, 48) - 1))
        ranges.append(
            LinearRange("direct map", start, end, base & _WORD, is_direct_map=True)
        )
    return tuple(ranges)


# s390x: arch/s390/include/asm/pgtable.h. Tables of segments and regions fill four
# pages, those of pages half of one.

_S390X_LARGE = 0x400
_S390X_PROTECT = 0x200
_S390X_REGION_INVALID = 0x20
_S390X_PAGE_INVALID = 0x400
_S390X_TYPE = 0xC
_S390X_LENGTH = 0x3
_S390X_SEGMENT_PRESENT = 0x1


def _s390x_offset(vmcoreinfo: Vmcoreinfo) -> int:
    """
    How far the kernel image is above its physical address.

    Since Linux kernel commit c98d2ecae08f ("s390/mm: Uncouple physical vs virtual
    address spaces") (in v6.10) that can be any; before, both are equal.
    """
    physical = vmcoreinfo.integer("KERNELOFFPHYS", 16)
    if physical is None:
        return 0
    return (vmcoreinfo.integer("KERNELOFFSET", 16) or 0) - physical


def _s390x_upper(index: int, mask: int) -> TableLevel:
    """
    A table of segments (*index* 0) or regions, whose entries tell their type.

    :param mask: Of the address of the table that an entry leads to.
    """
    kind = index << 2
    # All entries of region tables lead to tables of full length.
    invalid = _S390X_REGION_INVALID | _S390X_TYPE
    return TableLevel(
        index_bits=11,
        present=(Bits(invalid, kind),),
        writable=Bits(_S390X_PROTECT, 0),
        address=EntryAddress(_WORD ^ 0xFFF),
        table=Bits(invalid | _S390X_LARGE, kind),
        table_address=EntryAddress(_WORD ^ mask),
        table_writable=Bits(_S390X_PROTECT, 0),
        has_mappings=index < 2,
        table_flags=kind | (_S390X_LENGTH if index else _S390X_SEGMENT_PRESENT),
        mapping_flags=kind,
    )


def _s390x(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """The tables of s390x, below a region-third, -second or -first table."""
    root = _symbol(vmcoreinfo, "swapper_pg_dir") - _s390x_offset(vmcoreinfo)
    present = Bits(_S390X_PAGE_INVALID, 0)
    writable = Bits(_S390X_PROTECT, 0)
    return tuple(
        PageTableFormat(
            page_shift=12,
            levels=(
                TableLevel(8, (present,), writable, EntryAddress(_WORD ^ 0xFFF)),
                _s390x_upper(0, 0x7FF),
                *(_s390x_upper(index, 0xFFF) for index in range(1, regions + 1)),
            ),
            root=_root(root, 4096),
            protections=Protections(
                kernel=0x13D,  # present, read, write, young, dirty, noexec
                read_only=0x311,
                text=0x211,
                rodata=0x311,
                table=0,
                # Read, write, dirty, young: other bits than those of pages.
                large=_S390X_LARGE | 0x3003,
                not_large=0x3D,
                empty=(
                    _S390X_PAGE_INVALID,
                    *(_S390X_REGION_INVALID | index << 2 for index in range(4)),
                ),
            ),
            accessed=0x4,
            dirty=0x8,
        )
        for regions in (1, 2, 3)
    )


def _s390x_ranges(vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    ranges = []
    stext = vmcoreinfo.symbol("_stext")
    offset = _s390x_offset(vmcoreinfo)
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


# ppc64 with the radix MMU: arch/powerpc/include/asm/book3s/64/radix.h. Entries are
# big-endian whatever the kernel is.

_PPC64_PRESENT = 1 << 63
_PPC64_MAPPING = 1 << 62  # _PAGE_PTE
_PPC64_WRITE = 1 << 1
_PPC64_KERNEL = 0xC << 60
# RADIX_PTE_INDEX_SIZE by page size; the others are the same.
_PPC64_PTE_INDEX_BITS = {12: 9, 16: 5}


def _ppc64(vmcoreinfo: Vmcoreinfo) -> tuple[PageTableFormat, ...]:
    """
    The radix tables of ppc64. RADIX_MMU: since Linux kernel commit 36e826b568e4
    ("powerpc/vmcore: Add MMU information to vmcoreinfo") (in v6.7).
    """
    page_shift = _page_shift(vmcoreinfo, *_PPC64_PTE_INDEX_BITS)
    if not _number(vmcoreinfo, "RADIX_MMU"):
        raise FormatError("the hash MMU of ppc64 has no page tables of the kernel")
    root = _symbol(vmcoreinfo, "swapper_pg_dir") - _PPC64_KERNEL
    present = Bits(_PPC64_PRESENT, _PPC64_PRESENT)
    writable = Bits(_PPC64_WRITE, _PPC64_WRITE)
    address = EntryAddress((1 << 53) - (1 << page_shift))
    leads = Bits(_PPC64_PRESENT | _PPC64_MAPPING, _PPC64_PRESENT)
    bits = (_PPC64_PTE_INDEX_BITS[page_shift], 9, 9, 13)
    upper = (
        TableLevel(
            index_bits=bits[level],
            present=(present,),
            writable=writable,
            address=address,
            table=leads,
            table_address=EntryAddress(_WORD ^ (0xC0 << 56 | 0xFF)),
            has_mappings=level < 3,
            table_flags=bits[level - 1],
        )
        for level in (1, 2, 3)
    )
    base = _PPC64_PRESENT | _PPC64_MAPPING | 0x10C  # accessed, privileged, read
    page_table = PageTableFormat(
        page_shift=page_shift,
        levels=(TableLevel(bits[0], (present,), writable, address), *upper),
        root=_root(root, 4096),
        protections=Protections(
            kernel=base | 0x82,  # dirty, write
            read_only=base,
            text=base | 0x1,
            rodata=base,
            table=_PPC64_PRESENT,
            large=0,
        ),
        accessed=0x100,
        dirty=0x80,
        entry_byteorder="big",
    )
    return (page_table,)


def _ppc64_ranges(_vmcoreinfo: Vmcoreinfo) -> tuple[LinearRange, ...]:
    # PAGE_OFFSET up to KERN_MAP_START.
    return (
        LinearRange("direct map", _PPC64_KERNEL, 0xC008 << 48, 0, is_direct_map=True),
    )


#: By drgn's name for it, in lower case.
ARCHITECTURES: dict[str, Architecture] = {
    "x86_64": Architecture(62, _x86_64, _x86_64_ranges, MODELS["x86_64"]),
    "riscv64": Architecture(243, _riscv64, _riscv64_ranges, MODELS["riscv64"]),
    "loongarch64": Architecture(
        258,
        _loongarch64,
        _loongarch64_ranges,
        MODELS["loongarch64"],
        illegal_pointer_value=0,
    ),
    "aarch64": Architecture(183, _arm64, _arm64_ranges, MODELS["aarch64"]),
    "s390x": Architecture(
        22, _s390x, _s390x_ranges, MODELS["s390x"], lowest_kernel_address=0
    ),
    "ppc64": Architecture(
        21,
        _ppc64,
        _ppc64_ranges,
        MODELS["ppc64"],
        illegal_pointer_value=0x5DEADBEEF << 28,
    ),
}
