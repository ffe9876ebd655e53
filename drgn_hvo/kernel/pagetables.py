# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page table walk
---------------

drgn translates addresses but drops permissions, and one address at a time. Here
whole tables are read and decoded as arrays, and the result is *runs*: ranges of
virtual pages whose frames follow each other, or are all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Optional, Union

import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.byteorder import type_prefix
from drgn_hvo.formats.page_table_formats import NAPOT_PAGES, PageTableFormat
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array, ascend
from drgn_hvo.kernel.entry_bits import EntryBitsWatch
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.translation import Entry, entry_of
from drgn_hvo.kernel.unread import NOT_IN_DUMP, READS_AS_ZEROS

__all__ = (
    "Entry",
    "MissingTable",
    "Runs",
    "Walk",
    "find_entry",
    "read_tables",
    "walk",
)

# How many tables are decoded at once: 2 MiB of them at 4 KiB each.
_TABLES_PER_BATCH = 512

# Fewer batches than that are decoded sooner than other processes have begun: those of
# the vmemmap of half a TiB.
_FEW_BATCHES = 8


@dataclass(frozen=True)
class Runs:
    """
    Mapped ranges by ascending address, one element each in every array.

    :param va: Virtual address of the first page.
    :param pfn: Frame of the first page.
    :param count: Number of base pages.
    :param step: How the PFN grows from page to page: 1, or 0 where all pages map
        one frame.
    :param writable: Whether every level allows writes.
    :param level: 0 for base pages, 1 for the next larger size.
    """

    va: U64Array
    pfn: Int64Array
    count: Int64Array
    step: npt.NDArray[np.int8]
    writable: BoolArray
    level: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.va)

    @classmethod
    def merge(cls, parts: Sequence[Runs]) -> Runs:
        """Join runs of disjoint parts, each of them ascending."""
        if not parts:
            none = np.zeros(0, dtype=np.int64)
            return cls(
                none.astype(np.uint64), none, none, none.astype(np.int8),
                none.astype(np.bool_), none.astype(np.uint8),
            )  # fmt: skip
        va = np.concatenate([part.va for part in parts])
        # One column at a time, because a large machine has many runs.
        columns = (
            np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
        )
        if ascend(va):
            return cls(*columns)
        order = np.argsort(va, kind="stable")
        return cls(*(column.take(order) for column in columns))


@dataclass(frozen=True)
class MissingTable:
    """A page table that cannot be used, why, and what it would have mapped."""

    address: int
    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Walk:
    """The mappings of a range, and the tables that could not be used."""

    runs: Runs
    missing: tuple[MissingTable, ...]


@dataclass(frozen=True)
class _Tables:
    """
    Tables of one level, or the memory that entries of one level map, by ascending
    virtual address: their physical and first virtual addresses, permission.
    """

    address: U64Array
    va: U64Array
    writable: BoolArray

    def take(self, which: Union[slice, BoolArray]) -> _Tables:
        return _Tables(self.address[which], self.va[which], self.writable[which])

    @classmethod
    def concatenate(cls, parts: list[_Tables]) -> _Tables:
        if len(parts) == 1:
            return parts[0]
        columns = zip(*((p.address, p.va, p.writable) for p in (*parts, _NO_TABLES)))
        return cls(*(np.concatenate(column) for column in columns))


_NO_TABLES = _Tables(
    np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64), np.zeros(0, np.bool_)
)


@dataclass(frozen=True)
class _Entries:
    """Present entries of some tables of one level."""

    value: U64Array
    va: U64Array
    writable: BoolArray

    def __len__(self) -> int:
        return len(self.va)


def walk(
    reader: FrameReader,
    page_table: PageTableFormat,
    start: int,
    end: int,
    watch: Optional[EntryBitsWatch] = None,
) -> Walk:
    """
    Find all mappings between two kernel addresses.

    :param start: First address, a canonical one.
    :param end: End (exclusive).
    :param watch: Is shown all entries on the way that are present.
    """
    reach_shift = page_table.reach_shift
    tables = _Tables(
        np.array([page_table.root], dtype=np.uint64),
        # Kernel addresses are sign-extended from the top table's reach.
        np.array([start >> reach_shift << reach_shift], dtype=np.uint64),
        np.ones(1, dtype=np.bool_),
    )
    parts: list[Runs] = []
    missing: list[MissingTable] = []
    for level in range(len(page_table.levels) - 1, -1, -1):
        below: list[_Tables] = []
        if page_table.none_is_a_table:
            tables = _without_none(reader, tables, page_table, level)
        tables = _without_repeats(tables, page_table, level, missing)
        batches = [
            _Batch(
                page_table,
                tables.take(slice(first, first + _TABLES_PER_BATCH)),
                level,
                (start, end),
                watched=watch is not None,
            )
            for first in range(0, len(tables.va), _TABLES_PER_BATCH)
        ]
        for found in _look_at(reader, batches):
            if watch is not None and found.entry_bits is not None:
                watch.add(found.entry_bits)
            if found.runs is not None:
                parts.append(found.runs)
            below.append(found.below)
            missing += found.missing
        tables = _Tables.concatenate(below)
    return Walk(Runs.merge(parts), tuple(missing))


