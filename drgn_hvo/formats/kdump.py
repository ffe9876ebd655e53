# SPDX-License-Identifier: LGPL-2.1-or-later

"""
kdump-compressed files
----------------------

The format of makedumpfile (its ``diskdump_mod.h`` and ``IMPLEMENTATION``), which QEMU
writes too, and the flattened form of it that goes through pipes.

drgn reads these through libkdumpfile, which maps the file into memory: where a
file is cut off or its page descriptors point elsewhere, that ends the process
with SIGBUS. So the frame of the file is checked before it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Optional, Union

import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.byteorder import BYTE_ORDERS, ByteOrder, type_prefix

__all__ = (
    "FLATTENED_DATA",
    "FLATTENED_HEADER",
    "FLATTENED_SIGNATURE",
    "INCOMPLETE",
    "KDUMP_SIGNATURE",
    "KdumpFrame",
    "disk_dump_header",
    "kdump_sub_header",
    "page_descriptor",
    "parse_header",
    "read_kdump_frame",
)

KDUMP_SIGNATURE = b"KDUMP   "
FLATTENED_SIGNATURE = b"makedumpfile\0\0\0\0"

# Where the records of the flattened format begin: behind its header, padded.
_FLATTENED_START = 4096

# Real files have a record for each 64 KiB or more of at most some terabytes.
_MAX_RECORDS = 1 << 26

# DUMP_DH_COMPRESSED_INCOMPLETE: makedumpfile could not write all, for want of space.
INCOMPLETE = 1 << 3

# Everything that a kernel prints there fits in one or two pages.
_MAX_VMCOREINFO = 1 << 20

# What else a file holds in one piece: notes of machines with thousands of processors
# have a few MiB.
_PARTS = ("vmcoreinfo", "note", "eraseinfo")
_MAX_PART = 64 << 20

# NT_PRSTATUS, of which there is one a processor; NR_CPUS is 8192 at most.
_NT_PRSTATUS = 1
_MAX_NOTES = 1 << 16

_BLOCK_SIZES = (4096, 8192, 16384, 32768, 65536)

# Descriptors and bitmaps are looked at in pieces: a dump of a terabyte has
# gigabytes of them.
_PIECE = 1 << 20


def _record(byteorder: ByteOrder, **fields: str) -> np.dtype[np.void]:
    """A C structure, as a NumPy record, by the types of its members."""
    prefix = type_prefix(byteorder)
    return np.dtype([(name, prefix + kind) for name, kind in fields.items()])


_UTSNAME = ("sysname", "nodename", "release", "version", "machine", "domainname")


def disk_dump_header(byteorder: ByteOrder) -> np.dtype[np.void]:
    """``struct disk_dump_header`` of a 64-bit machine, up to its list of tasks."""
    return _record(
        byteorder,
        signature="S8",
        header_version="i4",
        # struct new_utsname
        **dict.fromkeys(_UTSNAME, "S65"),
        padding="V6",
        tv_sec="i8",
        tv_usec="i8",
        status="u4",
        block_size="i4",
        sub_hdr_size="i4",
        bitmap_blocks="u4",
        max_mapnr="u4",
        total_ram_blocks="u4",
        device_blocks="u4",
        written_blocks="u4",
        current_cpu="u4",
        nr_cpus="i4",
    )


def kdump_sub_header(byteorder: ByteOrder) -> np.dtype[np.void]:
    """``struct kdump_sub_header`` of a 64-bit machine, header version 6."""
    return _record(
        byteorder,
        phys_base="i8",
        dump_level="i4",
        split="i4",
        start_pfn="u8",
        end_pfn="u8",
        offset_vmcoreinfo="i8",
        size_vmcoreinfo="u8",
        offset_note="i8",
        size_note="u8",
        offset_eraseinfo="i8",
        size_eraseinfo="u8",
        start_pfn_64="u8",
        end_pfn_64="u8",
        max_mapnr_64="u8",
    )


def page_descriptor(byteorder: ByteOrder) -> np.dtype[np.void]:
    """``struct page_desc``."""
    return _record(byteorder, offset="u8", size="u4", flags="u4", page_flags="u8")


# Of the flattened format, always big-endian: its header, and what precedes each piece.
FLATTENED_HEADER = _record("big", signature="S16", type="i8", version="i8")
FLATTENED_DATA = _record("big", offset="i8", buf_size="i8")


class _Plain:
    """A file as it is."""

    is_flattened = False

    def __init__(self, f: BinaryIO) -> None:
        self._file = f
        self.size = self.stored_size = f.seek(0, 2)

    def read(self, offset: int, size: int) -> bytes:
        """What there is of some bytes."""
        self._file.seek(offset)
        return self._file.read(size)


class _Flattened:
    """
    The file that a flattened one describes.

    :raises FormatError: if it is cut off or damaged.
    """

    is_flattened = True

    def __init__(self, f: BinaryIO) -> None:
        self._file = f
        self.stored_size = f.seek(0, 2)
        records = np.array(list(_flattened_records(f)), dtype=np.int64).reshape(-1, 3)
        self._offsets, self._sizes, self._places = records.T
        self.size = int((self._offsets + self._sizes).max(initial=0))

    def read(self, offset: int, size: int) -> bytes:
        """As of a file in which nothing but the records was written."""
        end = min(offset + size, self.size)
        data = bytearray(max(0, end - offset))
        ends = self._offsets + self._sizes
        # What is written again, as headers are at the end, comes later.
        for i in np.flatnonzero((self._offsets < end) & (ends > offset)).tolist():
            first, last = max(int(self._offsets[i]), offset), min(int(ends[i]), end)
            self._file.seek(int(self._places[i]) + first - int(self._offsets[i]))
            data[first - offset : last - offset] = self._file.read(last - first)
        return bytes(data)


def _flattened_records(f: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Offset, size and place of each piece of a flattened file."""
    size = f.seek(0, 2)
    place = _FLATTENED_START
    for _ in range(_MAX_RECORDS):
        f.seek(place)
        record = f.read(FLATTENED_DATA.itemsize)
        place += len(record)
        if len(record) < FLATTENED_DATA.itemsize:
            break
        offset, length = np.frombuffer(record, dtype=FLATTENED_DATA)[0].tolist()
        if (offset, length) == (-1, -1):
            return
        if offset < 0 or length <= 0 or offset + length >= 1 << 62:
            raise FormatError(
                f"this flattened dump is cut off or damaged: behind byte {place}, "
                f"{length} bytes of offset {offset}"
            )
        if place + length > size:
            raise FormatError(
                f"this flattened dump is cut off: it has {size} bytes, a piece of it "
                f"ends at {place + length}; copy it again"
            )
        yield offset, length, place
        place += length
    raise FormatError(
        f"this flattened dump is cut off: its end mark is missing behind {place} "
        "bytes; copy it again"
    )


