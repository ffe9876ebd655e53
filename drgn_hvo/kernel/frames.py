# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Physical memory in bulk
-----------------------

Page frames as rows of NumPy arrays. What a dump does not hold is marked, never
made up: one unreadable frame does not hide its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Program, ProgramFlags
import numpy as np

from drgn_hvo.formats.byteorder import type_prefix
from drgn_hvo.kernel.arrays import BoolArray, ByteArray, Int64Array
from drgn_hvo.kernel.core_sources import program_byteorder
from drgn_hvo.kernel.shards import Shards

__all__ = (
    "FrameReader",
    "Frames",
)

# drgn copies what it reads once; larger chunks only cost page faults.
_CHUNK_SIZE = 1 << 20

# How many frames a pass over all of memory looks at together: 1 MiB of 4 KiB pages.
_STREAMED = 256

# Fewer neighbours than that are not worth a piece of their own.
_ALONE = 32

# What is read in small pieces is looked at again by other rules. How many frames are
# kept: 8 MiB of 4 KiB pages.
_KEPT_FRAMES = 2048

# Frames of larger reads than that are not kept.
_SMALL_READ = 512

_NO_PFN = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Frames:
    """
    The content of page frames.

    :param data: One row of bytes a frame; zeros where *present* is false.
    :param present: Whether the dump holds the frame.
    """

    data: ByteArray
    present: BoolArray


def _pieces(pfns: Int64Array) -> Iterator[tuple[int, int]]:
    """
    Cut ascending PFNs into pieces: neighbours by themselves, which are then not
    copied, and what stands alone together with others.
    """
    breaks = (np.flatnonzero(np.diff(pfns) != 1) + 1).tolist()
    begun = 0
    for start, end in zip([0, *breaks], [*breaks, len(pfns)]):
        if end - start < _ALONE and end - begun <= _STREAMED:
            continue
        if begun < start:
            yield begun, start
            begun = start
        if end - start < _ALONE:
            continue
        for first in range(start, end, _STREAMED):
            yield first, min(end, first + _STREAMED)
        begun = end
    if begun < len(pfns):
        yield begun, len(pfns)


class _KeptFrames:
    """Frames that were read already, up to a limit; none is ever dropped."""

    def __init__(self, page_size: int) -> None:
        self._rows = np.empty((_KEPT_FRAMES, page_size), dtype=np.uint8)
        self._places: dict[int, int] = {}
        self._sort()

    def _sort(self) -> None:
        known = np.fromiter(self._places, np.int64, len(self._places))
        order = np.argsort(known)
        # With a sentinel, so that searches behind the last one find an element, too.
        self._sorted = np.append(known[order], _NO_PFN)
        self._order = np.append(order, 0)

    def add(self, pfns: Int64Array, frames: Frames) -> None:
        """Keep what is new, as far as there is room."""
        for i in np.flatnonzero(frames.present).tolist():
            place = len(self._places)
            if place == _KEPT_FRAMES:
                break
            if self._places.setdefault(int(pfns[i]), place) == place:
                self._rows[place] = frames.data[i]
        if len(self._places) != len(self._sorted) - 1:
            self._sort()

    def find(self, pfns: Int64Array) -> tuple[Int64Array, BoolArray]:
        """Which row each frame is in, and whether it is kept at all."""
        at = self._sorted.searchsorted(pfns)
        return self._order[at], self._sorted[at] == pfns

    def rows(self, places: Int64Array) -> ByteArray:
        """The content of frames, by the rows that they are in."""
        return self._rows[places]