@dataclass(frozen=True)
class _Batch:
    """
    Tables of one level to look at together.

    :param limits: The range that is asked for.
    :param watched: Whether the bits of all entries are of interest.
    """

    page_table: PageTableFormat
    tables: _Tables
    level: int
    limits: tuple[int, int]
    watched: bool


@dataclass(frozen=True)
class _Found:
    """What is in a batch: mappings, further tables, and what could not be used."""

    runs: Optional[Runs]
    below: _Tables
    missing: list[MissingTable]
    entry_bits: Optional[EntryBitsWatch]


def _look_at(reader: FrameReader, batches: list[_Batch]) -> Iterator[_Found]:
    """Look at tables in order, in other processes, too, if there are many."""
    if reader.shards is None or len(batches) < _FEW_BATCHES:
        yield from (_look_at_batch(reader, batch) for batch in batches)
        return
    found = dict(reader.shards.map(_look_at_batch, batches, reader))
    yield from (found[number] for number in range(len(batches)))


def _look_at_batch(reader: FrameReader, batch: _Batch) -> _Found:
    page_table, level = batch.page_table, batch.level
    missing: list[MissingTable] = []
    entries = _read_entries(
        reader, page_table, batch.tables, level, batch.limits, missing
    )
    entry_bits = EntryBitsWatch(page_table) if batch.watched else None
    if entry_bits is not None and len(entries):
        entry_bits.look(level, entries.value, entries.va)
    leaves, others = _split(page_table, entries, level, missing)
    runs = _compress(page_table, leaves, level) if len(leaves.va) else None
    return _Found(runs, others, missing, entry_bits)


def _without_none(
    reader: FrameReader, tables: _Tables, page_table: PageTableFormat, level: int
) -> _Tables:
    """
    Drop the table that stands for none: one that is named more than once, and in which
    all entries are the same.
    """
    addresses, counts = np.unique(tables.address, return_counts=True)
    repeated = addresses[counts > 1]
    if not len(repeated):
        return tables
    values, present = read_tables(reader, page_table, repeated, level)
    none = repeated[present & (values == values[:, :1]).all(axis=1)]
    return tables.take(~np.isin(tables.address, none))


def _without_repeats(
    tables: _Tables,
    page_table: PageTableFormat,
    level: int,
    missing: list[MissingTable],
) -> _Tables:
    """
    Drop tables that are named twice: vmemmap never shares one, and damage that
    leads back into the same tables would make the walk grow without end.
    """
    if len(tables.va) < 2:
        return tables
    ascending = np.sort(tables.address)
    if (ascending[1:] != ascending[:-1]).all():
        return tables
    _, firsts = np.unique(tables.address, return_index=True)
    repeats = np.ones(len(tables.va), dtype=np.bool_)
    repeats[firsts] = False
    reach = 1 << page_table.shift(level + 1)
    for i in np.flatnonzero(repeats).tolist():
        start = int(tables.va[i])
        missing.append(
            MissingTable(int(tables.address[i]), start, start + reach, "named twice")
        )
    return tables.take(~repeats)


def _read_entries(
    reader: FrameReader,
    page_table: PageTableFormat,
    tables: _Tables,
    level: int,
    limits: tuple[int, int],
    missing: list[MissingTable],
) -> _Entries:
    """The present entries of tables that concern the wanted range."""
    form, shift = page_table.levels[level], page_table.shift(level)
    reach = 1 << (shift + form.index_bits)
    values, present = read_tables(reader, page_table, tables.address, level)
    # Only the first and the last table reach beyond the range.
    low = max(0, limits[0] - int(tables.va[0])) >> shift
    beyond = max(0, int(tables.va[-1]) + reach - limits[1]) >> shift
    entries = values.reshape(-1)
    entries = entries[low : values.size - beyond]
    (index,) = form.is_present(entries).nonzero()
    value = entries[index]
    index += low
    table = index >> form.index_bits
    # Only tables without any entry can be blank.
    edges = table.searchsorted(np.arange(len(tables.va) + 1))
    if (edges[1:] == edges[:-1]).any():
        # Where one table stands for all that are not in use, it holds nothing.
        ends = not page_table.none_is_a_table and not reader.is_live
        suspect = ~present | _are_blank(values) if ends else ~present
        for i in suspect.nonzero()[0].tolist():
            first = max(int(tables.va[i]), limits[0])
            last = min(int(tables.va[i]) + reach, limits[1])
            reason = READS_AS_ZEROS if present[i] else NOT_IN_DUMP
            missing.append(MissingTable(int(tables.address[i]), first, last, reason))
    va = (index & ((1 << form.index_bits) - 1)).astype(np.uint64)
    va <<= np.uint64(shift)
    va += tables.va[table]
    return _Entries(value, va, tables.writable[table])


