# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Fields of folios
----------------

Where the kernel keeps the order of a folio and how it recognises hugetlb, which
changed from release to release. A generation is one entry in a table; the one
whose types or VMCOREINFO this kernel has is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Generic, Optional, TypeVar

from drgn import offsetof
import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import DetectionError
from drgn_hvo.formats.byteorder import ByteOrder, type_prefix
from drgn_hvo.kernel.arrays import BoolArray, ByteArray, Int64Array, U64Array, column
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.shapes import BYTE, WORD, fault_of, has_member

__all__ = ("HEAD_PAGES", "FolioFields", "folio_fields")

#: How many struct pages from the head on hold the fields.
HEAD_PAGES = 3


@dataclass(frozen=True)
class _Field:
    """An unsigned field, from the beginning of the head's struct page."""

    offset: int
    size: int

    def values(self, heads: ByteArray, byteorder: ByteOrder) -> U64Array:
        """The field of each row of struct pages."""
        order = type_prefix(byteorder)
        dtype = np.dtype(f"{order}u{self.size}")
        return column(heads, self.offset, dtype).astype(np.uint64)


@dataclass(frozen=True)
class _Test:
    """``field & mask == value``."""

    field: _Field
    mask: int
    value: int

    def holds(self, heads: ByteArray, byteorder: ByteOrder) -> BoolArray:
        """Whether it holds for each row of struct pages."""
        values = self.field.values(heads, byteorder)
        # A damaged constant may be no value of the field; then no row has it.
        wanted = np.uint64(self.value % (1 << 64))
        return (values & np.uint64(self.mask)) == wanted


T = TypeVar("T")


@dataclass(frozen=True)
class _Generation(Generic[T]):
    """One way to find something, and the kernels that need it."""

    find: Callable[[Kernel], Optional[T]]
    reason: str


# The shapes of the members that are asked for below, by name.
_NUMBERS = {
    "_folio_order": BYTE,
    "_flags_1": WORD,
    "compound_order": BYTE,
    "compound_dtor": BYTE,
    "_folio_dtor": BYTE,
}


def _offset(kernel: Kernel, type_name: str, member: str) -> Optional[int]:
    """
    Where a number lies that is a member.

    :raises DetectionError: if it is none, as far as it is there.
    """
    owner = kernel.type(type_name)
    if owner is None or not has_member(owner, member):
        return None
    fault = fault_of(owner, member, _NUMBERS[member])
    if fault is not None:
        raise DetectionError(fault)
    return offsetof(owner, member)


def _order_in_folio(kernel: Kernel) -> Optional[_Field]:
    offset = _offset(kernel, "struct folio", "_folio_order")
    return None if offset is None else _Field(offset, 1)


def _order_in_flags_1(kernel: Kernel) -> Optional[_Field]:
    offset = _offset(kernel, "struct folio", "_flags_1")
    if offset is None:
        return None
    if _offset(kernel, "struct folio", "_folio_dtor") is not None:
        # Both were removed by one commit, so that this is no known kernel.
        raise DetectionError("struct folio has _folio_dtor, expected _folio_order, too")
    # The least significant byte of a word.
    return _Field(offset if kernel.sources.byteorder == "little" else offset + 7, 1)


def _order_in_page(kernel: Kernel) -> Optional[_Field]:
    offset = _offset(kernel, "struct page", "compound_order")
    if offset is None:
        offset = kernel.vmcoreinfo.offset("page.compound_order")
    if offset is None:
        return None
    return _Field(kernel.struct_page.size + offset, 1)


# In the order of compound_order() in drgn's helpers/linux/mm.py.
_ORDER = (
    _Generation(
        _order_in_folio,
        '379708ffde1b ("mm: add the first tail page to struct folio") (in v6.1)',
    ),
    _Generation(
        _order_in_flags_1,
        'ebc1baf5c9b4 ("mm: free up a word in the first tail page") (in v6.6)',
    ),
    _Generation(_order_in_page, "before v6.3"),
)


def _hugetlb_page_type(kernel: Kernel) -> Optional[_Test]:
    mapcount = kernel.struct_page.mapcount
    kind = kernel.constant("PGTY_hugetlb")
    value = kernel.vmcoreinfo.number("PAGE_HUGETLB_MAPCOUNT_VALUE")
    if kind is None and value is not None and value & 0xFFFFFF == 0:
        kind = value >> 24 & 0xFF
    if kind is None or mapcount is None:
        return None
    return _Test(_Field(mapcount, 4), 0xFF << 24, kind << 24)


def _hugetlb_page_type_bit(kernel: Kernel) -> Optional[_Test]:
    mapcount = kernel.struct_page.mapcount
    value = kernel.vmcoreinfo.number("PAGE_HUGETLB_MAPCOUNT_VALUE")
    if value is None or mapcount is None:
        return None
    return _Test(_Field(mapcount, 4), 0xFFFFFFFF, value & 0xFFFFFFFF)


