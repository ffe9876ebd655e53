# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``map``
-------

The picture of the kernel's :linux:`Documentation/mm/vmemmap_dedup.rst` for one
compound page, with its real frames and permissions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.commands.document import document, human_size, printable
from drgn_hvo.commands.page import page_document
from drgn_hvo.errors import NotInDumpError, UnavailableError, UsageError
from drgn_hvo.memmap.heads import Head, read_head
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec

if TYPE_CHECKING:
    from drgn_hvo.commands.single_page_reports import (
        MapReport,
        MapRowEntry,
        MapTailEntry,
        PageEntry,
        SharedFrameEntry,
    )

__all__ = (
    "access_text",
    "frame_text",
    "map_document",
    "map_title",
    "marks_text",
    "owner_text",
    "print_map",
    "sharing_lines",
)

# At most this many of the other folios that map a frame are named.
_MAX_NAMED = 8

# At most this many of the pages that map a frame are asked which folio they belong to.
_MAX_ASKED = 64

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

    def maps(self, frame: int) -> bool:
        """Whether one of them maps a frame."""
        if self.pfn is None or self.last_pfn is None:
            return False
        return self.pfn <= frame <= self.last_pfn


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


@dataclass(frozen=True)
class _Drawn:
    """
    What is drawn: a compound page, or one that was restored with copies of its head.

    :param page: What is known of the page that was asked about.
    """

    head_pfn: int
    order: int
    kind: str
    head: Optional[Head]
    page: PageEntry

    def broken(self, hvo: Hvo, address: int, row: _Row) -> list[str]:
        """The rules that the slices of a row break, by what is known of the page."""
        page_size = hvo.vmemmap.page_size
        end = address + (row.last - row.first + 1) * page_size
        rules = []
        for finding in self.page["findings"]:
            at, physical = finding["address"], finding["physical_address"]
            is_entry = at is not None and address <= int(at, 0) < end
            frame = None if physical is None else int(physical, 0) // page_size
            if is_entry or (frame is not None and row.maps(frame)):
                rules.append(finding["rule"])
        return list(dict.fromkeys(rules))


def _find(hvo: Hvo, spec: PageSpec) -> _Drawn:
    page = page_document(hvo, "", [spec])["pages"][0]
    one, copy = page["covering_folio"], page["copy_of"]
    if one is not None:
        head = read_head(hvo, one["head_pfn"])
        return _Drawn(one["head_pfn"], one["order"], "hugetlb folio", head, page)
    if copy is not None:
        head = read_head(hvo, copy["head_pfn"])
        kind = "former hugetlb folio, restored with copies of its head,"
        return _Drawn(copy["head_pfn"], copy["order"], kind, head, page)
    if page["head_pfn"] is None:
        raise NotInDumpError(
            f"{spec.text}: PFN {page['pfn']} has no head to map: {page['kind']}"
        )
    if any(wrong["source"] == "word" for wrong in page["disagreements"]):
        text = " ".join(page["conclusions"])
        raise UsageError(f"{spec.text}: PFN {page['pfn']} is in no huge page. {text}")
    head = read_head(hvo, page["head_pfn"])
    if head is None or head.order is None:
        raise NotInDumpError(
            f"{spec.text}: its head, PFN {page['head_pfn']}, cannot be read"
        )
    if not head.order:
        raise UsageError(f"{spec.text}: PFN {head.pfn} is no compound page")
    kind = "hugetlb folio" if head.hugetlb else "compound page"
    return _Drawn(head.pfn, head.order, kind, head, page)


def map_document(hvo: Hvo, target: str, spec: PageSpec) -> MapReport:
    """
    How the struct pages of the compound page that a page belongs to are mapped.

    :raises UsageError: if the page belongs to none.
    :raises NotInDumpError: if its struct pages are not in the dump.
    :raises UnavailableError: if the page tables of this architecture cannot be walked.
    """
    if not hvo.vmemmap.has_mappings:
        raise UnavailableError(f"it cannot be drawn: {hvo.vmemmap.no_mappings_reason}")
    drawn = _find(hvo, spec)
    geometry = hvo.kernel.geometry
    if drawn.order > geometry.largest_order:
        pfn, order = drawn.head_pfn, drawn.order
        raise UsageError(f"{spec.text}: PFN {pfn} has order {order}: damaged")
    count = geometry.slices(drawn.order)
    first = drawn.head_pfn * hvo.vmemmap.size // hvo.vmemmap.page_size
    rows = _rows(hvo, first, count)
    page, head = drawn.page, drawn.head
    is_doubtful = bool(page["disagreements"] or page["findings"])
    return {
        **document(target, hvo.kernel.release),
        "spec": spec.text,
        "kind": drawn.kind,
        "head_pfn": drawn.head_pfn,
        "order": drawn.order,
        "bytes": geometry.page_size << drawn.order,
        "nid": None if head is None else head.nid,
        "zone": None if head is None else head.zone,
        "slices": count,
        "conclusions": page["conclusions"] if is_doubtful else [],
        "rows": [_row(hvo, drawn, first, i, rows) for i in range(len(rows))],
        "shared_frames": list(_shared_frames(hvo, drawn, rows)),
        "all_tables_read": hvo.vmemmap.has_all_mappings,
    }


