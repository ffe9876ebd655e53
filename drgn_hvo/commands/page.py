# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``page``
--------

One struct page explained: its raw word, what it is, its head, and the page of
vmemmap that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.commands.document import document, human_size, hwpoison_text
from drgn_hvo.formats.tail_words import (
    ALL_ONES,
    is_poisoned,
    is_tail,
    mask_order,
)
from drgn_hvo.memmap.heads import Head, read_head
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.hwpoison import (
    HwpoisonedFolio,
    PG_hwpoison_mask,
    raw_hwp_pages,
)
from drgn_hvo.memmap.page_spec import PageSpec, resolve_page
from drgn_hvo.memmap.pools import LIST_NAMES

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import (
        PageEntry,
        PageFolioEntry,
        PageReport,
        SliceEntry,
    )

__all__ = (
    "page_document",
    "page_lines",
    "print_lines",
    "print_pages",
)


def page_document(hvo: Hvo, target: str, specs: list[PageSpec]) -> PageReport:
    """
    What ``page --json`` prints.

    :raises UsageError: if a specification names no page.
    """
    return {
        **document(target, hvo.kernel.release),
        "pages": [_page(hvo, spec) for spec in specs],
    }


@dataclass(frozen=True)
class _Words:
    """The words of one struct page, and of the one behind it."""

    info: int
    flags: int
    next_info: Optional[int]
    all_zero: bool


def _read_words(hvo: Hvo, pfn: int) -> Optional[_Words]:
    vmemmap = hvo.vmemmap
    pages = vmemmap.read_pages(np.array([pfn, pfn + 1], dtype=np.int64))
    if not pages.present[0]:
        return None
    infos, flags = vmemmap.tail_words(pages), vmemmap.flags(pages)
    following = int(infos[1]) if pages.present[1] else None
    return _Words(int(infos[0]), int(flags[0]), following, not pages.data[0].any())


def _kind(hvo: Hvo, pfn: int, words: _Words, head: int) -> str:
    if is_poisoned(words.info):
        return "uninitialised"
    if words.all_zero:
        return "all zeros: uninitialised, or left out of this dump"
    if is_tail(words.info):
        return "tail"
    if head != hvo.vmemmap.page_address(pfn):
        return "tail (a fake head: the copy of the head that HVO maps here)"
    return "head" if words.flags & hvo.kernel.PG_head_mask else "order-0"


def _is_shared_tail(hvo: Hvo, frame: Optional[int]) -> bool:
    tails = hvo.shared_tails if hvo.has_hugetlb else []
    return frame is not None and any(tail.pfn == frame for tail in tails)


