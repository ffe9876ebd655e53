# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Compound Pages
--------------

The ``drgn_hvo.helpers.compound`` module provides helpers for working with heads and
tails of compound pages and with folios, whichever way the kernel encodes tails, and
whatever HVO made of them.

``drgn.helpers.linux.mm`` has some of them, too. These are also right on kernels that
hold masks although ``struct zone`` has no ``vmemmap_tails``, where drgn 0.3.0 takes
the masks for pointers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

from drgn import FaultError, Object, Program, Type, sizeof
from drgn.helpers.common.prog import takes_program_or_default
import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import UsageError
from drgn_hvo.formats.tail_words import (
    ALL_ONES,
    is_tail,
)
from drgn_hvo.helpers._arguments import folio_type, pointer_value
from drgn_hvo.helpers._struct_page import StructPage, read_page, struct_page
from drgn_hvo.memmap.hvo import Hvo, hvo_of

__all__ = (
    "PageHead",
    "PageHuge",
    "PageSnapshot",
    "PageTail",
    "compound_head",
    "compound_heads",
    "compound_info_has_mask",
    "compound_order",
    "page_folio",
    "snapshot_page",
)

# At most this many PFNs in any order are looked up at a time: 64 MiB of vmemmap.
_PAGES_PER_BATCH = 8192

# snapshot_page() tries so often again.
_SNAPSHOT_LOOPS = 5


@takes_program_or_default
def compound_info_has_mask(prog: Program) -> bool:
    """
    Return whether the tails of compound pages hold masks, not pointers to their head.

    This mirrors ``compound_info_has_mask()`` (:linux:`include/linux/page-flags.h`,
    since Linux 7.1), which the kernel decides when it is built, whether HVO is
    switched on or not. Older kernels hold pointers, but stable ones may have taken
    the masks without the name, so this looks at types and at a sample of tails.

    >>> compound_info_has_mask()
    True

    :raises HvoError: if types and data disagree, or nothing tells.
    """
    return hvo_of(prog).layout.encoding.has_mask


def compound_head(page: Object) -> Object:
    """
    Get the head page associated with a page.

    If *page* is a tail page, this returns the head page of the compound page that it
    belongs to. Otherwise, it returns *page*; also if the struct page was never
    initialised (all ones).

    This mirrors ``compound_head()`` (:linux:`include/linux/page-flags.h`), before
    Linux 7.1 including ``page_fixed_fake_head()``: where HVO put copies of the head
    in place of tails, it returns the real head.

    :param page: ``struct page *``
    :return: ``struct page *``
    :raises FaultError: if the struct page cannot be read.
    """
    head = read_page(page).head_address()
    return Object(page.prog_, page.type_, head)


@takes_program_or_default
def compound_heads(
    prog: Program, pfns: Union[range, npt.ArrayLike]
) -> npt.NDArray[np.uint64]:
    """
    Get the page frame numbers (PFNs) of the heads of many pages at once.

    This is :func:`compound_head()` for arrays; it needs no types. It takes seconds
    for all pages of a machine with hundreds of gigabytes of memory.

    >>> compound_heads(range(7168, 7680))
    array([7168, 7168, 7168, ..., 7168, 7168, 7168], dtype=uint64)

    :param pfns: ``range`` of PFNs, which is the fastest, or an array of any shape.
    :return: ``uint64`` array of the shape of *pfns*. A page that is no tail is its
        own head; ``2**64 - 1`` stands where there is no initialised struct page, the
        dump does not have it, or the tail leads out of vmemmap.
    :raises HvoError: if *pfns* are no PFNs, or vmemmap cannot be read at all.
    """
    hvo = hvo_of(prog)
    if isinstance(pfns, range) and pfns.step == 1:
        return _heads_of_range(hvo, pfns)
    numbers = np.asarray(pfns)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise UsageError(f"PFNs are integers, not {numbers.dtype}")
    flat = numbers.reshape(-1)
    limit = hvo.kernel.max_pfn_limit
    heads = np.full(len(flat), ALL_ONES, dtype=np.uint64)
    # Neighbours share pages of vmemmap.
    known = np.flatnonzero((flat >= 0) & (flat < limit))
    known = known[np.argsort(flat[known], kind="stable")]
    for start in range(0, len(known), _PAGES_PER_BATCH):
        batch = known[start : start + _PAGES_PER_BATCH]
        heads[batch] = hvo.heads.many(flat[batch].astype(np.int64))
    return heads.reshape(numbers.shape)