@dataclass(frozen=True)
class KdumpFrame:
    """
    What surrounds the pages of a kdump-compressed file.

    :param header: A record of :func:`disk_dump_header()`.
    :param sub_header: A record of :func:`kdump_sub_header()`; zeros for what the
        version of the header does not have.
    :param file: Reads it, and knows its size; of a flattened file, what it describes.
    """

    header: Any
    sub_header: Any
    byteorder: ByteOrder
    file: Union[_Plain, _Flattened]

    @property
    def block(self) -> int:
        """The size of a page in bytes."""
        return int(self.header["block_size"])

    @property
    def machine(self) -> str:
        """``utsname.machine``."""
        return str(self.header["machine"].decode("ascii", "replace"))

    @property
    def has_utsname(self) -> bool:
        """Whether the header has more of ``struct new_utsname``; QEMU's has not."""
        return bool(self.header["sysname"])

    @property
    def is_incomplete(self) -> bool:
        """Whether makedumpfile could not write all of it."""
        return bool(int(self.header["status"]) & INCOMPLETE)

    @property
    def dump_level(self) -> Optional[int]:
        """What was filtered, as for ``makedumpfile -d``; ``None`` if it is not said."""
        level = int(self.sub_header["dump_level"])
        return level if int(self.header["header_version"]) >= 1 else None

    @property
    def split(self) -> Optional[tuple[int, int]]:
        """First PFN and end of a piece of ``makedumpfile --split``."""
        if not int(self.sub_header["split"]):
            return None
        suffix = "_64" if int(self.header["header_version"]) >= 6 else ""
        start, end = (
            int(self.sub_header[f"{which}_pfn{suffix}"]) for which in ("start", "end")
        )
        return start, end

    @property
    def vmcoreinfo(self) -> Optional[bytes]:
        """VMCOREINFO, if the file has any."""
        offset = int(self.sub_header["offset_vmcoreinfo"])
        size = int(self.sub_header["size_vmcoreinfo"])
        if offset <= 0 or not 0 < size <= _MAX_VMCOREINFO:
            return None
        return self.file.read(offset, size)

    def has_registers(self, size: int) -> bool:
        """
        Whether all notes with the registers of processors are as long as they must be.

        :param size: Of ``struct elf_prstatus``, in bytes.
        """
        offset = int(self.sub_header["offset_note"])
        length = int(self.sub_header["size_note"])
        notes = self.file.read(offset, length) if offset > 0 and length else b""
        position = 0
        for _ in range(_MAX_NOTES):
            header = notes[position : position + 12]
            if len(header) < 12:
                return True
            name, descriptor, kind = (
                int.from_bytes(header[at : at + 4], self.byteorder) for at in (0, 4, 8)
            )
            if kind == _NT_PRSTATUS and descriptor < size:
                return False
            position += 12 + (name + 3 & ~3) + (descriptor + 3 & ~3)
        return False

    @property
    def second_bitmap(self) -> bytes:
        """Which pages were dumped, a bit each."""
        return self.file.read(self._bitmaps + self._bitmap_size, self._bitmap_size)

    @property
    def descriptors(self) -> int:
        """Where the descriptors of pages begin."""
        return self._bitmaps + int(self.header["bitmap_blocks"]) * self.block

    @property
    def _bitmaps(self) -> int:
        return (1 + int(self.header["sub_hdr_size"])) * self.block

    @property
    def _bitmap_size(self) -> int:
        """Of each of the two: which pages there are, and which were dumped."""
        return int(self.header["bitmap_blocks"]) // 2 * self.block

    def check(self) -> None:
        """
        Check that the tables lie in the file, and that pages do or the file is cut off
        behind some of them: then :attr:`end` is more than its size.

        :raises FormatError: if they do not: what is left cannot be read.
        """
        size = self.file.size
        if int(self.header["sub_hdr_size"]) < 1 or self.descriptors > size:
            raise FormatError(
                f"this kdump file is cut off or damaged: it has {size} bytes, its "
                f"tables alone {self.descriptors}; copy it again"
            )
        for what in _PARTS:
            length = int(self.sub_header[f"size_{what}"])
            if length > min(size, _MAX_PART):
                # libkdumpfile allocates as much as the header says.
                raise FormatError(
                    f"this kdump file is damaged: it has {size} bytes, and says that "
                    f"its {what} alone has {length}"
                )
        if self._data > size:
            raise FormatError(
                f"this kdump file is cut off: it has {size} bytes, its page "
                f"descriptors end at {self._data}; copy it again"
            )
        pages = self._pages
        if pages.oversized or pages.last_inside > pages.first_outside:
            raise FormatError(
                f"this kdump file is cut off or damaged: it has {size} bytes, a page "
                f"ends at {pages.end}; copy it again"
            )

    @property
    def end(self) -> int:
        """How long the file has to be for all pages that it names, in bytes."""
        return self._pages.end

    @property
    def unwritten(self) -> int:
        """
        How many pages it should have, but has not: their descriptors lead nowhere, as
        where makedumpfile could not write all.
        """
        return self._pages.unwritten

    @property
    def _data(self) -> int:
        """Where the pages begin."""
        return self.descriptors + self._count * self._dtype.itemsize

    @cached_property
    def _dtype(self) -> np.dtype[np.void]:
        return page_descriptor(self.byteorder)

    @cached_property
    def _count(self) -> int:
        """How many descriptors there are: one for each page that was dumped."""
        return self._dumped(*self.split) if self.split else self._dumped()

    @cached_property
    def elsewhere(self) -> int:
        """How many pages the other pieces of a split dump have."""
        return self._dumped() - self._count if self.split else 0

    def _dumped(self, first: int = 0, last: Optional[int] = None) -> int:
        """How many pages of a range were dumped, into this file or another piece."""
        is_part = last is not None
        last = 8 * self._bitmap_size if last is None else last
        second = self._bitmaps + self._bitmap_size
        start, end = first // 8, min(-(-last // 8), self._bitmap_size)
        count = 0
        for at in range(start, end, _PIECE):
            piece = self.file.read(second + at, min(_PIECE, end - at))
            data = np.frombuffer(piece, dtype=np.uint8)
            # Most of the bitmap of a large machine is zeros.
            (some,) = data.nonzero()
            bits = np.unpackbits(data[some, None], axis=1, bitorder="little")
            if is_part:
                pfns = 8 * (at + some[:, None]) + np.arange(8)
                bits = bits[(first <= pfns) & (pfns < last)]
            count += int(bits.sum())
        return count

    @cached_property
    def _pages(self) -> _Pages:
        found = _Pages(0, False, 0, -1, self._count)
        each = _PIECE // self._dtype.itemsize
        for first in range(0, self._count, each):
            piece = self.file.read(
                self.descriptors + first * self._dtype.itemsize,
                min(each, self._count - first) * self._dtype.itemsize,
            )
            found = found.with_more(
                np.frombuffer(piece, dtype=self._dtype), first, self
            )
        return found

    @property
    def limits(self) -> tuple[int, int]:
        """Where pages begin and, in this file, end."""
        return self._data, self.file.size


