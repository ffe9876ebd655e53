# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kdump-compressed dumps, written
-------------------------------

The format of makedumpfile (its ``diskdump_mod.h`` and ``IMPLEMENTATION``), and the
flattened form of any file that ``makedumpfile -F`` sends through a pipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO
import zlib

import construct
import numpy as np

from drgn_hvo.synth.containers import CHUNK_FRAMES, Progress, core_notes
from drgn_hvo.synth.frames import Bytes, Image, Range
from drgn_hvo.synth.generations import PAGE_SIZE
from drgn_hvo.synth.machine import Machine

__all__ = ("FlattenedFile", "kdump_pages", "write_kdump")

_UTS = construct.Padded(65, construct.CString("ascii"))
_HEADER = construct.Struct(
    "signature" / construct.Const(b"KDUMP   "),
    "header_version" / construct.Int32sl,
    "sysname" / _UTS,
    "nodename" / _UTS,
    "release" / _UTS,
    "version" / _UTS,
    "machine" / _UTS,
    "domainname" / _UTS,
    construct.Padding(6),
    "tv_sec" / construct.Int64sl,
    "tv_usec" / construct.Int64sl,
    "status" / construct.Int32ul,
    "block_size" / construct.Int32sl,
    "sub_hdr_size" / construct.Int32sl,
    "bitmap_blocks" / construct.Int32ul,
    "max_mapnr" / construct.Int32ul,
    "total_ram_blocks" / construct.Int32ul,
    "device_blocks" / construct.Int32ul,
    "written_blocks" / construct.Int32ul,
    "current_cpu" / construct.Int32ul,
    "nr_cpus" / construct.Int32sl,
)
_SUB_HEADER = construct.Struct(
    "phys_base" / construct.Int64sl,
    "dump_level" / construct.Int32sl,
    "split" / construct.Int32sl,
    "start_pfn" / construct.Int64ul,
    "end_pfn" / construct.Int64ul,
    "offset_vmcoreinfo" / construct.Int64sl,
    "size_vmcoreinfo" / construct.Int64ul,
    "offset_note" / construct.Int64sl,
    "size_note" / construct.Int64ul,
    "offset_eraseinfo" / construct.Int64sl,
    "size_eraseinfo" / construct.Int64ul,
    "start_pfn_64" / construct.Int64ul,
    "end_pfn_64" / construct.Int64ul,
    "max_mapnr_64" / construct.Int64ul,
)
_PAGE_DESC = np.dtype(
    [("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")]
)

_VERSION = 6
_COMPRESSED_ZLIB = 1
# Everything but zero pages is filtered: cache, user and free pages.
_DUMP_LEVEL = 30


def _bitmap(ranges: list[Range], blocks: int) -> bytes:
    bits = np.zeros(blocks * PAGE_SIZE * 8, dtype=np.uint8)
    for start, end in ranges:
        bits[start:end] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _dumped(image: Image) -> list[Range]:
    """
    The pages in the dump: those with content. What folios and free pages hold is
    excluded, as makedumpfile does; pages of the kernel stay, zero or not.
    """
    return [(e.pfn, e.pfn + e.count) for e in image.extents]


class _Pages:
    """Writes page data, and remembers where each page went."""

    def __init__(self, file: IO[bytes], count: int, offset: int) -> None:
        self._file = file
        self._zero: tuple[int, int, int] = (0, 0, 0)
        self.descriptors = np.zeros(count, dtype=_PAGE_DESC)
        self.used = 0
        self.offset = offset

    def add(self, rows: Bytes) -> None:
        """Add pages, in order of their PFN."""
        zero = ~np.any(rows, axis=1)
        for row, is_zero in zip(rows, zero.tolist()):
            if is_zero and self._zero[1]:
                place = self._zero
            else:
                place = self._store(row.tobytes())
                # All zero pages share one, as in makedumpfile.
                self._zero = place if is_zero else self._zero
            self.descriptors[self.used] = (*place, 0)
            self.used += 1

    def _store(self, data: bytes) -> tuple[int, int, int]:
        flags = _COMPRESSED_ZLIB
        stored = zlib.compress(data, zlib.Z_BEST_SPEED)
        if len(stored) >= PAGE_SIZE:
            flags, stored = 0, data
        place = self.offset, len(stored), flags
        self._file.write(stored)
        self.offset += len(stored)
        return place


