# SPDX-License-Identifier: LGPL-2.1-or-later

"""
kdump-compressed files, written
-------------------------------

The format of makedumpfile (its ``diskdump_mod.h`` and ``IMPLEMENTATION``), header
version 6, pages compressed with zlib, which every reader knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import io
import struct
from typing import IO, Union
import zlib

import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.byteorder import ByteOrder, type_prefix
from drgn_hvo.formats.kdump import (
    INCOMPLETE,
    KDUMP_SIGNATURE,
    disk_dump_header,
    kdump_sub_header,
    page_descriptor,
    parse_header,
)

__all__ = (
    "KdumpHeader",
    "KdumpWriter",
    "PackedPage",
    "core_note",
    "kdump_pages",
    "pack_page",
    "pfn_bitmap",
)

_VERSION = 6
_COMPRESSED_ZLIB = 1

#: A page as the file stores it: flags of its descriptor, and data.
PackedPage = tuple[int, bytes]


def core_note(
    name: bytes, kind: int, data: bytes, byteorder: ByteOrder = "little"
) -> bytes:
    """An ELF note, as cores have it."""
    owner = name + b"\0"
    header = struct.pack(f"{type_prefix(byteorder)}III", len(owner), len(data), kind)
    return header + owner + bytes(-len(owner) % 4) + data + bytes(-len(data) % 4)


@dataclass(frozen=True)
class KdumpHeader:
    """
    What the headers say.

    :param nodename: Of ``struct new_utsname``; names a machine, so think first.
    :param machine: Of ``struct new_utsname``; libkdumpfile takes the architecture from
        it.
    :param vmcoreinfo: Must be part of *notes*, byte for byte.
    :param dump_level: What was filtered, as for ``makedumpfile -d``.
    :param max_mapnr: One more than the highest PFN.
    :param is_incomplete: Whether to say that pages are missing that should be here.
    """

    nodename: str
    release: str
    version: str
    machine: str
    page_size: int
    phys_base: int
    vmcoreinfo: bytes
    notes: bytes
    dump_level: int
    max_mapnr: int
    byteorder: ByteOrder = "little"
    is_incomplete: bool = False


def pack_page(data: bytes, level: int) -> PackedPage:
    """
    A page as the file stores it: compressed, if that makes it smaller.

    :param level: Of zlib.
    """
    stored = zlib.compress(data, level)
    return (0, data) if len(stored) >= len(data) else (_COMPRESSED_ZLIB, stored)


class KdumpWriter:
    """
    Writes a file: headers at once, then pages as they come.

    :param file: Empty, and able to seek.
    :param memory: Bitmap of the pages that the machine has, a bit a page.
    :param dumped: Bitmap of those that the file will have.
    """

    def __init__(
        self, file: IO[bytes], header: KdumpHeader, memory: bytes, dumped: bytes
    ) -> None:
        self._file = file
        size = header.page_size
        blocks = -(-header.max_mapnr // (8 * size))
        sub = _sub_header(header) + header.notes
        sub_size = -(-len(sub) // size)
        used = np.unpackbits(np.frombuffer(dumped, dtype=np.uint8))
        self._descriptors = np.zeros(
            int(used.sum()), dtype=page_descriptor(header.byteorder)
        )
        self._count = 0
        self._zero = (0, 0, 0)
        main = _main_header(header, blocks, sub_size, len(self._descriptors))
        file.write(main.ljust(size, b"\0"))
        file.write(sub.ljust(sub_size * size, b"\0"))
        for bitmap in (memory, dumped):
            file.write(bitmap.ljust(blocks * size, b"\0"))
        self._start = (1 + sub_size + 2 * blocks) * size
        self._offset = self._start + self._descriptors.nbytes
        file.seek(self._offset)

    def add(self, page: PackedPage, *, is_zero: bool = False) -> None:
        """Add the next page, in order of their PFN; all zero pages share one."""
        flags, data = page
        place = self._zero
        if not (is_zero and place[1]):
            place = (self._offset, len(data), flags)
            self._file.write(data)
            self._offset += len(data)
            self._zero = place if is_zero else self._zero
        self._descriptors[self._count] = (*place, 0)
        self._count += 1

    def finish(self) -> None:
        """Write where each page is."""
        assert self._count == len(self._descriptors), "as the bitmap says"
        self._file.seek(self._start)
        self._file.write(self._descriptors.tobytes())


def pfn_bitmap(ranges: Iterable[tuple[int, int]], max_mapnr: int) -> bytes:
    """A bit for each page of some ranges of PFNs, ends excluded."""
    bits = np.zeros(-(-max_mapnr // 8) * 8, dtype=np.uint8)
    for start, end in ranges:
        bits[start:end] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _built(dtype: np.dtype[np.void], values: dict[str, Union[bytes, int]]) -> bytes:
    """A structure with these values, zeros elsewhere."""
    record = np.zeros(1, dtype=dtype)
    for name, value in values.items():
        record[name] = value
    return record.tobytes()


def _uts(text: str) -> bytes:
    """As a member of ``struct new_utsname``, which has 64 characters and an end."""
    return text.encode("ascii", "replace")[:64]


def _main_header(header: KdumpHeader, blocks: int, sub_size: int, count: int) -> bytes:
    return _built(
        disk_dump_header(header.byteorder),
        {
            "signature": KDUMP_SIGNATURE,
            "header_version": _VERSION,
            "sysname": b"Linux",
            "nodename": _uts(header.nodename),
            "release": _uts(header.release),
            "version": _uts(header.version),
            "machine": _uts(header.machine),
            "domainname": b"(none)",
            "status": _COMPRESSED_ZLIB | (INCOMPLETE if header.is_incomplete else 0),
            "block_size": header.page_size,
            "sub_hdr_size": sub_size,
            "bitmap_blocks": 2 * blocks,
            "max_mapnr": min(header.max_mapnr, 0xFFFFFFFF),
            "written_blocks": count & 0xFFFFFFFF,
            "nr_cpus": 1,
        },
    )


def _sub_header(header: KdumpHeader) -> bytes:
    # libkdumpfile looks for VMCOREINFO among the notes; others at its own offset.
    dtype = kdump_sub_header(header.byteorder)
    offset = header.page_size + dtype.itemsize
    at = header.notes.index(header.vmcoreinfo)
    return _built(
        dtype,
        {
            "phys_base": header.phys_base,
            "dump_level": header.dump_level,
            "offset_vmcoreinfo": offset + at,
            "size_vmcoreinfo": len(header.vmcoreinfo),
            "offset_note": offset,
            "size_note": len(header.notes),
            "max_mapnr_64": header.max_mapnr,
        },
    )


def kdump_pages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """
    PFN and content of each page of a file that :class:`KdumpWriter` wrote: what to
    compare, because versions of zlib compress the same page differently.
    """
    header, byteorder = parse_header(io.BytesIO(data))
    blocks, size = int(header["bitmap_blocks"]) // 2, int(header["block_size"])
    second = (1 + int(header["sub_hdr_size"]) + blocks) * size
    start = second + blocks * size
    bitmap: npt.NDArray[np.uint8] = np.frombuffer(data[second:start], dtype=np.uint8)
    pfns = np.flatnonzero(np.unpackbits(bitmap, bitorder="little"))
    dtype = page_descriptor(byteorder)
    descriptors = np.frombuffer(data, dtype=dtype, count=len(pfns), offset=start)
    for pfn, (offset, length, flags, _) in zip(pfns.tolist(), descriptors.tolist()):
        stored = data[offset : offset + length]
        yield pfn, zlib.decompress(stored) if flags & _COMPRESSED_ZLIB else stored
