# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Private tails of folios
-----------------------

Whether the struct pages of heads and behind them, in the pages of vmemmap that hugetlb
folios have to themselves, hold what :mod:`~drgn_hvo.memmap.tail_fields` says: field by
field, and in bulk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Optional, Union

import numpy as np

from drgn_hvo.formats.byteorder import ByteOrder, type_prefix
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.kernel.arrays import BoolArray, ByteArray, Int64Array, U64Array, column
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.struct_page import StructPageLayout
from drgn_hvo.memmap.tail_fields import ALIGNED, FIRST_PLAIN, TailField, TailFields
from drgn_hvo.memmap.zones import FlagsLayout

__all__ = ("FolioFacts", "PrivateTailFrames", "PrivateTails")


@dataclass(frozen=True)
class FolioFacts:
    """
    What the fields of folios depend on, one element a folio.

    :param address: Of its head.
    :param flags: Of its head.
    :param is_free: Whether it is on a free list.
    """

    address: U64Array
    order: Int64Array
    flags: U64Array
    is_free: BoolArray


def _are_zero(rows: U64Array) -> BoolArray:
    """Which rows hold nothing but zeros."""
    zero: BoolArray = np.bitwise_or.reduce(rows, axis=1) == 0
    return zero


class PrivateTails:
    """
    The fields of private tails of one kernel, and whether frames have them.

    :param layout: Where flags have node and zone; ``None`` if that is not known.
    :param hpg_flags: Bits of ``folio->private`` by name; empty if they are not known.
    """

    def __init__(
        self,
        kernel: Kernel,
        layout: Optional[FlagsLayout],
        hpg_flags: Mapping[str, int],
    ) -> None:
        self._kernel = kernel
        self._size = kernel.struct_page.size
        self._tail_fields = TailFields(kernel, layout, hpg_flags)
        self._place_mask = self._tail_fields.place_mask
        self._hwpoison = kernel.constant("PG_hwpoison")

    @property
    def flags_mask(self) -> Optional[int]:
        """Bits of flags that are fixed; ``None`` if it is not known which."""
        return self._tail_fields.flags_mask

    @property
    def fault(self) -> Optional[str]:
        """Why it is not known what the first tails hold; ``None`` if it is."""
        return self._tail_fields.fault

    @property
    def fields(self) -> tuple[TailField, ...]:
        """All fields that are fixed, by struct page and offset."""
        return self._tail_fields.all

    def values(self, rows: ByteArray, field: TailField, index: int) -> U64Array:
        """
        A field of one struct page in each frame.

        :param index: Which struct page.
        """
        dtype = self._dtype(field.size)
        offset = index * self._size + field.offset
        return column(rows, offset, dtype).astype(np.uint64)

    def _dtype(self, size: int) -> np.dtype[np.generic]:
        reader = self._kernel.reader
        return reader.u64 if size == 8 else reader.u32

    def expected(
        self, field: TailField, facts: FolioFacts
    ) -> tuple[U64Array, U64Array]:
        """What a field has to be in each folio, and which of its bits that decides."""
        count = len(facts.order)
        mask = np.full(count, field.mask, dtype=np.uint64)
        if field.kind == "flags":
            return facts.flags & np.uint64(self._place_mask) & mask, mask
        if field.kind == "links":
            return facts.address + np.uint64(field.value), mask
        if field.kind == "pages":
            return np.uint64(1) << facts.order.astype(np.uint64), mask
        fixed = np.ones(count, dtype=np.bool_)
        if field.when == "free":
            fixed = facts.is_free
        elif field.when == "unpoisoned" and self._hwpoison is not None:
            fixed = facts.flags >> np.uint64(self._hwpoison) & np.uint64(1) == 0
        loose = np.uint64(ALIGNED & field.mask if field.kind == "pointer" else 0)
        return (
            np.full(count, field.value & field.mask, dtype=np.uint64),
            np.where(fixed, mask, loose),
        )

    @cached_property
    def frames(self) -> PrivateTailFrames:
        """The same in bulk."""
        return PrivateTailFrames(
            self._kernel.struct_page,
            self._kernel.sources.byteorder,
            self._kernel.geometry.pages_per_slice,
            self._place_mask,
            self.fields,
        )


