# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pages in words
--------------

The text of ``page``, made from its document alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drgn_hvo.audit.rules import RULE_BY_ID
from drgn_hvo.commands.document import human_size, hwpoison_text
from drgn_hvo.commands.page_conclusions import frame_of_text

if TYPE_CHECKING:
    from drgn_hvo.commands.single_page_reports import (
        PageEntry,
        PageFindingEntry,
        PageReport,
        SliceEntry,
    )

__all__ = ("page_lines", "print_lines", "print_pages")


def print_pages(doc: PageReport, *, evidence: bool = False) -> None:
    """
    Print a document of :func:`page_document()` for people.

    :param evidence: Whether to print how things were decided, too.
    """
    for i, page in enumerate(doc["pages"]):
        if i:
            print()
        for sentence in page["conclusions"]:
            print(sentence)
        print()
        lines = page_lines(page)
        if evidence:
            lines += _evidence_lines(page)
        print_lines(lines)


def _evidence_lines(page: PageEntry) -> list[tuple[str, str]]:
    """What each source says where all agree, and the rules that findings break."""
    agree = [] if page["disagreements"] else _sources(page)
    lines = [(name, str(value)) for name, value in agree]
    for finding in page["findings"]:
        rule = RULE_BY_ID[finding["rule"]]
        lines.append(("Rule", f"{rule.id}: {rule.holds}"))
        lines.append(("", f"the kernel makes it so in {rule.source}"))
        if finding["difference"] is not None:
            suspect = f"suspect {finding['suspect']}"
            lines.append(("", f"{finding['difference']}: {suspect}"))
    return lines


def print_lines(lines: list[tuple[str, str]]) -> None:
    """Print names and values."""
    for name, value in lines:
        print(f"{name:<12} {value}")


def page_lines(page: PageEntry) -> list[tuple[str, str]]:
    """What is printed of one page: names and values."""
    lines: list[tuple[str, object]] = [
        ("PFN", f"{page['pfn']} ({page['pfn']:#x}){_read_as(page)}"),
        ("struct page", f"{page['page']}, {page['kind']}"),
    ]
    if page["word"] is not None:
        mask = page["mask_order"]
        meaning = "" if mask is None else f" (mask of order {mask})"
        lines.append(("Word", page["word"] + meaning))
        names = page["flags"]
        by_name = "" if names is None else f"{' '.join(names) or 'none'} "
        lines.append(("Flags", f"{by_name}({page['flags_word']})"))
    if page["head"] is not None:
        pfn = page["head_pfn"]
        where = "outside vmemmap" if pfn is None else f"PFN {pfn}"
        lines.append(("Head", f"{page['head']}, {where}"))
        lines.append(("Order", "unknown" if page["order"] is None else page["order"]))
        zone = page["zone"] or "unknown"
        nid = "unknown" if page["nid"] is None else page["nid"]
        lines.append(("Node, zone", f"{nid}, {zone}"))
    lines += _use_lines(page)
    if page["folio"] is not None:
        lines += _folio_lines(page)
    elif page["copy_of"] is not None:
        pass  # what it says of a huge page is the head's that it is a copy of
    elif page["hugetlb"] and page["unread"]:
        lines.append(("Huge page", "hugetlb; its list and mapping were not read"))
    elif page["hugetlb"]:
        lines.append(("Huge page", "hugetlb, but on no list and not optimized"))
    elif page["head"] is not None and page["hugetlb"] is None:
        lines.append(("Huge page", "not known"))
    lines += _slice_lines(page["slice"], is_known=not page["unread"])
    if page["frame_of"] is not None:
        lines.append(("Frame of", frame_of_text(page["frame_of"])))
    lines += _source_lines(page)
    lines += [("Finding", _finding_text(f)) for f in page["findings"]]
    lines += [("Not read", reason) for reason in page["unread"]]
    return [(name, str(value)) for name, value in lines]


