# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where kallsyms is, by its looks
-------------------------------

VMCOREINFO names the tables of kallsyms since v6.0 only, and the keys may be lost. They
lie in the read-only data of the kernel image, and each has looks that nothing else has
(``write_src()`` in :linux:`scripts/kallsyms.c`):

- ``kallsyms_token_index``: 256 ascending 16-bit numbers, the first 0;
- ``kallsyms_token_table``: 256 strings in front of that, which begin where it says;
- ``kallsyms_num_syms`` and, behind it, ``kallsyms_names``: that number of names, each
  its length and codes; the first character of a name is a type as nm(1) prints it;
- ``kallsyms_offsets`` or ``kallsyms_addresses``, in front of these up to v6.3 and
  behind them since v6.4: where the entries of all symbols that VMCOREINFO names agree
  with it.

Markers and the index by name are not needed, so it does not matter where they lie. What
is not found exactly once is not found: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.byteorder import ByteOrder, type_prefix

__all__ = ("find_kallsyms",)

_TOKENS = 256
# A token has at most as many characters as a name (KSYM_NAME_LEN, 512); all of a real
# kernel have some 900.
_MAX_TOKENS_SIZE = 1 << 14
# What is cut down leaves a gap behind its tokens.
_MAX_GAP = 1 << 15
# An allyesconfig kernel has fewer than 500,000.
_MAX_SYMBOLS = 4_000_000
# Even extracts (--small) have more.
_MIN_SYMBOLS = 32
_MAX_NAME_SIZE = 512
# How many names must make sense before all are looked at.
_FIRST_NAMES = 24
# What nm(1) prints for a symbol.
_TYPES = b"aAbBcCdDgGiInNpPrRsStTuUvVwW?-"
# Fewer symbols of VMCOREINFO than this in the table prove nothing.
_ENOUGH = 3
# At most this many places that look like a table at first are looked at closely.
_MAX_PLACES = 64

_Places = npt.NDArray[np.int64]
_Words = npt.NDArray[Any]


@dataclass(frozen=True)
class _Tokens:
    """Both tables of tokens: their places in the image, and the tokens."""

    table: int
    index: int
    texts: tuple[bytes, ...]


@dataclass(frozen=True)
class _Names:
    """
    Places of ``kallsyms_num_syms`` and ``kallsyms_names``, and their number.

    :param end: Where the names end.
    """

    num_syms: int
    names: int
    count: int
    end: int


