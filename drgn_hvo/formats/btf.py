# SPDX-License-Identifier: LGPL-2.1-or-later

"""
BTF
---

A reader of the BPF Type Format (:linux:`include/uapi/linux/btf.h`,
:linux:`Documentation/bpf/btf.rst`) for one self-contained blob such as a
kernel's ``.BTF`` section. A kernel has over 100,000 types and a user needs a
few dozen, so only the position of every type is noted, in one pass; names and
members are looked at when asked for.

Since Linux kernel 7.1 the header may carry a layout section that tells the size
of every kind. With it, kinds that this module does not know are stepped over;
without it, nothing behind the first such type can be reached, and only what
needs that part fails.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import enum
from functools import cached_property
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.btf_header import BtfHeader, parse_header, section
from drgn_hvo.formats.byteorder import type_prefix

__all__ = (
    "RECORD_WORDS",
    "Btf",
    "BtfEnumerator",
    "BtfInt",
    "BtfKind",
    "BtfMember",
    "BtfParam",
)


class BtfKind(enum.IntEnum):
    """``BTF_KIND_*``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: Kinds that only decorate the type that they refer to.
MODIFIERS = frozenset(
    {BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG}
)

#: What follows the three words of ``struct btf_type``, by kind: words once, and words
#: for each of ``vlen`` elements.
RECORD_WORDS: dict[int, tuple[int, int]] = {
    BtfKind.INT: (1, 0),
    BtfKind.PTR: (0, 0),
    BtfKind.ARRAY: (3, 0),
    BtfKind.STRUCT: (0, 3),
    BtfKind.UNION: (0, 3),
    BtfKind.ENUM: (0, 2),
    BtfKind.FWD: (0, 0),
    BtfKind.TYPEDEF: (0, 0),
    BtfKind.VOLATILE: (0, 0),
    BtfKind.CONST: (0, 0),
    BtfKind.RESTRICT: (0, 0),
    # The vlen of a FUNC is its linkage.
    BtfKind.FUNC: (0, 0),
    BtfKind.FUNC_PROTO: (0, 2),
    BtfKind.VAR: (1, 0),
    BtfKind.DATASEC: (0, 3),
    BtfKind.FLOAT: (0, 0),
    BtfKind.DECL_TAG: (1, 0),
    BtfKind.TYPE_TAG: (0, 0),
    BtfKind.ENUM64: (0, 3),
}

# 24 bits since the layout section came; 16 bits before, with the others zero.
_VLEN_MASK = 0xFFFFFF
_KIND_MASK = 0x7F

# Longer chains of typedefs and qualifiers than any compiler emits are a loop.
_MAX_CHAIN = 64


@dataclass(frozen=True)
class BtfInt:
    """A ``BTF_KIND_INT``; *bits* is less than ``8 * size`` in old bit fields."""

    name: str
    size: int
    is_signed: bool
    is_bool: bool
    bit_offset: int
    bits: int


