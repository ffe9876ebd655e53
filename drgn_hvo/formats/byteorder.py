# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Byte order
----------

How all of drgn-hvo says which end of a word comes first.
"""

from __future__ import annotations

from typing import Literal

__all__ = ("BYTE_ORDERS", "ByteOrder", "type_prefix")

#: As :meth:`int.from_bytes()` takes it.
ByteOrder = Literal["little", "big"]

#: Both, the usual one first.
BYTE_ORDERS: tuple[ByteOrder, ...] = ("little", "big")


def type_prefix(byteorder: ByteOrder) -> str:
    """What NumPy's type strings and :mod:`struct` formats begin with."""
    return "<" if byteorder == "little" else ">"
