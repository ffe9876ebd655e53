# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The log in kernel memory
------------------------

The records of ``printk()``, read from its ring buffer as ``prb_read()`` in
:linux:`kernel/printk/printk_ringbuffer.c` reads them. VMCOREINFO has the offsets of
all that is needed, so that no types are. Since Linux kernel commit 896fbe20b4e2
("printk: use the lockless ringbuffer") (in v5.10); HVO is younger than what was there
before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Optional, Protocol

import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import FormatError, UnavailableError
from drgn_hvo.formats.byteorder import type_prefix

__all__ = (
    "PrintkLayout",
    "PrintkLog",
    "PrintkRecord",
    "ReadMemory",
    "find_printk_record",
    "read_printk_log",
)


class PrintkLayout(Protocol):
    """
    Where the ring buffer is and what it looks like, by the names of VMCOREINFO; each
    is ``None`` if it is not known. A :class:`~drgn_hvo.formats.vmcoreinfo.Vmcoreinfo`
    is one.
    """

    def address(self, name: str) -> Optional[int]:
        """Where a variable lies."""

    def size(self, name: str) -> Optional[int]:
        """The size of a structure in bytes."""

    def offset(self, name: str) -> Optional[int]:
        """``structure.member``, in bytes."""


#: Reads memory: takes a virtual address and a number of bytes, gives ``None`` if they
#: are not in the dump.
ReadMemory = Callable[[int, int], Optional[bytes]]

# Of a 64-bit kernel.
_LONG = 8
_ALL_ONES = (1 << 64) - 1

# enum desc_state: records that have been written.
_DESC_COMMITTED, _DESC_FINALIZED = 1, 2

# DESC_FLAGS_SHIFT.
_ID_MASK = (1 << 62) - 1

# log_buf_len_update() allows up to 2 GiB, PRB_AVGBITS makes a descriptor of every 32
# bytes of it.
_MAX_TEXT_BITS = 31
_MAX_DESC_BITS = _MAX_TEXT_BITS - 5

# What a panic leaves is in the last few thousand; a buffer of 8 MiB has as many.
_MAX_RECORDS = 1 << 18
_MAX_TEXT = 32 << 20

# Text that is searched at once: 1,024 records of 1 KiB, which is as long as one can be
# (PRINTKRB_RECORD_MAX).
_MAX_SEARCHED = 1 << 20


@dataclass(frozen=True)
class PrintkRecord:
    """
    One record.

    :param ts_nsec: Nanoseconds since boot.
    :param caller: The thread or processor that printed it, as ``T412`` or ``C0``.
    """

    ts_nsec: int
    text: bytes
    caller: Optional[str] = None


@dataclass(frozen=True)
class PrintkLog:
    """
    What the ring buffer holds, oldest first.

    :param missing: How many records could not be read: their memory is not in the
        dump, they contradict themselves, or there are more than any kernel has.
    """

    records: tuple[PrintkRecord, ...]
    missing: int

    def lines(self) -> Iterator[str]:
        """
        The lines that ``dmesg`` prints, with callers: records of several processors
        can be mixed.
        """
        for record in self.records:
            seconds, rest = divmod(record.ts_nsec, 1_000_000_000)
            text = record.text.decode("ascii", "replace")
            caller = "" if record.caller is None else f"[{record.caller:>6}]"
            for line in text.split("\n"):
                yield f"[{seconds:5d}.{rest // 1000:06d}]{caller} {line}"


class _Offsets:
    """Sizes and offsets that must be known."""

    def __init__(self, layout: PrintkLayout) -> None:
        self._layout = layout

    def size(self, name: str) -> int:
        return self._known(f"SIZE({name})", self._layout.size(name))

    def offset(self, name: str) -> int:
        return self._known(f"OFFSET({name})", self._layout.offset(name))

    def _known(self, key: str, value: Optional[int]) -> int:
        if value is None:
            raise UnavailableError(f"the log cannot be read: VMCOREINFO lacks {key}")
        # The largest of these structures has some 150 bytes.
        if value > 1 << 16:
            raise FormatError(f"VMCOREINFO has {key}={value}, which cannot be")
        return value