class FrameReader:
    """
    Reads page frames by PFN, and from a dump no frame of a small read twice.

    :param page_size: In bytes.
    """

    def __init__(self, prog: Program, page_size: int) -> None:
        self._prog = prog
        self.page_size = page_size
        self.byteorder = program_byteorder(prog)
        order = type_prefix(self.byteorder)
        self.u64 = np.dtype(f"{order}u8")
        self.u32 = np.dtype(f"{order}u4")
        self.i32 = np.dtype(f"{order}i4")
        self._kept = _KeptFrames(page_size)
        # A live kernel changes: there, only reading again tells.
        self.is_live = bool(prog.flags & ProgramFlags.IS_LIVE)
        #: What else reads the same target, if anything does.
        self.shards: Optional[Shards] = None

    def read_bytes(self, address: int, size: int) -> Optional[bytes]:
        """A few bytes of physical memory; ``None`` if they are not in the dump."""
        try:
            return self._prog.read(address, size, physical=True)
        except (FaultError, ValueError, OverflowError):
            return None

    def stream(self, pfns: Int64Array) -> Iterator[tuple[slice, Frames]]:
        """
        Read frames in order, as many at once as stay in a processor's cache.

        :param pfns: Ascending, each once.
        :return: Where they are in *pfns*, and the frames; these are valid until the
            next are asked for, and none is kept unless there are few.
        """
        if 0 < len(pfns) <= _SMALL_READ:
            yield slice(0, len(pfns)), self.read(pfns)
            return
        scratch = np.empty((min(len(pfns), _STREAMED), self.page_size), dtype=np.uint8)
        for first, last in _pieces(pfns):
            piece = pfns[first:last]
            frames = None
            if piece[-1] - piece[0] == len(piece) - 1:
                frames = self._neighbours(int(piece[0]), len(piece))
            if frames is None:
                frames = self._read(piece, scratch[: last - first])
            yield slice(first, last), frames

    def read(self, pfns: Int64Array) -> Frames:
        """Read whole frames, neighbours together."""
        places, kept = self._kept.find(pfns)
        if kept.all():
            return Frames(self._kept.rows(places), kept)
        if not kept.any():
            frames = self._read(pfns)
        else:
            data = np.empty((len(pfns), self.page_size), dtype=np.uint8)
            present = kept.copy()
            data[kept] = self._kept.rows(places[kept])
            others = self._read(pfns[~kept])
            data[~kept], present[~kept] = others.data, others.present
            frames = Frames(data, present)
        if len(pfns) <= _SMALL_READ and not self.is_live:
            self._kept.add(pfns, frames)
        return frames

    def _read(self, pfns: Int64Array, data: Optional[ByteArray] = None) -> Frames:
        size = self.page_size
        most = _CHUNK_SIZE // size
        breaks = (np.flatnonzero(np.diff(pfns) != 1) + 1).tolist()
        if not breaks and 0 < len(pfns) <= most:
            frames = self._neighbours(int(pfns[0]), len(pfns))
            if frames is not None:
                return frames
        if data is None:
            data = np.empty((len(pfns), size), dtype=np.uint8)
        present = np.zeros(len(pfns), dtype=np.bool_)
        for start, end in zip([0, *breaks], [*breaks, len(pfns)]):
            for first in range(start, end, most):
                last = min(end, first + most)
                self._fill(data, present, int(pfns[first]), first, last)
        return Frames(data, present)

    def _neighbours(self, pfn: int, count: int) -> Optional[Frames]:
        """Frames that are all there, without a copy."""
        chunk = self._chunk(pfn, count)
        return chunk if chunk is None else Frames(chunk, np.ones(count, dtype=np.bool_))

    def _chunk(self, pfn: int, count: int) -> Optional[ByteArray]:
        size = self.page_size
        try:
            chunk = self._prog.read(pfn * size, count * size, physical=True)
        except (FaultError, ValueError, OverflowError):
            return None
        return np.frombuffer(chunk, dtype=np.uint8).reshape(-1, size)

    def _fill(
        self, data: ByteArray, present: BoolArray, pfn: int, first: int, last: int
    ) -> None:
        chunk = self._chunk(pfn, last - first)
        if chunk is not None:
            data[first:last] = chunk
            present[first:last] = True
        elif last - first > 1:
            middle = (first + last) // 2
            self._fill(data, present, pfn, first, middle)
            self._fill(data, present, pfn + middle - first, middle, last)
        else:
            data[first] = 0
