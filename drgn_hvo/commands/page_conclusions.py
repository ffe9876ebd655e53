# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a page is, in words
------------------------

A few sentences for somebody who has never heard of vmemmap: what the page is, whether
something is wrong with it, who may have done it, and what to do next. Made from the
document alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional

from drgn_hvo.commands.document import human_size

if TYPE_CHECKING:
    from drgn_hvo.commands.single_page_reports import (
        FrameOfEntry,
        PageEntry,
        PageFindingEntry,
    )

__all__ = ("frame_of_text", "next_step", "page_conclusions")

_SOURCES = {
    "word": "its word",
    "page_tables": "the page tables",
    "lists": "the lists of the pools",
}

_SUBJECTS = {
    "word": "Its word",
    "entry": "Its page table entry",
    "head": "The head",
}

#: What to do next, by what differs; the first that is a part of that text.
_NEXT = (
    ("known defect", "'drgn-hvo defects' says which kernels have it and what it does"),
    (
        "one bit",
        "check the whole dump: if this is all, test the memory and look for machine "
        "checks in the log; if there is more, suspect software",
    ),
    (
        "a few bits",
        "check the whole dump: if this is all, test the memory and look for machine "
        "checks in the log; if there is more, suspect software",
    ),
    (
        "number is off",
        "look for who took a reference or changed a pool, and did not undo it",
    ),
    (
        "",
        "look for who writes there: modules first, then a kernel with KASAN or KFENCE",
    ),
)


def next_step(difference: Optional[str]) -> str:
    """What to do about a wrong word, by how it differs."""
    return next(text for part, text in _NEXT if part in (difference or ""))


def page_conclusions(page: PageEntry, page_size: int) -> list[str]:
    """
    What a document says of a page, in sentences.

    :param page_size: In bytes.
    """
    return [*_what(page, page_size), *_verdict(page)]


def _what(page: PageEntry, page_size: int) -> Iterator[str]:
    pfn, one, copy = page["pfn"], page["covering_folio"], page["copy_of"]
    if copy is not None:
        size, head = human_size(page_size << copy["order"]), copy["head_pfn"]
        yield (
            f"PFN {pfn} is no head, though its struct page looks like one: it is a "
            f"copy of the head of PFN {head}, which was a huge page of {size}, left "
            "there when that was restored."
        )
    elif one is not None:
        size, index = human_size(one["page_bytes"]), pfn - one["head_pfn"]
        what = f"the first page of a huge page of {size}"
        if index:
            what = f"page {index} of the huge page of {size} at PFN {one['head_pfn']}"
        yield f"PFN {pfn} is {what}."
        if page["kind"] == "not in this dump":
            yield "Its struct page is not in this dump."
    else:
        yield f"PFN {pfn} {_other(page, page_size)}."
    if page["frame_of"] is not None:
        yield f"It is a frame of vmemmap: {frame_of_text(page['frame_of'])}."


def _other(page: PageEntry, page_size: int) -> str:
    """What a page is that no huge page covers."""
    kind, order, head_pfn = page["kind"], page["order"], page["head_pfn"]
    if kind == "not in this dump":
        return "has a struct page that is not in this dump: what it is, is not known"
    if kind == "order-0":
        return "is a page of its own"
    if kind.startswith("tail") and any(
        d["source"] == "word" for d in page["disagreements"]
    ):
        return "has the struct page of a tail, but no head that it could belong to"
    if kind.startswith("tail") and head_pfn is not None and order is not None:
        size = human_size(page_size << order)
        return f"is page {page['pfn'] - head_pfn} of a page of {size} at PFN {head_pfn}"
    if kind == "head" and order == 0:
        return "has the flag of a head, but no compound page begins with it"
    if kind == "head" and order is None:
        return "is the first page of a compound page of unknown size"
    if kind == "head":
        return f"is the first page of a page of {human_size(page_size << (order or 0))}"
    return f"has a struct page: {kind}"


def frame_of_text(use: FrameOfEntry) -> str:
    """What a page is to vmemmap, for people."""
    order = use["order"]
    if use["kind"] == "shared-tail":
        zone = "" if use["zone"] is None else f" zone {use['zone']}"
        text = f"the shared tail page of node {use['nid']}{zone} order {order}"
        if use["mapped_by"] is None:
            return f"{text}; who maps it is not known"
        whose = "pages of devices" if use["zone"] == "Device" else "huge pages"
        users = f"{use['mapped_by']} slices of {use['huge_pages']} {whose}"
        return f"{text}, mapped by {users}"
    pfns = f"PFN {use['first_pfn']} to {use['last_pfn']}"
    pfns = f"the struct pages of {pfns}"
    if use["kind"] == "head":
        return (
            f"those of {pfns}, with the head of the huge page of PFN {use['first_pfn']}"
        )
    return pfns


def _verdict(page: PageEntry) -> Iterator[str]:
    findings = page["findings"]
    for wrong in page["disagreements"]:
        subject = _SUBJECTS[wrong["source"]]
        yield f"{subject} says: {wrong['says']}. Not believed: {wrong['why']}."
    if not findings and not page["disagreements"]:
        yield from _healthy(page)
    # What is wrong with this very page comes before what is elsewhere in its huge page.
    roots = [f for f in findings if f["caused_by"] is None]
    for finding in sorted(roots, key=lambda one: not one["here"])[:2]:
        yield from _finding(finding)


def _finding(finding: PageFindingEntry) -> Iterator[str]:
    where = "Wrong" if finding["here"] else "Wrong, but elsewhere"
    yield f"{where}: {finding['message']} (rule {finding['rule']})."
    if finding["defect"] is not None:
        yield f"This is a known defect of the kernel: {finding['defect']}."
    elif finding["difference"] is not None:
        text = finding["difference"]
        yield f"{text[0].upper()}{text[1:]}; suspect {finding['suspect']}."
    yield f"Next: {next_step(finding['difference'])}."


def _healthy(page: PageEntry) -> Iterator[str]:
    if page["kind"].startswith(("not in this dump", "all zeros")):
        return
    agree = [n for n in ("word", "page_tables", "lists") if page["resolved_by"][n]]
    if page["unread"] or page["undecided"]:
        reasons = [*page["unread"], *(one["why"] for one in page["undecided"])]
        yield f"Nothing wrong was found, but not all could be read: {reasons[0]}."
    elif page["covering_folio"] is not None and len(agree) > 1:
        names = [_SOURCES[name] for name in agree]
        said = f"{', '.join(names[:-1])} and {names[-1]}"
        yield f"{said[0].upper()}{said[1:]} agree, and nothing is wrong with it."
    else:
        yield "Nothing wrong was found."
