# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One pass over vmemmap
---------------------

Several rules look at the same pages of vmemmap. Each says which ones it wants; every
page is read once, and shown to all that want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Union

import numpy as np
import numpy.typing as npt

from drgn_hvo.audit.context import Context
from drgn_hvo.kernel.arrays import (
    BoolArray,
    ByteArray,
    Int64Array,
    U64Array,
    column,
    distinct,
    is_in,
)
from drgn_hvo.memmap.folio_fields import HEAD_PAGES
from drgn_hvo.memmap.vmemmap import StructPages
from drgn_hvo.progress import progress

__all__ = ("BlankSlices", "Rows", "SlicePages", "SliceRule", "scan")

# 1 MiB of vmemmap at once, which stays in the processor's cache.
_SLICES_PER_BATCH = 256

#: Some rows of an array.
Rows = Union[slice, npt.NDArray[np.intp]]


@dataclass(frozen=True)
class SlicePages:
    """
    The struct pages that begin in some pages of vmemmap, one row a page.

    :param slices: Which pages of vmemmap, ascending.
    :param data: Of shape ``(slices, struct pages, bytes)``.
    :param present: Whether the dump has the page.
    """

    context: Context
    slices: Int64Array
    data: ByteArray
    present: BoolArray

    @property
    def first_pfns(self) -> Int64Array:
        """The PFN of the first struct page in each row."""
        return self.slices * self.context.page_size // self.context.size

    @cached_property
    def infos(self) -> U64Array:
        """Tail words."""
        return self._words(self.context.kernel.struct_page.offset)

    @cached_property
    def flags(self) -> U64Array:
        """Page flags."""
        return self._words(self.context.kernel.struct_page.flags)

    def _words(self, offset: int) -> U64Array:
        words = column(self.data, offset, self.context.kernel.reader.u64)
        return words.astype(np.uint64)

    @cached_property
    def zeros(self) -> BoolArray:
        """Which rows are all zeros."""
        zeros = np.zeros(len(self.slices), dtype=np.bool_)
        some = np.flatnonzero(~self.infos.any(axis=1))
        zeros[some] = ~self.data[some].any(axis=(1, 2))
        return zeros

    @cached_property
    def heads(self) -> BoolArray:
        """Struct pages with ``PG_head`` that are no tails."""
        mask = np.uint64(self.context.kernel.PG_head_mask)
        heads = (self.flags & mask) != 0
        heads &= (self.infos & np.uint64(1)) == 0
        heads &= self.present[:, None]
        return heads

    def pfns(self, rows: Rows) -> Int64Array:
        """The PFNs of all struct pages of some rows."""
        within = np.arange(self.infos.shape[1], dtype=np.int64)
        return self.first_pfns[rows][:, None] + within[None, :]

    def read_heads(self, pfns: Int64Array) -> StructPages:
        """
        ``HEAD_PAGES`` struct pages from each PFN on; those that lie in one of these
        rows are not read again.
        """
        vmemmap, per_slice = self.context.vmemmap, self.data.shape[1]
        wanted, entries = np.divmod(pfns, per_slice)
        here = is_in(wanted, self.slices) & (entries <= per_slice - HEAD_PAGES)
        if not self.context.geometry.power_of_2 or not here.any():
            return vmemmap.read_pages(pfns, HEAD_PAGES)
        data = np.empty((len(pfns), HEAD_PAGES * vmemmap.size), dtype=np.uint8)
        present = np.empty(len(pfns), dtype=np.bool_)
        rows = np.searchsorted(self.slices, wanted[here])
        within = entries[here][:, None] + np.arange(HEAD_PAGES)[None, :]
        data[here] = self.data[rows[:, None], within].reshape(len(rows), -1)
        present[here] = self.present[rows]
        others = vmemmap.read_pages(pfns[~here], HEAD_PAGES)
        data[~here], present[~here] = others.data, others.present
        return StructPages(data, present)


class BlankSlices:
    """
    Counts pages of vmemmap that read as zeros although they were initialised:
    ``memmap_init()`` does that for all pages of a section that has memory, holes
    included, and some architectures map struct pages of sections that have none.
    """

    def __init__(self, context: Context) -> None:
        self._shift = context.kernel.section_shift
        self._are_all_used = self._are_sections_mapped_alone(context)
        self._sections = np.zeros(0, dtype=np.int64)
        self._blank: list[Int64Array] = []

    def _are_sections_mapped_alone(self, context: Context) -> bool:
        """Whether no large page of vmemmap reaches into the next section."""
        page_table = context.kernel.page_table_format
        if page_table is None or self._shift is None:
            return False
        large_page = page_table.pages(1) * context.page_size
        return large_page <= context.size << self._shift

    def look(self, pages: SlicePages, rows: Rows) -> None:
        """Look at pages of vmemmap as they come by."""
        if self._shift is None:
            return
        sections = pages.first_pfns[rows] >> self._shift
        blank = pages.zeros[rows]
        if not pages.context.geometry.power_of_2:
            # Struct pages straddle pages: those of one page are in two rows.
            blank = ~np.all(np.any(pages.data[rows], axis=2), axis=1)
        blank = blank & pages.present[rows]
        used = sections[~blank & pages.present[rows]]
        if len(used):
            self._sections = distinct(np.concatenate((self._sections, used)))
        if blank.any():
            self._blank.append(sections[blank])

    def count(self) -> int:
        """How many of them lie in sections of which others hold something."""
        if not self._blank:
            return 0
        blank = np.concatenate(self._blank)
        return (
            len(blank)
            if self._are_all_used
            else int(is_in(blank, self._sections).sum())
        )


class SliceRule(Protocol):
    """
    A rule on pages of vmemmap.

    :param slices: Those that it wants to see, ascending.
    """

    slices: Int64Array

    def look(self, pages: SlicePages, rows: Rows, mine: slice) -> None:
        """
        Look at some of them; each is shown once, in order.

        :param rows: Where they are in *pages*.
        :param mine: Where they are in :attr:`slices`.
        """


def _read(context: Context, slices: Int64Array) -> SlicePages:
    per_slice = context.geometry.pages_per_slice
    first = slices * context.page_size // context.size
    pages = context.vmemmap.read_pages(first, per_slice)
    data = pages.data.reshape(len(slices), per_slice, context.size)
    return SlicePages(context, slices, data, pages.present)


def scan(context: Context, rules: Sequence[SliceRule]) -> None:
    """Read what any rule wants to see, once, and show it to all that do."""
    wanted = distinct(np.concatenate([rule.slices for rule in rules]))
    with progress(len(wanted), "page") as bar:
        for start in range(0, len(wanted), _SLICES_PER_BATCH):
            batch = wanted[start : start + _SLICES_PER_BATCH]
            pages = _read(context, batch)
            for rule in rules:
                ends = np.searchsorted(rule.slices, (batch[0], batch[-1] + 1))
                mine = slice(*ends.tolist())
                rows = np.searchsorted(batch, rule.slices[mine])
                if np.array_equal(rows, np.arange(len(batch))):
                    rule.look(pages, slice(None), mine)
                elif len(rows):
                    rule.look(pages, rows, mine)
            bar.update(len(batch))