def _hugetlb_flag(kernel: Kernel) -> Optional[_Test]:
    bit = kernel.vmcoreinfo.number("PG_hugetlb")
    if bit is None or not 0 <= bit < 64:
        return None
    field = _Field(kernel.struct_page.size + kernel.struct_page.flags, 8)
    return _Test(field, 1 << bit, 1 << bit)


def _hugetlb_dtor(kernel: Kernel) -> Optional[_Test]:
    dtor = kernel.vmcoreinfo.number("HUGETLB_PAGE_DTOR")
    if dtor is None:
        dtor = kernel.constant("HUGETLB_PAGE_DTOR")
    offset = _offset(kernel, "struct page", "compound_dtor")
    if offset is None:
        offset = kernel.vmcoreinfo.offset("page.compound_dtor")
    if offset is not None:
        offset += kernel.struct_page.size
    else:
        offset = _offset(kernel, "struct folio", "_folio_dtor")
    if dtor is None or offset is None:
        return None
    return _Test(_Field(offset, 1), 0xFF, dtor)


_HUGETLB = (
    _Generation(_hugetlb_page_type, "v6.12: page_type >> 24 is PGTY_hugetlb"),
    _Generation(_hugetlb_page_type_bit, "v6.10 and v6.11: a page_type bit, active low"),
    _Generation(_hugetlb_flag, "v6.6 to v6.9: PG_hugetlb in flags of the first tail"),
    _Generation(_hugetlb_dtor, "before v6.6: the destructor in the first tail"),
)


def _first(
    generations: Sequence[_Generation[T]], kernel: Kernel, faults: list[str]
) -> Optional[T]:
    """
    The first that is found.

    :param faults: Gets the reason if the kernel has one in another shape.
    """
    for generation in generations:
        try:
            found = generation.find(kernel)
        except DetectionError as e:
            faults.append(str(e))
            return None
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class FolioFields:
    """
    How to read folios of one kernel, from rows of :data:`HEAD_PAGES` struct pages.

    ``None`` in place of an answer means that nothing says where to find it.

    :param page_size: Of a struct page, in bytes.
    """

    byteorder: ByteOrder
    page_size: int
    _order: Optional[_Field]
    _hugetlb: Optional[_Test]
    #: Members of a shape that no known kernel has, and that were left alone.
    faults: tuple[str, ...] = ()

    def orders(self, heads: ByteArray) -> Optional[Int64Array]:
        """Mirror of ``folio_order()``."""
        if self._order is None:
            return None
        return self._order.values(heads, self.byteorder).astype(np.int64)

    def are_hugetlb(self, heads: ByteArray) -> Optional[BoolArray]:
        """Mirror of ``folio_test_hugetlb()``; for heads, not for fake ones."""
        if self._hugetlb is None:
            return None
        return self._hugetlb.holds(heads, self.byteorder)

    @property
    def order_place(self) -> Optional[tuple[int, int]]:
        """Offset and size of the order."""
        return None if self._order is None else (self._order.offset, self._order.size)

    @property
    def hugetlb_place(self) -> Optional[tuple[int, int, int]]:
        """Offset, size and mask of what makes a folio hugetlb."""
        if self._hugetlb is None:
            return None
        field = self._hugetlb.field
        return field.offset, field.size, self._hugetlb.mask

    @property
    def is_type_behind_head(self) -> bool:
        """
        Whether what makes a folio hugetlb is in the first tail: a destructor or a flag.
        Since Linux kernel commit d99e3140a4d3 ("mm: turn folio_test_hugetlb into a
        PageType") (in v6.10) it is in the head.
        """
        place = self.hugetlb_place
        return place is not None and place[0] >= self.page_size

    @property
    def is_typed_last(self) -> bool:
        """
        Whether HVO remaps a folio before it is hugetlb: since Linux kernel commit
        d8f5f7e445f0 ("hugetlb: set hugetlb page flag before optimizing vmemmap") (in
        v6.6) __prep_new_hugetlb_folio() does not; before, it stored a destructor.
        """
        place = self.hugetlb_place
        return self.is_type_behind_head and place is not None and place[1] == 1

    def words(self, heads: ByteArray, offset: int, size: int) -> npt.NDArray[np.uint64]:
        """An unsigned field of the head's struct page."""
        return _Field(offset, size).values(heads, self.byteorder)


def folio_fields(kernel: Kernel) -> FolioFields:
    """Find out where this kernel keeps the fields of a folio."""
    faults: list[str] = []
    order = _first(_ORDER, kernel, faults)
    hugetlb = _first(_HUGETLB, kernel, faults)
    return FolioFields(
        kernel.sources.byteorder,
        kernel.struct_page.size,
        order,
        hugetlb,
        tuple(faults),
    )