@dataclass(frozen=True)
class _Pages:
    """
    What descriptors say of pages.

    :param end: Where the last one ends, in bytes.
    :param oversized: Whether one is larger than a page.
    :param unwritten: How many have no place.
    :param last_inside: Which is the last one that lies in the file.
    :param first_outside: Which is the first one that does not.
    """

    end: int
    oversized: bool
    unwritten: int
    last_inside: int
    first_outside: int

    def with_more(
        self, pages: npt.NDArray[np.void], first: int, frame: KdumpFrame
    ) -> _Pages:
        """
        Take account of more pages.

        :param first: How many came before.
        """
        start, size = frame.limits
        offsets, sizes = pages["offset"], pages["size"].astype(np.uint64)
        ends = offsets + sizes
        # An offset near the end of numbers is outside, too.
        outside = (offsets > size) | (ends > size)
        # Pages are written in order, but that of zeros once, at the start.
        (in_order,) = (~outside & (offsets > start)).nonzero()
        (beyond,) = outside.nonzero()
        return _Pages(
            max(self.end, int(offsets.max(initial=0)), int(ends.max(initial=0))),
            self.oversized or bool((sizes > frame.block).any()),
            self.unwritten + int(((offsets == 0) & (sizes == 0)).sum()),
            first + int(in_order[-1]) if len(in_order) else self.last_inside,
            min(self.first_outside, first + int(beyond[0]))
            if len(beyond)
            else self.first_outside,
        )