def _row(hvo: Hvo, drawn: _Drawn, first: int, i: int, rows: list[_Row]) -> MapRowEntry:
    row = rows[i]
    address = hvo.vmemmap.base + (first + row.first) * hvo.vmemmap.page_size
    is_repeated = i > 0 and row.pfn is not None and row.pfn == rows[0].pfn
    tail = None if is_repeated else _tail(hvo, row)
    repeated = next((r.first for r in rows[:i] if r.pfn == row.pfn), None)
    return {
        "first": row.first,
        "last": row.last,
        "address": hex(address),
        "mapped": True if row.pfn is not None else (False if row.is_known else None),
        "frame": row.pfn,
        "last_frame": row.last_pfn,
        "writable": None if row.pfn is None else row.writable,
        "repeats_head": is_repeated,
        "repeats_slice": None if row.pfn is None or tail is not None else repeated,
        "tail": tail,
        "begins_with_copy": _has_copies(hvo, first, row),
        "findings": drawn.broken(hvo, address, row),
    }


def _tail(hvo: Hvo, row: _Row) -> Optional[MapTailEntry]:
    """The shared tail page that slices map."""
    for tail in hvo.shared_tails if hvo.has_hugetlb else ():
        if tail.pfn is not None and tail.pfn == row.pfn:
            zone = None
            if tail.zone_index is not None:
                zone = hvo.mmzone.zone_name(tail.nid, tail.zone_index)
            return {
                "nid": tail.nid,
                "zone_index": tail.zone_index,
                "zone": zone,
                "order": tail.order,
            }
    return None


def _has_copies(hvo: Hvo, first: int, row: _Row) -> bool:
    """Whether frames behind the first begin with copies of heads, left there."""
    vmemmap = hvo.vmemmap
    if not row.first or row.pfn is None:
        return False
    slices = np.arange(first + row.first, first + row.last + 1, dtype=np.int64)
    pfns = slices * vmemmap.page_size // vmemmap.size
    pages = vmemmap.read_pages(pfns)
    heads = (vmemmap.flags(pages) & np.uint64(hvo.kernel.PG_head_mask)) != 0
    heads &= pages.present & ((vmemmap.tail_words(pages) & np.uint64(1)) == 0)
    return bool(heads.any()) and vmemmap.mapped_by(row.pfn) <= 1


def _shared_frames(
    hvo: Hvo, drawn: _Drawn, rows: list[_Row]
) -> Iterator[SharedFrameEntry]:
    """The frames that pages of vmemmap of others map, too."""
    for pfn in dict.fromkeys(row.pfn for row in rows if row.pfn is not None):
        users = hvo.vmemmap.mapped_by(pfn)
        own = sum(
            row.last - row.first + 1
            for row in rows
            if row.pfn == pfn and row.last_pfn == pfn
        )
        if users <= own:
            continue
        heads, count = _folios_on(hvo, pfn, drawn)
        yield {
            "frame": pfn,
            "mapped_by": users,
            "elsewhere": users - own,
            "heads": heads,
            "folios": None if count is None else max(count, len(heads)),
        }


def _folios_on(hvo: Hvo, pfn: int, drawn: _Drawn) -> tuple[list[int], Optional[int]]:
    """
    Other hugetlb folios that map a frame: some of their heads, and how many there are;
    ``None`` if not all pages on it were asked.
    """
    vmemmap = hvo.vmemmap
    if not hvo.has_hugetlb:
        return [], 0
    # Who shares a tail is of the order that the tail is for.
    is_tail = any(tail.pfn == pfn for tail in hvo.shared_tails)
    order = drawn.order if is_tail else 0
    pages = vmemmap.pages_on(pfn, order)
    pages = pages[(pages < drawn.head_pfn) | (pages >= drawn.head_pfn + (1 << order))]
    heads: dict[int, None] = {}
    for page in pages[:_MAX_ASKED].tolist():
        if is_tail and hvo.covering.is_head(page, order):
            heads[page] = None
        elif not is_tail:
            one = hvo.covering.of(page)
            if one is not None and one.head_pfn != drawn.head_pfn:
                heads[one.head_pfn] = None
        if len(heads) == _MAX_NAMED:
            break
    if is_tail:
        return list(heads), len(pages)
    are_all = len(pages) <= _MAX_ASKED and len(heads) < _MAX_NAMED
    return list(heads), len(heads) if are_all else None


