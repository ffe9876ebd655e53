# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Physical memory in bulk
-----------------------

Page frames as rows of NumPy arrays. What a dump does not hold is marked, never
made up: one unreadable frame does not hide its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from drgn import FaultError, PlatformFlags, Program
import numpy as np
import numpy.typing as npt

__all__ = ("FrameReader", "Frames", "column", "ranges")

# drgn copies what it reads once; larger chunks only cost page faults.
_CHUNK_SIZE = 1 << 20

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frames:
    """
    The content of page frames.

    :param data: One row of bytes a frame; zeros where *present* is false.
    :param present: Whether the dump holds the frame.
    """

    data: ByteArray
    present: BoolArray


def column(
    data: ByteArray, offset: int, dtype: np.dtype[np.generic]
) -> npt.NDArray[np.generic]:
    """
    One field of each row.

    :param data: Bytes, of shape ``(…, size)``.
    :param offset: Where the field begins in a row.
    """
    field = np.ascontiguousarray(data[..., offset : offset + dtype.itemsize])
    return field.view(dtype)[..., 0]


def ranges(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """
    All numbers of ranges, one range behind the other.

    :param starts: First number of each range.
    :param counts: How many numbers each range has.
    """
    within = np.arange(int(counts.sum()), dtype=np.int64)
    within -= np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + within


class FrameReader:
    """
    Reads page frames by PFN.

    :param page_size: In bytes.
    """

    def __init__(self, prog: Program, page_size: int) -> None:
        self._prog = prog
        self.page_size = page_size
        platform = prog.platform
        little = platform is None or platform.flags & PlatformFlags.IS_LITTLE_ENDIAN
        order = "<" if little else ">"
        self.u64 = np.dtype(f"{order}u8")
        self.u32 = np.dtype(f"{order}u4")
        self.i32 = np.dtype(f"{order}i4")

    def read(self, pfns: Int64Array) -> Frames:
        """Read whole frames, neighbours together."""
        size = self.page_size
        data = np.zeros((len(pfns), size), dtype=np.uint8)
        present = np.zeros(len(pfns), dtype=np.bool_)
        if len(pfns) == 0:
            return Frames(data, present)
        breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
        starts = [0, *breaks.tolist()]
        ends = [*breaks.tolist(), len(pfns)]
        most = _CHUNK_SIZE // size
        for start, end in zip(starts, ends):
            for first in range(start, end, most):
                last = min(end, first + most)
                self._fill(data, present, int(pfns[first]), first, last)
        return Frames(data, present)

    def _fill(
        self, data: ByteArray, present: BoolArray, pfn: int, first: int, last: int
    ) -> None:
        size = self.page_size
        try:
            chunk = self._prog.read(pfn * size, (last - first) * size, physical=True)
        except (FaultError, ValueError, OverflowError):
            if last - first > 1:
                middle = (first + last) // 2
                self._fill(data, present, pfn, first, middle)
                self._fill(data, present, pfn + middle - first, middle, last)
            return
        data[first:last] = np.frombuffer(chunk, dtype=np.uint8).reshape(-1, size)
        present[first:last] = True
