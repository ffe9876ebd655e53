# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kallsyms, written
-----------------

The reverse of :mod:`drgn_hvo.formats.kallsyms`: the tables that
:linux:`scripts/kallsyms.c` emits, token compression included. The two modules share no
    code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
import struct
from typing import Optional

from drgn_hvo.formats.byteorder import ByteOrder, type_prefix
from drgn_hvo.formats.kallsyms import KernelSymbol

__all__ = ("KallsymsImage", "kallsyms_tables")


@dataclass(frozen=True)
class KallsymsImage:
    """
    The tables, in the order in which the kernel has them.

    :param offsets: Of 4 bytes each, or addresses of 8 if *addressing* is
        ``"absolute"``.
    """

    num_syms: bytes
    names: bytes
    markers: bytes
    token_table: bytes
    token_index: bytes
    offsets: bytes
    relative_base: Optional[bytes]


# compress_symbols() stops where a pair is rarer than this pays for.
_MIN_PAIRS = 3


# Whoever makes many machines makes the same few kernels.
@lru_cache(maxsize=32)
def _compress(names: tuple[bytes, ...]) -> tuple[list[bytes], list[bytes]]:
    """
    Names as codes, and the text of each of the 256 codes.

    As optimize_result() does, the most frequent pair of codes becomes a code of
    its own, over and over; ties go to the smaller pair, so the result is the same
    everywhere.
    """
    used = set(b"".join(names))
    tokens = [bytes([code]) if code in used else b"" for code in range(256)]
    free = [code for code in range(255, -1, -1) if code not in used]
    coded = [bytes(name) for name in names]
    for code in free:
        pairs = Counter(name[i : i + 2] for name in coded for i in range(len(name) - 1))
        if not pairs:
            break
        best, count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < _MIN_PAIRS:
            break
        tokens[code] = tokens[best[0]] + tokens[best[1]]
        coded = [name.replace(best, bytes([code])) for name in coded]
    return coded, tokens


def _length(count: int) -> bytes:
    # "Big" symbols since v6.1: a second byte where seven bits do not do.
    return bytes([count]) if count < 0x80 else bytes([count & 0x7F | 0x80, count >> 7])


def _names(coded: Sequence[bytes], order: str) -> tuple[bytes, bytes]:
    names = bytearray()
    markers = []
    for i, name in enumerate(coded):
        if i % 256 == 0:
            markers.append(len(names))
        names += _length(len(name)) + name
    return bytes(names), struct.pack(f"{order}{len(markers)}I", *markers)


def _tokens(tokens: Sequence[bytes], order: str) -> tuple[bytes, bytes]:
    table = bytearray()
    index = []
    for token in tokens:
        index.append(len(table))
        table += token + b"\0"
    return bytes(table), struct.pack(f"{order}256H", *index)


def _offsets(
    addresses: Sequence[int], addressing: str, table: int, order: str
) -> tuple[bytes, Optional[bytes]]:
    count = len(addresses)
    if addressing == "absolute":
        return struct.pack(f"{order}{count}Q", *addresses), None
    if addressing == "place":
        places = range(table, table + 4 * count, 4)
        values = [address - place for address, place in zip(addresses, places)]
        return struct.pack(f"{order}{count}i", *values), None
    if addressing == "base":
        lowest = min(addresses)
        values = [address - lowest for address in addresses]
        return struct.pack(f"{order}{count}I", *values), struct.pack(
            f"{order}Q", lowest
        )
    # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: per-CPU symbols lie at small addresses
    # and are kept as they are, all others count down from the base.
    base = min(address for address in addresses if address >> 63)
    values = [base - 1 - address if address >> 63 else address for address in addresses]
    return struct.pack(f"{order}{count}i", *values), struct.pack(f"{order}Q", base)


def kallsyms_tables(
    symbols: Sequence[KernelSymbol],
    addressing: str,
    offsets_address: int,
    byteorder: ByteOrder = "little",
) -> KallsymsImage:
    """
    The tables for some symbols.

    :param addressing: ``"place"`` (since v7.0), ``"base"`` (before), ``"percpu"``
        (x86-64 with SMP before v6.15), or ``"absolute"`` (no
        ``CONFIG_KALLSYMS_BASE_RELATIVE``).
    :param offsets_address: Where ``kallsyms_offsets`` will lie.
    :param byteorder: Of the kernel.
    """
    order = type_prefix(byteorder)
    ordered = sorted(symbols, key=lambda symbol: (symbol.address, symbol.name))
    coded, tokens = _compress(tuple((s.type + s.name).encode() for s in ordered))
    names, markers = _names(coded, order)
    token_table, token_index = _tokens(tokens, order)
    addresses = [symbol.address for symbol in ordered]
    offsets, relative_base = _offsets(addresses, addressing, offsets_address, order)
    return KallsymsImage(
        num_syms=struct.pack(f"{order}I", len(ordered)),
        names=names,
        markers=markers,
        token_table=token_table,
        token_index=token_index,
        offsets=offsets,
        relative_base=relative_base,
    )
