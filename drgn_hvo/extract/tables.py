# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page tables that are kept
-------------------------

The tables that lead to some kernel addresses. Whole ones are kept: an entry that is
left out would read as "not mapped", which is a wrong answer, where a table that is
left out reads as "not in this dump".
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.architectures.architecture import LinearRange
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.kernel.arrays import Int64Array, U64Array
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.pagetables import read_tables, walk

__all__ = ("Translator", "pages_of")

_TABLES_PER_BATCH = 1024


def _merge(starts: U64Array, lasts: U64Array) -> tuple[U64Array, U64Array]:
    """Ranges that do not overlap, ascending; ends included."""
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(lasts[order])
    first = np.ones(len(starts), dtype=np.bool_)
    first[1:] = starts[1:] > reached[:-1]
    last = np.concatenate((first[1:], [True])) if len(first) else first
    return starts[first], reached[last]


class Translator:
    """
    The page tables of one kernel.

    :param reader: Reads the target.
    :param linear_ranges: What the kernel maps linearly.
    """

    def __init__(
        self,
        reader: FrameReader,
        page_table: PageTableFormat,
        linear_ranges: Iterable[LinearRange],
    ) -> None:
        self._reader = reader
        self._format = page_table
        # Ranges without page tables come first, for what they have is not elsewhere.
        self._linear = [one for one in linear_ranges if not one.by_page_tables]

    @property
    def root(self) -> int:
        """The frame of the top table."""
        return self._format.root >> self._format.page_shift

    @property
    def user_half(self) -> int:
        """How many bytes of the top table are about user addresses."""
        if not self._format.has_user_half:
            return 0
        return self._format.table_size(len(self._format.levels) - 1) // 2

    def tables(self, starts: U64Array, lasts: U64Array) -> Int64Array:
        """
        The frames of all tables that lead to some ranges of kernel addresses.

        :param lasts: Last address of each range.
        """
        for one in self._linear:
            inside = (starts >= np.uint64(one.start)) & (lasts < np.uint64(one.end))
            starts, lasts = starts[~inside], lasts[~inside]
        starts, lasts = _merge(starts, lasts)
        page_table = self._format
        address = np.array([page_table.root], dtype=np.uint64)
        # Kernel addresses are sign-extended from the top table's reach.
        highest = int(lasts[-1]) if len(lasts) else 0
        reach_shift = page_table.reach_shift
        va = np.array([highest >> reach_shift << reach_shift], dtype=np.uint64)
        found = []
        for level in range(len(page_table.levels) - 1, -1, -1):
            found.append(self._frames(address, level))
            if not level:
                break
            below = [
                self._below(
                    address[first : first + _TABLES_PER_BATCH],
                    va[first : first + _TABLES_PER_BATCH],
                    level,
                    (starts, lasts),
                )
                for first in range(0, len(va), _TABLES_PER_BATCH)
            ]
            address = np.concatenate([part[0] for part in below])
            va = np.concatenate([part[1] for part in below])
            # As walk() does: damage can lead back.
            address, first_of = np.unique(address, return_index=True)
            va = va[first_of]
            if not len(va):
                break
        return np.unique(np.concatenate(found))

    def _frames(self, address: U64Array, level: int) -> Int64Array:
        """The frames of tables of a level."""
        first = (address >> np.uint64(self._format.page_shift)).astype(np.int64)
        size = self._format.table_size(level) >> self._format.page_shift
        behind = np.arange(max(1, size), dtype=np.int64)
        return (first[:, None] + behind).reshape(-1)

    def _below(
        self,
        address: U64Array,
        va: U64Array,
        level: int,
        wanted: tuple[U64Array, U64Array],
    ) -> tuple[U64Array, U64Array]:
        """Address and reach of the tables that these tables of a level name."""
        page_table = self._format
        values, _ = read_tables(self._reader, page_table, address, level)
        form = page_table.levels[level]
        width = np.uint64(1 << page_table.shift(level))
        vas = va[:, None] + np.arange(values.shape[1], dtype=np.uint64) * width
        starts, lasts = wanted
        # The first range that does not end in front of the entry's reach.
        index = np.searchsorted(lasts, vas)
        begins = np.concatenate((starts, np.array([np.iinfo(np.uint64).max])))[index]
        wanted_here = (index < len(starts)) & (begins <= vas + (width - np.uint64(1)))
        named = wanted_here & form.is_present(values)
        decoded = page_table.decode_all(values[named], level)
        below = ~decoded.is_mapping
        return decoded.address[below], vas[named][below]

    def pages(self, pages: U64Array) -> dict[int, int]:
        """
        The frames of some pages of kernel memory, by virtual page number; what is
        not mapped is left out.

        :param pages: Virtual page numbers, ascending.
        """
        shift = np.uint64(self._format.page_shift)
        found: dict[int, int] = {}
        for one in self._linear:
            first, end, physical = (
                address >> int(shift) for address in (one.start, one.end, one.physical)
            )
            inside = (pages >= np.uint64(first)) & (pages < np.uint64(end))
            found.update((p, p - first + physical) for p in pages[inside].tolist())
            pages = pages[~inside]
        breaks = np.flatnonzero(np.diff(pages) != 1) + 1
        for part in np.split(pages, breaks) if len(pages) else ():
            start = int(part[0]) << int(shift)
            end = int(part[-1]) + 1 << int(shift)
            runs = walk(self._reader, self._format, start, end).runs
            for va, pfn, count, step in zip(
                runs.va.tolist(),
                runs.pfn.tolist(),
                runs.count.tolist(),
                runs.step.tolist(),
            ):
                first = max(va, start) >> int(shift)
                last = min((va >> int(shift)) + count, end >> int(shift))
                for page in range(first, last):
                    found[page] = pfn + step * (page - (va >> int(shift)))
        return found


def pages_of(reads: npt.NDArray[np.uint64], page_shift: int) -> U64Array:
    """The pages that ranges (address, last address) touch, ascending."""
    shift = np.uint64(page_shift)
    starts, lasts = _merge(reads[:, 0] >> shift, reads[:, 1] >> shift)
    parts = [
        np.arange(first, last + 1, dtype=np.uint64)
        for first, last in zip(starts.tolist(), lasts.tolist())
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