@dataclass(frozen=True)
class BtfMember:
    """A member of a struct or union; *bit_size* is 0 unless it is a bit field."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


@dataclass(frozen=True)
class BtfEnumerator:
    """A constant of an enumeration."""

    name: str
    value: int


@dataclass(frozen=True)
class BtfParam:
    """A parameter of a function; an ellipsis has no name and type 0."""

    name: str
    type_id: int


class Btf:
    """
    A parsed BTF blob. Type IDs are those of the format: 0 is ``void``.

    :param data: The blob, from its header on.
    :raises FormatError: if it is damaged or not BTF; every method raises it
        where damage shows later.
    """

    def __init__(self, data: bytes) -> None:
        header, self.byteorder = parse_header(data)
        types = data[section(data, header, "type")]
        self._strings = data[section(data, header, "str")]
        if self._strings[:1] != b"\0" or self._strings[-1:] != b"\0":
            raise FormatError("BTF is damaged: its string section is not terminated")
        word = np.dtype(f"{type_prefix(self.byteorder)}u4")
        if len(types) % 4:
            raise FormatError("BTF is damaged: its type section is not whole words")
        self._words = np.frombuffer(types, dtype=word).astype(np.uint32, copy=False)
        self._view = self._words.data
        sizes = _layout_sizes(data, header)
        self._positions, self.unknown = _scan(self._words, {**sizes, **RECORD_WORDS})
        # Of type IDs from 1 on.
        self._index = np.frombuffer(self._positions, dtype=np.uint32)[1:]
        self._names = self._words[self._index]

    def __len__(self) -> int:
        """The number of types that can be reached, ``void`` included."""
        return len(self._positions)

    def position(self, type_id: int) -> int:
        """Where a type begins, in words of the type section."""
        if 0 < type_id < len(self._positions):
            return self._positions[type_id]
        if self.unknown is not None and type_id >= self.unknown[0]:
            raise FormatError(self.unknown_reason())
        raise FormatError(f"BTF is damaged: there is no type {type_id}")

    def unknown_reason(self) -> str:
        """Say which type ended the pass, if one did."""
        if self.unknown is None:
            return "BTF was read to its end"
        type_id, kind = self.unknown
        return (
            f"BTF type {type_id} is of kind {kind}, which is newer than this "
            "version of drgn-hvo; it and the types behind it cannot be read"
        )

    def kind(self, type_id: int) -> int:
        """The kind of a type, a :class:`BtfKind` unless it is a newer one."""
        if type_id == 0:
            return BtfKind.VOID
        return self._view[self.position(type_id) + 1] >> 24 & _KIND_MASK

    def _check_kind(self, type_id: int, *kinds: BtfKind) -> int:
        position = self.position(type_id)
        kind = self._view[position + 1] >> 24 & _KIND_MASK
        if kind not in kinds:
            raise FormatError(
                f"BTF is damaged: type {type_id} is of kind {kind}, not {kinds[0].name}"
            )
        return position

    def _string(self, offset: int) -> str:
        if offset >= len(self._strings):
            raise FormatError(f"BTF is damaged: there is no string at {offset}")
        end = self._strings.index(b"\0", offset)
        return self._strings[offset:end].decode("utf-8", "backslashreplace")

    def name(self, type_id: int) -> str:
        """The name of a type, empty if it has none."""
        return self._string(self._view[self.position(type_id)])

    def string(self, offset: int) -> str:
        """A string by its offset."""
        return self._string(offset)

    def record(self, type_id: int) -> list[int]:
        """The words of a type: those of struct btf_type, and what follows them."""
        position = self.position(type_id)
        info = self._view[position + 1]
        once, each = RECORD_WORDS[info >> 24 & _KIND_MASK]
        end = position + 3 + once + each * (info & _VLEN_MASK)
        return self._view[position:end].tolist()

    def size(self, type_id: int) -> int:
        """The size in bytes of a type that has one in its record."""
        return self._view[self.position(type_id) + 2]

    def target(self, type_id: int) -> int:
        """The type that a pointer, modifier, typedef or function refers to."""
        return self._view[self.position(type_id) + 2]

    def _kind_flag(self, type_id: int) -> int:
        return self._view[self.position(type_id) + 1] >> 31

    def _elements(self, type_id: int, *kinds: BtfKind) -> Iterator[list[int]]:
        position = self._check_kind(type_id, *kinds)
        info = self._view[position + 1]
        width = RECORD_WORDS[info >> 24 & _KIND_MASK][1]
        start = position + 3
        for i in range(start, start + (info & _VLEN_MASK) * width, width):
            yield self._view[i : i + width].tolist()

    def integer(self, type_id: int) -> BtfInt:
        """Describe a ``BTF_KIND_INT``."""
        position = self._check_kind(type_id, BtfKind.INT)
        data = self._view[position + 3]
        encoding = data >> 24 & 0xF
        return BtfInt(
            name=self.name(type_id),
            size=self._view[position + 2],
            is_signed=bool(encoding & 1),
            is_bool=bool(encoding & 4),
            bit_offset=data >> 16 & 0xFF,
            bits=data & 0xFF,
        )

    def array(self, type_id: int) -> tuple[int, int]:
        """Element type and length of an array (0 for a flexible one, too)."""
        position = self._check_kind(type_id, BtfKind.ARRAY)
        return self._view[position + 3], self._view[position + 5]

    def members(self, type_id: int) -> Iterator[BtfMember]:
        """The members of a struct or union, in order."""
        kind_flag = self._kind_flag(type_id)
        for name, member_type, offset in self._elements(
            type_id, BtfKind.STRUCT, BtfKind.UNION
        ):
            bit_size = 0
            if kind_flag:
                offset, bit_size = offset & 0xFFFFFF, offset >> 24
            else:
                integer = self._narrow_integer(member_type)
                if integer is not None:
                    offset += integer.bit_offset
                    bit_size = integer.bits
            yield BtfMember(self._string(name), member_type, offset, bit_size)

    def _narrow_integer(self, type_id: int) -> Optional[BtfInt]:
        """The type of a bit field as they were encoded before the kind flag."""
        try:
            target = self.resolve(type_id)
            if self.kind(target) != BtfKind.INT:
                return None
            integer = self.integer(target)
        except FormatError:
            # Matters only to those who use this member.
            return None
        return integer if integer.bits != 8 * integer.size else None

    def is_signed_enum(self, type_id: int) -> bool:
        """Whether an enumeration has negative values."""
        return bool(self._kind_flag(type_id))

    def enumerators(self, type_id: int) -> Iterator[BtfEnumerator]:
        """The constants of an enumeration, in order."""
        signed = self.is_signed_enum(type_id)
        for name, low, *high in self._elements(type_id, BtfKind.ENUM, BtfKind.ENUM64):
            bits = 64 if high else 32
            value = low | high[0] << 32 if high else low
            if signed and value >> (bits - 1):
                value -= 1 << bits
            yield BtfEnumerator(self._string(name), value)

    def params(self, type_id: int) -> Iterator[BtfParam]:
        """The parameters of a function prototype, in order."""
        for name, param_type in self._elements(type_id, BtfKind.FUNC_PROTO):
            yield BtfParam(self._string(name), param_type)

    def fwd_is_union(self, type_id: int) -> bool:
        """Whether a forward declaration is one of a union."""
        return bool(self._kind_flag(type_id))

    def resolve(self, type_id: int) -> int:
        """
        Strip modifiers and typedefs.

        :raises FormatError: if they form a loop.
        """
        for _ in range(_MAX_CHAIN):
            kind = self.kind(type_id)
            if kind != BtfKind.TYPEDEF and kind not in MODIFIERS:
                return type_id
            type_id = self.target(type_id)
        raise FormatError(f"BTF is damaged: type {type_id} refers to itself")

    def _string_offsets(self, name: str) -> Iterator[list[int]]:
        """Where a string lies: whole strings first, then ends of longer ones."""
        yield self._whole_strings(name.encode())
        # Neither pahole nor libbpf shares the ends of strings, but ELF string
        # tables may.
        yield _occurrences(self._strings, name.encode() + b"\0")

    @cached_property
    def _string_places(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Where strings begin, and how long they are."""
        ends = np.flatnonzero(np.frombuffer(self._strings, dtype=np.uint8) == 0)
        return ends[:-1] + 1, ends[1:] - ends[:-1] - 1

    def _whole_strings(self, text: bytes) -> list[int]:
        """
        Offsets of whole strings that equal *text*. From the second search on this takes
        less time than bytes.find().
        """
        codes = np.frombuffer(self._strings, dtype=np.uint8)
        starts, lengths = self._string_places
        starts = starts[lengths == len(text)]
        for i, code in enumerate(text):
            starts = starts[codes[starts + i] == code]
        return starts.tolist()

    def find(self, name: str, kinds: Iterable[BtfKind]) -> list[int]:
        """
        The types of these kinds with this name, by ascending ID.

        :raises FormatError: if there is none, and part of the BTF could not be
            read.
        """
        wanted = np.array(list(kinds), dtype=np.uint32)
        for offsets in self._string_offsets(name) if name else ():
            candidates = np.flatnonzero(_isin(self._names, offsets))
            kind = self._words[self._index[candidates] + 1] >> 24 & _KIND_MASK
            found: list[int] = (candidates[_isin(kind, wanted)] + 1).tolist()
            if found:
                return found
        if self.unknown is not None:
            raise FormatError(self.unknown_reason())
        return []

    def find_enumerator(self, name: str) -> Optional[tuple[int, BtfEnumerator]]:
        """
        The enumeration that defines a constant, and the constant.

        :raises FormatError: as :meth:`find()`.
        """
        for offsets in self._string_offsets(name) if name else ():
            for word in np.flatnonzero(_isin(self._words, offsets)).tolist():
                type_id = int(np.searchsorted(self._index, word, side="right"))
                if self.kind(type_id) not in (BtfKind.ENUM, BtfKind.ENUM64):
                    continue
                for enumerator in self.enumerators(type_id):
                    if enumerator.name == name:
                        return type_id, enumerator
        if self.unknown is not None:
            raise FormatError(self.unknown_reason())
        return None


