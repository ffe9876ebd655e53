# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page table formats
------------------

The page tables of a kernel as data: levels, and what the bits of an entry mean and
how they are made. Nothing else here knows a bit of an entry; the walk of tables, the
audit and the generator all ask a :class:`PageTableFormat`.

:data:`PAGE_TABLE_FORMATS` has one entry per architecture, which makes the format of
one kernel from its VMCOREINFO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Optional

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Entries = npt.NDArray[np.uint64]
    Flags = npt.NDArray[np.bool_]

__all__ = (
    "PAGE_TABLE_FORMATS",
    "Bits",
    "DecodedEntries",
    "DecodedEntry",
    "EntryAddress",
    "PageTableFormat",
    "Protections",
    "TableLevel",
)

# All bits of an entry.
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Bits:
    """
    A condition on an entry: of the bits in *mask*, exactly those in *value* are set.

    All methods take one entry or an array of them.
    """

    mask: int
    value: int

    def hold(self, entry: Any) -> Any:
        """Whether the condition holds."""
        return (entry & self.mask) == self.value

    def made_true(self, entry: Any) -> Any:
        """The entry with the bits changed so that the condition holds."""
        return entry & (_WORD ^ self.mask) | self.value

    def made_false(self, entry: Any) -> Any:
        """The entry with all of the bits the other way round."""
        return entry & (_WORD ^ self.mask) | self.value ^ self.mask


@dataclass(frozen=True)
class EntryAddress:
    """
    Where an entry has a physical address.

    :param mask: The bits that hold it.
    :param shift: How far these are to be moved up.
    :param high_mask: Bits that hold its highest bits, if those stand apart.
    :param high_shift: How far those are to be moved up.
    """

    mask: int
    shift: int = 0
    high_mask: int = 0
    high_shift: int = 0

    def get(self, entry: Any) -> Any:
        """The address in an entry, or in each of an array."""
        address = entry & self.mask
        if self.shift:
            address <<= self.shift
        if self.high_mask:
            address |= (entry & self.high_mask) << self.high_shift
        return address

    def put(self, entry: Any, address: Any) -> Any:
        """The entry with another address, or each of an array with one of its own."""
        entry = entry & (_WORD ^ (self.mask | self.high_mask))
        entry |= address >> self.shift & self.mask
        return entry | address >> self.high_shift & self.high_mask


@dataclass(frozen=True)
class TableLevel:
    """
    The entries in tables of one level.

    :param index_bits: Of the index into a table.
    :param present: An entry is there if any of these holds.
    :param writable: A mapping allows writes, as far as its own entry decides that.
    :param address: Of the frame that a mapping leads to.
    :param table: An entry that is there leads to a table; ``None`` at the lowest
        level, where all are mappings.
    :param table_address: Of the table that such an entry leads to.
    :param table_writable: Writes are allowed to what is below; ``None`` where only
        mappings have permissions.
    :param has_mappings: Whether mappings are possible at this level.
    """

    index_bits: int
    present: tuple[Bits, ...]
    writable: Bits
    address: EntryAddress
    table: Optional[Bits] = None
    table_address: EntryAddress = EntryAddress(0)
    table_writable: Optional[Bits] = None
    has_mappings: bool = True

    def is_present(self, entry: Any) -> Any:
        """Whether an entry, or each of an array, is there at all."""
        found = self.present[0].hold(entry)
        for other in self.present[1:]:
            found = found | other.hold(entry)
        return found


@dataclass(frozen=True)
class DecodedEntry:
    """
    What an entry says.

    :param present: Whether it is there at all; the rest means nothing if not.
    :param is_mapping: Whether it maps memory; else it leads to a table.
    :param writable: Whether it allows writes to what is behind it.
    :param address: Physical address of the memory or the table.
    """

    present: bool
    is_mapping: bool
    writable: bool
    address: int


@dataclass(frozen=True)
class DecodedEntries:
    """As :class:`DecodedEntry`, of many entries that are present: arrays."""

    is_mapping: Flags
    writable: Flags
    address: Entries


@dataclass(frozen=True)
class Protections:
    """
    Entries of kernel memory without their address, as :linux:`PAGE_KERNEL` and the
    like are defined.

    :param kernel: Data: ``PAGE_KERNEL``.
    :param read_only: ``PAGE_KERNEL_RO``; ``None`` on architectures that do not define
        it, where :linux:`include/linux/pgtable.h` makes it ``PAGE_KERNEL``.
    :param text: Of the kernel's text.
    :param rodata: Of its read-only data.
    :param table: Of an entry that leads to a table.
    :param large: What a mapping above the lowest level has besides.
    :param write_protected: What stays set in an entry that was made read-only after
        it had been written through.
    """

    kernel: int
    read_only: Optional[int]
    text: int
    rodata: int
    table: int
    large: int
    write_protected: int = 0