def read_kdump_frame(f: BinaryIO) -> Optional[KdumpFrame]:
    """
    The frame of a kdump-compressed or flattened file.

    :return: ``None`` if it is neither, or a flattened file of another format.
    :raises FormatError: if it is cut off in its headers, or damaged.
    """
    f.seek(0)
    signature = f.read(16)
    file: Union[_Plain, _Flattened]
    if signature == FLATTENED_SIGNATURE:
        file = _Flattened(f)
        if not file.read(0, 8).startswith(KDUMP_SIGNATURE):
            return None
    elif signature.startswith(KDUMP_SIGNATURE):
        file = _Plain(f)
    else:
        return None
    header, byteorder = _parse_header(file)
    dtype = kdump_sub_header(byteorder)
    data = file.read(int(header["block_size"]), dtype.itemsize)
    sub_header = np.frombuffer(data.ljust(dtype.itemsize, b"\0"), dtype=dtype)[0]
    return KdumpFrame(header, sub_header, byteorder, file)


def parse_header(f: BinaryIO) -> tuple[Any, ByteOrder]:
    """
    The main header of a kdump-compressed file, and its byte order.

    :raises FormatError: if it is cut off or damaged.
    """
    return _parse_header(_Plain(f))


def _parse_header(file: Union[_Plain, _Flattened]) -> tuple[Any, ByteOrder]:
    for byteorder in BYTE_ORDERS:
        dtype = disk_dump_header(byteorder)
        data = file.read(0, dtype.itemsize)
        if len(data) < dtype.itemsize:
            raise FormatError("this kdump file is cut off in its header; copy it again")
        header = np.frombuffer(data, dtype=dtype)[0]
        if header["block_size"] in _BLOCK_SIZES:
            return header, byteorder
    raise FormatError("this kdump file is damaged: it has no sensible block size")
