# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``map``
-------

The picture of the kernel's :linux:`Documentation/mm/vmemmap_dedup.rst` for one
compound page, with its real frames and permissions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from drgn_hvo.commands.document import human_size, printable
from drgn_hvo.commands.page import page_document
from drgn_hvo.errors import NotInDumpError, UnavailableError, UsageError
from drgn_hvo.memmap.heads import Head, read_head
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec, resolve_page

__all__ = ("print_map",)

# Who else maps a frame: so many folios are named, the others counted.
_MAX_NAMED = 8


# A 2 MiB folio is drawn as the kernel's documentation does: page by page.
_MAX_SINGLE = 8


@dataclass(frozen=True)
class _Row:
    """
    Neighbouring slices that are mapped alike.

    :param pfn: ``None`` for a hole, or if that is not known.
    :param is_known: Whether the page tables could be read.
    """

    first: int
    last: int
    pfn: Optional[int]
    last_pfn: Optional[int]
    writable: bool
    is_known: bool


def _rows(hvo: Hvo, first: int, count: int) -> list[_Row]:
    """Slices that one run maps, joined if there are many."""
    vmemmap = hvo.vmemmap
    slices = np.arange(first, first + count, dtype=np.int64)
    pfns, mapped = vmemmap.frames(slices)
    index, _ = vmemmap.slices_to_runs(slices)
    index = np.where(mapped, index, -1)
    starts = np.flatnonzero(np.diff(index, prepend=-2)).tolist()
    # The head's own page is drawn alone: it is what the others may repeat.
    starts = range(count) if count <= _MAX_SINGLE else sorted({*starts, 0, 1})
    ends = [*starts[1:], count]
    return [
        _Row(
            start,
            end - 1,
            int(pfns[start]) if mapped[start] else None,
            int(pfns[end - 1]) if mapped[start] else None,
            bool(mapped[start] and vmemmap.runs.writable[index[start]]),
            vmemmap.unread_table(first + start, end - start) is None,
        )
        for start, end in zip(starts, ends)
    ]


def _find_head(hvo: Hvo, spec: PageSpec) -> Head:
    page = page_document(hvo, "", [spec])["pages"][0]
    if page["head_pfn"] is None:
        raise NotInDumpError(
            f"{spec.text}: PFN {resolve_page(hvo.vmemmap, spec)} has no head to map: "
            f"{page['kind']}"
        )
    head = read_head(hvo, page["head_pfn"])
    if head is None or head.order is None:
        raise NotInDumpError(
            f"{spec.text}: its head, PFN {page['head_pfn']}, cannot be read"
        )
    if not head.order:
        raise UsageError(f"{spec.text}: PFN {head.pfn} is no compound page")
    return head


def print_map(hvo: Hvo, spec: PageSpec) -> None:
    """
    Print the picture of the compound page that a page belongs to.

    :raises UsageError: if the page belongs to none.
    :raises NotInDumpError: if its struct pages are not in the dump.
    """
    if not hvo.vmemmap.has_mappings:
        raise UnavailableError("the page tables of this architecture cannot be walked")
    head = _find_head(hvo, spec)
    assert head.order is not None, "checked by _find_head()"
    geometry = hvo.kernel.geometry
    if head.order > geometry.largest_order:
        raise UsageError(f"{spec.text}: PFN {head.pfn} has order {head.order}: damaged")
    count = geometry.slices(head.order)
    first = head.pfn * hvo.vmemmap.size // hvo.vmemmap.page_size
    print(_title(hvo, head))
    print()
    rows = _rows(hvo, first, count)
    _print_picture(hvo, head, count, first, rows)
    print()
    for line in _sharing(hvo, head, rows):
        print(line)


def _title(hvo: Hvo, head: Head) -> str:
    assert head.order is not None, "checked by _find_head()"
    size = human_size(hvo.kernel.geometry.page_size << head.order)
    last = head.pfn + (1 << head.order) - 1
    kind = {True: "hugetlb folio", False: "compound page", None: "compound page"}
    place = (
        ""
        if head.nid is None
        else f", node {head.nid}, zone {printable(head.zone or 'unknown')}"
    )
    return (
        f"{kind[head.hugetlb]} of order {head.order} ({size}), PFN {head.pfn} to "
        f"{last}{place}"
    )