@dataclass(frozen=True)
class PageTableFormat:
    """
    The page tables of one kernel.

    :param page_shift: Of the base page size.
    :param levels: The lowest first.
    :param root: Physical address of the kernel's top table.
    :param protections: What entries are made of.
    :param accessed: Bits that the processor sets in an entry that is used.
    :param dirty: Bits that it sets in one that is written through.
    """

    page_shift: int
    levels: tuple[TableLevel, ...]
    root: int
    protections: Protections
    accessed: int
    dirty: int

    @cached_property
    def _shifts(self) -> tuple[int, ...]:
        bits = (form.index_bits for form in self.levels)
        return tuple(accumulate(bits, initial=self.page_shift))

    def shift(self, level: int) -> int:
        """The lowest bit of an address that is part of the index into a table."""
        return self._shifts[level]

    @property
    def reach_shift(self) -> int:
        """How many bits of an address the tables decide about."""
        return self._shifts[-1]

    def pages(self, level: int) -> int:
        """How many base pages one entry of a level maps."""
        return 1 << (self.shift(level) - self.page_shift)

    def index(self, address: int, level: int) -> int:
        """The index of an address into its table of a level."""
        mask = (1 << self.levels[level].index_bits) - 1
        return address >> self.shift(level) & mask

    @property
    def tails_are_writable(self) -> bool:
        """
        Whether HVO maps shared tail pages writable: it asks for ``PAGE_KERNEL_RO``,
        see ``vmemmap_remap_pte()``, which is ``PAGE_KERNEL`` on some architectures.
        """
        return self.protections.read_only is None

    def decode(self, entry: int, level: int) -> DecodedEntry:
        """What one entry says. *level* 0 is the lowest."""
        form = self.levels[level]
        present = bool(form.is_present(entry))
        if form.table is not None and form.table.hold(entry):
            writable = form.table_writable is None or form.table_writable.hold(entry)
            address = form.table_address.get(entry)
            return DecodedEntry(present, False, bool(writable), address)
        # A large page is aligned to its size; flags use some of the bits below.
        address = form.address.get(entry) & -(1 << self.shift(level))
        return DecodedEntry(present, True, bool(form.writable.hold(entry)), address)

    def decode_all(self, entries: Entries, level: int) -> DecodedEntries:
        """What entries say that are present, see :meth:`TableLevel.is_present()`."""
        import numpy as np

        form = self.levels[level]
        if form.table is None:
            is_mapping = np.ones(len(entries), np.bool_)
        else:
            is_mapping = ~form.table.hold(entries)
            if not is_mapping.any():
                return self._decode_tables(entries, form, is_mapping)
        writable = form.writable.hold(entries)
        address = form.address.get(entries)
        if form.table is not None:
            # As decode() does.
            address &= _WORD ^ ((1 << self.shift(level)) - 1)
            tables = self._decode_tables(entries, form, is_mapping)
            writable = np.where(is_mapping, writable, tables.writable)
            address = np.where(is_mapping, address, tables.address)
        return DecodedEntries(is_mapping, writable, address)

    def _decode_tables(
        self, entries: Entries, form: TableLevel, is_mapping: Flags
    ) -> DecodedEntries:
        """All entries as if they led to tables."""
        below = form.table_writable
        writable = ~is_mapping if below is None else below.hold(entries)
        return DecodedEntries(is_mapping, writable, form.table_address.get(entries))

    def make(self, address: Any, level: int, flags: int) -> Any:
        """
        An entry that maps memory, or an array of them.

        :param address: Physical, aligned to what an entry of the level maps.
        :param flags: One of :attr:`protections`.
        """
        if level:
            flags |= self.protections.large
        # The address leads, so that an array stays one.
        return self.levels[level].address.put(address & 0, address) | flags

    def make_table(self, address: Any, level: int) -> Any:
        """
        An entry that leads to a table, or an array of them.

        :param level: Of the table that the entry is in.
        """
        entry = self.levels[level].table_address.put(address & 0, address)
        return entry | self.protections.table

    def with_frame(self, entry: int, level: int, pfn: int) -> int:
        """A mapping's entry, changed to lead to another frame."""
        address: int = self.levels[level].address.put(entry, pfn << self.page_shift)
        return address

    def with_write(self, entry: int, level: int, *, allowed: bool) -> int:
        """A mapping's entry, changed to allow writes or not."""
        bits = self.levels[level].writable
        changed: int = bits.made_true(entry) if allowed else bits.made_false(entry)
        return changed


# arch/x86/include/asm/pgtable_types.h.
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


def _x86_64(vmcoreinfo: Vmcoreinfo) -> PageTableFormat:
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
    return PageTableFormat(
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
    )


#: What makes the format of a kernel's page tables from its VMCOREINFO, by architecture;
#: raises :exc:`FormatError` if VMCOREINFO lacks what is needed, or cannot be right.
PAGE_TABLE_FORMATS: dict[str, Callable[[Vmcoreinfo], PageTableFormat]] = {
    "x86_64": _x86_64,
}
