# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``page``
--------

One struct page explained: its raw word, what it is, its head, the huge page that covers
it by all that knows it, and the page of vmemmap that holds it. The text is made in
:mod:`drgn_hvo.commands.page_text`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Optional

import numpy as np

from drgn_hvo.audit.difference import difference_of
from drgn_hvo.audit.full_check import FullCheck
from drgn_hvo.audit.one_page import PageAudit, audit_page
from drgn_hvo.audit.page_sources import (
    Answer,
    Word,
    answers,
    disagreements,
    former_head,
)
from drgn_hvo.commands.document import document
from drgn_hvo.commands.page_conclusions import page_conclusions
from drgn_hvo.formats.tail_words import (
    ALL_ONES,
    is_poisoned,
    is_tail,
    mask_order,
)
from drgn_hvo.memmap.devices import is_device_zone
from drgn_hvo.memmap.frame_use import frame_use
from drgn_hvo.memmap.heads import Head, read_head
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.hwpoison import (
    HwpoisonedFolio,
    PG_hwpoison_mask,
    raw_hwp_pages,
)
from drgn_hvo.memmap.page_spec import PageSpec, resolve_page
from drgn_hvo.memmap.pools import LIST_NAMES, hpg_flags, hpg_names

if TYPE_CHECKING:
    from drgn_hvo.audit.findings import Finding
    from drgn_hvo.commands.single_page_reports import (
        CoveringFolioEntry,
        FrameOfEntry,
        PageEntry,
        PageFindingEntry,
        PageFolioEntry,
        PageReport,
        SliceEntry,
        SourceEntry,
    )
    from drgn_hvo.memmap.covering import Covering

__all__ = ("page_document",)


def page_document(hvo: Hvo, target: str, specs: list[PageSpec]) -> PageReport:
    """
    What ``page --json`` prints.

    :raises UsageError: if a specification names no page.
    """
    whole = FullCheck(hvo)
    return {
        **document(target, hvo.kernel.release),
        "pages": [_page(hvo, spec, whole) for spec in specs],
    }


@dataclass(frozen=True)
class _ShownWords:
    """The words of one struct page, and of the one behind it."""

    info: int
    flags: int
    next_info: Optional[int]
    all_zero: bool


def _read_words(hvo: Hvo, pfn: int) -> Optional[_ShownWords]:
    vmemmap = hvo.vmemmap
    pages = vmemmap.read_pages(np.array([pfn, pfn + 1], dtype=np.int64))
    if not pages.present[0]:
        return None
    infos, flags = vmemmap.tail_words(pages), vmemmap.flags(pages)
    following = int(infos[1]) if pages.present[1] else None
    return _ShownWords(int(infos[0]), int(flags[0]), following, not pages.data[0].any())


def _kind(hvo: Hvo, pfn: int, words: _ShownWords, head: int) -> str:
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


def _page(hvo: Hvo, spec: PageSpec, whole: FullCheck) -> PageEntry:
    vmemmap = hvo.vmemmap
    pfn = resolve_page(vmemmap, spec)
    page: PageEntry = {
        "spec": spec.text,
        "read_as": spec.read_as,
        "pfn": pfn,
        "conclusions": [],
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
        "covering_folio": None,
        "resolved_by": {"word": None, "page_tables": None, "lists": None},
        "disagreements": [],
        "findings": [],
        "undecided": [],
        "frame_of": _frame_of(hvo, pfn),
        "copy_of": None,
        "unread": [],
    }
    word = _add_word(hvo, page)
    if hvo.has_hugetlb:
        _add_covering(hvo, page, word, whole)
    elif word is not None:
        said = answers(hvo, pfn, word, None)["word"]
        page["resolved_by"]["word"] = _source(said)
    page["conclusions"] = page_conclusions(page, hvo.kernel.geometry.page_size)
    return page


