# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Physical memory
---------------

The memory of a synthetic machine: which frames exist, which are handed out, and
what they hold. Contents are made when they are read, in bulk, so that a machine of
a terabyte needs no terabyte here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import UsageError

__all__ = ("Extent", "FrameAllocator", "Image", "subtract")

Bytes = npt.NDArray[np.uint8]
Range = tuple[int, int]

#: ``make(first, count)``: frames of an extent, counted from its beginning, as one
#: row of bytes each.
Maker = Callable[[int, int], Bytes]

# At most this many frames of an image are kept once they were made: 64 MiB.
_MAX_MADE_FRAMES = 1 << 14


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """Ranges without what lies in *holes*, ascending."""
    left = []
    ordered = sorted(holes)
    for start, end in sorted(ranges):
        at = start
        for hole_start, hole_end in ordered:
            if hole_end <= at or hole_start >= end:
                continue
            if at < hole_start:
                left.append((at, hole_start))
            at = max(at, hole_end)
        if at < end:
            left.append((at, end))
    return left


class FrameAllocator:
    """
    Hands out frames.

    :param memory: Ranges of PFNs with memory, by node ID.
    """

    def __init__(self, memory: dict[int, list[Range]]) -> None:
        self._free = {nid: sorted(ranges) for nid, ranges in memory.items()}

    def reserve(self, start: int, end: int, what: str) -> None:
        """
        Take these frames.

        :raises UsageError: if one of them is taken or does not exist.
        """
        for nid, ranges in self._free.items():
            if any(first <= start and end <= last for first, last in ranges):
                self._free[nid] = subtract(ranges, [(start, end)])
                return
        raise UsageError(f"there is no room for {what} at {start:#x} to {end:#x}")

    def place(self, nid: int, within: Range, count: int, align: int) -> int:
        """The PFN of the lowest free, aligned *count* frames, -1 if there are none."""
        for start, end in self._free[nid]:
            first = -(-max(start, within[0]) // align) * align
            if first + count <= min(end, within[1]):
                self._free[nid] = subtract(self._free[nid], [(first, first + count)])
                return first
        return -1

    def take(self, nid: int, count: int, what: str, align: int = 1) -> int:
        """
        The PFN of the highest free *count* frames, as memblock chooses them; on
        another node if this one has none.

        :raises UsageError: if no node has room.
        """
        for candidate in [nid, *(n for n in sorted(self._free) if n != nid)]:
            for start, end in reversed(self._free[candidate]):
                first = (end - count) // align * align
                if first >= start:
                    taken = [(first, first + count)]
                    self._free[candidate] = subtract(self._free[candidate], taken)
                    return first
        raise UsageError(
            f"more pages than memory: no room for {count} frames for {what}"
        )


@dataclass(frozen=True)
class Extent:
    """Frames behind each other whose content is known."""

    pfn: int
    count: int
    make: Maker

    @classmethod
    def stored(cls, pfn: int, data: bytes, page_size: int) -> Extent:
        """An extent of these bytes, filled up with zeros."""
        count = -(-len(data) // page_size)
        rows = np.zeros((count, page_size), dtype=np.uint8)
        rows.reshape(-1)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        return cls.rows(pfn, rows)

    @classmethod
    def rows(cls, pfn: int, rows: Bytes) -> Extent:
        """An extent of these rows."""
        return cls(pfn, len(rows), lambda first, count: rows[first : first + count])


class Image:
    """
    The content of memory. Frames without an extent are zero.

    :param memory: Ranges of PFNs with memory, ascending.
    """

    def __init__(
        self, memory: list[Range], extents: Iterable[Extent], page_size: int
    ) -> None:
        self.memory = memory
        self.page_size = page_size
        self.extents = sorted(extents, key=lambda extent: extent.pfn)
        self._starts = [extent.pfn for extent in self.extents]
        for one, two in zip(self.extents, self.extents[1:]):
            if one.pfn + one.count > two.pfn:
                raise ValueError(f"two extents at {two.pfn:#x}")
        self._patches: dict[int, Bytes] = {}
        # Content of extents that were read, by index; writable.
        self._made: dict[int, Bytes] = {}
        self._made_frames = 0
        #: Frames that a dump is to leave out.
        self.missing: set[int] = set()

    def _frames(self, extent: Extent, first: int, count: int) -> Bytes:
        rows = extent.make(first, count)
        pfn = extent.pfn + first
        patched = [p for p in self._patches if pfn <= p < pfn + count]
        if patched:
            rows = rows.copy()
            for p in patched:
                rows[p - pfn] = self._patches[p]
        return rows

    def _find(self, pfn: int) -> int:
        """Index of the extent that holds a frame, -1 if none does."""
        index = bisect_right(self._starts, pfn) - 1
        if index < 0:
            return -1
        extent = self.extents[index]
        return index if pfn < extent.pfn + extent.count else -1

    def _made_extent(self, index: int) -> Optional[Bytes]:
        """
        All frames of an extent: made at once, which costs little more than making one,
        and kept; ``None`` if that took too much memory.
        """
        if index in self._made:
            return self._made[index]
        extent = self.extents[index]
        if self._made_frames + extent.count > _MAX_MADE_FRAMES:
            return None
        rows = self._frames(extent, 0, extent.count).copy()
        self._made[index] = rows
        self._made_frames += extent.count
        return rows

    def chunks(self, most: int) -> Iterator[tuple[int, Bytes]]:
        """All frames with content by ascending PFN, in pieces of at most *most*."""
        for extent in self.extents:
            for first in range(0, extent.count, most):
                count = min(most, extent.count - first)
                yield extent.pfn + first, self._frames(extent, first, count)

    def read_frame(self, pfn: int) -> Bytes:
        """One frame."""
        index = self._find(pfn)
        if index < 0:
            return np.zeros(self.page_size, dtype=np.uint8)
        extent = self.extents[index]
        rows = self._made_extent(index)
        if rows is None:
            return self._frames(extent, pfn - extent.pfn, 1)[0]
        return rows[pfn - extent.pfn]

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a physical address."""
        parts = []
        while size:
            pfn, offset = divmod(address, self.page_size)
            index = self._find(pfn)
            rows = None if index < 0 else self._made_extent(index)
            if rows is None:
                flat, at = self.read_frame(pfn), offset
            else:
                flat = rows.reshape(-1)
                at = address - self.extents[index].pfn * self.page_size
            part = flat[at : at + size].tobytes()
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """
        Change bytes at a physical address.

        :raises ValueError: if that frame has no content to change.
        """
        pfn, offset = divmod(address, self.page_size)
        if offset + len(data) > self.page_size or not self.has(pfn):
            raise ValueError(f"nothing to change at {address:#x}")
        frame = self.read_frame(pfn).copy()
        frame[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)
        self._patches[pfn] = frame
        index = self._find(pfn)
        if index in self._made:
            self._made[index][pfn - self.extents[index].pfn] = frame

    def has(self, pfn: int) -> bool:
        """Whether an extent holds this frame."""
        return self._find(pfn) >= 0
