# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Machines of each architecture
-----------------------------

Where the kernel of an architecture has what, and what it says of that in VMCOREINFO:
the part of an entry of :data:`~drgn_hvo.formats.architectures.ARCHITECTURES` that is
for making machines up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Optional

from drgn_hvo.formats.byteorder import ByteOrder

__all__ = ("MODELS", "KernelLayout", "MachineModel", "MadeKernel")

_GIB = 1 << 30


@dataclass(frozen=True)
class KernelLayout:
    """
    Where a kernel has what, before KASLR moves it.

    :param text: Where its image is linked; ``None`` if it runs where the direct map
        has it.
    :param page_offset: The direct map.
    :param vmemmap: Where struct pages begin.
    :param memory_bits: How many bits physical addresses can have at most, so that the
        direct map ends below whatever follows.
    """

    text: Optional[int]
    page_offset: int
    vmalloc: int
    vmemmap: int
    memory_bits: int


@dataclass(frozen=True)
class MadeKernel:
    """
    What is known of a kernel that was made up: addresses, for VMCOREINFO.

    :param text: Where its image is, and *text_physical* where that is in memory.
    :param ram_base: Physical address behind *page_offset*.
    :param vmemmap_start: Where the first struct page of memory can be.
    :param kernel_offset: How far KASLR moved the image.
    """

    levels: int
    page_shift: int
    text: int
    text_physical: int
    page_offset: int
    ram_base: int
    vmalloc: int
    vmemmap: int
    vmemmap_start: int
    kernel_offset: int
    swapper_pg_dir: int
    node_data: int
    max_numnodes: int
    max_pfn: int


def _variables(made: MadeKernel) -> list[tuple[str, int, str]]:
    return [("max_pfn", made.max_pfn, "Q")]


@dataclass(frozen=True)
class MachineModel:
    """
    Machines of one architecture.

    :param uname: What ``uname -m`` says.
    :param prstatus_size: ``sizeof(struct elf_prstatus)``, the registers of a processor
        in a dump: 112 bytes, ``elf_gregset_t``, and ``pr_fpvalid``.
    :param layouts: By page shift and levels of page tables; the usual ones come first.
    :param notes: The lines of VMCOREINFO that only this architecture has.
    :param variables: Name, value and :mod:`struct` format of variables that tell where
        memory is.
    :param root_size: Bytes of the top page table, if that is more than a page.
    :param section_size_bits: ``SECTION_SIZE_BITS``, by page shift.
    :param max_physmem_bits: ``MAX_PHYSMEM_BITS``, by levels; ``None``: all others.
    :param vmemmap_begins_with_memory: Unless masks want it aligned, vmemmap begins with
        the struct page of the first page of memory, so that that of PFN 0 lies below.
    :param huge_orders: Orders of huge pages, by page shift.
    :param ram_base_is_mapped: The direct map begins with the first page of memory, not
        with PFN 0.
    :param max_folio_order: ``MAX_FOLIO_ORDER`` by page shift, where there are no
        gigantic pages.
    :param percpu_symbols: ``CONFIG_KALLSYMS_ABSOLUTE_PERCPU``, up to v6.14.
    :param kaslr: What of a description may move the kernel.
    :param dedups_devices: ``ARCH_WANT_OPTIMIZE_DAX_VMEMMAP``.
    """

    uname: str
    prstatus_size: int
    layouts: dict[tuple[int, int], KernelLayout]
    notes: Callable[[MadeKernel], list[str]]
    huge_orders: dict[int, tuple[int, ...]]
    section_size_bits: dict[int, int]
    max_physmem_bits: dict[Optional[int], int]
    variables: Callable[[MadeKernel], list[tuple[str, int, str]]] = _variables
    root_size: int = 0
    byteorder: ByteOrder = "little"
    vmemmap_begins_with_memory: bool = False
    ram_base_is_mapped: bool = False
    max_folio_order: Mapping[int, int] = field(default_factory=dict)
    percpu_symbols: bool = False
    kaslr: tuple[str, ...] = ("kernel_offset",)
    dedups_devices: bool = False

    def physmem_bits(self, levels: int) -> int:
        """``MAX_PHYSMEM_BITS``."""
        bits = self.max_physmem_bits.get(levels)
        return self.max_physmem_bits[None] if bits is None else bits

    @property
    def page_shifts(self) -> tuple[int, ...]:
        """The page sizes that there are, the usual one first."""
        return tuple(dict.fromkeys(shift for shift, _ in self.layouts))

    def levels(self, page_shift: int) -> tuple[int, ...]:
        """The levels of page tables that there are, the usual number first."""
        return tuple(n for shift, n in self.layouts if shift == page_shift)


# arch/x86/include/asm/page_64_types.h and pgtable_64_types.h.


