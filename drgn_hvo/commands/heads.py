# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``heads``
---------

The heads of all pages of a range, as a file that ``numpy.load()`` reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.commands.document import document
from drgn_hvo.errors import UsageError
from drgn_hvo.files import check_replaceable, replace_file
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.kernel.arrays import U64Array
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.progress import progress

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import HeadsReport

__all__ = (
    "WrittenHeads",
    "count_unread",
    "heads_document",
    "parse_pfn_range",
    "print_heads",
    "write_heads",
)


@dataclass(frozen=True)
class WrittenHeads:
    """
    What a file of heads has.

    :param start: First PFN.
    :param end: Its end (exclusive).
    :param not_in_dump: Pages whose struct pages, or the page table that maps these,
        the dump lacks: whether they have a head is not known.
    :param zeros: Pages whose struct pages are in a page of zeros.
    """

    start: int
    end: int
    not_in_dump: int
    zeros: int


def parse_pfn_range(text: str) -> tuple[int, int]:
    """
    Understand ``A-B``, both included.

    :return: First PFN, and end (exclusive).
    :raises UsageError: if it is no range.
    """
    first, dash, last = text.partition("-")
    try:
        start, end = int(first, 0), int(last, 0) + 1
    except ValueError:
        raise UsageError(f"{text!r} is no range of PFNs: use A-B") from None
    if not dash or not 0 <= start < end:
        raise UsageError(f"{text!r} is no range of PFNs: use A-B")
    return start, end


def _check_end(hvo: Hvo, end: int) -> None:
    """
    Check that the end of struct pages, by page tables, is near that of zones.

    :raises UsageError: if it is not.
    """
    if end > hvo.believable_end_pfn:
        raise UsageError(
            f"page tables have struct pages up to PFN {end - 1}, far behind the end of "
            "all zones: one is damaged; name a range with --pfns"
        )


def count_unread(vmemmap: Vmemmap, pfn: int, heads: U64Array) -> tuple[int, int]:
    """
    Count pages without a head that may have one.

    :param pfn: The first of *heads*.
    :return: As :class:`WrittenHeads`.
    """
    size, page_size = vmemmap.size, vmemmap.page_size
    pfns = pfn + np.flatnonzero(heads == np.uint64(ALL_ONES))
    if not len(pfns):
        return 0, 0
    # A struct page can lie in two slices where its size is no power of two.
    ends = np.stack((pfns * size // page_size, (pfns * size + size - 1) // page_size))
    slices, places = np.unique(ends.reshape(-1), return_inverse=True)
    absent, zeros = vmemmap.unread(slices)
    places = places.reshape(ends.shape)
    lost = absent[places].any(axis=0)
    return int(lost.sum()), int((zeros[places].all(axis=0) & ~lost).sum())


def write_heads(
    hvo: Hvo, path: str, pfns: Optional[tuple[int, int]], *, force: bool = False
) -> WrittenHeads:
    """
    Write head PFNs, one uint64 a page, all ones where there is no initialised
    struct page.

    :param pfns: First PFN and end (exclusive); all that vmemmap has if ``None``.
    :param force: Whether a file that is there may be replaced.
    :raises UsageError: if there are no such PFNs, or the file cannot be written.
    """
    check_replaceable(path, force=force)
    start, end = pfns or (0, hvo.vmemmap.end_pfn)
    if end > hvo.vmemmap.end_pfn:
        raise UsageError(
            f"PFN {end - 1} is out of range, struct pages end at PFN "
            f"{hvo.vmemmap.end_pfn - 1}"
        )
    if pfns is None:
        _check_end(hvo, end)
    chunks = hvo.heads.range(start, end)
    pfn, not_in_dump, zeros = start, 0, 0
    header = {"descr": "<u8", "fortran_order": False, "shape": (end - start,)}
    with (
        replace_file(path, force=force) as f,
        progress(end - start, "page") as bar,
    ):
        np.lib.format.write_array_header_1_0(f, header)
        for heads in chunks:
            f.write(heads.astype("<u8", copy=False).tobytes())
            lost, empty = count_unread(hvo.vmemmap, pfn, heads)
            pfn, not_in_dump, zeros = (
                pfn + len(heads),
                not_in_dump + lost,
                zeros + empty,
            )
            bar.update(len(heads))
    return WrittenHeads(start, end, not_in_dump, zeros)


def heads_document(
    hvo: Hvo, target: str, path: str, written: WrittenHeads
) -> HeadsReport:
    """What ``heads --json`` prints."""
    return {
        **document(target, hvo.kernel.release),
        "output": path,
        "first_pfn": written.start,
        "pages": written.end - written.start,
        "unread": {"not_in_dump": written.not_in_dump, "zeros": written.zeros},
    }


def print_heads(doc: HeadsReport) -> None:
    """Print what the file, which is the result, cannot say."""
    for count, text in (
        (
            doc["unread"]["not_in_dump"],
            "not in this dump: whether they have a head is not known",
        ),
        (
            doc["unread"]["zeros"],
            "in a page of zeros: not initialised, or left out of the dump",
        ),
    ):
        if count:
            print(f"{count} of {doc['pages']} struct pages are {text}")
