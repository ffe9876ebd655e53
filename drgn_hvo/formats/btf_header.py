# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The header of BTF
-----------------

``struct btf_header`` (:linux:`include/uapi/linux/btf.h`), and the sections it names.
"""

from __future__ import annotations

from dataclasses import dataclass
import struct

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.byteorder import BYTE_ORDERS, ByteOrder, type_prefix

__all__ = ("MAGICS", "BtfHeader", "pack_btf", "parse_header", "section")

_MAGIC = 0xEB9F
_VERSION = 1
#: What a blob begins with, by byte order: magic number and version.
MAGICS = tuple(
    _MAGIC.to_bytes(2, byteorder) + bytes([_VERSION]) for byteorder in BYTE_ORDERS
)

# Without and with the layout section that v7.1 may add, as struct formats.
_HEADER = "HBBIIIII"
_LAYOUT = "II"


@dataclass(frozen=True)
class BtfHeader:
    """``struct btf_header``; offsets count from the end of the header, in bytes."""

    magic: int
    version: int
    flags: int
    hdr_len: int
    type_off: int
    type_len: int
    str_off: int
    str_len: int
    layout_off: int = 0
    layout_len: int = 0


def parse_header(data: bytes) -> tuple[BtfHeader, ByteOrder]:
    """
    The header that a BTF blob begins with.

    :raises FormatError: if it is cut off, or none that is known.
    """
    for byteorder in BYTE_ORDERS:
        try:
            header = _unpack(data, type_prefix(byteorder))
        except struct.error:
            raise FormatError("BTF is damaged: its header is cut off") from None
        if header.magic == _MAGIC:
            break
    else:
        raise FormatError(f"BTF is damaged: its magic number is {data[:2].hex()}")
    if header.version != _VERSION:
        raise FormatError(f"BTF of version {header.version} is not supported")
    if header.hdr_len < struct.calcsize(f"={_HEADER}"):
        raise FormatError(f"BTF is damaged: its header length is {header.hdr_len}")
    return header, byteorder


def _unpack(data: bytes, prefix: str) -> BtfHeader:
    """
    Read a header in one byte order.

    :param prefix: Of the byte order, as :mod:`struct` has it.
    :raises struct.error: if it is cut off.
    """
    header = BtfHeader(*struct.unpack_from(prefix + _HEADER, data))
    if header.hdr_len < struct.calcsize(prefix + _HEADER + _LAYOUT):
        return header
    return BtfHeader(*struct.unpack_from(prefix + _HEADER + _LAYOUT, data))


def section(data: bytes, header: BtfHeader, name: str) -> slice:
    """
    Where one section of a BTF blob lies in it.

    :param name: ``"type"``, ``"str"`` or ``"layout"``.
    :raises FormatError: if it is cut off.
    """
    start = header.hdr_len + getattr(header, f"{name}_off")
    end = start + getattr(header, f"{name}_len")
    if end > len(data):
        raise FormatError(
            f"BTF is damaged: its {name} section ends at {end}, the data at {len(data)}"
        )
    return slice(start, end)


def pack_btf(byteorder: ByteOrder, types: bytes, strings: bytes) -> bytes:
    """
    A whole BTF blob.

    :param types: The type section.
    :param strings: The string section.
    """
    code = type_prefix(byteorder) + _HEADER
    header = struct.pack(
        code,
        *(_MAGIC, 1, 0, struct.calcsize(code)),
        *(0, len(types), len(types), len(strings)),
    )
    return header + types + strings
