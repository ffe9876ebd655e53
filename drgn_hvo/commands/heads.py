# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``heads``
---------

The heads of all pages of a range, as a file that ``numpy.load()`` reads.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from drgn_hvo.commands.document import document
from drgn_hvo.commands.reports import HeadsReport
from drgn_hvo.errors import UsageError
from drgn_hvo.files import check_replaceable, replace_file
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.progress import progress

__all__ = ("heads_document", "parse_pfn_range", "print_heads", "write_heads")


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


# Memory that was hot-added and is not in a zone yet lies behind all zones. More than
# this is not memory but a damaged page table, and would fill the disk.
_MOST_BEHIND_ZONES = 4
_FEW_PAGES = 1 << 22


def _check_end(hvo: Hvo, end: int) -> None:
    """
    Check that the end of struct pages, by page tables, is near that of zones.

    :raises UsageError: if it is not.
    """
    zones = hvo.mmzone.zones if hvo.has_hugetlb and end > _FEW_PAGES else ()
    last = max((zone.start_pfn + zone.spanned for zone in zones), default=0)
    if last and end > max(_FEW_PAGES, last * _MOST_BEHIND_ZONES):
        raise UsageError(
            f"page tables have struct pages up to PFN {end - 1}, but zones end at PFN "
            f"{last - 1}: one is damaged; name a range with --pfns"
        )


def write_heads(
    hvo: Hvo, path: str, pfns: Optional[tuple[int, int]], *, force: bool = False
) -> tuple[int, int]:
    """
    Write head PFNs, one uint64 a page, all ones where there is no initialised
    struct page.

    :param pfns: First PFN and end (exclusive); all that vmemmap has if ``None``.
    :param force: Whether a file that is there may be replaced.
    :return: First PFN and end (exclusive).
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
    header = {"descr": "<u8", "fortran_order": False, "shape": (end - start,)}
    with (
        replace_file(path, force=force) as f,
        progress(end - start, "page") as bar,
    ):
        np.lib.format.write_array_header_1_0(f, header)
        for heads in chunks:
            f.write(heads.astype("<u8", copy=False).tobytes())
            bar.update(len(heads))
    return start, end


def heads_document(
    hvo: Hvo, target: str, path: str, pfns: tuple[int, int]
) -> HeadsReport:
    """
    What ``heads --json`` prints.

    :param pfns: First PFN and end (exclusive) of what was written.
    """
    start, end = pfns
    return {
        **document(target, hvo.kernel.release),
        "output": path,
        "first_pfn": start,
        "pages": end - start,
    }


def print_heads(_doc: HeadsReport) -> None:
    """Print nothing: the file is the result."""
