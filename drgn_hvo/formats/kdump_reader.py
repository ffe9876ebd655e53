# SPDX-License-Identifier: LGPL-2.1-or-later

"""
kdump-compressed files, read
----------------------------

Physical memory out of a kdump-compressed file, for the architectures of which drgn's
libkdumpfile reads none. Only :func:`zlib.decompress` is always there: pages that were
compressed otherwise need a module for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
import importlib
from typing import Optional
import zlib

import numpy as np

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.kdump import KdumpFrame, page_descriptor

__all__ = ("KdumpReader",)

# How many of the pages that were unpacked last are kept.
_KEPT_PAGES = 1024

# Pages are counted in pieces of the bitmap, of this many bytes.
_PIECE = 512

# How many bits are set in a byte.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)


def _zstd(data: bytes) -> bytes:
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            unpacked: bytes = importlib.import_module(name).decompress(data)
        except ImportError:
            continue
        return unpacked
    raise FormatError("pages are compressed with zstd, and there is no module for it")


#: By the bit in a page's flags, DUMP_DH_COMPRESSED_*: its name and what unpacks it.
_COMPRESSIONS: dict[int, tuple[str, Optional[Callable[[bytes], bytes]]]] = {
    0x1: ("zlib", zlib.decompress),
    0x2: ("lzo", None),
    0x4: ("snappy", None),
    0x20: ("zstd", _zstd),
}


class KdumpReader:
    """
    The pages of a kdump-compressed or flattened file.

    :param frame: Of it, checked; its file must stay open.
    """

    def __init__(self, frame: KdumpFrame) -> None:
        self._file = frame.file
        self.page_size = frame.block
        self._descriptor = page_descriptor(frame.byteorder)
        self._descriptors = frame.descriptors
        self._bitmap = np.frombuffer(frame.second_bitmap, dtype=np.uint8)
        counts = _BITS[self._bitmap].reshape(-1, _PIECE).sum(axis=1, dtype=np.int64)
        self._before = np.concatenate(([0], np.cumsum(counts)))
        self._page = lru_cache(_KEPT_PAGES)(self._read_page)

    def _pread(self, size: int, offset: int) -> bytes:
        data = self._file.read(offset, size)
        if len(data) < size:
            raise FormatError("this kdump file is cut off")
        return data

    @property
    def first(self) -> int:
        """The lowest physical address in the file; 0 if there is none."""
        (used,) = self._bitmap.nonzero()
        if not len(used):
            return 0
        byte = int(self._bitmap[used[0]])
        pfn = 8 * int(used[0]) + (byte & -byte).bit_length() - 1
        return pfn * self.page_size

    @property
    def end(self) -> int:
        """One more than the highest physical address that there can be."""
        return 8 * len(self._bitmap) * self.page_size

    def read(self, address: int, count: int) -> Optional[bytes]:
        """
        Physical memory.

        :return: ``None`` if a page of it is not in the file.
        :raises FormatError: if a page is damaged, or compressed in a way that cannot
            be unpacked.
        """
        parts = []
        while count:
            pfn, offset = divmod(address, self.page_size)
            page = self._page(pfn)
            if page is None:
                return None
            part = page[offset : offset + count]
            parts.append(part)
            address, count = address + len(part), count - len(part)
        return b"".join(parts)

    def _index(self, pfn: int) -> Optional[int]:
        """How many pages of the file are in front of one, if it is there."""
        byte, bit = divmod(pfn, 8)
        if byte >= len(self._bitmap) or not self._bitmap[byte] >> bit & 1:
            return None
        piece = byte // _PIECE
        first = self._bitmap[piece * _PIECE : byte]
        below = int(self._bitmap[byte]) & (1 << bit) - 1
        count = int(_BITS[first].sum()) + bin(below).count("1")
        return int(self._before[piece]) + count

    def _read_page(self, pfn: int) -> Optional[bytes]:
        index = self._index(pfn)
        if index is None:
            return None
        size = self._descriptor.itemsize
        data = self._pread(size, self._descriptors + index * size)
        descriptor = np.frombuffer(data, dtype=self._descriptor, count=1)[0]
        stored = int(descriptor["size"])
        if not stored:
            # makedumpfile could not write it.
            return None
        if stored > self.page_size:
            raise FormatError(f"page {pfn:#x} of this kdump file is damaged")
        page = self._pread(stored, int(descriptor["offset"]))
        for bit, (name, unpack) in _COMPRESSIONS.items():
            if not int(descriptor["flags"]) & bit:
                continue
            if unpack is None:
                raise FormatError(f"pages are compressed with {name}")
            try:
                page = unpack(page)
            except (zlib.error, ValueError) as e:
                raise FormatError(f"page {pfn:#x} cannot be unpacked: {e}") from None
        if len(page) != self.page_size:
            raise FormatError(f"page {pfn:#x} of this kdump file is damaged")
        return page
