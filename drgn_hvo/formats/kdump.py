# SPDX-License-Identifier: LGPL-2.1-or-later

"""
kdump-compressed files
----------------------

drgn reads these through libkdumpfile, which maps the file into memory: where a
file is cut off or its page descriptors point elsewhere, that ends the process
with SIGBUS. So the frame of the file (makedumpfile's ``diskdump_mod.h``) is
checked before it is opened.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Optional

import numpy as np

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.byteorder import BYTE_ORDERS, ByteOrder, type_prefix

__all__ = (
    "FLATTENED_DATA",
    "FLATTENED_HEADER",
    "FLATTENED_SIGNATURE",
    "KDUMP_SIGNATURE",
    "check_kdump_file",
    "disk_dump_header",
    "kdump_sub_header",
    "page_descriptor",
    "parse_header",
)

KDUMP_SIGNATURE = b"KDUMP   "
FLATTENED_SIGNATURE = b"makedumpfile\0\0\0\0"

# The flattened format ends with a record whose offset and size are -1.
_FLATTENED_END = b"\xff" * 16

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


def check_kdump_file(f: BinaryIO) -> None:
    """
    Check that a file, if it is a kdump-compressed one, is whole.

    :raises FormatError: if it is cut off or damaged.
    """
    signature = f.read(16)
    size = f.seek(0, 2)
    if signature == FLATTENED_SIGNATURE:
        f.seek(max(0, size - 16))
        if f.read(16) != _FLATTENED_END:
            raise FormatError("this flattened dump is cut off: its end mark is missing")
    elif signature.startswith(KDUMP_SIGNATURE):
        _check_frame(f, size)


def parse_header(f: BinaryIO) -> tuple[Any, ByteOrder]:
    """
    The main header of a file, and its byte order.

    :raises FormatError: if it is cut off or damaged.
    """
    f.seek(0)
    data = f.read(4096)
    for byteorder in BYTE_ORDERS:
        dtype = disk_dump_header(byteorder)
        if len(data) < dtype.itemsize:
            raise FormatError("this kdump file is cut off in its header")
        header = np.frombuffer(data, dtype=dtype, count=1)[0]
        if header["block_size"] in (4096, 8192, 16384, 32768, 65536):
            return header, byteorder
    raise FormatError("this kdump file is damaged: it has no sensible block size")


def _check_frame(f: BinaryIO, size: int) -> None:
    header, byteorder = parse_header(f)
    block, sub_blocks, bitmap_blocks = (
        int(header[name]) for name in ("block_size", "sub_hdr_size", "bitmap_blocks")
    )
    bitmaps = (1 + sub_blocks) * block
    descriptors = bitmaps + bitmap_blocks * block
    if sub_blocks < 1 or descriptors > size:
        raise FormatError(
            f"this kdump file is cut off or damaged: it has {size} bytes, its tables "
            f"alone {descriptors}"
        )
    # The first half says which pages there are, the second which were dumped.
    second = bitmaps + bitmap_blocks // 2 * block
    count = _count_bits(f, second, descriptors - second)
    dtype = page_descriptor(byteorder)
    end = descriptors + count * dtype.itemsize
    if end > size:
        raise FormatError(
            f"this kdump file is cut off: it has {size} bytes, its page descriptors "
            f"end at {end}"
        )
    last = _check_descriptors(f, descriptors, count, dtype, block, size)
    if last is not None:
        raise FormatError(
            f"this kdump file is cut off or damaged: it has {size} bytes, a page ends "
            f"at {last}"
        )


def _count_bits(f: BinaryIO, start: int, length: int) -> int:
    f.seek(start)
    count = 0
    while length > 0:
        piece = f.read(min(_PIECE, length))
        if not piece:
            break
        length -= len(piece)
        count += int(np.unpackbits(np.frombuffer(piece, dtype=np.uint8)).sum())
    return count


def _check_descriptors(
    f: BinaryIO,
    start: int,
    count: int,
    dtype: np.dtype[np.void],
    block: int,
    size: int,
) -> Optional[int]:
    """The end of a page that is not in the file or too large, if there is one."""
    f.seek(start)
    while count > 0:
        piece = f.read(min(_PIECE // dtype.itemsize, count) * dtype.itemsize)
        pages = np.frombuffer(piece, dtype=dtype)
        if not len(pages):
            break
        count -= len(pages)
        ends = pages["offset"] + pages["size"]
        bad = (pages["offset"] > size) | (ends > size) | (pages["size"] > block)
        if bad.any():
            return int(ends[bad][0])
    return None
