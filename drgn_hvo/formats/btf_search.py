# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One structure of BTF
--------------------

Finds the record of a structure by its name without a look at the others, which takes
milliseconds and no NumPy; :class:`~drgn_hvo.formats.btf.Btf` is for more than one.
"""

from __future__ import annotations

from collections.abc import Iterator
import re
import struct
from typing import NamedTuple, Optional

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.btf_header import parse_header, section
from drgn_hvo.formats.byteorder import type_prefix

__all__ = ("StructRecord", "find_struct")


class StructRecord(NamedTuple):
    """
    A ``BTF_KIND_STRUCT``.

    :param size: In bytes.
    :param members: Name, type ID, offset in bits and, of a bit field, size in bits.
    """

    size: int
    members: tuple[tuple[str, int, int, int], ...]


def find_struct(data: bytes, name: str) -> Optional[StructRecord]:
    """
    Find the only structure of a name.

    :param data: A BTF blob.
    :return: ``None`` if there is none.
    :raises FormatError: if the blob is damaged, or several records can be meant.
    """
    header, byteorder = parse_header(data)
    types, strings = section(data, header, "type"), section(data, header, "str")
    if name.encode() + b"\0" not in strings:
        return None
    prefix = type_prefix(byteorder)
    # Offset of the name, and of the word behind it the byte with kind and flag.
    kind = rb"[\x04\x84]"
    info = rb"[\s\S]{3}" + kind if byteorder == "little" else kind
    found = [
        record
        for at in re.finditer(b"\0" + re.escape(name.encode()) + b"\0", strings)
        for word in (struct.pack(f"{prefix}I", at.start() + 1),)
        for place in re.finditer(re.escape(word) + info, types)
        for record in _record(types, strings, prefix, place.start())
    ]
    if len(found) != 1:
        raise FormatError(f"BTF has {len(found)} records that can be struct {name}")
    return found[0]


def _record(
    types: bytes, strings: bytes, prefix: str, place: int
) -> Iterator[StructRecord]:
    """The record at a place, if one of a structure can begin there."""
    if place % 4 or place + 12 > len(types):
        return
    _, info, size = struct.unpack_from(f"{prefix}III", types, place)
    count = info & 0xFFFFFF
    if place + 12 * (1 + count) > len(types):
        return
    elements = struct.unpack_from(f"{prefix}{3 * count}I", types, place + 12)
    members = []
    for at, type_id, offset in zip(elements[::3], elements[1::3], elements[2::3]):
        # Of what only looks like a structure, the names do not begin where strings do.
        if not 0 <= at < len(strings) or (at and strings[at - 1]):
            return
        text = strings[at : strings.index(b"\0", at)]
        # With the kind flag, the upper byte is the size of a bit field.
        bits, offset = divmod(offset, 1 << 24) if info >> 31 else (0, offset)
        members.append(
            (text.decode("utf-8", "backslashreplace"), type_id, offset, bits)
        )
    yield StructRecord(size, tuple(members))
