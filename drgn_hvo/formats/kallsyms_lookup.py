# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One symbol of kallsyms
----------------------

The way of the kernel's own ``kallsyms_lookup_name()`` (:linux:`kernel/kallsyms.c`): by
halves through ``kallsyms_seqs_of_names``, which lists symbols in the order of their
names since Linux kernel commit 60443c88f3a8 ("kallsyms: Improve the performance of
kallsyms_lookup_name()") (in v6.2, and in 6.1.y). That takes some fifty short reads and
no NumPy; :class:`~drgn_hvo.formats.kallsyms.Kallsyms` is for more than two or three
names.

VMCOREINFO names neither that table nor ``kallsyms_markers``. Both lie between or behind
tables that it names, and where is right if symbols that it also names are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
import struct
from typing import Optional

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.byteorder import ByteOrder, type_prefix

__all__ = ("KallsymsLookup",)

#: ``read(address, size)``: bytes of kernel virtual memory.
_Reader = Callable[[int, int], bytes]

# Gives the index of the only symbol of a name.
_Finder = Callable[[bytes], Optional[int]]

# An allyesconfig kernel has fewer than 500,000.
_MAX_SYMBOLS = 4_000_000

# kallsyms_markers says where each 256th name begins.
_NAMES_PER_MARKER = 256

# KSYM_NAME_LEN, and the bytes that say how long a name is.
_MAX_NAME_SIZE = 512 + 2

# Tables of at most this many names are searched from the start. Those that synth and
# extract write are this small, and their names are in no order.
_FEW = 4096

# What is read of a table for each name to step over, before more is read.
_USUAL_SIZE = 24

# Symbols of VMCOREINFO that must be found where it says.
_ENOUGH = 2

# The tables that VMCOREINFO names.
_TABLES = ("num_syms", "names", "token_table", "token_index", "offsets")

# How symbols' addresses follow from their entry, as formats/kallsyms.py has them: place
# of the entry, its value (signed) and kallsyms_relative_base.
_Addressing = Callable[[int, int, int], int]
_ADDRESSINGS: tuple[_Addressing, ...] = (
    lambda place, value, _base: place + value,
    lambda _place, value, base: base + (value & 0xFFFFFFFF),
    lambda _place, value, base: value if value >= 0 else base - 1 - value,
)


@dataclass(frozen=True)
class _Places:
    """Where the tables lie that VMCOREINFO does not name."""

    markers: int
    seqs: int


class KallsymsLookup:
    """
    Finds symbols by name, one at a time.

    :param read: Reads kernel memory; its exceptions pass.
    :param symbols: Addresses by name, as in VMCOREINFO: of the tables and of others.
    :raises FormatError: if the tables cannot be used in this way, whether they are
        damaged or of another kernel.
    """

    def __init__(
        self, read: _Reader, symbols: Mapping[str, int], byteorder: ByteOrder
    ) -> None:
        self._read = read
        self._prefix = type_prefix(byteorder)
        try:
            tables = {name: symbols[f"kallsyms_{name}"] for name in _TABLES}
        except KeyError as e:
            raise FormatError(f"VMCOREINFO has no SYMBOL({e.args[0]})") from None
        self._names, self._offsets = tables["names"], tables["offsets"]
        # The linker script of scripts/kallsyms.c has the names in front of the tokens.
        self._names_end = tables["token_table"]
        self._count = self._word(tables["num_syms"])
        if not 0 < self._count <= _MAX_SYMBOLS:
            raise FormatError(f"kallsyms is damaged: it counts {self._count} symbols")
        self._tokens = self._read_tokens(tables)
        base = symbols.get("kallsyms_relative_base")
        self._base = 0 if base is None else self._word(base, "Q")
        known = {
            name: address
            for name, address in symbols.items()
            if not name.startswith("kallsyms_")
        }
        self._find = self._finder(tables, base, known)

    def address(self, name: str) -> Optional[int]:
        """
        Where the only symbol of a name lies.

        :return: ``None`` if none is found, or several.
        :raises FormatError: if the tables are damaged.
        """
        found = self._find(name.encode())
        return None if found is None else self._address(found, self._addressing)

    def _word(self, address: int, kind: str = "I") -> int:
        code = self._prefix + kind
        value: int = struct.unpack(code, self._read(address, struct.calcsize(code)))[0]
        return value

    def _read_tokens(self, tables: Mapping[str, int]) -> list[bytes]:
        index = struct.unpack(
            f"{self._prefix}256H", self._read(tables["token_index"], 512)
        )
        # No token is as long as a name, so the last one ends in this.
        size = min(max(index) + 512, tables["token_index"] - tables["token_table"])
        table = self._read(tables["token_table"], max(size, 1))
        return [table[start : table.find(b"\0", start)] for start in index]

    def _finder(
        self, tables: Mapping[str, int], base: Optional[int], known: Mapping[str, int]
    ) -> _Finder:
        """The first way of finding names that finds what is known."""
        ways: Iterable[_Finder]
        if self._count <= _FEW:
            ways = (self._listed().get,)
        else:
            ways = (
                partial(self._by_halves, places)
                for places in _possible(tables, base, self._count)
            )
        for find in ways:
            seen = self._seen(find, known)
            for addressing in _ADDRESSINGS if seen else ():
                if all(self._address(i, addressing) == at for i, at in seen.items()):
                    self._addressing = addressing
                    return find
        raise FormatError("kallsyms has no index that finds what VMCOREINFO names")

    def _seen(self, find: _Finder, known: Mapping[str, int]) -> dict[int, int]:
        """Addresses of a few symbols that are known and found, by their index."""
        seen: dict[int, int] = {}
        for name, address in known.items():
            try:
                index = find(name.encode())
            except FormatError:
                return {}
            if index is not None:
                seen[index] = address
            if len(seen) == _ENOUGH:
                break
        return seen

    def _address(self, index: int, addressing: _Addressing) -> int:
        place = self._offsets + 4 * index
        address = addressing(place, self._word(place, "i"), self._base)
        return address & 0xFFFFFFFF_FFFFFFFF

    def _listed(self) -> dict[bytes, Optional[int]]:
        """All names of a short table and which symbols they are; None if several."""
        size = min(self._names_end - self._names, self._count * _MAX_NAME_SIZE)
        data = self._read(self._names, max(0, size))
        listed: dict[bytes, Optional[int]] = {}
        for index, codes in enumerate(islice(_coded(data), self._count)):
            name = self._expanded(codes)
            listed[name] = None if name in listed else index
        return listed

    def _expanded(self, codes: bytes) -> bytes:
        """A name without its type, which is the first character."""
        return b"".join([self._tokens[code] for code in codes])[1:]

    def _by_halves(self, places: _Places, name: bytes) -> Optional[int]:
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._name(places, self._seq(places, middle)) < name:
                low = middle + 1
            else:
                high = middle
        if low == self._count:
            return None
        seq = self._seq(places, low)
        if self._name(places, seq) != name:
            return None
        if low + 1 < self._count:
            behind = self._seq(places, low + 1)
            if self._name(places, behind) == name:
                return None
        return seq

    def _seq(self, places: _Places, i: int) -> int:
        """Mirror of ``get_symbol_seq()``."""
        seq = int.from_bytes(self._read(places.seqs + 3 * i, 3), "big")
        if seq >= self._count:
            raise FormatError(f"kallsyms is damaged: there is no symbol {seq}")
        return seq

    def _name(self, places: _Places, seq: int) -> bytes:
        """Mirror of ``get_symbol_offset()`` and ``kallsyms_expand_symbol()``."""
        marker, rest = divmod(seq, _NAMES_PER_MARKER)
        start = self._names + self._word(places.markers + 4 * marker)
        left = self._names_end - start
        if left <= 0:
            raise FormatError("kallsyms is damaged: a mark is not among the names")
        for size in (_USUAL_SIZE, _MAX_NAME_SIZE):
            data = self._read(start, min(left, (rest + 1) * size))
            codes = next(islice(_coded(data), rest, None), None)
            if codes is not None:
                return self._expanded(codes)
        raise FormatError("kallsyms is damaged: a name has no end")


def _coded(data: bytes) -> Iterator[bytes]:
    """The compressed names that lie in some bytes as a whole."""
    position = 0
    end = len(data) - 1
    while position < end:
        length, position = data[position], position + 1
        if length & 0x80:
            length = length & 0x7F | data[position] << 7
            position += 1
        if position + length > len(data):
            return
        yield data[position : position + length]
        position += length


def _possible(
    tables: Mapping[str, int], base: Optional[int], count: int
) -> Iterator[_Places]:
    """
    Where the markers and the index by name can be. The markers come behind the names
    (``write_src()`` in :linux:`scripts/kallsyms.c`); the index is the last of all
    tables since v6.4, and behind the markers before that.
    """
    markers_size = 4 * -(-count // _NAMES_PER_MARKER)
    tokens = tables["token_table"]
    last = tables["offsets"] + 4 * count if base is None else base + 8
    # Tables are aligned to 4 bytes since v7.0, and to 8 before.
    for alignment in (4, 8):
        markers = _down(tokens - markers_size, alignment)
        yield _Places(markers, -_down(-last, alignment))
        seqs = _down(tokens - 3 * count, alignment)
        yield _Places(_down(seqs - markers_size, alignment), seqs)


def _down(address: int, alignment: int) -> int:
    return address // alignment * alignment
