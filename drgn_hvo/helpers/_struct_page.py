# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One struct page
---------------

What helpers ask of a single struct page, as the page flag macros of the kernel do.
"""

from __future__ import annotations

from dataclasses import dataclass

from drgn import FaultError
import numpy as np

from drgn_hvo.errors import UnavailableError
from drgn_hvo.formats.tail_words import ALL_ONES, is_poisoned
from drgn_hvo.helpers._arguments import pointer_value
from drgn_hvo.memmap.heads import NO_HEAD, HeadFields, head_fields
from drgn_hvo.memmap.hvo import Hvo, hvo_of

__all__ = ("StructPage", "page_pfn", "read_folio", "read_page", "struct_page")


@dataclass(frozen=True)
class StructPage:
    """
    One struct page, copied.

    :param address: Where it is.
    :param pfn: The PFN of the page that it describes.
    :param data: Its bytes.
    """

    hvo: Hvo
    address: int
    pfn: int
    data: bytes

    def word(self, offset: int) -> int:
        """The word at an offset in bytes."""
        word = self.data[offset : offset + 8]
        return int.from_bytes(word, self.hvo.kernel.sources.byteorder)

    @property
    def info(self) -> int:
        """``compound_info``, or ``compound_head`` before v7.1."""
        return self.word(self.hvo.kernel.struct_page.offset)

    @property
    def flags(self) -> int:
        """``flags``."""
        return self.word(self.hvo.kernel.struct_page.flags)

    @property
    def has_PG_head(self) -> bool:
        """Whether ``PG_head`` is set: of heads, and of fake ones."""
        return bool(self.flags & self.hvo.kernel.PG_head_mask)

    @property
    def is_poisoned(self) -> bool:
        """Whether it was never initialised."""
        return is_poisoned(self.info)

    def head_address(self) -> int:
        """
        Mirror of ``_compound_head()``, with ``page_fixed_fake_head()`` where heads
        can be fake.

        :raises FaultError: if it may be a fake head and the struct page behind it
            cannot be read.
        """
        if self.is_poisoned:
            return self.address
        return self.hvo.heads.one(
            self.pfn, self.info, self.flags, lambda: self.behind().info
        )

    @property
    def is_head(self) -> bool:
        """Mirror of ``PageHead()``."""
        return (
            not self.is_poisoned
            and self.has_PG_head
            and self.head_address() == self.address
        )

    def behind(self) -> StructPage:
        """
        The next struct page.

        :raises FaultError: if it cannot be read.
        """
        return struct_page(self.hvo, self.address + len(self.data))

    def fields(self) -> HeadFields:
        """
        What it says of its folio, if it is a head.

        :raises FaultError: if the struct page behind it cannot be read.
        """
        if not self.is_head:
            return NO_HEAD
        row = np.frombuffer(self.data + self.behind().data, dtype=np.uint8)
        return head_fields(self.hvo.fields, row.reshape(1, -1))

    def is_hugetlb(self) -> bool:
        """
        Mirror of ``folio_test_hugetlb()``; false if it is no head.

        :raises UnavailableError: if nothing says how this kernel recognises hugetlb.
        """
        hugetlb = self.fields().hugetlb
        if hugetlb is None:
            raise UnavailableError(
                "nothing says how this kernel recognises hugetlb folios"
            )
        return hugetlb

    def head(self) -> StructPage:
        """
        The struct page of its head.

        :raises FaultError: if it cannot be read.
        """
        address = self.head_address()
        return self if address == self.address else struct_page(self.hvo, address)

    def order(self) -> int:
        """
        Mirror of ``compound_order()``.

        :raises UnavailableError: if nothing says where folios keep their order.
        """
        order = self.fields().order
        if order is None:
            raise UnavailableError("nothing says where folios keep their order")
        return order


def page_pfn(hvo: Hvo, address: int) -> int:
    """
    The PFN whose struct page is at an address.

    :raises FaultError: if no struct page can be there.
    """
    pfn = hvo.vmemmap.page_pfn(address)
    if pfn is None:
        raise FaultError("not the address of a struct page", address)
    return pfn


def struct_page(hvo: Hvo, address: int) -> StructPage:
    """
    Read a struct page.

    :raises FaultError: if there is none at *address*, or it cannot be read.
    """
    address &= ALL_ONES
    pfn = page_pfn(hvo, address)
    data = hvo.kernel.prog.read(address, hvo.kernel.struct_page.size)
    return StructPage(hvo, address, pfn, data)


def read_page(page: object) -> StructPage:
    """
    Read the struct page that a helper was given.

    :param page: ``struct page *``
    :raises TypeError: if it is something else.
    :raises FaultError: if there is no struct page at that address, or it cannot be
        read.
    """
    prog, address = pointer_value(page, "page")
    return struct_page(hvo_of(prog), address)


def read_folio(folio: object) -> StructPage:
    """
    Read the first struct page of the folio that a helper was given.

    :param folio: ``struct folio *``, or ``struct page *`` of its head.
    :raises TypeError: if it is something else.
    :raises FaultError: if there is no struct page at that address, or it cannot be
        read.
    """
    prog, address = pointer_value(folio, "folio", "page")
    return struct_page(hvo_of(prog), address)
