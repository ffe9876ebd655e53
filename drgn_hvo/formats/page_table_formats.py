# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page table formats
------------------

The page tables of a kernel as data: levels, and what the bits of an entry mean and
how they are made. The walk of tables, the audit and the generator all ask a
:class:`PageTableFormat`; the formats themselves are in
:mod:`drgn_hvo.formats.architectures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Optional

from drgn_hvo.formats.byteorder import ByteOrder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Entries = npt.NDArray[np.uint64]
    Flags = npt.NDArray[np.bool_]

__all__ = (
    "NAPOT_PAGES",
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

#: How many entries of the lowest level are alike and map as many pages together.
NAPOT_PAGES = 16


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
    :param table_flags: What an entry that leads to a table has besides
        :attr:`Protections.table`.
    :param mapping_flags: What one that maps memory has besides.
    """

    index_bits: int
    present: tuple[Bits, ...]
    writable: Bits
    address: EntryAddress
    table: Optional[Bits] = None
    table_address: EntryAddress = EntryAddress(0)
    table_writable: Optional[Bits] = None
    has_mappings: bool = True
    table_flags: int = 0
    mapping_flags: int = 0

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
    :param not_large: What it lacks.
    :param write_protected: What stays set in an entry that was made read-only after
        it had been written through.
    :param empty: Entries that are not in use, by level; 0 if that is not given.
    """

    kernel: int
    read_only: Optional[int]
    text: int
    rodata: int
    table: int
    large: int
    not_large: int = 0
    write_protected: int = 0
    empty: tuple[int, ...] = ()


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
    :param entry_byteorder: ``None`` if it is that of the kernel.
    :param napot: A mapping of the lowest level is one of 16 that are all alike and map
        16 pages together; bit 3 of the PFN is set, those below are not.
    :param has_user_half: The first half of the top table is about addresses of
        processes.
    :param none_is_a_table: Entries above the lowest level that are not in use lead to
        one table for all of them, in which all entries are the same.
    """

    page_shift: int
    levels: tuple[TableLevel, ...]
    root: int
    protections: Protections
    accessed: int
    dirty: int
    entry_byteorder: Optional[ByteOrder] = None
    napot: Optional[Bits] = None
    has_user_half: bool = False
    none_is_a_table: bool = False

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

    def table_size(self, level: int) -> int:
        """Bytes of a table, which is aligned to its size."""
        return 8 << self.levels[level].index_bits

    @property
    def tails_are_writable(self) -> bool:
        """
        Whether HVO maps shared tail pages writable: it asks for ``PAGE_KERNEL_RO``,
        see ``vmemmap_remap_pte()``, which is ``PAGE_KERNEL`` on some architectures.
        """
        return self.protections.read_only is None

    def shared_bits(self, level: int, *, is_mapping: bool) -> int:
        """
        The bits that entries of kernel data have in common: all but the address, what
        the processor sets, and what decides about writes.

        :param is_mapping: Of mappings, else of what leads to tables.
        """
        form = self.levels[level]
        address = form.address if is_mapping else form.table_address
        writable = form.writable if is_mapping else form.table_writable
        own = address.mask | address.high_mask
        if is_mapping and level:
            # A large page is aligned to its size; flags use some of the bits below.
            below = address.put(0, (1 << self.shift(level)) - 1)
            own &= ~below
        own |= self.accessed | self.dirty | self.protections.write_protected
        if self.protections.read_only is not None:
            own |= self.protections.kernel ^ self.protections.read_only
        own |= form.writable.mask if writable is None else writable.mask
        if self.napot is not None:
            own |= self.napot.mask
        return _WORD & ~own

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

    def mapped_to(self, entry: int, level: int, address: int) -> Optional[int]:
        """
        The physical address that an entry maps an address to; ``None`` if it is not
        there, or leads to a table.
        """
        decoded = self.decode(entry, level)
        if not decoded.present or not decoded.is_mapping:
            return None
        found = decoded.address
        if not level and self.napot is not None and self.napot.hold(entry):
            within = (NAPOT_PAGES - 1) << self.page_shift
            found = found & ~within | address & within
        return found | address & ((1 << self.shift(level)) - 1)

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

    def together(self, entries: Entries) -> Optional[Flags]:
        """
        Which mappings of the lowest level are part of :data:`NAPOT_PAGES` that map
        as many pages together; ``None`` if there is no such thing.
        """
        return None if self.napot is None else self.napot.hold(entries)

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
            flags = flags & ~self.protections.not_large | self.protections.large
            flags |= self.levels[level].mapping_flags
        # The address leads, so that an array stays one.
        return self.levels[level].address.put(address & 0, address) | flags

    def make_table(self, address: Any, level: int) -> Any:
        """
        An entry that leads to a table, or an array of them.

        :param level: Of the table that the entry is in.
        """
        form = self.levels[level]
        flags = self.protections.table | form.table_flags
        return form.table_address.put(address & 0, address) | flags

    def with_frame(self, entry: int, level: int, pfn: int) -> int:
        """A mapping's entry, changed to lead to another frame."""
        address: int = self.levels[level].address.put(entry, pfn << self.page_shift)
        return address

    def with_table_write(self, entry: int, level: int) -> int:
        """The entry of a table, or of a large page, changed to allow writes."""
        form = self.levels[level]
        is_table = form.table is not None and form.table.hold(entry)
        bits = form.table_writable if is_table else form.writable
        changed: int = entry if bits is None else bits.made_true(entry)
        return changed

    def with_write(self, entry: int, level: int, *, allowed: bool) -> int:
        """A mapping's entry, changed to allow writes or not."""
        bits = self.levels[level].writable
        changed: int = bits.made_true(entry) if allowed else bits.made_false(entry)
        return changed
