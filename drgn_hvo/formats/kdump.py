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

import construct
import numpy as np

from drgn_hvo.errors import FormatError

__all__ = (
    "FLATTENED_SIGNATURE",
    "KDUMP_SIGNATURE",
    "check_kdump_file",
    "disk_dump_header",
    "page_descriptor",
)

KDUMP_SIGNATURE = b"KDUMP   "
FLATTENED_SIGNATURE = b"makedumpfile\0\0\0\0"

# The flattened format ends with a record whose offset and size are -1.
_FLATTENED_END = b"\xff" * 16

# Descriptors and bitmaps are looked at in pieces: a dump of a terabyte has
# gigabytes of them.
_PIECE = 1 << 20


def disk_dump_header(byteorder: str) -> construct.Struct:
    """
    ``struct disk_dump_header`` of a 64-bit machine, up to what we need.

    :param byteorder: ``"little"`` or ``"big"``.
    """
    little = byteorder == "little"
    i32 = construct.Int32sl if little else construct.Int32sb
    u32 = construct.Int32ul if little else construct.Int32ub
    i64 = construct.Int64sl if little else construct.Int64sb
    return construct.Struct(
        "signature" / construct.Bytes(8),
        "header_version" / i32,
        "utsname" / construct.Bytes(6 * 65),
        construct.Padding(6),
        "tv_sec" / i64,
        "tv_usec" / i64,
        "status" / u32,
        "block_size" / i32,
        "sub_hdr_size" / i32,
        "bitmap_blocks" / u32,
        "max_mapnr" / u32,
    )


def page_descriptor(byteorder: str) -> np.dtype[np.void]:
    """``struct page_desc``, as a NumPy record."""
    order = "<" if byteorder == "little" else ">"
    return np.dtype(
        [
            ("offset", f"{order}u8"),
            ("size", f"{order}u4"),
            ("flags", f"{order}u4"),
            ("page_flags", f"{order}u8"),
        ]
    )


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


def _parse_header(f: BinaryIO) -> tuple[Any, str]:
    f.seek(0)
    data = f.read(4096)
    for byteorder in ("little", "big"):
        try:
            header = disk_dump_header(byteorder).parse(data)
        except construct.StreamError:
            raise FormatError("this kdump file is cut off in its header") from None
        if header.block_size in (4096, 8192, 16384, 32768, 65536):
            return header, byteorder
    raise FormatError("this kdump file is damaged: it has no sensible block size")


def _check_frame(f: BinaryIO, size: int) -> None:
    header, byteorder = _parse_header(f)
    block = header.block_size
    bitmaps = (1 + header.sub_hdr_size) * block
    descriptors = bitmaps + header.bitmap_blocks * block
    if header.sub_hdr_size < 1 or descriptors > size:
        raise FormatError(
            f"this kdump file is cut off or damaged: it has {size} bytes, its tables "
            f"alone {descriptors}"
        )
    # The first half says which pages there are, the second which were dumped.
    second = bitmaps + header.bitmap_blocks // 2 * block
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
