# SPDX-License-Identifier: LGPL-2.1-or-later

"""
BTF, written
------------

The reverse of :mod:`drgn_hvo.formats.btf`: a BTF blob from a model of C types. Both
share only the declaration of the header.
"""

from __future__ import annotations

from collections.abc import Iterable
import struct
from typing import Optional, Union

from drgn_hvo.formats.btf import BtfKind
from drgn_hvo.formats.btf_header import pack_btf
from drgn_hvo.formats.byteorder import ByteOrder, type_prefix
from drgn_hvo.synth.machine.ctype import (
    UINT,
    Array,
    Base,
    Compound,
    CType,
    Enum,
    Pointer,
    Typedef,
)

__all__ = ("write_btf",)


class _Writer:
    def __init__(self, byteorder: ByteOrder) -> None:
        self._byteorder = byteorder
        self._order = type_prefix(byteorder)
        self._records: list[bytes] = []
        self._ids: dict[object, int] = {}
        self._strings = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}

    def _string(self, text: Optional[str]) -> int:
        text = text or ""
        if text not in self._offsets:
            self._offsets[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return self._offsets[text]

    def _reserve(self, key: object) -> int:
        """An ID for a type whose record follows: types refer to each other."""
        self._records.append(b"")
        self._ids[key] = len(self._records)
        return len(self._records)

    def _record(
        self, type_id: int, name: Optional[str], kind: BtfKind, vlen: int, word: int
    ) -> None:
        info = kind << 24 | vlen
        self._records[type_id - 1] = struct.pack(
            f"{self._order}III", self._string(name), info, word
        )

    def _append(self, type_id: int, *words: int) -> None:
        self._records[type_id - 1] += struct.pack(f"{self._order}{len(words)}I", *words)

    def add(self, c_type: CType) -> int:
        """The ID of a type, which is written if it is not yet."""
        key: object = c_type
        if isinstance(c_type, Compound) and c_type.name is not None:
            key = f"{c_type.keyword} {c_type.name}"
        if key in self._ids:
            return self._ids[key]
        type_id = self._reserve(key)
        if isinstance(c_type, Base):
            encoding = 4 if c_type.is_bool else int(c_type.signed)
            self._record(type_id, c_type.name, BtfKind.INT, 0, c_type.size)
            self._append(type_id, encoding << 24 | 8 * c_type.size)
        elif isinstance(c_type, Pointer):
            self._record(type_id, None, BtfKind.PTR, 0, self._target(c_type.target))
        elif isinstance(c_type, Array):
            self._record(type_id, None, BtfKind.ARRAY, 0, 0)
            self._append(
                type_id, self.add(c_type.element), self.add(UINT), c_type.length
            )
        elif isinstance(c_type, Typedef):
            target = self.add(c_type.target)
            self._record(type_id, c_type.name, BtfKind.TYPEDEF, 0, target)
        elif isinstance(c_type, Enum):
            self._enum(type_id, c_type)
        else:
            self._compound(type_id, c_type)
        return type_id

    def _enum(self, type_id: int, c_type: Enum) -> None:
        count = len(c_type.values)
        self._record(type_id, c_type.name, BtfKind.ENUM, count, c_type.size)
        for name, value in c_type.values:
            self._append(type_id, self._string(name), value)

    def _compound(self, type_id: int, c_type: Compound) -> None:
        kind = BtfKind.STRUCT if c_type.keyword == "struct" else BtfKind.UNION
        self._record(type_id, c_type.name, kind, len(c_type.members), c_type.size)
        for member in c_type.members:
            member_id = self.add(member.type)
            self._append(
                type_id, self._string(member.name), member_id, 8 * member.offset
            )

    def _target(self, target: Union[Base, Typedef, Pointer, str, None]) -> int:
        if target is None:
            return 0
        if isinstance(target, (Base, Typedef, Pointer)):
            return self.add(target)
        if target in self._ids:
            return self._ids[target]
        # Not written yet, and perhaps never.
        declared = f"declaration of {target}"
        if declared not in self._ids:
            name = target.rpartition(" ")[2]
            self._record(self._reserve(declared), name, BtfKind.FWD, 0, 0)
        return self._ids[declared]

    def function(self, name: str) -> None:
        """A global function, ``void name(void)``."""
        if "void (void)" not in self._ids:
            proto = self._reserve("void (void)")
            self._record(proto, None, BtfKind.FUNC_PROTO, 0, 0)
        type_id = self._reserve(f"function {name}")
        linkage = 1  # BTF_FUNC_GLOBAL, in place of vlen
        self._record(type_id, name, BtfKind.FUNC, linkage, self._ids["void (void)"])

    def finish(self) -> bytes:
        """The blob."""
        types = b"".join(self._records)
        return pack_btf(self._byteorder, types, bytes(self._strings))


def write_btf(
    types: Iterable[CType], byteorder: ByteOrder, functions: Iterable[str] = ()
) -> bytes:
    """
    A BTF blob.

    :param functions: Names of functions, of which only the name matters.

    A pointer to a structure that comes later in *types* is written as one to a
    declaration, as compilers do for structures that are opaque in one file.
    """
    writer = _Writer(byteorder)
    for c_type in types:
        writer.add(c_type)
    for name in functions:
        writer.function(name)
    return writer.finish()
