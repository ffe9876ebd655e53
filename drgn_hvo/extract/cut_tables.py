# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kallsyms and BTF, cut down
--------------------------

What ``drgn-hvo extract --small`` leaves of the symbols and types of a kernel: those
that the commands, and drgn's helpers for memory management, ask for. A name that is
in :data:`NAMES` and not in such tables is not in the kernel either; of any other name
they tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from drgn_hvo.formats.btf import MODIFIERS, RECORD_WORDS, Btf, BtfKind
from drgn_hvo.formats.btf_header import pack_btf
from drgn_hvo.formats.byteorder import type_prefix
from drgn_hvo.formats.kallsyms import Kallsyms, KernelSymbol
from drgn_hvo.kernel.kept_names import CONSTANTS, OMITTED, SYMBOLS, TYPES

__all__ = ("cut_btf", "cut_symbols")


_KINDS = (
    BtfKind.STRUCT,
    BtfKind.UNION,
    BtfKind.ENUM,
    BtfKind.ENUM64,
    BtfKind.TYPEDEF,
)

_COMPOUND = (BtfKind.STRUCT, BtfKind.UNION)

# Words of a record that are type IDs: places of single ones, and in each element; each
# element of these kinds begins with a name.
_SINGLE: dict[int, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            *MODIFIERS,
            BtfKind.PTR,
            BtfKind.TYPEDEF,
            BtfKind.FUNC,
            BtfKind.VAR,
            BtfKind.FUNC_PROTO,
        ),
        (2,),
    ),
    BtfKind.ARRAY: (3, 4),
}
_IN_ELEMENTS = {BtfKind.STRUCT: 1, BtfKind.UNION: 1, BtfKind.FUNC_PROTO: 1}
_NAMED_ELEMENTS = (*_IN_ELEMENTS, BtfKind.ENUM, BtfKind.ENUM64)


def _references(kind: int, record: list[int]) -> Iterator[int]:
    """Places of type IDs in a record."""
    yield from _SINGLE.get(kind, ())
    if kind in _IN_ELEMENTS:
        once, each = RECORD_WORDS[kind]
        yield from range(3 + once + _IN_ELEMENTS[BtfKind(kind)], len(record), each)


def _names(kind: int, record: list[int]) -> Iterator[int]:
    """Places of offsets into the strings in a record."""
    yield 0
    if kind in _NAMED_ELEMENTS:
        once, each = RECORD_WORDS[kind]
        yield from range(3 + once, len(record), each)


class _Cutter:
    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        # Whether a type that is kept is only pointed to.
        self._weak: dict[int, bool] = {}
        self._declared: dict[tuple[int, str], int] = {}
        self._strings = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}

    def keep(self, roots: Iterable[int]) -> None:
        """Keep types, and what they contain."""
        todo = [(type_id, False) for type_id in roots]
        while todo:
            type_id, weak = todo.pop()
            if not type_id or not self._weak.get(type_id, True):
                continue
            kind = self._btf.kind(type_id)
            if weak and kind in _COMPOUND and self._btf.name(type_id):
                continue
            if weak and type_id in self._weak:
                continue
            self._weak[type_id] = weak
            record = self._btf.record(type_id)
            below = kind == BtfKind.PTR or (
                weak and (kind in MODIFIERS or kind == BtfKind.TYPEDEF)
            )
            todo += [(record[at], below) for at in _references(kind, record)]

    def _string(self, offset: int) -> int:
        text = self._btf.string(offset)
        if text not in self._offsets:
            self._offsets[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return self._offsets[text]

    def finish(self) -> bytes:
        """The blob: types in the order they had, then declarations."""
        kept = sorted(self._weak)
        ids = {0: 0, **{old: new for new, old in enumerate(kept, 1)}}
        words: list[int] = []
        declarations: list[int] = []
        for old in kept:
            kind, record = self._btf.kind(old), self._btf.record(old)
            for at in _references(kind, record):
                if record[at] not in ids:
                    ids[record[at]] = self._declare(record[at], len(kept), declarations)
                record[at] = ids[record[at]]
            for at in _names(kind, record):
                record[at] = self._string(record[at])
            words += record
        return self._blob(words + declarations)

    def _declare(self, type_id: int, kept: int, declarations: list[int]) -> int:
        """The ID of a declaration of a structure that is only pointed to."""
        is_union = int(self._btf.kind(type_id) == BtfKind.UNION)
        key = (is_union, self._btf.name(type_id))
        if key not in self._declared:
            self._declared[key] = kept + len(self._declared) + 1
            name = self._string(self._btf.record(type_id)[0])
            declarations += [name, is_union << 31 | BtfKind.FWD << 24, 0]
        return self._declared[key]

    def _blob(self, words: list[int]) -> bytes:
        dtype = f"{type_prefix(self._btf.byteorder)}u4"
        types = np.array(words, dtype=dtype).tobytes()
        return pack_btf(self._btf.byteorder, types, bytes(self._strings))


def cut_btf(btf: Btf) -> bytes:
    """
    Cut BTF down to :data:`TYPES`, to what :data:`NAMES` need, and to base types.

    :raises FormatError: if what is needed cannot be read.
    """
    roots = [
        type_id
        for type_id in range(1, len(btf))
        if btf.kind(type_id) in (BtfKind.INT, BtfKind.FLOAT)
    ]
    for name in sorted(TYPES):
        roots += btf.find(name, _KINDS)
    for name in sorted(CONSTANTS):
        found = btf.find_enumerator(name)
        if found is not None:
            roots.append(found[0])
    for name in sorted(SYMBOLS):
        roots += btf.find(name, (BtfKind.FUNC, BtfKind.VAR))
    cutter = _Cutter(btf)
    cutter.keep(roots)
    return cutter.finish()


def cut_symbols(
    kallsyms: Kallsyms, names: Iterable[str], moved: Mapping[str, int]
) -> list[KernelSymbol]:
    """
    The symbols with some names. Behind each whose neighbour is cut away comes one
    named :data:`OMITTED`, so that nobody takes an address there for its.

    :param moved: New addresses, by name.
    """
    kept = [
        entry
        for name in sorted(SYMBOLS.union(names))
        for entry in kallsyms.lookup(name)
    ]
    symbols = {replace(e, address=moved.get(e.name, e.address)) for e in kept}
    taken = {entry.address for entry in kept}
    for address in taken:
        extent = kallsyms.extent(address)
        if extent is not None and address + extent not in taken:
            symbols.add(KernelSymbol(OMITTED, address + extent, "a"))
    return sorted(symbols, key=lambda symbol: (symbol.address, symbol.name))