def _heads_of_range(hvo: Hvo, pfns: range) -> npt.NDArray[np.uint64]:
    if pfns and not 0 <= pfns.start < pfns.stop <= hvo.kernel.max_pfn_limit:
        raise UsageError(
            f"no range of PFNs: {pfns.start} to {pfns.stop}; this kernel could have "
            f"{hvo.kernel.max_pfn_limit}"
        )
    heads = np.full(len(pfns), ALL_ONES, dtype=np.uint64)
    end = min(pfns.stop, hvo.vmemmap.end_pfn)
    done = 0
    if pfns.start < end:
        for chunk in hvo.heads.range(pfns.start, end):
            heads[done : done + len(chunk)] = chunk
            done += len(chunk)
    return heads


def page_folio(page: Object) -> Object:
    """
    Get the folio that a page belongs to.

    This mirrors ``page_folio()`` (:linux:`include/linux/page-flags.h`, since Linux
    5.16).

    :param page: ``struct page *``
    :return: ``struct folio *``
    :raises FaultError: if the struct page cannot be read.
    :raises HvoError: if the kernel has no ``struct folio``.
    """
    head = read_page(page).head_address()
    return Object(page.prog_, folio_type(page.prog_), head)


def PageHead(page: Object) -> bool:
    """
    Return whether a page is a head page in a compound page; a fake head is none.

    This mirrors ``PageHead()`` (:linux:`include/linux/page-flags.h`).

    :param page: ``struct page *``
    :raises FaultError: if the struct page cannot be read.
    """
    return read_page(page).is_head


def PageTail(page: Object) -> bool:
    """
    Return whether a page is a tail page in a compound page; a fake head is one, a
    struct page that was never initialised (all ones) is none.

    This mirrors ``PageTail()`` (:linux:`include/linux/page-flags.h`).

    :param page: ``struct page *``
    :raises FaultError: if the struct page cannot be read.
    """
    read = read_page(page)
    return is_tail(read.info) or read.head_address() != read.address


def PageHuge(page: Object) -> bool:
    """
    Return whether a page, head or tail, belongs to a hugetlb folio.

    This mirrors ``PageHuge()`` (:linux:`include/linux/page-flags.h`, before Linux 6.6
    :linux:`mm/hugetlb.c`): what makes a folio hugetlb is its page type since Linux
    6.10, a flag of its first tail before that, and its destructor before Linux 6.6.

    :param page: ``struct page *``
    :raises FaultError: if the struct page or its head cannot be read.
    :raises HvoError: if nothing says how this kernel recognises hugetlb.
    """
    return read_page(page).head().is_hugetlb()


def compound_order(page: Object) -> Object:
    """
    Return the allocation order of a potentially compound page: 0 if it is no head.

    This mirrors ``compound_order()`` (:linux:`include/linux/mm.h`).

    :param page: ``struct page *``
    :return: ``unsigned int``, the base 2 logarithm of a number of pages.
    :raises FaultError: if the struct page, or the first tail of a head, cannot be
        read.
    :raises HvoError: if nothing says where this kernel keeps it.
    """
    order = read_page(page).order()
    return Object(page.prog_, "unsigned int", order)


