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
from drgn_hvo.formats.byteorder import ByteOrder, type_prefix

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
    text = name.encode() + b"\0"
    if data.find(text, strings.start, strings.stop) < 0:
        return None
    at = data.find(b"\0" + text, strings.start, strings.stop) + 1 - strings.start
    # The offset of the name, and of the word behind it the byte with kind and flag.
    kind = rb"[\x04\x84]"
    info = rb"[\s\S]{3}" + kind if byteorder == "little" else kind
    word = struct.pack(f"{type_prefix(byteorder)}I", max(at, 0))
    places = re.compile(re.escape(word) + info).finditer(data, types.start, types.stop)
    found = [
        record
        for place in places
        for record in _record(data, types, strings, byteorder, place.start())
    ]
    if len(found) != 1:
        raise FormatError(f"BTF has {len(found)} records that can be struct {name}")
    return found[0]


def _record(
    data: bytes, types: slice, strings: slice, byteorder: ByteOrder, place: int
) -> Iterator[StructRecord]:
    """The record at a place, if one of a structure can begin there."""
    prefix = type_prefix(byteorder)
    if (place - types.start) % 4 or place + 12 > types.stop:
        return
    _, info, size = struct.unpack_from(f"{prefix}III", data, place)
    count = info & 0xFFFFFF
    if place + 12 * (1 + count) > types.stop:
        return
    elements = struct.unpack_from(f"{prefix}{3 * count}I", data, place + 12)
    members = []
    for offset, type_id, bits in zip(elements[::3], elements[1::3], elements[2::3]):
        at = strings.start + offset
        # Of what only looks like a structure, the names do not begin where strings do.
        if at >= strings.stop or (offset and data[at - 1]):
            return
        label = data[at : data.find(b"\0", at, strings.stop)]
        # With the kind flag, the upper byte is the size of a bit field.
        bit_size, bit_offset = divmod(bits, 1 << 24) if info >> 31 else (0, bits)
        members.append(
            (label.decode("utf-8", "backslashreplace"), type_id, bit_offset, bit_size)
        )
    yield StructRecord(size, tuple(members))