def _occurrences(data: bytes, wanted: bytes) -> list[int]:
    starts = []
    start = data.find(wanted)
    while start >= 0:
        starts.append(start)
        start = data.find(wanted, start + 1)
    return starts


def _isin(values: npt.NDArray[Any], wanted: Any) -> npt.NDArray[np.bool_]:
    """``np.isin()``, fast for the usual single value."""
    if len(wanted) == 1:
        return values == wanted[0]
    return np.isin(values, wanted)


def _layout_sizes(data: bytes, header: BtfHeader) -> dict[int, tuple[int, int]]:
    """Sizes by kind from the layout section, where there is one."""
    if not header.layout_len:
        return {}
    layout = data[section(data, header, "layout")]
    sizes = {}
    for kind in range(len(layout) // 4):
        info_size, element_size = layout[4 * kind : 4 * kind + 2]
        if info_size % 4 == 0 and element_size % 4 == 0:
            sizes[kind] = (info_size // 4, element_size // 4)
    return sizes


def _steps(
    words: npt.NDArray[np.uint32], sizes: dict[int, tuple[int, int]]
) -> npt.NDArray[np.uint32]:
    """
    How long each type would be that began at a word, all at once; one of a kind that
    cannot be stepped over ends behind everything.
    """
    base = np.full(_KIND_MASK + 1, len(words) + 1, dtype=np.uint32)
    each = np.zeros(_KIND_MASK + 1, dtype=np.uint32)
    for kind, (once, element) in sizes.items():
        if BtfKind.VOID < kind <= _KIND_MASK:
            base[kind], each[kind] = 3 + once, element
    info = words[1:]
    kinds = info >> np.uint32(24) & np.uint32(_KIND_MASK)
    return each[kinds] * (info & np.uint32(_VLEN_MASK)) + base[kinds]


def _scan(
    words: npt.NDArray[np.uint32], sizes: dict[int, tuple[int, int]]
) -> tuple[array[int], Optional[tuple[int, int]]]:
    """
    Note where each type begins.

    :return: Word positions by type ID (that of ``void`` means nothing), and ID
        and kind of the type that could not be stepped over.
    """
    steps = _steps(words, sizes).data
    positions = array("I", [0])
    note = positions.append
    position = 0
    end = len(words)
    # The one loop over all types: what can be done on arrays comes before it.
    while position < end - 2:
        note(position)
        position += steps[position]
    if position == end:
        return positions, None
    if len(positions) > 1:
        last = positions[-1]
        kind = int(words[last + 1]) >> 24 & _KIND_MASK
        if kind not in sizes or kind == BtfKind.VOID:
            positions.pop()
            return positions, (len(positions), kind)
    raise FormatError("BTF is damaged: its last type is cut off")