class PageSnapshot(NamedTuple):
    """
    A copy of a page and its folio, as ``struct page_snapshot``; see
    :func:`snapshot_page()`.
    """

    folio_snapshot: Object
    """``struct folio``: a value, so that it does not change any more."""

    page_snapshot: Object
    """``struct page``: a value, so that it does not change any more."""

    pfn: int
    """PFN of the page."""

    idx: int
    """Index of the page in its folio, in pages."""

    faithful: bool
    """Whether page and folio belong together: ``snapshot_page_is_faithful()``."""


def snapshot_page(page: Object) -> PageSnapshot:
    """
    Take a copy of a page and of its folio that belong together, although the kernel
    may be splitting or freeing the folio at this moment.

    This mirrors ``snapshot_page()`` (:linux:`mm/util.c`, since Linux 6.17): the page
    is copied first, then the folio that the *copy* leads to; if the page does not lie
    in that folio, both are copied again, six times at most. After that, or if the
    folio cannot be read, the page counts as a single one and the snapshot is not
    faithful: the tail word in the copy is 0, as ``clear_compound_head()`` leaves it.

    It differs in that fake heads are resolved, that all struct pages of ``struct
    folio`` are copied that the folio has (the kernel copies three), that
    a page right behind its folio is not taken for a part of it, and that it does not
    look for free and idle pages (``PAGE_SNAPSHOT_PG_BUDDY`` and ``_IDLE``).

    >>> snapshot = snapshot_page(page)
    >>> snapshot.idx, snapshot.faithful
    (132, True)

    :param page: ``struct page *``
    :raises FaultError: if the struct page cannot be read.
    :raises HvoError: if the kernel has no ``struct folio``.
    """
    prog, address = pointer_value(page, "page")
    hvo = hvo_of(prog)
    types = _SnapshotTypes(page.type_.unaliased().type, folio_type(prog).type)
    for _ in range(1 + _SNAPSHOT_LOOPS):
        copy = struct_page(hvo, address)
        found = _folio_of(copy, types.whole_folio(len(copy.data)))
        if found is not None:
            head, folio = found
            idx = (address - head) // len(copy.data)
            return PageSnapshot(
                *types.copies(hvo, folio, copy.data), copy.pfn, idx, True
            )
    at = hvo.kernel.struct_page.offset
    single = copy.data[:at] + bytes(8) + copy.data[at + 8 :]
    return PageSnapshot(*types.copies(hvo, single, single), copy.pfn, 0, False)


@dataclass(frozen=True)
class _SnapshotTypes:
    """``struct page`` and ``struct folio``."""

    page: Type
    folio: Type

    def whole_folio(self, page_size: int) -> int:
        """How many struct pages ``struct folio`` lies over."""
        return -(-sizeof(self.folio) // page_size)

    def copies(self, hvo: Hvo, folio: bytes, page: bytes) -> tuple[Object, Object]:
        """Objects of the bytes; of a folio, what there is, and zeros behind it."""
        size, prog = sizeof(self.folio), hvo.kernel.prog
        return (
            Object.from_bytes_(prog, self.folio, folio[:size].ljust(size, bytes(1))),
            Object.from_bytes_(prog, self.page, page),
        )


def _folio_of(page: StructPage, most: int) -> Optional[tuple[int, bytes]]:
    """
    Address and bytes of the folio that a copy of a page belongs to, ``None`` if they
    do not fit.

    :param most: How many struct pages of a folio to copy at most.
    """
    size = len(page.data)
    try:
        address = page.head_address()
        if address == page.address and not page.has_PG_head:
            return address, page.data
        head = page if address == page.address else struct_page(page.hvo, address)
        nr_pages = 1 << min(head.order(), page.hvo.kernel.geometry.largest_order)
        inside = 0 <= page.address - address < nr_pages * size
        if nr_pages == 1 or not inside:
            return None
        count = min(nr_pages, most)
        return address, page.hvo.kernel.prog.read(address, count * size)
    except FaultError:
        return None