# __START_KERNEL_map, and CONFIG_PHYSICAL_START behind it.
_X86_64_TEXT = 0xFFFFFFFF80000000 + (16 << 20)
_X86_64_LAYOUTS = {
    (12, 4): KernelLayout(
        _X86_64_TEXT, 0xFFFF888000000000, 0xFFFFC90000000000, 0xFFFFEA0000000000, 45
    ),
    (12, 5): KernelLayout(
        _X86_64_TEXT, 0xFF11000000000000, 0xFFA0000000000000, 0xFFD4000000000000, 48
    ),
}


def _x86_64_phys_base(made: MadeKernel) -> int:
    return made.text_physical - (made.text - 0xFFFFFFFF80000000)


def _x86_64_notes(made: MadeKernel) -> list[str]:
    return [
        f"NUMBER(phys_base)={_x86_64_phys_base(made)}",
        f"SYMBOL(init_top_pgt)={made.swapper_pg_dir:x}",
        f"NUMBER(pgtable_l5_enabled)={int(made.levels == 5)}",
        f"SYMBOL(node_data)={made.node_data:x}",
        f"LENGTH(node_data)={made.max_numnodes}",
        f"KERNELOFFSET={made.kernel_offset:x}",
        "NUMBER(KERNEL_IMAGE_SIZE)=1073741824",
        "NUMBER(sme_mask)=0",
    ]


def _x86_64_variables(made: MadeKernel) -> list[tuple[str, int, str]]:
    return [
        ("vmemmap_base", made.vmemmap, "Q"),
        ("page_offset_base", made.page_offset, "Q"),
        ("vmalloc_base", made.vmalloc, "Q"),
        ("phys_base", _x86_64_phys_base(made), "q"),
        ("sme_me_mask", 0, "Q"),
        ("max_pfn", made.max_pfn, "Q"),
        ("__pgtable_l5_enabled", int(made.levels == 5), "I"),
        ("pgdir_shift", 12 + 9 * (made.levels - 1), "I"),
        ("ptrs_per_p4d", 512 if made.levels == 5 else 1, "I"),
    ]


# arch/riscv/include/asm/pgtable.h and kernel/vmcore_info.c.


_RISCV64_TEXT = 0xFFFFFFFF80000000
_RISCV64_LAYOUTS = {
    (12, 3): KernelLayout(
        _RISCV64_TEXT, 0xFFFFFFD600000000, 0xFFFFFFC600000000, 0xFFFFFFC500000000, 36
    ),
    (12, 4): KernelLayout(
        _RISCV64_TEXT, 0xFFFFAF8000000000, 0xFFFF8F8000000000, 0xFFFF8D8000000000, 45
    ),
    (12, 5): KernelLayout(
        _RISCV64_TEXT, 0xFF60000000000000, 0xFF20000000000000, 0xFF1C000000000000, 54
    ),
}


def _riscv64_notes(made: MadeKernel) -> list[str]:
    offset = made.text - made.text_physical
    link = made.text - made.kernel_offset
    satp = {3: 8, 4: 9, 5: 10}[made.levels] << 60
    satp |= (made.swapper_pg_dir - offset) >> 12
    return [
        f"NUMBER(phys_ram_base)={made.ram_base}",
        f"NUMBER(PAGE_OFFSET)={made.page_offset:#x}",
        f"NUMBER(VMALLOC_END)={made.page_offset:#x}",
        f"NUMBER(VA_BITS)={12 + 9 * made.levels}",
        f"NUMBER(VMEMMAP_START)={made.vmemmap_start:#x}",
        f"NUMBER(VMEMMAP_END)={made.vmalloc:#x}",
        f"NUMBER(MODULES_VADDR)={link - 2 * _GIB + (32 << 20):#x}",
        f"NUMBER(MODULES_END)={link:#x}",
        f"NUMBER(KERNEL_LINK_ADDR)={link:#x}",
        f"NUMBER(va_kernel_pa_offset)={offset % (1 << 64):#x}",
        f"KERNELOFFSET={made.kernel_offset:x}",
        f"NUMBER(satp)={satp:#x}",
    ]


# arch/loongarch/include/asm/pgtable.h; VMCOREINFO has nothing of its own there.


_LOONGARCH64_LAYOUTS = {
    (14, 3): KernelLayout(
        None, 0x9000 << 48, 0xFFFF800082008000, 0xFFFFFEFFFE000000, 40
    ),
    (12, 3): KernelLayout(
        None, 0x9000 << 48, 0xFFFFFFC000000000, 0xFFFFFFFD00000000, 40
    ),
    (16, 2): KernelLayout(
        None, 0x9000 << 48, 0xFFFFFC0000000000, 0xFFFFFFF000000000, 40
    ),
}


def _loongarch64_notes(_made: MadeKernel) -> list[str]:
    return []


# arch/arm64/include/asm/memory.h and kernel/vmcore_info.c.


# CONFIG_ARM64_VA_BITS by page shift and levels; that of 52 bits has LPA2, or LVA.
_ARM64_VA_BITS = {
    (12, 4): 48,
    (12, 3): 39,
    (12, 5): 52,
    (14, 4): 48,
    (14, 3): 47,
    (16, 3): 52,
    (16, 2): 42,
}