class _Image:
    """
    The kernel image.

    :param start: The address of its first byte, a multiple of 8.
    :param data: Zeros where the dump has nothing.
    """

    def __init__(self, start: int, data: bytes, byteorder: ByteOrder) -> None:
        self.start = start
        self.data = data[: len(data) // 8 * 8]
        self.codes = np.frombuffer(self.data, dtype=np.uint8)
        self._order = type_prefix(byteorder)

    def words(self, size: int) -> _Words:
        """All words of a size, in the byte order of the machine we run on."""
        words = np.frombuffer(self.data, dtype=f"{self._order}u{size}")
        return words.astype(f"=u{size}", copy=False)


def find_kallsyms(
    start: int, data: bytes, known: Mapping[str, int], byteorder: ByteOrder
) -> dict[str, int]:
    """
    Find the tables of kallsyms.

    :param start: The address of the first byte, a multiple of 8.
    :param data: The kernel image, at least its read-only data.
    :param known: Addresses of symbols, as VMCOREINFO has them.
    :return: Addresses by name, as VMCOREINFO of a later kernel has them.
    :raises FormatError: if they are not found, or more than once.
    """
    image = _Image(start, data, byteorder)
    found = []
    for tokens in _find_tokens(image):
        end = None
        for names in _find_names(image, tokens):
            # Some of the names of a table look like a shorter table by themselves.
            if end is None or not end[0] < names.num_syms < end[1]:
                tables = list(_with_addresses(image, tokens, names, known))
                end = (names.num_syms, names.end) if tables else end
                found += tables
    if not found:
        raise FormatError("kallsyms is not found in the kernel image")
    if len(found) > 1:
        raise FormatError(f"{len(found)} tables in the kernel image can be kallsyms")
    return {name: start + place for name, place in found[0].items()}


def _find_tokens(image: _Image) -> Iterator[_Tokens]:
    words = image.words(2)
    if len(words) < 2 * _TOKENS:
        return
    # Tables are aligned to 4 bytes at least.
    ends = len(words) - _TOKENS + 1
    first = words[:ends:2]
    looks = first == 0
    for low, high in ((0, 1), (1, 2), (2, 3), (3, 64), (64, 255)):
        looks &= (
            words[high : high + ends : 2][: len(first)]
            > (words[low : low + ends : 2][: len(first)])
        )
    looks &= words[255 : 255 + ends : 2][: len(first)] < _MAX_TOKENS_SIZE
    for place in (2 * np.flatnonzero(looks)).tolist():
        index = words[place : place + _TOKENS].astype(np.int64)
        if (np.diff(index) > 0).all():
            yield from _token_table(image, 2 * place, index)


def _token_table(image: _Image, place: int, index: _Places) -> Iterator[_Tokens]:
    """The table in front of an index that it fits."""
    last = int(index[-1])
    lowest = max(0, place - last - _MAX_GAP)
    starts = np.arange(lowest + -lowest % 4, place - last, 4, dtype=np.int64)
    for at in (index[1:] - 1).tolist():
        starts = starts[image.codes[starts + at] == 0]
    for start in starts[::-1].tolist():
        end = image.data.find(b"\0", start + last, place)
        texts = image.data[start:end].split(b"\0")
        if end >= 0 and len(texts) == _TOKENS and any(texts[-1:]):
            yield _Tokens(start, place, tuple(texts))
            return


def _find_names(image: _Image, tokens: _Tokens) -> Iterator[_Names]:
    """What can be names, most of them first."""
    found: list[_Names] = []
    counts = image.words(4)[: tokens.table // 4]
    likely = np.flatnonzero((counts >= _MIN_SYMBOLS) & (counts <= _MAX_SYMBOLS))
    is_first = np.zeros(256, dtype=np.bool_)
    for code, text in enumerate(tokens.texts):
        is_first[code] = text[:1] in _TYPES and text[:1] != b""
    # kallsyms_names is aligned to 8 bytes before v7.0 and to 4 since.
    for gap in (8, 4):
        places = likely
        position = 4 * places.astype(np.int64) + gap
        for step in range(_FIRST_NAMES):
            good, position = _step(image.codes, position, is_first, tokens.table)
            good |= counts[places] <= step
            places, position = places[good], position[good]
        order = np.argsort(counts[places], kind="stable")[::-1]
        for place in places[order][:_MAX_PLACES].tolist():
            count = int(counts[place])
            end = _end_of(image.data, 4 * place + gap, count)
            if end is not None:
                found.append(_Names(4 * place, 4 * place + gap, count, end))
    yield from sorted(found, key=lambda names: -names.count)


def _step(
    codes: npt.NDArray[np.uint8],
    position: _Places,
    is_first: npt.NDArray[np.bool_],
    end: int,
) -> tuple[npt.NDArray[np.bool_], _Places]:
    """Whether names are where they should be, and where the next ones are."""
    at = np.minimum(position, len(codes) - 3)
    length = codes[at].astype(np.int64)
    second = codes[at + 1]
    # Since Linux kernel commit 73bbb94466fd ("kallsyms: support "big" kernel symbols")
    # (in v6.1) a length with bit 7 set goes on in a second byte.
    is_big = length >= 0x80
    length = np.where(is_big, length & 0x7F | second.astype(np.int64) << 7, length)
    good = is_first[np.where(is_big, codes[at + 2], second)]
    good &= (length > 0) & (length <= _MAX_NAME_SIZE)
    following = position + 1 + is_big + length
    good &= following <= end
    return good, following


def _coded(data: bytes, names: _Names) -> Iterator[bytes]:
    position = names.names
    for _ in range(names.count):
        length, position = data[position], position + 1
        if length >= 0x80:
            length, position = length & 0x7F | data[position] << 7, position + 1
        yield data[position : position + length]
        position += length


def _end_of(data: bytes, position: int, count: int) -> Optional[int]:
    """Where names end, ``None`` if not all of them are there."""
    end = len(data) - 1
    for _ in range(count):
        if position >= end:
            return None
        length, position = data[position], position + 1
        if length >= 0x80:
            length, position = length & 0x7F | data[position] << 7, position + 1
        if not length:
            return None
        position += length
    return position


def _indices(
    image: _Image, tokens: _Tokens, names: _Names, known: Mapping[str, int]
) -> list[tuple[int, int]]:
    """Index and address of the symbols that are known and have a name of their own."""
    wanted = {name.encode(): address for name, address in known.items()}
    found: dict[bytes, list[int]] = {}
    texts = tokens.texts
    for i, codes in enumerate(_coded(image.data, names)):
        name = b"".join([texts[code] for code in codes])[1:]
        if name in wanted:
            found.setdefault(name, []).append(i)
    return sorted((at[0], wanted[name]) for name, at in found.items() if len(at) == 1)


def _with_addresses(
    image: _Image, tokens: _Tokens, names: _Names, known: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """All tables, with each way to read addresses that agrees with what is known."""
    symbols = _indices(image, tokens, names, known)
    if len(symbols) < _ENOUGH:
        return
    tables = {
        "kallsyms_num_syms": names.num_syms,
        "kallsyms_names": names.names,
        "kallsyms_token_table": tokens.table,
        "kallsyms_token_index": tokens.index,
    }
    words, words64 = image.words(4), image.words(8)
    places = np.arange(len(words), dtype=np.uint32) * np.uint32(4)
    relative = words + places + np.uint32(image.start & 0xFFFFFFFF)
    for place in _table(relative, symbols, names.count, 32):
        yield {**tables, "kallsyms_offsets": 4 * place}
    for place in _table(words64, symbols, names.count, 64):
        yield {**tables, "kallsyms_addresses": 8 * place}
    for sign in (1, -1):
        for place, base in _based(words, symbols, names.count, sign):
            (at,) = (words64 == np.uint64(base)).nonzero()
            if len(at):
                yield {
                    **tables,
                    "kallsyms_offsets": 4 * place,
                    "kallsyms_relative_base": _base_place(
                        8 * at, names, 4 * (place + names.count)
                    ),
                }


def _base_place(places: _Places, names: _Names, behind: int) -> int:
    """
    Which of some places of one value is ``kallsyms_relative_base``: it lies in front of
    the number of symbols, or behind the offsets, with a gap if they were cut down.
    """
    if names.num_syms - 8 in places:
        return names.num_syms - 8
    after = places[places >= behind]
    return int(after[0] if len(after) else places[0])


def _table(
    words: _Words, symbols: list[tuple[int, int]], count: int, bits: int
) -> list[int]:
    """Where a table begins in which each symbol has its address, modulo 2^bits."""
    mask = (1 << bits) - 1
    first, address = symbols[0]
    starts = np.flatnonzero(words == words.dtype.type(address & mask)) - first
    starts = starts[(starts >= 0) & (starts + count <= len(words))]
    for index, address in symbols[1:]:
        starts = starts[words[starts + index] == words.dtype.type(address & mask)]
    return [int(start) for start in starts.tolist()]


def _based(
    words: _Words, symbols: list[tuple[int, int]], count: int, sign: int
) -> Iterator[tuple[int, int]]:
    """
    Where a table begins whose entries count up (*sign* 1) or down from a base, and that
    base.
    """
    (low, at), (high, behind) = symbols[0], symbols[-1]
    length = len(words) - count + 1
    if length <= 0:
        return
    apart = np.uint32(sign * (behind - at) & 0xFFFFFFFF)
    differences = words[high : high + length] - words[low : low + length]
    starts = np.flatnonzero(differences == apart)
    for index, address in symbols[1:-1]:
        apart = np.uint32(sign * (address - at) & 0xFFFFFFFF)
        starts = starts[words[starts + index] - words[starts + low] == apart]
    for start in starts[:_MAX_PLACES].tolist():
        value = int(words[start + low])
        if sign > 0:
            yield start, at - value & _ALL
        elif value >> 31:
            # kallsyms_relative_base - 1 - offset, of a negative offset.
            yield start, at + 1 + value - (1 << 32) & _ALL


_ALL = (1 << 64) - 1