def _page(hvo: Hvo, spec: PageSpec) -> PageEntry:
    vmemmap = hvo.vmemmap
    pfn = resolve_page(vmemmap, spec)
    page: PageEntry = {
        "spec": spec.text,
        "read_as": spec.read_as,
        "pfn": pfn,
        "page": f"{vmemmap.page_address(pfn):#x}",
        "kind": "not in this dump",
        "word": None,
        "flags": None,
        "flags_word": None,
        "mask_order": None,
        "head_pfn": None,
        "head": None,
        "order": None,
        "hugetlb": None,
        "nid": None,
        "zone": None,
        "page_type": None,
        "use": None,
        "hwpoison": None,
        "slice": _slice(hvo, pfn),
        "folio": None,
        "unread": [],
    }
    unread_table = vmemmap.unread_table(pfn * vmemmap.size // vmemmap.page_size)
    if unread_table is not None:
        page["unread"].append(unread_table)
    if vmemmap.has_mappings and page["slice"]["frame"] is None:
        if unread_table is None:
            page["kind"] = "no struct page: vmemmap is not mapped here"
        return page
    words = _read_words(hvo, pfn)
    if words is None:
        return page
    # What stands behind a head and is not in the dump does not make it a fake one.
    head = hvo.heads.one(pfn, words.info, words.flags, lambda: words.next_info or 0)
    page["kind"] = _kind(hvo, pfn, words, head)
    if not is_tail(words.info) and _is_shared_tail(hvo, page["slice"]["frame"]):
        page["kind"] += ", on a shared tail page: it should be a tail"
    page["word"] = f"{words.info:#x}"
    page["flags_word"] = f"{words.flags:#x}"
    if hvo.layout.encoding.has_mask:
        page["mask_order"] = mask_order(hvo.kernel.geometry, words.info)
    if page["kind"].startswith(("uninit", "all zeros")):
        return page
    page["head"] = f"{head:#x}"
    head_pfn = vmemmap.page_pfn(head) if head != ALL_ONES else None
    _add_names(hvo, page, head_pfn)
    if head_pfn is not None:
        page["head_pfn"] = head_pfn
        _add_head(hvo, page, read_head(hvo, head_pfn))
        if page["order"] is None:
            page["unread"].append(f"the struct pages of PFN {head_pfn}")
    return page


def _add_names(hvo: Hvo, page: PageEntry, head_pfn: Optional[int]) -> None:
    """Flags by name, and what the page, or the folio it is a tail of, is used for."""
    own = hvo.page_words.read(page["pfn"])
    is_first_tail = head_pfn is not None and page["pfn"] == head_pfn + 1
    # The first tail keeps fields of the folio there: struct folio's _flags_1.
    if own is not None and not is_first_tail:
        page["flags"] = own.flag_names
    whole = own if head_pfn in (None, page["pfn"]) else hvo.page_words.read(head_pfn)
    if whole is not None:
        page["page_type"], page["use"] = whole.type_name, whole.use


def _add_hwpoison(hvo: Hvo, page: PageEntry, head: Head) -> None:
    mask = PG_hwpoison_mask(hvo)
    words = hvo.page_words.read(head.pfn)
    if mask is None or words is None:
        return
    found = HwpoisonedFolio(head.pfn, head.order or 0, ())
    if words.flags & mask and head.order is not None:
        found = raw_hwp_pages(hvo, head.pfn, head.order)
    page["hwpoison"] = {
        "poisoned": bool(words.flags & mask),
        "raw_pages": None if found.raw_pages is None else list(found.raw_pages),
        "unknown": found.unknown,
    }


def _add_head(hvo: Hvo, page: PageEntry, head: Optional[Head]) -> None:
    if head is None:
        return
    page["order"], page["hugetlb"] = head.order, head.hugetlb
    page["nid"], page["zone"] = head.nid, head.zone
    size, page_size = hvo.vmemmap.size, hvo.vmemmap.page_size
    page["slice"]["index_in_folio"] = (
        page["pfn"] * size // page_size - head.pfn * size // page_size
    )
    if page["pfn"] != head.pfn and not head.PG_head:
        page["kind"] += ", but its head has no PG_head"
    if not head.hugetlb:
        return
    _add_hwpoison(hvo, page, head)
    page["unread"] += hvo.unread_lists
    if hvo.has_hugetlb:
        page["folio"] = _folio(hvo, head.pfn)
    if page["folio"] is None and head.order is not None:
        first, count = head.pfn * size // page_size, (size << head.order) // page_size
        unread_table = hvo.vmemmap.unread_table(first, max(count, 1))
        if unread_table is not None and unread_table not in page["unread"]:
            page["unread"].append(unread_table)


def _folio(hvo: Hvo, pfn: int) -> Optional[PageFolioEntry]:
    """What the pools and page tables say of a hugetlb folio."""
    found = hvo.hugetlb
    index = int(np.searchsorted(found.folios.head_pfn, pfn))
    if index == len(found.folios) or found.folios.head_pfn[index] != pfn:
        return None
    optimized = found.has_hpg_flag("vmemmap_optimized")
    private = int(found.folios.private[index])
    order = int(found.folios.order[index])
    present = bool(found.folios.present[index])
    optimized_mapping: Optional[bool] = bool(found.optimized_mapping[index])
    slices = int(found.folios.slices[index])
    first = pfn * hvo.vmemmap.size // hvo.vmemmap.page_size
    if not optimized_mapping and hvo.vmemmap.unread_table(first, slices) is not None:
        optimized_mapping = None
    return {
        "head_pfn": pfn,
        "page_bytes": hvo.kernel.geometry.page_size << order,
        "list": LIST_NAMES[found.folios.on_list[index]],
        "refcount": int(found.folios.refcount[index]) if present else None,
        "flags": (
            [n for n, bit in found.hpg_flags.items() if private >> bit & 1]
            if present and found.hpg_flags
            else None
        ),
        "optimized_flag": (
            None if optimized is None or not present else bool(optimized[index])
        ),
        "optimized_mapping": optimized_mapping,
    }


def _slice(hvo: Hvo, pfn: int) -> SliceEntry:
    """The page of vmemmap that holds a struct page."""
    vmemmap = hvo.vmemmap
    slice_ = pfn * vmemmap.size // vmemmap.page_size
    result: SliceEntry = {
        "address": f"{vmemmap.base + slice_ * vmemmap.page_size:#x}",
        "index_in_folio": None,
        "frame": None,
        "writable": None,
        "page_bytes": None,
        "shared": None,
        "mapped_by": None,
    }
    mapping = vmemmap.mapping(slice_) if vmemmap.has_mappings else None
    if mapping is not None:
        users = vmemmap.mapped_by(mapping.pfn)
        page_table = hvo.kernel.page_table_format
        assert page_table is not None, "there are mappings"
        result["frame"] = mapping.pfn
        result["writable"] = mapping.writable
        result["page_bytes"] = vmemmap.page_size * page_table.pages(mapping.level)
        # What could not be read may map it, too.
        are_all = vmemmap.has_all_mappings
        result["shared"] = True if users > 1 else (False if are_all else None)
        result["mapped_by"] = users if are_all else None
    return result


def print_pages(doc: PageReport) -> None:
    """Print a document of :func:`page_document()` for people."""
    for i, page in enumerate(doc["pages"]):
        if i:
            print()
        print_lines(page_lines(page))


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
        lines += _folio_lines(page["folio"], are_lists_known=not page["unread"])
    elif page["hugetlb"] and page["unread"]:
        lines.append(("Huge page", "hugetlb; its list and mapping were not read"))
    elif page["hugetlb"]:
        lines.append(("Huge page", "hugetlb, but on no list and not optimized"))
    elif page["head"] is not None and page["hugetlb"] is None:
        lines.append(("Huge page", "not known"))
    lines += _slice_lines(page["slice"], is_known=not page["unread"])
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


def _folio_lines(
    folio: PageFolioEntry, *, are_lists_known: bool
) -> list[tuple[str, str]]:
    size = human_size(folio["page_bytes"])
    on_list = "on no list" if are_lists_known else "on no list that could be read"
    if folio["list"] is not None:
        on_list = f"on the {folio['list']} list"
    refcount = "not known" if folio["refcount"] is None else str(folio["refcount"])
    flags = folio["flags"]
    flag = {True: "yes", False: "no", None: "unknown"}
    return [
        ("Huge page", f"{size}, {on_list}, reference count {refcount}"),
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