class PrivateTailFrames:
    """
    Whether frames of private tails hold what they have to, many at once. It can be
    handed to another process.

    :param per_slice: How many struct pages a frame has.
    :param place_mask: Bits of flags that name node and zone.
    :param fields: As :attr:`PrivateTails.fields`.
    """

    def __init__(
        self,
        page: StructPageLayout,
        byteorder: ByteOrder,
        per_slice: int,
        place_mask: int,
        fields: tuple[TailField, ...],
    ) -> None:
        self._page = page
        self._size = page.size
        self._byteorder = byteorder
        self._per_slice = per_slice
        self._place_mask = place_mask
        self._fields = fields
        self._u64 = np.dtype(f"{type_prefix(byteorder)}u8")

    # Words are taken as they are in memory: what is compared is made alike.

    def look(
        self, rows: ByteArray, addresses: U64Array, orders: Optional[Int64Array]
    ) -> tuple[BoolArray, BoolArray, BoolArray]:
        """
        Look at frames that each begin with the head of a folio that fills it.

        :param rows: A row of bytes for each frame.
        :param addresses: Of the heads.
        :param orders: What the folios say that they are of.
        :return: Which frames have tails that are all alike behind the first ones, their
            tail words included; which have all fields as a folio in use has them; which
            as one on a free list has them.
        """
        words = rows.view(np.uint64)
        if orders is None:
            orders = np.zeros(len(words), dtype=np.int64)
        free = self._are_usual(words, addresses, orders)
        alike, used = free.copy(), free.copy()
        (others,) = (~free).nonzero()
        if len(others) == len(words):
            return self._look_closer(words, addresses, orders)
        if len(others):
            alike[others], used[others], free[others] = self._look_closer(
                words[others], addresses[others], orders[others]
            )
        return alike, used, free

    def _are_usual(
        self, words: U64Array, addresses: U64Array, orders: Int64Array
    ) -> BoolArray:
        """
        Which frames hold just what most do: those of folios on a free list, whose tails
        have the same words. Which of the others are right as well is another question.
        """
        usual: BoolArray = np.zeros(len(words), dtype=np.bool_)
        places = words[:, self._page.flags // 8] & self._raw(self._place_mask)
        infos = words[:, (FIRST_PLAIN * self._size + self._page.offset) // 8]
        # What is the same in all rows is compared at once.
        if any(len(one) and (one != one[0]).any() for one in (places, infos, orders)):
            return usual
        if not len(words):
            return usual
        # Comparing is cheap, masking is not: most rows are as the first one is.
        same = words == words[0]
        same |= self._free_words
        as_first = same.all(axis=1)
        as_first[0] = False
        expected = self._usual_words(places[0], int(orders[0]), infos[0])
        found = (words[~as_first] & self._usual_mask == expected).all(axis=1)
        usual[as_first] = found[0]
        usual[~as_first] = found
        for at, behind in self._links:
            own = (addresses + np.uint64(behind)).astype(self._u64)
            usual &= words[:, at] == own.view(np.uint64)
        return usual

    @cached_property
    def _usual_mask(self) -> U64Array:
        first = self._template.free.copy()
        first[[at for at, _ in self._links]] = 0
        return np.concatenate((first, self._template.alike))

    @cached_property
    def _free_words(self) -> BoolArray:
        """Which words of a frame may be anything."""
        free: BoolArray = self._usual_mask == 0
        return free

    @lru_cache(maxsize=8)  # noqa: B019
    def _usual_words(self, place: np.uint64, order: int, info: np.uint64) -> U64Array:
        """What frames hold, but for links and what is not fixed."""
        first = self._expected_words(place, order)
        last = first[-self._size // 8 :].copy()
        last[self._page.offset // 8] = info
        behind = len(self._template.alike) * 8 // self._size
        return np.concatenate((first, np.tile(last, behind))) & self._usual_mask

    def _look_closer(
        self, words: U64Array, addresses: U64Array, orders: Int64Array
    ) -> tuple[BoolArray, BoolArray, BoolArray]:
        """As :meth:`look()`, of any frames."""
        width, end = self._size // 8, len(self._template.expected)
        odd = words[:, end:] ^ words[:, end - width : -width]
        odd &= self._template.alike
        alike = _are_zero(odd)
        odd = self._first_odd(words[:, :end], addresses, orders)
        free = _are_zero(odd & self._template.free)
        used = free.copy()
        (others,) = (~free).nonzero()
        if len(others):
            used[others] = _are_zero(odd[others] & self._template.used)
        return alike, used & alike, free & alike

    def _first_odd(
        self, words: U64Array, addresses: U64Array, orders: Int64Array
    ) -> U64Array:
        """Bits of the first struct pages that are not as expected."""
        places = words[:, self._page.flags // 8] & self._raw(self._place_mask)
        kinds: list[tuple[np.uint64, int]] = []
        if len(words):
            kinds = [(places[0], int(orders[0]))]
            if (places != places[0]).any() or (orders != orders[0]).any():
                kinds = sorted(set(zip(places, orders.tolist())))
        odd = np.empty_like(words)
        for place, order in kinds:
            mine: Union[slice, BoolArray] = slice(None)
            if len(kinds) > 1:
                mine = (places == place) & (orders == order)
            odd[mine] = words[mine] ^ self._expected_words(place, order)
        for at, behind in self._links:
            own = (addresses + np.uint64(behind)).astype(self._u64)
            odd[:, at] ^= own.view(np.uint64)
        return odd

    def _expected_words(self, place: np.uint64, order: int) -> U64Array:
        """
        The first struct pages of a folio, without its links.

        :param place: The bits of node and zone of its head, as in memory.
        """
        words = self._template.expected.copy()
        raw = words.view(np.uint8)
        for field in self._fields:
            at = field.index * self._size + field.offset
            if field.kind == "flags":
                words[at // 8] = place
            elif field.kind == "pages":
                pages = 1 << order & field.mask
                raw[at : at + field.size] = self._bytes(pages, field.size)
        return words

    @cached_property
    def _links(self) -> list[tuple[int, int]]:
        """Which words are links, and how far behind the head they lead."""
        return [
            ((field.index * self._size + field.offset) // 8, field.value)
            for field in self._fields
            if field.kind == "links"
        ]

    @cached_property
    def _template(self) -> _Template:
        expected = np.zeros((FIRST_PLAIN + 1) * self._size, dtype=np.uint8)
        used, free = expected.copy(), expected.copy()
        for field in self._fields:
            at = field.index * self._size + field.offset
            place = slice(at, at + field.size)
            if field.kind in ("number", "pointer"):
                expected[place] |= self._bytes(field.value & field.mask, field.size)
            free[place] |= self._bytes(field.mask, field.size)
            loose = ALIGNED & field.mask if field.kind == "pointer" else 0
            fixed = field.mask if field.when in ("always", "unpoisoned") else loose
            used[place] |= self._bytes(fixed, field.size)
        last = used[-self._size :].copy().view(np.uint64)
        last[self._page.offset // 8] = np.uint64(ALL_ONES)
        behind = self._per_slice - FIRST_PLAIN - 1
        return _Template(
            expected.view(np.uint64),
            used.view(np.uint64),
            free.view(np.uint64),
            np.tile(last, behind),
        )

    def _bytes(self, value: int, size: int) -> ByteArray:
        return np.frombuffer(value.to_bytes(size, self._byteorder), dtype=np.uint8)

    def _raw(self, value: int) -> np.uint64:
        """A number as a word that is taken as it is in memory."""
        word: np.uint64 = self._bytes(value, 8).view(np.uint64)[0]
        return word


@dataclass(frozen=True)
class _Template:
    """
    What frames have in common, as words in memory.

    :param expected: Numbers in the first struct pages.
    :param used: The bits of those that are fixed in any folio.
    :param free: The bits that are fixed in a folio on a free list.
    :param alike: The bits that struct pages behind those have in common.
    """

    expected: U64Array
    used: U64Array
    free: U64Array
    alike: U64Array