def _are_blank(values: U64Array) -> BoolArray:
    """
    Which tables hold nothing at all. A kernel frees those of vmemmap; it is a running
    one if we find it doing that.
    """
    blank: BoolArray = values[:, 0] == 0
    if blank.any():
        blank[blank] = ~values[blank].any(axis=1)
    return blank


def _split(
    page_table: PageTableFormat,
    entries: _Entries,
    level: int,
    missing: list[MissingTable],
) -> tuple[_Tables, _Tables]:
    """
    Part mappings from entries that lead to further tables.

    :return: Both by physical and virtual address, with their permission.
    """
    decoded = page_table.decode_all(entries.value, level)
    found = _Tables(decoded.address, entries.va, decoded.writable & entries.writable)
    if not level:
        together = page_table.together(entries.value)
        if together is not None and together.any():
            within = np.uint64((NAPOT_PAGES - 1) << page_table.page_shift)
            found.address[together] &= ~within
            found.address[together] |= entries.va[together] & within
        return found, _NO_TABLES
    is_mapping = decoded.is_mapping
    if not is_mapping.any():
        return _NO_TABLES, found
    others = found.take(~is_mapping)
    if page_table.levels[level].has_mappings:
        return found.take(is_mapping), others
    # A mapping where the format has none: damage.
    reach = 1 << page_table.shift(level)
    for address, first in zip(
        entries.value[is_mapping].tolist(), entries.va[is_mapping].tolist()
    ):
        missing.append(MissingTable(address, first, first + reach, "is no table"))
    return _NO_TABLES, others


def _compress(page_table: PageTableFormat, leaves: _Tables, level: int) -> Runs:
    """Join neighbouring mappings of one level, of which there are some, into runs."""
    width = page_table.pages(level)
    va, writable = leaves.va, leaves.writable
    pfn = (leaves.address >> np.uint64(page_table.page_shift)).astype(np.int64)
    page = np.uint64(width << page_table.page_shift)
    delta = pfn[1:] - pfn[:-1]
    joined = delta == width
    if level == 0:
        joined |= delta == 0
    joined &= (va[1:] - va[:-1]) == page
    joined &= writable[1:] == writable[:-1]
    # A run has one step: break where the step changes.
    joined[1:] &= ~joined[:-1] | (delta[1:] == delta[:-1])
    edges = np.concatenate(([0], (~joined).nonzero()[0] + 1, [len(va)]))
    first = edges[:-1]
    count = edges[1:] - first
    step = np.ones(len(first), dtype=np.int8)
    (many,) = (count > 1).nonzero()
    step[many] = delta[first[many]] != 0
    return Runs(
        va[first],
        pfn[first],
        count * width,
        step,
        writable[first],
        np.full(len(first), level, dtype=np.uint8),
    )


def find_entry(
    reader: FrameReader, page_table: PageTableFormat, va: int
) -> Optional[Entry]:
    """
    As :func:`~drgn_hvo.kernel.translation.entry_of()`, of a target that is read by
    frames.
    """
    return entry_of(reader.read_bytes, page_table, reader.byteorder, va)


def read_tables(
    reader: FrameReader, page_table: PageTableFormat, addresses: U64Array, level: int
) -> tuple[U64Array, BoolArray]:
    """
    The entries of tables of one level.

    :param addresses: Physical.
    :return: A row of entries for each table, zeros where it is not in the dump; and
        whether it is.
    """
    size, page = page_table.table_size(level), reader.page_size
    pfns = (addresses >> np.uint64(page_table.page_shift)).astype(np.int64)
    if size > page:
        behind = np.arange(size // page, dtype=np.int64)
        frames = reader.read((pfns[:, None] + behind).reshape(-1))
        data = frames.data
        present = np.logical_and.reduce(frames.present.reshape(-1, size // page), 1)
    else:
        frames = reader.read(pfns)
        data, present = frames.data, frames.present
        if size < page:
            at = (addresses % np.uint64(page)).astype(np.int64) // size
            data = data.reshape(-1, page // size, size)[np.arange(len(at)), at]
    dtype = reader.u64
    if page_table.entry_byteorder is not None:
        dtype = np.dtype(f"{type_prefix(page_table.entry_byteorder)}u8")
    words = data.view(dtype).reshape(len(addresses), -1)
    return words.astype(np.uint64, copy=False), present
