# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Arrays
------

Types of arrays, and what NumPy lacks for ranges, sets and records.
"""

from __future__ import annotations

from typing import Union

import numpy as np
import numpy.typing as npt

__all__ = (
    "BoolArray",
    "ByteArray",
    "Int64Array",
    "U64Array",
    "ascend",
    "column",
    "distinct",
    "distinct_index",
    "is_in",
    "joined",
    "order_of",
    "ranges",
    "without",
)


# At most this many numbers are compared one by one instead of searched for.
_FEW = 4

# From this many values on, sorting them with their indices pays.
_MANY = 1 << 17

# Without the sign.
_INT64_BITS = 63

Int64Array = npt.NDArray[np.int64]
U64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


def column(
    data: ByteArray, offset: int, dtype: np.dtype[np.generic]
) -> npt.NDArray[np.generic]:
    """
    One field of each row.

    :param data: Bytes, of shape ``(…, size)``.
    :param offset: Where the field begins in a row.
    """
    size = dtype.itemsize
    if data.flags.c_contiguous and not offset % size and not data.shape[-1] % size:
        return data.view(dtype)[..., offset // size]
    field = np.ascontiguousarray(data[..., offset : offset + size])
    return field.view(dtype)[..., 0]


def ranges(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """
    All numbers of ranges, one range behind the other.

    :param starts: First number of each range.
    :param counts: How many numbers each range has.
    """
    within = np.arange(int(counts.sum()), dtype=np.int64)
    within -= np.repeat(np.cumsum(counts) - counts - starts, counts)
    return within


def ascend(values: Union[Int64Array, U64Array]) -> bool:
    """Whether each value is greater than the one before: far cheaper than sorting."""
    return bool((values[1:] > values[:-1]).all())


def order_of(values: Int64Array) -> Int64Array:
    """
    ``np.argsort(values, kind="stable")``. Many values are sorted with their indices
    beside them if there is room, as there is beside PFNs: that takes two thirds of the
    time.
    """
    if ascend(values):
        return np.arange(len(values), dtype=np.int64)
    bits = len(values).bit_length()
    room = _INT64_BITS - bits
    if len(values) < _MANY or values.min() < 0 or int(values.max()) >> room:
        return np.argsort(values, kind="stable")
    both = values << bits
    both |= np.arange(len(values), dtype=np.int64)
    both.sort()
    both &= (1 << bits) - 1
    return both


def distinct(values: Int64Array) -> Int64Array:
    """
    ``np.unique()`` by sorting, if *values* do not ascend already: newer NumPy hashes,
    and imports ``numpy.ma``.
    """
    if ascend(values):
        return values
    values = np.sort(values)
    return values[_changes(values)]


def distinct_index(values: Int64Array) -> tuple[Int64Array, Int64Array]:
    """As :func:`distinct()`, and which of the answer each value is."""
    if ascend(values):
        return values, np.arange(len(values), dtype=np.int64)
    order = order_of(values)
    ascending = values[order]
    changes = _changes(ascending)
    index = np.empty(len(values), dtype=np.int64)
    index[order] = np.cumsum(changes) - 1
    return ascending[changes], index


def _changes(values: Int64Array) -> BoolArray:
    """Which values are not the one before."""
    changes = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def joined(starts: Int64Array, ends: Int64Array) -> tuple[Int64Array, Int64Array]:
    """
    Join ranges that touch or overlap.

    :return: Starts and ends (exclusive) of what they are together, ascending.
    """
    order = np.argsort(starts[starts < ends], kind="stable")
    first, last = starts[starts < ends][order], ends[starts < ends][order]
    reached = np.maximum.accumulate(last)
    begins = np.flatnonzero(np.concatenate(([True], first[1:] > reached[:-1])))
    if not len(first):
        return first, last
    return first[begins], reached[np.concatenate((begins[1:] - 1, [len(first) - 1]))]


def without(
    starts: Int64Array, ends: Int64Array, holes: tuple[Int64Array, Int64Array]
) -> tuple[Int64Array, Int64Array]:
    """
    Take ranges out of others.

    :param starts: Of ranges that are disjoint and ascending, as :func:`joined()`
        gives them.
    :param holes: Starts and ends of what to take out, disjoint and ascending, too.
    :return: Starts and ends of what is left.
    """
    edges = distinct(np.concatenate((starts, ends, *holes)))
    kept = _covers(starts, ends, edges) & ~_covers(*holes, edges)
    which = np.flatnonzero(kept)
    # Behind the last edge there is nothing.
    return edges[which], edges[which + 1]


def _covers(starts: Int64Array, ends: Int64Array, values: Int64Array) -> BoolArray:
    """Which values lie in disjoint, ascending ranges."""
    begun = np.searchsorted(starts, values, side="right")
    return begun > np.searchsorted(ends, values, side="right")


def is_in(values: Int64Array, sorted_values: Int64Array) -> BoolArray:
    """Which values occur in an ascending array."""
    if len(sorted_values) <= _FEW:
        found = np.zeros(len(values), dtype=np.bool_)
        for one in sorted_values:
            found |= values == one
        return found
    index = np.searchsorted(sorted_values, values)
    found = np.zeros(len(values), dtype=np.bool_)
    inside = index < len(sorted_values)
    found[inside] = sorted_values[index[inside]] == values[inside]
    return found