def write_kdump(machine: Machine, file: IO[bytes], progress: Progress) -> None:
    """Kdump-compressed with zlib, header version 6."""
    image = machine.image
    max_mapnr = machine.plan.max_pfn
    blocks = -(-max_mapnr // (8 * PAGE_SIZE))
    notes = core_notes(machine.vmcoreinfo)
    sub_size = -(-(_SUB_HEADER.sizeof() + len(notes)) // PAGE_SIZE)
    missing = sorted(image.missing)
    count = sum(end - start for start, end in _dumped(image)) - len(missing)
    file.write(_main_header(machine, blocks, sub_size, count).ljust(PAGE_SIZE, b"\0"))
    sub = _sub_header(machine, notes)
    file.write((sub + notes).ljust(sub_size * PAGE_SIZE, b"\0"))
    file.write(_bitmap(image.memory, blocks))
    second = bytearray(_bitmap(_dumped(image), blocks))
    for pfn in missing:
        second[pfn // 8] &= ~(1 << pfn % 8)
    file.write(second)
    start = (1 + sub_size + 2 * blocks) * PAGE_SIZE
    pages = _Pages(file, count, start + count * _PAGE_DESC.itemsize)
    file.seek(pages.offset)
    for pfn, rows in image.chunks(CHUNK_FRAMES):
        keep = [p - pfn for p in missing if pfn <= p < pfn + len(rows)]
        pages.add(np.delete(rows, keep, axis=0) if keep else rows)
        progress(len(rows))
    file.seek(start)
    file.write(pages.descriptors.tobytes())


def _main_header(machine: Machine, blocks: int, sub_size: int, count: int) -> bytes:
    header: bytes = _HEADER.build(
        {
            "header_version": _VERSION,
            "sysname": "Linux",
            "nodename": "synthetic",
            "release": machine.plan.description.release_string,
            "version": "#1 SMP",
            # libkdumpfile takes the architecture from here.
            "machine": machine.plan.description.architecture,
            "domainname": "(none)",
            "tv_sec": 0,
            "tv_usec": 0,
            "status": _COMPRESSED_ZLIB,
            "block_size": PAGE_SIZE,
            "sub_hdr_size": sub_size,
            "bitmap_blocks": 2 * blocks,
            "max_mapnr": min(machine.plan.max_pfn, 0xFFFFFFFF),
            "total_ram_blocks": 0,
            "device_blocks": 0,
            "written_blocks": count & 0xFFFFFFFF,
            "current_cpu": 0,
            "nr_cpus": 1,
        }
    )
    return header


def _sub_header(machine: Machine, notes: bytes) -> bytes:
    # libkdumpfile looks for VMCOREINFO among the notes; others at its own offset.
    offset = PAGE_SIZE + _SUB_HEADER.sizeof()
    header: bytes = _SUB_HEADER.build(
        {
            "phys_base": machine.plan.space.phys_base,
            "dump_level": _DUMP_LEVEL,
            "split": 0,
            "start_pfn": 0,
            "end_pfn": 0,
            "offset_vmcoreinfo": offset + notes.index(machine.vmcoreinfo),
            "size_vmcoreinfo": len(machine.vmcoreinfo),
            "offset_note": offset,
            "size_note": len(notes),
            "offset_eraseinfo": 0,
            "size_eraseinfo": 0,
            "start_pfn_64": 0,
            "end_pfn_64": 0,
            "max_mapnr_64": machine.plan.max_pfn,
        }
    )
    return header


def kdump_pages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """
    PFN and content of each page of a file that :func:`write_kdump()` wrote: what to
    compare, because versions of zlib compress the same page differently.
    """
    header = _HEADER.parse(data)
    blocks = header.bitmap_blocks // 2
    second = (1 + header.sub_hdr_size + blocks) * PAGE_SIZE
    start = second + blocks * PAGE_SIZE
    bitmap = np.frombuffer(data[second:start], dtype=np.uint8)
    pfns = np.flatnonzero(np.unpackbits(bitmap, bitorder="little"))
    descriptors = np.frombuffer(data, dtype=_PAGE_DESC, count=len(pfns), offset=start)
    for pfn, (offset, size, flags, _) in zip(pfns.tolist(), descriptors.tolist()):
        stored = data[offset : offset + size]
        yield pfn, zlib.decompress(stored) if flags & _COMPRESSED_ZLIB else stored


_FLAT_HEADER = construct.Struct(
    "signature" / construct.Padded(16, construct.Const(b"makedumpfile")),
    "type" / construct.Const(1, construct.Int64sb),
    "version" / construct.Const(1, construct.Int64sb),
)
_FLAT_DATA = construct.Struct(
    "offset" / construct.Int64sb, "buf_size" / construct.Int64sb
)


class FlattenedFile:
    """
    A file that records what is written where, for a pipe that cannot seek.

    :param file: Gets the records.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        file.write(_FLAT_HEADER.build({}).ljust(PAGE_SIZE, b"\0"))

    def write(self, data: bytes) -> int:
        """Record data at the present position."""
        self._file.write(
            _FLAT_DATA.build({"offset": self._position, "buf_size": len(data)})
        )
        self._file.write(data)
        self._position += len(data)
        return len(data)

    def seek(self, offset: int) -> int:
        """Set the position."""
        self._position = offset
        return offset

    def finish(self) -> None:
        """Record the end."""
        self._file.write(_FLAT_DATA.build({"offset": -1, "buf_size": -1}))
