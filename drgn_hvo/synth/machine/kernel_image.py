# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernel image
------------

The part of memory that holds the kernel: text, read-only data with BTF and kallsyms,
and data, with a symbol for each.
"""

from __future__ import annotations

from typing import Union

from drgn_hvo.formats.byteorder import ByteOrder
from drgn_hvo.formats.kallsyms import KernelSymbol
from drgn_hvo.formats.kallsyms_writer import kallsyms_tables
from drgn_hvo.synth.machine.btf_writer import write_btf
from drgn_hvo.synth.machine.ctype import Compound
from drgn_hvo.synth.machine.frames import Extent
from drgn_hvo.synth.machine.plan import IMAGE_SECTION, Plan

__all__ = ("KernelImage", "StructBytes")

# Functions of which nobody reads more than the name: drgn finds out about
# CONFIG_SPARSEMEM_VMEMMAP by asking for vmemmap_populate().
_FUNCTIONS = (
    "startup_64", "secondary_startup_64", "start_kernel", "rest_init", "panic",
    "crash_kexec", "__crash_kexec", "compound_head", "prep_compound_page",
    "prep_compound_head", "prep_compound_tail", "free_huge_folio",
    "alloc_hugetlb_folio",
    "alloc_buddy_hugetlb_folio", "dissolve_free_hugetlb_folio", "demote_pool_huge_page",
    "hugetlb_vmemmap_optimize_folio", "hugetlb_vmemmap_optimize_folios",
    "hugetlb_vmemmap_restore_folio", "hugetlb_vmemmap_restore_folios",
    "vmemmap_remap_pte", "vmemmap_remap_range", "vmemmap_restore_pte",
    "vmemmap_split_pmd", "vmemmap_populate", "vmemmap_populate_hugepages",
    "sparse_init", "memmap_init", "hugetlb_init", "set_pageblock_order",
)  # fmt: skip


class StructBytes:
    """The bytes of a structure, set member by member."""

    def __init__(self, c_type: Compound, byteorder: ByteOrder) -> None:
        self._type = c_type
        self._byteorder = byteorder
        self.data = bytearray(c_type.size)

    def set(self, path: str, value: Union[int, bytes]) -> None:
        """Set a member, found as :meth:`Compound.find()` does."""
        offset, member_type = self._type.find(path)
        if isinstance(value, bytes):
            if len(value) > member_type.size:
                raise ValueError(f"{path} has {member_type.size} bytes")
            self.data[offset : offset + len(value)] = value
            return
        mask = (1 << (8 * member_type.size)) - 1
        data = (value & mask).to_bytes(member_type.size, self._byteorder)
        self.data[offset : offset + member_type.size] = data


class _Section:
    def __init__(self, address: int) -> None:
        self.address = address
        self.data = bytearray()

    def place(self, size: int, align: int) -> int:
        at = -(-len(self.data) // align) * align
        if at + size > IMAGE_SECTION:
            raise ValueError("the kernel image has no room left")
        self.data += bytes(at + size - len(self.data))
        return self.address + at

    def put(self, address: int, data: bytes) -> None:
        at = address - self.address
        self.data[at : at + len(data)] = data


class KernelImage:
    """The kernel image of a machine."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        text = plan.space.text
        self._text = _Section(text)
        self._rodata = _Section(text + IMAGE_SECTION)
        self._data = _Section(text + 2 * IMAGE_SECTION)
        self._symbols: dict[str, KernelSymbol] = {}
        self._functions()
        self._types()

    def _functions(self) -> None:
        self.mark("_text", self._text.address, "T")
        self.mark("_stext", self._text.address, "T")
        for name in _FUNCTIONS:
            # nop: what they do is not part of a dump. Mapped where struct pages
            # belong, as a fault does, these are neither heads nor tails.
            address = self._text.place(64, 16)
            self._text.put(address, b"\x90" * 64)
            self.mark(name, address, "T")
        self.mark("_etext", self._text.address + len(self._text.data), "T")
        self.mark("__start_rodata", self._rodata.address, "D")
        # CONFIG_KALLSYMS_ABSOLUTE_PERCPU is about symbols such as these.
        if self._plan.generation.kallsyms == "percpu":
            self.mark("__per_cpu_start", 0, "A")
            self.mark("cpu_number", 0x1B030, "A")

    def _types(self) -> None:
        order = self._plan.description.model.byteorder
        btf = write_btf(self._plan.structures.all, order, _FUNCTIONS)
        address = self.rodata("__start_BTF", btf, self._plan.page_size)
        self.mark("__stop_BTF", address + len(btf), "R")

    def mark(self, name: str, address: int, kind: str) -> None:
        """Give an address a name."""
        self._symbols[name] = KernelSymbol(name, address, kind)

    def rodata(self, name: str, data: bytes, align: int = 8) -> int:
        """Add read-only data; its address."""
        address = self._rodata.place(len(data), align)
        self._rodata.put(address, data)
        self.mark(name, address, "R")
        return address

    def reserve(self, name: str, size: int, align: int = 8) -> int:
        """Make room for a variable; its address."""
        address = self._data.place(size, align)
        self.mark(name, address, "D")
        return address

    def variable(self, name: str, data: bytes, align: int = 8) -> int:
        """Add a variable; its address."""
        address = self.reserve(name, len(data), align)
        self.fill(name, data)
        return address

    def fill(self, name: str, data: bytes) -> None:
        """Set a variable."""
        self._data.put(self._symbols[name].address, data)

    def address(self, name: str) -> int:
        """Where something is."""
        return self._symbols[name].address

    def has(self, name: str) -> bool:
        """Whether there is a symbol of that name."""
        return name in self._symbols

    def physical(self, name: str) -> int:
        """Where something is in memory."""
        return self._plan.space.image_physical(self.address(name))

    def kallsyms(self) -> None:
        """Add the tables of kallsyms, for all symbols so far and their own."""
        addressing = self._plan.generation.kallsyms
        names = [
            "kallsyms_num_syms",
            "kallsyms_names",
            "kallsyms_markers",
            "kallsyms_token_table",
            "kallsyms_token_index",
            "kallsyms_addresses" if addressing == "absolute" else "kallsyms_offsets",
        ]
        if addressing in ("base", "percpu"):
            names.append("kallsyms_relative_base")
        # As in the kernel's own passes of linking: sizes do not depend on addresses,
        # nor on their order, so a first pass says where everything will lie.
        sizes = self._tables(names, dict.fromkeys(names, self._rodata.address))
        places = {}
        for name in names:
            places[name] = self._rodata.place(len(sizes[name]), 8)
        for name, data in self._tables(names, places).items():
            self._rodata.put(places[name], data)
            self.mark(name, places[name], "R")

    def _tables(self, names: list[str], places: dict[str, int]) -> dict[str, bytes]:
        symbols = [
            *self._symbols.values(),
            *(KernelSymbol(name, places[name], "R") for name in names),
        ]
        plan = self._plan
        tables = kallsyms_tables(
            symbols,
            plan.generation.kallsyms,
            places[names[5]],
            plan.description.model.byteorder,
        )
        parts = [
            tables.num_syms,
            tables.names,
            tables.markers,
            tables.token_table,
            tables.token_index,
            tables.offsets,
        ]
        if tables.relative_base is not None:
            parts.append(tables.relative_base)
        return dict(zip(names, parts))

    def extents(self) -> list[Extent]:
        """The frames of the image, but for the top page table."""
        pfn, size = self._plan.kernel_pfn, self._plan.page_size
        return [
            Extent.stored(pfn + i * IMAGE_SECTION // size, bytes(section.data), size)
            for i, section in enumerate((self._text, self._rodata, self._data))
        ]

    def end(self) -> int:
        """One more than the last address of the image."""
        return self._plan.space.text + self._plan.kernel_pages * self._plan.page_size