class _Ring:
    """A ``struct printk_ringbuffer``."""

    def __init__(
        self,
        read: ReadMemory,
        layout: PrintkLayout,
        byte_order: Literal["little", "big"],
    ) -> None:
        self._read_memory = read
        self._byte_order = byte_order
        offsets = _Offsets(layout)
        variable = layout.address("prb")
        if variable is None:
            raise UnavailableError(
                "the log cannot be read: VMCOREINFO lacks SYMBOL(prb), which says "
                "where it is"
            )
        ring = self._header(variable)
        counter = offsets.offset("atomic_long_t.counter")
        descs = ring + offsets.offset("printk_ringbuffer.desc_ring")
        texts = ring + offsets.offset("printk_ringbuffer.text_data_ring")

        def desc_field(name: str) -> int:
            return descs + offsets.offset(f"prb_desc_ring.{name}")

        count_bits = self._header(desc_field("count_bits"), 4)
        self._text_bits = self._header(
            texts + offsets.offset("prb_data_ring.size_bits"), 4
        )
        if not (
            0 < count_bits <= _MAX_DESC_BITS and 0 < self._text_bits <= _MAX_TEXT_BITS
        ):
            raise FormatError(
                f"the log is damaged: 2^{count_bits} records in 2^{self._text_bits} "
                "bytes"
            )
        self._desc_mask = (1 << count_bits) - 1
        self._descs = self._header(desc_field("descs"))
        self._infos = self._header(desc_field("infos"))
        self._text = self._header(texts + offsets.offset("prb_data_ring.data"))
        self.head_id = self._header(desc_field("head_id") + counter) & _ID_MASK
        self.tail_id = self._header(desc_field("tail_id") + counter) & _ID_MASK
        self._desc_size = offsets.size("prb_desc")
        self._state = offsets.offset("prb_desc.state_var") + counter
        lpos = offsets.offset("prb_desc.text_blk_lpos")
        self._begin = lpos + offsets.offset("prb_data_blk_lpos.begin")
        self._next = lpos + offsets.offset("prb_data_blk_lpos.next")
        self._info_size = offsets.size("printk_info")
        self._ts_nsec = offsets.offset("printk_info.ts_nsec")
        self._text_len = offsets.offset("printk_info.text_len")
        self._caller_id = layout.offset("printk_info.caller_id")

    def _header(self, address: int, size: int = _LONG) -> int:
        value = self._read(address, size)
        if value is None:
            raise FormatError("the log is not in this dump")
        return value

    def _read(self, address: int, size: int = _LONG) -> Optional[int]:
        data = self._read_memory(address & _ALL_ONES, size)
        return None if data is None else int.from_bytes(data, self._byte_order)

    @property
    def count(self) -> int:
        """How many descriptors are in use, those that have no text included."""
        return min((self.head_id - self.tail_id & _ID_MASK) + 1, self._desc_mask + 1)

    def record(self, desc_id: int) -> Optional[PrintkRecord]:
        """
        One record.

        :return: ``None`` if there is none: it is being written, or was overwritten,
            or is an empty line.
        :raises FormatError: if it is damaged or not in the dump.
        """
        index = desc_id & self._desc_mask
        desc = self._descs + index * self._desc_size
        state = self._part(desc + self._state)
        if state & _ID_MASK != desc_id or state >> 62 not in (
            _DESC_COMMITTED,
            _DESC_FINALIZED,
        ):
            return None
        begin, following = (self._part(desc + at) for at in (self._begin, self._next))
        # BLK_DATALESS()
        if begin & following & 1:
            return None
        start, size = self._block(begin, following)
        info = self._infos + index * self._info_size
        length = min(self._part(info + self._text_len, 2), size - _LONG)
        text = self._read_memory(self._text + start + _LONG, length)
        if text is None:
            raise FormatError("not in this dump")
        ts_nsec = self._part(info + self._ts_nsec)
        return PrintkRecord(ts_nsec, text, self._caller(info))

    def searchable(self, count: int) -> Optional[bytes]:
        """
        The part of the buffer that has the text of the newest records, and more.

        :return: ``None`` if it is damaged, large, or not in the dump.
        """
        blocks = self._blocks(count)
        if blocks is None:
            return None
        # Positions run on past 2^64, so what counts is how far they are apart. Blocks
        # need not be in the order of their records.
        begin, following = blocks
        if not len(begin):
            return b""
        ahead = (following - begin[-1]).astype(np.int64)
        behind = (begin[-1] - begin).astype(np.int64)
        size = int(ahead.max()) + int(behind.max())
        ring = 1 << self._text_bits
        if not 0 < size <= min(ring, _MAX_SEARCHED):
            return None
        start = int(begin[behind.argmax()]) % ring
        # What wraps has its text at the beginning.
        first = self._read_memory(self._text + start, min(size, ring - start))
        rest = self._read_memory(self._text, max(start + size - ring, 0))
        return None if first is None or rest is None else first + rest

    def _blocks(
        self, count: int
    ) -> Optional[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]:
        """Where the text of the newest records that have some begins and ends."""
        fields = (self._state, self._begin, self._next)
        if max(fields) + _LONG > self._desc_size:
            return None
        mask = self._desc_mask
        first = self.head_id - count + 1 & mask
        until_end = min(count, mask + 1 - first)
        data = b""
        for index, some in ((first, until_end), (0, count - until_end)):
            address = self._descs + index * self._desc_size & _ALL_ONES
            part = self._read_memory(address, some * self._desc_size)
            if part is None:
                return None
            data += part
        table = np.frombuffer(data, dtype=np.uint8).reshape(count, self._desc_size)

        def words(at: int) -> npt.NDArray[np.uint64]:
            raw = np.ascontiguousarray(table[:, at : at + _LONG])
            return raw.view(f"{type_prefix(self._byte_order)}u8")[:, 0].astype("u8")

        ids = np.uint64(self.head_id) - np.arange(count, dtype=np.uint64)[::-1]
        state, begin, following = map(words, fields)
        used = (state & np.uint64(_ID_MASK)) == (ids & np.uint64(_ID_MASK))
        used &= np.isin(state >> np.uint64(62), (_DESC_COMMITTED, _DESC_FINALIZED))
        used &= (begin & following & np.uint64(1)) == 0
        return begin[used], following[used]

    def _caller(self, info: int) -> Optional[str]:
        """``printk_caller_id()`` of a record."""
        if self._caller_id is None:
            return None
        number = self._part(info + self._caller_id, 4)
        processor = number & 1 << 31
        return f"C{number ^ processor}" if processor else f"T{number}"

    def _part(self, address: int, size: int = _LONG) -> int:
        value = self._read(address, size)
        if value is None:
            raise FormatError("not in this dump")
        return value

    def _block(self, begin: int, following: int) -> tuple[int, int]:
        """
        Where in the buffer a data block lies, as ``get_data()`` finds it.

        :return: Offset and size, its ID included.
        """
        # Positions run from just below 2^64 up and over: see _DEFINE_PRINTKRB().
        bits = self._text_bits
        last_wrap = (following - 1 & _ALL_ONES) >> bits
        if begin >> bits == last_wrap and begin != following:
            start = begin & ((1 << bits) - 1)
            size = following - begin & _ALL_ONES
        elif (begin + (1 << bits) & _ALL_ONES) >> bits == last_wrap:
            # What does not fit at the end stands at the beginning, with its ID.
            start, size = 0, following & ((1 << bits) - 1)
        else:
            raise FormatError("damaged")
        if not _LONG < size <= 1 << bits or begin % _LONG or following % _LONG:
            raise FormatError("damaged")
        return start, size


