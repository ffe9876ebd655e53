# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Words that tell what they are
-----------------------------

Addresses and registers of a crash that no valid pointer can be: masks of tails that
somebody took for pointers, and the poison that the kernel puts where a pointer was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn_hvo.formats.tail_words import (
    BITS_PER_LONG,
    Geometry,
    mask_order,
    tail_mapping,
)

__all__ = ("TellingWord", "telling_address", "telling_register")

# CONFIG_ILLEGAL_POINTER_VALUE of x86-64, arm64, riscv64 and s390, and of ppc64. Where
# it is 0, as on LoongArch, poison looks as a NULL pointer with an offset does.
_ILLEGAL_POINTERS = (0xDEAD << 48, 0x5DEADBEEF << 28)

# LIST_POISON1 and LIST_POISON2, include/linux/poison.h.
_LIST_POISONS = (0x100, 0x122)
_LIST_SIZE = 16

# struct address_space has some 200 bytes; at 0x500 begins another poison.
_ADDRESS_SPACE_SIZE = 256

# IS_ERR(): the highest 4095 addresses stand for errors.
_MAX_ERRNO = 4095

# A folio's fields are in its first four struct pages.
_FOLIO_PAGES = 4


@dataclass(frozen=True)
class TellingWord:
    """
    What a word is.

    :param name: ``mask``, ``tail-mapping`` or ``list-poison``.
    :param offset: How far behind it the address lies.
    :param order: Of a mask.
    """

    name: str
    offset: int
    order: Optional[int] = None

    @property
    def text(self) -> str:
        """What it is, for people."""
        behind = f" + {self.offset:#x}" if self.offset else ""
        if self.name == "mask":
            return f"the mask of a tail of order {self.order}{behind}"
        if self.name == "tail-mapping":
            return f"TAIL_MAPPING{behind}, which mapping of a tail holds"
        return f"poison of list_del(){behind}"


def _poison(word: int) -> Optional[TellingWord]:
    for illegal in _ILLEGAL_POINTERS:
        offset = word - tail_mapping(illegal)
        if 0 <= offset < _ADDRESS_SPACE_SIZE:
            return TellingWord("tail-mapping", offset)
        for poison in _LIST_POISONS:
            offset = word - illegal - poison
            if 0 <= offset < _LIST_SIZE:
                return TellingWord("list-poison", offset)
    return None


def telling_address(geometry: Geometry, address: int) -> Optional[TellingWord]:
    """
    What an address is that was accessed.

    Who takes a mask for a pointer subtracts its bit 0 and reads a member of the struct
    page that should be there. Masks of small orders lie where ``ERR_PTR()`` puts
    errors, and are not told from those.

    :return: ``None`` if it can be an ordinary one.
    """
    poison = _poison(address)
    if poison is not None or not geometry.power_of_2:
        return poison
    size = geometry.struct_page_size
    for order in range(1, geometry.largest_order + 1):
        span = size << order
        offset = address - (1 << BITS_PER_LONG) + span
        if span > _MAX_ERRNO + 1 and 0 <= offset < _FOLIO_PAGES * size:
            return TellingWord("mask", offset, order)
    return None


def telling_register(geometry: Geometry, word: int) -> Optional[TellingWord]:
    """
    What the content of a register or of a word of the stack is.

    Constants such as ``PAGE_MASK`` look as a mask does whose bit 0 was subtracted: only
    words with bit 0 are taken for masks.
    """
    poison = _poison(word)
    if poison is not None:
        return poison
    order = mask_order(geometry, word)
    if order is None or order > geometry.largest_order:
        return None
    if geometry.struct_page_size << order <= _MAX_ERRNO + 1:
        return None
    return TellingWord("mask", 0, order)
