# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kallsyms
--------

The kernel's own symbol table, decoded from the tables in its read-only data
(:linux:`kernel/kallsyms.c`, :linux:`scripts/kallsyms.c`). VMCOREINFO names them
since Linux kernel commit f09bddbd8661 ("vmcoreinfo: add kallsyms_num_syms
symbol") (in v6.0).

drgn's loader decodes every name. We want a handful out of 200,000, so names stay
compressed: one pass finds where each begins, from 256 names to the next at once
where the kernel's own marks can be made out, and a name is looked up by a sum over
its characters that can be had from the compressed form with NumPy. Only names with
the right sum are decoded.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Callable, Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.byteorder import ByteOrder, type_prefix

__all__ = ("TABLES", "Kallsyms", "KallsymsTables", "KernelSymbol", "Reader")

#: Without these in VMCOREINFO, the tables must be looked for.
TABLES = (
    "kallsyms_num_syms",
    "kallsyms_names",
    "kallsyms_token_table",
    "kallsyms_token_index",
)

#: ``read(address, size)``: bytes of kernel virtual memory.
Reader = Callable[[int, int], bytes]

# An allyesconfig kernel has fewer than 500,000 symbols and 20 MiB of names;
# larger figures come from damage and must not be allocated.
_MAX_SYMBOLS = 4_000_000
_MAX_NAMES_SIZE = 64 << 20

# kallsyms_markers says where each 256th name begins.
_NAMES_PER_MARKER = 256

# At most this many places are tried where its first entry, 0, can be.
_MAX_GUESSES = 16

# KSYM_NAME_LEN, and the bytes that say how long a name is.
_MAX_NAME_SIZE = 512 + 2

# Kernel images lie in the top 2 GiB, so no symbol is larger.
_MAX_EXTENT = 2 << 30

_Addresses = npt.NDArray[np.uint64]
_Sums = npt.NDArray[np.uint32]
_Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KernelSymbol:
    """A symbol; *type* is the character that nm(1) prints for it."""

    name: str
    address: int
    type: str


@dataclass(frozen=True)
class KallsymsTables:
    """
    The raw tables.

    :param num_syms: Number of symbols.
    :param names: From ``kallsyms_names`` on; may be longer than the names.
    :param token_table: From ``kallsyms_token_table`` on; may be longer.
    :param token_index: 256 offsets into *token_table*.
    :param offsets: ``kallsyms_offsets``, or ``None``.
    :param offsets_address: Where ``kallsyms_offsets`` lies.
    :param relative_base: The value of ``kallsyms_relative_base``, or ``None``.
    :param addresses: ``kallsyms_addresses``, or ``None``.
    :param byteorder: ``"little"`` or ``"big"``.
    """

    num_syms: int
    names: bytes
    token_table: bytes
    token_index: bytes
    offsets: Optional[bytes]
    offsets_address: int
    relative_base: Optional[int]
    addresses: Optional[bytes]
    byteorder: ByteOrder = "little"

    @classmethod
    def read(
        cls,
        read: Reader,
        symbols: Mapping[str, int],
        byteorder: ByteOrder = "little",
    ) -> KallsymsTables:
        """
        Read the tables of a 64-bit kernel.

        :param read: Reads kernel memory; its exceptions pass.
        :param symbols: Where the tables lie, by name, as in VMCOREINFO.
        :raises FormatError: if a table is missing or cannot be one.
        """
        order = type_prefix(byteorder)

        def address(name: str) -> int:
            if name not in symbols:
                raise FormatError(f"VMCOREINFO has no SYMBOL({name})")
            return symbols[name]

        num_syms = int.from_bytes(read(address("kallsyms_num_syms"), 4), byteorder)
        if not 0 < num_syms <= _MAX_SYMBOLS:
            raise FormatError(f"kallsyms is damaged: it counts {num_syms} symbols")
        # The linker script of scripts/kallsyms.c has put the names in front of
        # the tokens, with a few small tables between, ever since 2.6.
        names = address("kallsyms_names")
        names_size = address("kallsyms_token_table") - names
        if not 0 < names_size <= _MAX_NAMES_SIZE:
            raise FormatError(f"kallsyms is damaged: {names_size} bytes of names")
        token_index = read(address("kallsyms_token_index"), 512)
        last = int(np.frombuffer(token_index, dtype=f"{order}u2").max())
        offsets = addresses = relative_base = None
        if "kallsyms_offsets" in symbols:
            offsets = read(symbols["kallsyms_offsets"], 4 * num_syms)
        elif "kallsyms_addresses" in symbols:
            addresses = read(symbols["kallsyms_addresses"], 8 * num_syms)
        else:
            raise FormatError("VMCOREINFO has no SYMBOL(kallsyms_offsets)")
        if "kallsyms_relative_base" in symbols:
            base = read(symbols["kallsyms_relative_base"], 8)
            relative_base = int.from_bytes(base, byteorder)
        return cls(
            num_syms=num_syms,
            names=read(names, names_size),
            # No token is as long as a name may be (KSYM_NAME_LEN, 512).
            token_table=read(symbols["kallsyms_token_table"], last + 1)
            + _read_tail(read, symbols["kallsyms_token_table"] + last + 1),
            token_index=token_index,
            offsets=offsets,
            offsets_address=symbols.get("kallsyms_offsets", 0),
            relative_base=relative_base,
            addresses=addresses,
            byteorder=byteorder,
        )


def _read_tail(read: Reader, address: int) -> bytes:
    """The rest of a string whose length is not known."""
    tail = b""
    while b"\0" not in tail and len(tail) < 512:
        tail += read(address + len(tail), 8)
    return tail


@dataclass(frozen=True)
class _Addressing:
    """
    One way in which the table says where symbols lie.

    :param name: How we call it.
    :param decode: Gives the addresses, ``None`` if the tables are not there.
    :param reason: The kernel that does it so.
    """

    name: str
    decode: Callable[[KallsymsTables], Optional[_Addresses]]
    reason: str


def _offsets(tables: KallsymsTables) -> Optional[npt.NDArray[np.int64]]:
    if tables.offsets is None:
        return None
    order = type_prefix(tables.byteorder)
    return np.frombuffer(tables.offsets, dtype=f"{order}i4").astype(np.int64)


def _place_relative(tables: KallsymsTables) -> Optional[_Addresses]:
    offsets = _offsets(tables)
    if offsets is None:
        return None
    places = np.uint64(tables.offsets_address) + np.arange(
        0, 4 * len(offsets), 4, dtype=np.uint64
    )
    return places + offsets.astype(np.uint64)


def _base_relative(tables: KallsymsTables) -> Optional[_Addresses]:
    offsets = _offsets(tables)
    if offsets is None or tables.relative_base is None:
        return None
    unsigned = offsets.astype(np.uint64) & np.uint64(0xFFFFFFFF)
    return np.uint64(tables.relative_base) + unsigned


def _percpu_absolute(tables: KallsymsTables) -> Optional[_Addresses]:
    offsets = _offsets(tables)
    if offsets is None or tables.relative_base is None:
        return None
    # Of damaged tables the base can be 0; arrays wrap around without a warning.
    base = np.full(len(offsets), tables.relative_base, dtype=np.uint64)
    below = base - np.uint64(1) - offsets.astype(np.uint64)
    return np.where(offsets >= 0, offsets.astype(np.uint64), below)


def _absolute(tables: KallsymsTables) -> Optional[_Addresses]:
    if tables.addresses is None:
        return None
    order = type_prefix(tables.byteorder)
    return np.frombuffer(tables.addresses, dtype=f"{order}u8").astype(np.uint64)


# Nothing in the tables says which one it is. The symbols that VMCOREINFO has,
# too, do.
_ADDRESSINGS = (
    _Addressing("place", _place_relative, "v7.0+: offsets from the entry itself"),
    _Addressing("base", _base_relative, "v4.6+: offsets from a base, unsigned"),
    _Addressing("percpu", _percpu_absolute, "v4.6 to v6.14 on x86-64 with SMP"),
    _Addressing("absolute", _absolute, "no CONFIG_KALLSYMS_BASE_RELATIVE"),
)

# A weight for each character; names with one sum are rare, anagrams apart.
_WEIGHTS = (np.arange(1, 257, dtype=np.uint32) * np.uint32(0x9E3779B9)) ** np.uint32(3)


class Kallsyms:
    """
    A decoded symbol table.

    :param tables: The raw tables.
    :param known: Addresses that VMCOREINFO gives, by name; at least one must be
        in the table.
    :raises FormatError: if the tables are damaged, or no way to read the
        addresses agrees with *known*.
    """

    def __init__(self, tables: KallsymsTables, known: Mapping[str, int]) -> None:
        self._names = tables.names
        self._tokens = _tokens(tables)
        self._starts, self._ends = _scan_names(tables)
        self._first = [token[:1] for token in self._tokens]
        self._sums = self._name_sums()
        self.addressing, self._addresses = self._find_addressing(tables, known)
        self._order: Optional[npt.NDArray[np.intp]] = None
        self._sorted = self._addresses

    def __len__(self) -> int:
        return len(self._starts)

    def _name_sums(self) -> _Sums:
        codes = np.frombuffer(self._names, dtype=np.uint8)
        weights = np.array([_weight(token) for token in self._tokens], dtype=np.uint32)
        running = np.zeros(len(codes) + 1, dtype=np.uint32)
        np.cumsum(weights[codes], dtype=np.uint32, out=running[1:])
        # The first character is the type, not part of the name.
        types = np.array([_weight(first) for first in self._first], dtype=np.uint32)
        return running[self._ends] - running[self._starts] - types[codes[self._starts]]

    def _decode(self, index: int) -> bytes:
        codes = self._names[self._starts[index] : self._ends[index]]
        return b"".join([self._tokens[code] for code in codes])

    def _entry(self, index: int) -> KernelSymbol:
        text = self._decode(index).decode("ascii", "backslashreplace")
        return KernelSymbol(text[1:], int(self._addresses[index]), text[:1])

    def _indices(self, name: str) -> list[int]:
        wanted = name.encode()
        sums = np.flatnonzero(self._sums == np.uint32(_weight(wanted)))
        return [i for i in sums.tolist() if self._decode(i)[1:] == wanted]

    def _find_addressing(
        self, tables: KallsymsTables, known: Mapping[str, int]
    ) -> tuple[str, _Addresses]:
        indices = {name: self._indices(name) for name in known}
        indices = {name: found for name, found in indices.items() if found}
        if not indices:
            raise FormatError("kallsyms has none of the symbols that VMCOREINFO has")
        for addressing in _ADDRESSINGS:
            addresses = addressing.decode(tables)
            if addresses is not None and all(
                known[name] in addresses[found].tolist()
                for name, found in indices.items()
            ):
                return addressing.name, addresses
        raise FormatError(
            "kallsyms disagrees with VMCOREINFO about where "
            + ", ".join(sorted(indices)[:3])
            + " lie"
        )

    def lookup(self, name: str) -> list[KernelSymbol]:
        """All symbols with a name: static ones may share one."""
        return [self._entry(index) for index in self._indices(name)]

    def _above(self, address: int) -> tuple[npt.NDArray[np.intp], int]:
        """Symbols by address, and how many do not lie above an address."""
        if self._order is None:
            self._order = np.argsort(self._addresses, kind="stable")
            self._sorted = self._addresses[self._order]
        above = np.searchsorted(self._sorted, np.uint64(address), side="right")
        return self._order, int(above)

    def nearest(self, address: int) -> Optional[KernelSymbol]:
        """
        The last symbol at or below an address, if the address can belong to it:
        nothing does in the gap between per-CPU offsets and the kernel image, and
        behind the last symbol.
        """
        order, above = self._above(address)
        if not above:
            return None
        entry = self._entry(int(order[above - 1]))
        end = int(self._sorted[above]) if above < len(order) else entry.address
        if address != entry.address and (
            address >= end or end - entry.address > _MAX_EXTENT
        ):
            return None
        return entry

    def extent(self, address: int) -> Optional[int]:
        """How many bytes lie between an address and the next symbol."""
        order, above = self._above(address)
        if above == len(order):
            return None
        return int(self._sorted[above]) - address

    def __iter__(self) -> Iterator[KernelSymbol]:
        return (self._entry(index) for index in range(len(self)))


def _weight(text: bytes) -> int:
    codes = np.frombuffer(text, dtype=np.uint8)
    return int(_WEIGHTS[codes].sum(dtype=np.uint32))


def _tokens(tables: KallsymsTables) -> list[bytes]:
    order = type_prefix(tables.byteorder)
    tokens = []
    for start in np.frombuffer(tables.token_index, dtype=f"{order}u2").tolist():
        end = tables.token_table.find(b"\0", start)
        if end < 0:
            raise FormatError("kallsyms is damaged: a token has no end")
        tokens.append(tables.token_table[start:end])
    if len(tokens) != 256:
        raise FormatError(f"kallsyms is damaged: it has {len(tokens)} tokens")
    return tokens


def _scan_names(tables: KallsymsTables) -> tuple[_Places, _Places]:
    """
    Find where each compressed name begins and ends.

    A name is its length and that many codes. Since Linux kernel commit
    73bbb94466fd ("kallsyms: support "big" kernel symbols") (in v6.1) a length
    with bit 7 set goes on in a second byte.
    """
    # A second byte that is cut off does not make a length of 0.
    codes = np.frombuffer(tables.names + b"\xff", dtype=np.uint8)
    places = _marked_places(tables, codes)
    if places is None:
        places = _places(tables.names, tables.num_syms)
    starts, lengths = _lengths(codes, places)
    if not lengths.all():
        raise FormatError("kallsyms is damaged: a symbol has no name")
    ends = starts + lengths
    if len(places) < tables.num_syms or ends[-1] > len(tables.names):
        raise FormatError("kallsyms is damaged: its names run past their table")
    return starts, ends


def _places(names: bytes, count: int) -> _Places:
    """Where the lengths of names are, one after the other, as far as there are any."""
    places = array("q")
    note = places.append
    position = 0
    with suppress(IndexError):
        for _ in repeat(None, count):
            length = names[position]
            note(position)
            if length < 0x80:
                position += 1 + length
            else:
                position += 2 + (length & 0x7F | names[position + 1] << 7)
    return np.frombuffer(places, dtype=np.int64)


def _marked_places(
    tables: KallsymsTables, codes: npt.NDArray[np.uint8]
) -> Optional[_Places]:
    """
    As :func:`_places()`, from all marks at once.

    :return: ``None`` if the marks are not found, or do not agree with the names: each
        must be where the 256 names behind the mark before it end.
    """
    for marks in _possible_markers(tables):
        places = np.empty((_NAMES_PER_MARKER, len(marks)), dtype=np.int64)
        position = marks
        for row in places:
            # Damage leads behind the table, and so does what follows the last name.
            row[:] = np.minimum(position, len(codes) - 2)
            starts, lengths = _lengths(codes, row)
            position = starts + lengths
        if (position[:-1] == marks[1:]).all():
            return places.T.reshape(-1)[: tables.num_syms]
    return None


def _possible_markers(tables: KallsymsTables) -> Iterator[_Places]:
    """
    What ``kallsyms_markers`` can be. VMCOREINFO does not name it; it lies between the
    names and the tokens, in 6.1.y to v6.3 with ``kallsyms_seqs_of_names`` behind it
    (``write_src()`` in :linux:`scripts/kallsyms.c`).
    """
    count = -(-tables.num_syms // _NAMES_PER_MARKER)
    order = type_prefix(tables.byteorder)
    words = np.frombuffer(
        tables.names, dtype=f"{order}u4", count=len(tables.names) // 4
    )
    if not 1 < count <= len(words):
        return
    (first,) = (words[: len(words) - count + 1] == 0).nonzero()
    # The last mark lies before the end of the names, but not by more than 256 of them.
    distance = 4 * first - words[first + count - 1].astype(np.int64)
    near = (distance > 0) & (distance <= _NAMES_PER_MARKER * _MAX_NAME_SIZE)
    for start in first[near][:_MAX_GUESSES].tolist():
        yield words[start : start + count].astype(np.int64)


def _lengths(codes: npt.NDArray[np.uint8], places: _Places) -> tuple[_Places, _Places]:
    """
    Where names begin whose lengths are at some places, and how long they are.

    :param codes: Of all names, and one byte more.
    """
    first = codes[places].astype(np.int64)
    is_big = first >> 7
    if not is_big.any():
        return places + 1, first
    second = codes[places + 1].astype(np.int64)
    lengths = np.where(is_big != 0, first & 0x7F | second << 7, first)
    return places + 1 + is_big, lengths