def read_printk_log(
    read: ReadMemory,
    layout: PrintkLayout,
    byte_order: Literal["little", "big"],
    newest: Optional[int] = None,
) -> PrintkLog:
    """
    Read the log.

    :param newest: How many of the last records to read; all if ``None``. The others
        are not counted as missing.
    :raises UnavailableError: if it is not known where it is.
    :raises FormatError: if it is damaged or not in the dump.
    """
    ring = _Ring(read, layout, byte_order)
    wanted = ring.count if newest is None else min(ring.count, newest)
    count = min(wanted, _MAX_RECORDS)
    missing = wanted - count
    records: list[PrintkRecord] = []
    # From the end: that is what a panic printed.
    size = 0
    for back in range(count):
        try:
            record = ring.record((ring.head_id - back) & _ID_MASK)
        except FormatError:
            missing += 1
            continue
        if record is None:
            continue
        size += len(record.text)
        if size > _MAX_TEXT:
            missing += count - back
            break
        records.append(record)
    records.reverse()
    return PrintkLog(tuple(records), missing)


def find_printk_record(
    read: ReadMemory,
    layout: PrintkLayout,
    byte_order: Literal["little", "big"],
    words: bytes,
    newest: int,
) -> Optional[PrintkRecord]:
    """
    The first of the newest records with some words. Most logs do not have them, so
    their text is searched as a whole before records are read one by one.

    :param newest: How many of the last records to look at.
    :return: ``None`` if none that can be read has them.
    :raises UnavailableError: if it is not known where the log is.
    :raises FormatError: if it is damaged or not in the dump.
    """
    ring = _Ring(read, layout, byte_order)
    text = ring.searchable(min(ring.count, newest, _MAX_RECORDS))
    if text is not None and words not in text:
        return None
    log = read_printk_log(read, layout, byte_order, newest)
    return next((record for record in log.records if words in record.text), None)
