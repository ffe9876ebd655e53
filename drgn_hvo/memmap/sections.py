# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Sections of memory
------------------

``mem_section``: what the kernel keeps of each section of memory. Where
``vmemmap_tails[]`` is allocated ("Generalize vmemmap optimization for DAX and HugeTLB",
in linux-next in October 2026), ``compound_page_order`` is the order of the compound
pages that a section was made for, which no struct page has a part in:
section_set_compound_order_range() (:linux:`include/linux/vmemmap-optimization.h`) sets
it for device DAX and for gigantic pages that memblock allocates, and nothing changes it
as long as the section is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Union

from drgn import FaultError, sizeof
import numpy as np

from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array, distinct, ranges
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.shapes import INT, WORD, Shape, fault_of, has_member
from drgn_hvo.kernel.unread import NOT_IN_DUMP, READS_AS_ZEROS
from drgn_hvo.memmap.vmemmap import Vmemmap

__all__ = ("SectionOrders", "section_orders")

_STRUCT, _ORDER, _FLAGS = "struct mem_section", "compound_page_order", "section_mem_map"
_ANY_INT = Shape("an integer", INT.kinds)

# include/linux/mmzone.h.
_IS_EARLY = 1 << 3


@dataclass(frozen=True)
class SectionOrders:
    """
    What sections that have struct pages say, in arrays.

    :param numbers: Of the sections, ascending.
    :param addresses: Where each has ``compound_page_order``.
    :param orders: That, -1 where it was not read.
    :param early: Which are there since boot.
    :param unread: Why some were not read, and how many.
    """

    section_bits: int
    numbers: Int64Array
    addresses: U64Array
    orders: Int64Array
    early: BoolArray
    unread: dict[str, int]

    @property
    def first_pfns(self) -> Int64Array:
        """The first page of each section."""
        return self.numbers << self.section_bits


def section_orders(
    vmemmap: Vmemmap, end_pfn: int, within: Optional[Int64Array] = None
) -> Optional[SectionOrders]:
    """
    Read ``compound_page_order`` of all sections that have struct pages.

    :param end_pfn: Where struct pages end, exclusive.
    :param within: Slices of vmemmap: their sections only.
    :return: ``None`` if this kernel does not keep it.
    :raises DetectionError: if it is not known how it does.
    """
    section_type = vmemmap.kernel.type(_STRUCT)
    if section_type is None or not has_member(section_type, _ORDER):
        return None
    for name, shape in ((_ORDER, _ANY_INT), (_FLAGS, WORD)):
        fault = fault_of(section_type, name, shape)
        if fault is not None:
            raise DetectionError(fault)
    return _Reader(vmemmap, vmemmap.kernel).read(end_pfn, within)


class _Reader:
    """Reads sections."""

    def __init__(self, vmemmap: Vmemmap, kernel: Kernel) -> None:
        self._vmemmap = vmemmap
        self._kernel = kernel
        section_type = kernel.prog.type(_STRUCT)
        self._size = sizeof(section_type)
        order, flags = section_type.member(_ORDER), section_type.member(_FLAGS)
        self._order = (order.offset, sizeof(order.type))
        self._flags = (flags.offset, sizeof(flags.type))
        self._bits = self._section_bits()
        self._page_size = kernel.geometry.page_size
        self._root_of = self._page_size // self._size
        self._unread: dict[str, int] = {}

    def _section_bits(self) -> int:
        """``PFN_SECTION_SHIFT``, if sections lie in roots of a page each."""
        info, geometry = self._kernel.vmcoreinfo, self._kernel.geometry
        shift, physmem = self._kernel.section_shift, info.number("MAX_PHYSMEM_BITS")
        length = info.length("mem_section")
        if not (shift and physmem and length and self._roots):
            raise DetectionError("VMCOREINFO does not say where mem_section is")
        bits = shift + geometry.page_shift
        if not shift < 40 or not bits < physmem < 64:
            raise DetectionError(f"a section of 2^{bits} bytes cannot be")
        per_root = geometry.page_size // self._size
        if not per_root or length * per_root != 1 << (physmem - bits):
            raise DetectionError(
                f"mem_section has {length} roots, which is not what sections of "
                f"{self._size} bytes need"
            )
        return shift

    @cached_property
    def _roots(self) -> int:
        return self._kernel.vmcoreinfo.symbol("mem_section") or 0

    def _numbers(self, end_pfn: int, within: Optional[Int64Array]) -> Int64Array:
        """The sections of mapped slices."""
        vmemmap = self._vmemmap
        if within is not None:
            _, mapped = vmemmap.frames(within)
            pfns = within[mapped] * self._page_size // vmemmap.size
            return distinct(pfns >> self._bits)
        firsts, ends = vmemmap.run_slices
        first = firsts * self._page_size // vmemmap.size >> self._bits
        ends = np.minimum(ends * self._page_size // vmemmap.size, end_pfn)
        last = (ends - 1) >> self._bits
        return distinct(ranges(first, np.maximum(last - first + 1, 0)))

    def read(self, end_pfn: int, within: Optional[Int64Array]) -> SectionOrders:
        """All sections, root by root."""
        numbers = self._numbers(end_pfn, within)
        addresses = np.zeros(len(numbers), dtype=np.uint64)
        orders = np.full(len(numbers), -1, dtype=np.int64)
        early = np.zeros(len(numbers), dtype=np.bool_)
        roots = numbers // self._root_of
        for root in distinct(roots).tolist():
            which = np.flatnonzero(roots == root)
            page = self._page(root)
            if isinstance(page, str):
                self._unread[page] = self._unread.get(page, 0) + len(which)
                continue
            address, data = page
            places = numbers[which] % self._root_of * self._size
            addresses[which] = np.uint64(address + self._order[0])
            addresses[which] += places.astype(np.uint64)
            for i, at in zip(which.tolist(), places.tolist()):
                orders[i] = self._number(data, at, *self._order)
                early[i] = bool(self._number(data, at, *self._flags) & _IS_EARLY)
        return SectionOrders(
            self._bits, numbers, addresses, orders, early, self._unread
        )

    def _page(self, root: int) -> Union[tuple[int, bytes], str]:
        """Address and content of a root; why it was not read."""
        prog, known = self._kernel.prog, self._kernel.known_words
        try:
            where = self._roots + 8 * root
            address = known.check(prog.read_u64(where), where)
            data = prog.read(address, self._page_size)
        except (FaultError, OverflowError, ValueError):
            return NOT_IN_DUMP
        # A section that has struct pages is not all zeros.
        return (address, data) if any(data) else READS_AS_ZEROS

    def _number(self, data: bytes, at: int, offset: int, size: int) -> int:
        byteorder = self._kernel.sources.byteorder
        return int.from_bytes(data[at + offset : at + offset + size], byteorder)