def _add_word(hvo: Hvo, page: PageEntry) -> Optional[Word]:
    """
    What the words of the struct page say.

    :return: ``None`` if there is none, or it was never initialised.
    """
    vmemmap, pfn = hvo.vmemmap, page["pfn"]
    unread_table = vmemmap.unread_table(pfn * vmemmap.size // vmemmap.page_size)
    if unread_table is not None:
        page["unread"].append(unread_table)
    if vmemmap.has_mappings and page["slice"]["frame"] is None:
        if unread_table is None:
            page["kind"] = "no struct page: vmemmap is not mapped here"
        return None
    words = _read_words(hvo, pfn)
    if words is None:
        return None
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
        return None
    page["head"] = f"{head:#x}"
    head_pfn = vmemmap.page_pfn(head) if head != ALL_ONES else None
    _add_names(hvo, page, head_pfn)
    found = None
    if head_pfn is not None:
        page["head_pfn"] = head_pfn
        found = read_head(hvo, head_pfn)
        _add_head(hvo, page, found)
        if page["order"] is None:
            page["unread"].append(f"the struct pages of PFN {head_pfn}")
    return Word(words.info, head_pfn, page["mask_order"], found)


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
    if is_device_zone(hvo, head.zone_index):
        page["use"] = "memory of a device (ZONE_DEVICE)"
    # A word that is wrong leads to a head that does not reach here.
    reaches = head.pfn <= page["pfn"]
    if head.order is not None:
        reaches &= page["pfn"] < head.pfn + (1 << min(head.order, 63))
    if reaches:
        _set_index(hvo, page, head.pfn)
    if page["pfn"] != head.pfn and not head.PG_head:
        page["kind"] += ", but its head has no PG_head"
    if not head.hugetlb:
        return
    _add_hwpoison(hvo, page, head)
    if not hvo.has_hugetlb:
        page["unread"] += hvo.unread_lists


def _set_index(hvo: Hvo, page: PageEntry, head_pfn: int) -> None:
    size, page_size = hvo.vmemmap.size, hvo.vmemmap.page_size
    page["slice"]["index_in_folio"] = (
        page["pfn"] * size // page_size - head_pfn * size // page_size
    )


def _add_covering(
    hvo: Hvo, page: PageEntry, word: Optional[Word], whole: FullCheck
) -> None:
    """What all sources say of the page, and what an audit does."""
    pfn = page["pfn"]
    audit = audit_page(hvo, pfn)
    one = audit.covering
    found = answers(hvo, pfn, word, one)
    page["resolved_by"] = {
        "word": _source(found["word"]),
        "page_tables": _source(found["page_tables"]),
        "lists": _source(found["lists"]),
    }
    page["disagreements"] = [
        {
            "source": wrong.source,
            "says": wrong.says,
            "believed": list(wrong.believed),
            "why": wrong.why,
        }
        for wrong in disagreements(hvo, audit, word, found)
    ]
    page["findings"] = _findings(hvo, audit, whole)
    page["undecided"] = [
        {"rule": rule, "why": why, "count": count}
        for rule, reasons in audit.undecided.items()
        for why, count in reasons.items()
    ]
    if one is not None:
        _believe(hvo, page, one)
        return
    former = None if word is None else former_head(hvo, pfn, word)
    if former is not None and word is not None and word.head is not None:
        page["kind"] = f"copy of the head of PFN {former}, not aligned to its order"
        page["copy_of"] = {"head_pfn": former, "order": word.head.order or 0}
        page["head"] = page["head_pfn"] = None
        page["slice"]["index_in_folio"] = None
    if page["hugetlb"] and former is None:
        _add_unread(page, hvo.covering.unread(pfn))


def _add_unread(page: PageEntry, reasons: list[str]) -> None:
    page["unread"] += [one for one in reasons if one not in page["unread"]]


def _believe(hvo: Hvo, page: PageEntry, one: Covering) -> None:
    """Take the huge page that covers the page for its own, whatever its word says."""
    page["covering_folio"] = _covering(hvo, one)
    _set_index(hvo, page, one.head_pfn)
    if page["kind"] == "not in this dump" and page["unread"]:
        return
    page["folio"] = _folio(hvo, one)
    page["hugetlb"] = True
    page["head_pfn"], page["order"] = one.head_pfn, one.order
    page["head"] = f"{hvo.vmemmap.page_address(one.head_pfn):#x}"
    head = read_head(hvo, one.head_pfn)
    if head is not None:
        page["nid"], page["zone"] = head.nid, head.zone
        if page["hwpoison"] is None:
            _add_hwpoison(hvo, page, head)
    if one.place.kind is None:
        _add_unread(page, hvo.covering.unread(page["pfn"]))


def _source(answer: Optional[Answer]) -> Optional[SourceEntry]:
    if answer is None:
        return None
    return {"head_pfn": answer.head_pfn, "order": answer.order, "says": answer.says}


def _hex(value: Optional[int]) -> Optional[str]:
    return None if value is None else f"{value & (1 << 64) - 1:#x}"


def _findings(hvo: Hvo, audit: PageAudit, whole: FullCheck) -> list[PageFindingEntry]:
    entries: list[PageFindingEntry] = []
    for finding, cause in audit.ordered():
        difference = difference_of(hvo, finding)
        entries.append(
            {
                "rule": finding.rule,
                "severity": finding.severity,
                "message": finding.message,
                "defect": finding.defect,
                "here": _is_here(hvo, audit.pfn, finding),
                "index": whole.index(finding),
                "caused_by": cause,
                "difference": None if difference is None else difference.text,
                "suspect": None if difference is None else difference.suspect,
                "address": _hex(finding.place.address),
                "physical_address": _hex(finding.place.physical_address),
                "expected": _hex(finding.expected),
                "actual": _hex(finding.actual),
            }
        )
    return entries


def _is_here(hvo: Hvo, pfn: int, finding: Finding) -> bool:
    """Whether a wrong word is in a struct page, or maps its page of vmemmap."""
    vmemmap, physical = hvo.vmemmap, finding.place.physical_address
    if finding.rule == "stray-head" and finding.place.head_pfn is None:
        return True  # told of heads only, and of all of them together
    start = pfn * vmemmap.size
    slice_, offset = divmod(start, vmemmap.page_size)
    if finding.place.address == vmemmap.base + slice_ * vmemmap.page_size:
        return True
    mapping = vmemmap.mapping(slice_) if vmemmap.has_mappings else None
    if physical is None or mapping is None:
        return finding.place.pfn == pfn
    frame, at = divmod(physical, vmemmap.page_size)
    if frame != mapping.pfn:
        return False
    if 0 <= at - offset < vmemmap.size:
        return True
    # Of equal ones in a page, the first is told.
    return bool(finding.folded) and _has(hvo, pfn, at % vmemmap.size, finding.actual)


def _has(hvo: Hvo, pfn: int, offset: int, value: Optional[int]) -> bool:
    """Whether a struct page holds a word at an offset."""
    page = hvo.vmemmap.read_pages(np.array([pfn], dtype=np.int64)).data[0]
    word = page[offset : offset + 8].view(hvo.kernel.reader.u64)
    return value is not None and len(word) == 1 and int(word[0]) == value


def _covering(hvo: Hvo, one: Covering) -> CoveringFolioEntry:
    place, geometry = one.place, hvo.kernel.geometry
    list_by: Literal["followed", "links", "unknown"] = "unknown"
    if place.kind is not None:
        list_by = "links" if place.by_links else "followed"
    return {
        "head_pfn": one.head_pfn,
        "order": one.order,
        "page_bytes": geometry.page_size << one.order,
        "slices": max(geometry.slices(one.order), 1),
        "sharing": one.sharing,
        "could_share": one.could_share,
        "list": None if place.kind is None else LIST_NAMES[place.kind],
        "list_nid": place.nid,
        "list_by": list_by,
        "head_says": one.head_says,
    }


def _folio(hvo: Hvo, one: Covering) -> PageFolioEntry:
    """What the pools and page tables say of a hugetlb folio."""
    folios = hvo.covering.folios([one])
    flags = hpg_flags(hvo.kernel)
    private, present = int(folios.private[0]), bool(folios.present[0])
    bit = flags.get("vmemmap_optimized")
    sharing: Optional[bool] = bool(folios.shared_ptes[0])
    first = one.head_pfn * hvo.vmemmap.size // hvo.vmemmap.page_size
    count = int(folios.slices[0])
    if not sharing and hvo.vmemmap.unread_table(first, count) is not None:
        sharing = None
    kind = one.place.kind
    return {
        "head_pfn": one.head_pfn,
        "page_bytes": hvo.kernel.geometry.page_size << one.order,
        "list": None if kind is None else LIST_NAMES[kind],
        "refcount": int(folios.refcount[0]) if present else None,
        "flags": hpg_names(flags, private) if present and flags else None,
        "optimized_flag": (
            None if bit is None or not present else bool(private >> bit & 1)
        ),
        "optimized_mapping": sharing,
    }


def _frame_of(hvo: Hvo, pfn: int) -> Optional[FrameOfEntry]:
    use = frame_use(hvo, pfn)
    if use is None:
        return None
    return {
        "kind": use.kind,
        "first_pfn": use.first_pfn,
        "last_pfn": use.last_pfn,
        "nid": use.nid,
        "zone": use.zone,
        "order": use.order,
        "mapped_by": use.mapped_by,
        "huge_pages": use.huge_pages,
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