def _print_picture(
    hvo: Hvo, head: Head, count: int, first: int, rows: list[_Row]
) -> None:
    labels = [
        str(row.first) if row.first == row.last else f"{row.first} - {row.last}"
        for row in rows
    ]
    addresses = [
        f"{hvo.vmemmap.base + (first + row.first) * hvo.vmemmap.page_size:#x}"
        for row in rows
    ]
    frames = [_frame(row) for row in rows]
    left = max(len(label) for label in labels)
    inner = [f"{a:>{left}}  {b}" for a, b in zip(labels, addresses)]
    width = max(len(text) for text in inner)
    right = max(len(text) for text in frames)
    box = f"+{'-' * (width + 2)}+"
    frame_box = f"+{'-' * (right + 2)}+"
    folio = f"PFN {head.pfn}"
    side = len(folio)
    struct_pages = f"struct pages ({count} page{'s' if count != 1 else ''})"
    print(f"   {'folio':<{side + 21}}{struct_pages:<{width + 18}}page frames")
    for i, (text, frame, row) in enumerate(zip(inner, frames, rows)):
        edge = f" +{'-' * (side + 2)}+ ---pfn_to_page---> " if not i else ""
        edge = edge or f" |{' ' * (side + 2)}|{' ' * 20}"
        print(f"{edge}{box}{'  mapping to  ' if not i else ' ' * 14}{frame_box}")
        body = f" | {folio if not i else ' ' * side} |{' ' * 20}"
        access = "none" if row.is_known else "?"
        if row.pfn is not None:
            access = "RW" if row.writable else "RO"
        print(f"{body}| {text:<{width}} | --{access:-<5}---> | {frame:<{right}} |"
              f"{_owner(hvo, i, row, rows)}")  # fmt: skip
    print(f" +{'-' * (side + 2)}+{' ' * 20}{box}{' ' * 14}{frame_box}")


def _frame(row: _Row) -> str:
    if row.pfn is None:
        return "not mapped" if row.is_known else "not read"
    if row.last_pfn == row.pfn:
        return f"PFN {row.pfn}"
    return f"PFN {row.pfn} - {row.last_pfn}"


def _owner(hvo: Hvo, i: int, row: _Row, rows: list[_Row]) -> str:
    if i and row.pfn is not None and row.pfn == rows[0].pfn:
        return " the head's own frame again: fake heads"
    for tail in hvo.shared_tails if hvo.has_hugetlb else ():
        if tail.pfn is not None and tail.pfn == row.pfn:
            zone = ""
            if tail.zone_index is not None:
                name = hvo.mmzone.zone_name(tail.nid, tail.zone_index)
                zone = f" zone {printable(name or 'unknown')}"
            return f" shared tail page of node {tail.nid}{zone} order {tail.order}"
    return " the head" if not i else ""


def _sharing(hvo: Hvo, head: Head, rows: list[_Row]) -> list[str]:
    """Who else maps the frames that are mapped read-only or more than once."""
    lines = []
    for pfn in dict.fromkeys(row.pfn for row in rows if row.pfn is not None):
        users = hvo.vmemmap.mapped_by(pfn)
        own = sum(
            row.last - row.first + 1
            for row in rows
            if row.pfn == pfn and row.last_pfn == pfn
        )
        if users <= own:
            continue
        heads = _folios_on(hvo, pfn, head.pfn)
        named = ", ".join(map(str, heads[:_MAX_NAMED]))
        if len(heads) > _MAX_NAMED:
            named += f" and {len(heads) - _MAX_NAMED} more"
        least = "" if hvo.vmemmap.has_all_mappings else "at least "
        lines.append(
            f"PFN {pfn} is mapped by {least}{users} pages of vmemmap, {users - own} of "
            "them elsewhere" + (f", in the folios of PFN {named}" if heads else "")
        )
    if not hvo.vmemmap.has_all_mappings:
        lines.append(
            "Not all page tables of vmemmap could be read: others may map them."
        )
    return lines or ["No other folio maps any of these frames."]


def _folios_on(hvo: Hvo, pfn: int, but: int) -> list[int]:
    """Heads of the other hugetlb folios that map a frame."""
    if not hvo.has_hugetlb:
        return []
    folios = hvo.hugetlb.folios
    slices = folios.tail_slices
    end = slices.pfn + np.where(slices.step == 0, 1, slices.count)
    which = np.unique(slices.folio[(slices.pfn <= pfn) & (pfn < end)])
    return [head for head in folios.head_pfn[which].tolist() if head != but]