def print_map(doc: MapReport) -> None:
    """Print the picture of a compound page."""
    print(map_title(doc))
    if doc["conclusions"]:
        print(*map(printable, doc["conclusions"]), sep="\n")
    print()
    _print_picture(doc)
    print()
    for line in sharing_lines(doc):
        print(line)


def map_title(doc: MapReport) -> str:
    """What is drawn."""
    last = doc["head_pfn"] + (1 << doc["order"]) - 1
    place = ""
    if doc["nid"] is not None:
        place = f", node {doc['nid']}, zone {printable(doc['zone'] or 'unknown')}"
    return (
        f"{doc['kind']} of order {doc['order']} ({human_size(doc['bytes'])}), PFN "
        f"{doc['head_pfn']} to {last}{place}"
    )


def _print_picture(doc: MapReport) -> None:
    rows, count = doc["rows"], doc["slices"]
    labels = [
        str(row["first"])
        if row["first"] == row["last"]
        else f"{row['first']} - {row['last']}"
        for row in rows
    ]
    frames = [frame_text(row) for row in rows]
    left = max(len(label) for label in labels)
    inner = [f"{a:>{left}}  {row['address']}" for a, row in zip(labels, rows)]
    width = max(len(text) for text in inner)
    right = max(len(text) for text in frames)
    box = f"+{'-' * (width + 2)}+"
    frame_box = f"+{'-' * (right + 2)}+"
    folio = f"PFN {doc['head_pfn']}"
    side = len(folio)
    struct_pages = f"struct pages ({count} page{'s' if count != 1 else ''})"
    print(f"   {'folio':<{side + 21}}{struct_pages:<{width + 18}}page frames")
    for i, (text, frame, row) in enumerate(zip(inner, frames, rows)):
        edge = f" +{'-' * (side + 2)}+ ---pfn_to_page---> " if not i else ""
        edge = edge or f" |{' ' * (side + 2)}|{' ' * 20}"
        print(f"{edge}{box}{'  mapping to  ' if not i else ' ' * 14}{frame_box}")
        body = f" | {folio if not i else ' ' * side} |{' ' * 20}"
        print(f"{body}| {text:<{width}} | --{access_text(row):-<5}---> | "
              f"{frame:<{right}} |{owner_text(row)}{marks_text(row)}")  # fmt: skip
    print(f" +{'-' * (side + 2)}+{' ' * 20}{box}{' ' * 14}{frame_box}")


def access_text(row: MapRowEntry) -> str:
    """How slices are mapped."""
    if row["writable"] is not None:
        return "RW" if row["writable"] else "RO"
    return "?" if row["mapped"] is None else "none"


def frame_text(row: MapRowEntry) -> str:
    """What slices are mapped to."""
    if row["frame"] is None:
        return "not read" if row["mapped"] is None else "not mapped"
    if row["last_frame"] == row["frame"]:
        return f"PFN {row['frame']}"
    return f"PFN {row['frame']} - {row['last_frame']}"


def owner_text(row: MapRowEntry) -> str:
    """What the frames of slices are."""
    tail = row["tail"]
    if row["repeats_head"]:
        return " the head's own frame again: fake heads"
    if tail is not None:
        zone = ""
        if tail["zone_index"] is not None:
            zone = f" zone {printable(tail['zone'] or 'unknown')}"
        return f" shared tail page of node {tail['nid']}{zone} order {tail['order']}"
    if row["repeats_slice"] is not None:
        return f" the frame of slice {row['repeats_slice']} again"
    return " the head" if not row["first"] else ""


def marks_text(row: MapRowEntry) -> str:
    """What is wrong with slices."""
    marks = []
    if row["begins_with_copy"]:
        marks.append("begins with a copy of a head")
    if row["findings"]:
        marks.append(", ".join(row["findings"]))
    return "".join(f"  <- WRONG: {mark}" for mark in marks)


def sharing_lines(doc: MapReport) -> list[str]:
    """Who else maps the frames that are mapped read-only or more than once."""
    lines = []
    least = "" if doc["all_tables_read"] else "at least "
    for one in doc["shared_frames"]:
        named = ", ".join(map(str, one["heads"]))
        if one["folios"] is None:
            named += " and maybe others"
        elif one["folios"] > len(one["heads"]) == _MAX_NAMED:
            named += f" and {one['folios'] - len(one['heads'])} more"
        lines.append(
            f"PFN {one['frame']} is mapped by {least}{one['mapped_by']} pages of "
            f"vmemmap, {one['elsewhere']} of them elsewhere"
            + (f", in the folios of PFN {named}" if one["heads"] else "")
        )
    if not doc["all_tables_read"]:
        lines.append(
            "Not all page tables of vmemmap could be read: others may map them."
        )
    return lines or ["No other folio maps any of these frames."]