def _use_lines(page: PageEntry) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = []
    kind, use, poison = page["page_type"], page["use"], page["hwpoison"]
    if kind not in (None, "hugetlb"):
        lines.append(("Type", kind))
    if use is not None:
        lines.append(("Used as", use))
    if poison is not None and poison["poisoned"]:
        lines.append(
            ("Poisoned", hwpoison_text(poison["raw_pages"], poison["unknown"]))
        )
    return lines


def _read_as(page: PageEntry) -> str:
    if page["read_as"] is None:
        return ""
    return f": {page['spec']} was read as {page['read_as']}"


def _source_lines(page: PageEntry) -> list[tuple[str, object]]:
    """What each source says, where they do not say the same."""
    if not page["disagreements"]:
        return []
    said = [("Disagrees", one["says"]) for one in page["disagreements"]]
    return [*_sources(page), *said]


def _sources(page: PageEntry) -> list[tuple[str, object]]:
    said = page["resolved_by"]
    return [
        (name, source["says"])
        for name, source in (
            ("By word", said["word"]),
            ("By tables", said["page_tables"]),
            ("By lists", said["lists"]),
        )
        if source is not None
    ]


def _finding_text(finding: PageFindingEntry) -> str:
    where = "here" if finding["here"] else "elsewhere"
    words = ""
    if finding["expected"] is not None and finding["actual"] is not None:
        words = f": {finding['actual']}, should be {finding['expected']}"
    index = "" if finding["index"] is None else f"#{finding['index']} of check, "
    return f"{index}{finding['rule']}, {finding['severity']}, {where}{words}"


def _list_text(page: PageEntry) -> str:
    """On which list a huge page is, and how that was found out."""
    one, folio = page["covering_folio"], page["folio"]
    if folio is not None and folio["list"] is not None:
        node = ""
        if one is not None and one["list_nid"] is not None:
            node = f" of node {one['list_nid']}"
        by_links = one is not None and one["list_by"] == "links"
        how = " (by its links and those of its neighbours)" if by_links else ""
        return f"on the {folio['list']} list{node}{how}"
    are_known = one is not None and one["list_by"] != "unknown" and not page["unread"]
    return "on no list" if are_known else "on no list that could be read"


def _folio_lines(page: PageEntry) -> list[tuple[str, str]]:
    folio = page["folio"]
    assert folio is not None, "asked by page_lines()"
    size = human_size(folio["page_bytes"])
    refcount = "not known" if folio["refcount"] is None else str(folio["refcount"])
    flags = folio["flags"]
    flag = {True: "yes", False: "no", None: "unknown"}
    return [
        ("Huge page", f"{size}, {_list_text(page)}, reference count {refcount}"),
        ("HPG flags", "not known" if flags is None else " ".join(flags) or "none"),
        (
            "Optimized",
            f"by flag {flag[folio['optimized_flag']]}, by page tables "
            f"{flag[folio['optimized_mapping']]}",
        ),
    ]


def _slice_lines(slice_: SliceEntry, *, is_known: bool) -> list[tuple[str, str]]:
    if slice_["frame"] is None or slice_["page_bytes"] is None:
        how = "not mapped" if is_known else "mapping not known"
        return [("Slice", f"{slice_['address']}, {how}")]
    index = slice_["index_in_folio"]
    number = "" if index is None else f"{index} of its folio, "
    size = f"a page of {human_size(slice_['page_bytes'])}"
    access = "writable" if slice_["writable"] else "read-only"
    users = slice_["mapped_by"]
    sharing = {True: "shared", False: "private", None: "shared or not: not known"}[
        slice_["shared"]
    ]
    if slice_["shared"] and users is not None:
        sharing += f" by {users} slices"
    return [
        ("Slice", f"{number}{slice_['address']}, mapped as {size}"),
        ("Frame", f"PFN {slice_['frame']}, {access}, {sharing}"),
    ]