def _arm64_layout(page_shift: int, bits: int) -> KernelLayout:
    low = min(bits, 48)
    vmemmap = (1 << 64) - (1 << (low - 1 - (page_shift - 6))) - (1 << 30)
    return KernelLayout(
        (1 << 64) - (1 << (low - 1)) + (2 << 30),
        (1 << 64) - (1 << bits),
        (1 << 64) - (1 << (low - 1)) + (4 << 30),
        vmemmap,
        bits - 2,
    )


def _arm64_notes(made: MadeKernel) -> list[str]:
    bits = _ARM64_VA_BITS[made.page_shift, made.levels]
    return [
        f"NUMBER(VA_BITS)={bits}",
        f"NUMBER(VMEMMAP_START)={made.vmemmap_start:#x}",
        f"NUMBER(VMEMMAP_END)={(1 << 64) - (1 << 30):#x}",
        f"NUMBER(kimage_voffset)={made.text - made.text_physical:#x}",
        f"NUMBER(PHYS_OFFSET)={made.ram_base:#x}",
        f"NUMBER(TCR_EL1_T1SZ)={64 - bits:#x}",
        f"KERNELOFFSET={made.kernel_offset:x}",
        "NUMBER(KERNELPACMASK)=0x0",
    ]


# arch/s390/boot/startup.c: an address space of the kernel's own.


_S390X_LAYOUTS = {
    (12, 3): KernelLayout(0x3FFE0100000, 0, 0x37FFE300000, 0x37200000000, 38)
}


def _s390x_notes(made: MadeKernel) -> list[str]:
    return [
        f"IDENTITYBASE={made.page_offset:x}",
        f"KERNELOFFSET={made.text:x}",
        f"KERNELOFFPHYS={made.text_physical:x}",
    ]


# arch/powerpc/include/asm/book3s/64/radix.h.


_PPC64_LAYOUT = KernelLayout(None, 0xC << 60, 0xC008 << 48, 0xC00C << 48, 50)


def _ppc64_notes(made: MadeKernel) -> list[str]:
    return [
        f"SYMBOL(node_data)={made.node_data:x}",
        f"LENGTH(node_data)={made.max_numnodes}",
        "NUMBER(RADIX_MMU)=1",
        f"KERNELOFFSET={made.kernel_offset:x}",
    ]


#: By the name of the architecture.
MODELS: dict[str, MachineModel] = {
    "x86_64": MachineModel(
        uname="x86_64",
        prstatus_size=336,
        layouts=_X86_64_LAYOUTS,
        notes=_x86_64_notes,
        variables=_x86_64_variables,
        huge_orders={12: (9, 18)},
        section_size_bits={12: 27},
        max_physmem_bits={4: 46, 5: 52, None: 52},
        percpu_symbols=True,
        kaslr=("kernel_offset", "page_offset_shift", "vmemmap_shift"),
        dedups_devices=True,
    ),
    "riscv64": MachineModel(
        uname="riscv64",
        prstatus_size=376,
        layouts=_RISCV64_LAYOUTS,
        notes=_riscv64_notes,
        huge_orders={12: (9, 18)},
        section_size_bits={12: 27},
        max_physmem_bits={None: 56},
        vmemmap_begins_with_memory=True,
        ram_base_is_mapped=True,
        dedups_devices=True,
    ),
    "loongarch64": MachineModel(
        uname="loongarch64",
        prstatus_size=480,
        layouts=_LOONGARCH64_LAYOUTS,
        notes=_loongarch64_notes,
        section_size_bits={12: 27, 14: 29, 16: 31},
        max_physmem_bits={None: 48},
        max_folio_order={12: 10, 14: 11, 16: 13},
        huge_orders={12: (9,), 14: (11,), 16: (13,)},
        kaslr=(),
    ),
    "aarch64": MachineModel(
        uname="aarch64",
        prstatus_size=392,
        layouts={
            key: _arm64_layout(key[0], bits) for key, bits in _ARM64_VA_BITS.items()
        },
        notes=_arm64_notes,
        huge_orders={12: (9, 18), 14: (11,), 16: (13,)},
        section_size_bits={12: 27, 14: 27, 16: 29},
        max_physmem_bits={None: 48},
        vmemmap_begins_with_memory=True,
        ram_base_is_mapped=True,
    ),
    "s390x": MachineModel(
        uname="s390x",
        prstatus_size=336,
        layouts=_S390X_LAYOUTS,
        notes=_s390x_notes,
        huge_orders={12: (8, 19)},
        section_size_bits={12: 27},
        max_physmem_bits={None: 46},
        byteorder="big",
        root_size=16 << 10,
    ),
    "ppc64": MachineModel(
        uname="ppc64le",
        prstatus_size=504,
        layouts={(12, 4): _PPC64_LAYOUT, (16, 4): _PPC64_LAYOUT},
        notes=_ppc64_notes,
        huge_orders={12: (9, 18), 16: (5, 14)},
        section_size_bits={12: 24, 16: 24},
        root_size=64 << 10,
        max_physmem_bits={None: 51},
        kaslr=(),
    ),
}
