# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports about single pages, typed
---------------------------------

What ``page`` and ``map`` print as JSON, as :mod:`drgn_hvo.commands.reports` has the
documents of the other commands.
"""

from __future__ import annotations

from typing import Literal, Optional, TypedDict

from drgn_hvo.audit.rules import RuleId
from drgn_hvo.commands.reports import Hex, TargetReport, UndecidedEntry

__all__ = (
    "CopyOfEntry",
    "CoveringFolioEntry",
    "DisagreementEntry",
    "FrameOfEntry",
    "HwpoisonEntry",
    "MapReport",
    "MapRowEntry",
    "MapTailEntry",
    "PageEntry",
    "PageFindingEntry",
    "PageFolioEntry",
    "PageReport",
    "ResolvedByEntry",
    "SharedFrameEntry",
    "SliceEntry",
    "SourceEntry",
)

# For entries with a key "list", in which that name is no type.
_Numbers = list[int]
_Strings = list[str]


class SliceEntry(TypedDict):
    """The page of vmemmap that holds a struct page."""

    address: Hex
    index_in_folio: Optional[int]
    frame: Optional[int]
    writable: Optional[bool]
    page_bytes: Optional[int]
    shared: Optional[bool]
    mapped_by: Optional[int]


class PageFolioEntry(TypedDict):
    """What pools and page tables say of the hugetlb folio of a page."""

    head_pfn: int
    page_bytes: int
    list: Optional[str]
    refcount: Optional[int]
    flags: Optional[_Strings]
    optimized_flag: Optional[bool]
    optimized_mapping: Optional[bool]


class HwpoisonEntry(TypedDict):
    """
    Whether memory failed in a huge page, and where; ``unknown`` is why there may be
    more pages, or why ``raw_pages`` is ``None``.
    """

    poisoned: bool
    raw_pages: Optional[_Numbers]
    unknown: Optional[str]


class CoveringFolioEntry(TypedDict):
    """
    The huge page that covers a page, found without the page's own word: by page tables
    of vmemmap (how many of its slices share a frame, of those that can), by lists
    (followed, or by links of its neighbours) and by its head.
    """

    head_pfn: int
    order: int
    page_bytes: int
    slices: int
    sharing: Optional[int]
    could_share: int
    list: Optional[str]
    list_nid: Optional[int]
    list_by: Literal["followed", "links", "unknown"]
    head_says: Optional[bool]


class SourceEntry(TypedDict):
    """What one source says of the huge page that a page belongs to."""

    head_pfn: Optional[int]
    order: Optional[int]
    says: str


class ResolvedByEntry(TypedDict):
    """What each source says; ``None`` if it says nothing, or was not read."""

    word: Optional[SourceEntry]
    page_tables: Optional[SourceEntry]
    lists: Optional[SourceEntry]


class DisagreementEntry(TypedDict):
    """A source that is not believed, which ones are, and why."""

    source: Literal["word", "entry", "head"]
    says: str
    believed: _Strings
    why: str


class PageFindingEntry(TypedDict):
    """
    What ``check`` finds about a page, its huge page or what these map: ``here`` if the
    wrong word is the page's own, or its page table entry's; ``index`` is that of the
    finding in ``check`` of the whole kernel.
    """

    rule: RuleId
    severity: str
    message: str
    defect: Optional[str]
    here: bool
    index: Optional[int]
    caused_by: Optional[int]
    difference: Optional[str]
    suspect: Optional[str]
    address: Optional[Hex]
    physical_address: Optional[Hex]
    expected: Optional[Hex]
    actual: Optional[Hex]


class FrameOfEntry(TypedDict):
    """
    What a page is that itself holds struct pages: ``shared-tail`` (of a node, zone and
    order), ``head`` (with that of a huge page) or ``struct-pages``.
    """

    kind: Literal["shared-tail", "head", "struct-pages"]
    first_pfn: Optional[int]
    last_pfn: Optional[int]
    nid: Optional[int]
    zone: Optional[str]
    order: Optional[int]
    mapped_by: Optional[int]
    huge_pages: Optional[int]


class CopyOfEntry(TypedDict):
    """The head that a struct page is a left copy of, and the order that it says."""

    head_pfn: int
    order: int


class PageEntry(TypedDict):
    """
    A struct page, explained; ``unread`` is what could not be read and would tell more.
    ``head_pfn`` and ``order`` are those of the source that is believed;
    ``conclusions`` says it in words.
    """

    conclusions: _Strings
    covering_folio: Optional[CoveringFolioEntry]
    resolved_by: ResolvedByEntry
    disagreements: list[DisagreementEntry]
    findings: list[PageFindingEntry]
    undecided: list[UndecidedEntry]
    frame_of: Optional[FrameOfEntry]
    copy_of: Optional[CopyOfEntry]

    spec: str
    read_as: Optional[str]
    pfn: int
    page: Hex
    kind: str
    word: Optional[Hex]
    flags: Optional[_Strings]
    flags_word: Optional[Hex]
    mask_order: Optional[int]
    head_pfn: Optional[int]
    head: Optional[Hex]
    order: Optional[int]
    hugetlb: Optional[bool]
    nid: Optional[int]
    zone: Optional[str]
    page_type: Optional[str]
    use: Optional[str]
    hwpoison: Optional[HwpoisonEntry]
    slice: SliceEntry
    folio: Optional[PageFolioEntry]
    unread: _Strings


class PageReport(TargetReport):
    """``page``."""

    pages: list[PageEntry]


class MapTailEntry(TypedDict):
    """
    A shared tail page: whose it is, and for folios of which order; ``zone_index`` is
    ``None`` if it is the node's.
    """

    nid: int
    zone_index: Optional[int]
    zone: Optional[str]
    order: int


class MapRowEntry(TypedDict):
    """
    Neighbouring pages of vmemmap that are mapped alike, *first* to *last* of those of
    the compound page; ``mapped`` is ``None`` if the page table was not read.
    """

    first: int
    last: int
    address: Hex
    mapped: Optional[bool]
    frame: Optional[int]
    last_frame: Optional[int]
    writable: Optional[bool]
    repeats_head: bool
    repeats_slice: Optional[int]
    tail: Optional[MapTailEntry]
    begins_with_copy: bool
    findings: _Strings


class SharedFrameEntry(TypedDict):
    """
    A frame that pages of vmemmap outside of the compound page map, too; ``heads`` are
    PFNs of heads of some of the ``folios`` that they belong to, ``None`` if those were
    not counted.
    """

    frame: int
    mapped_by: int
    elsewhere: int
    heads: list[int]
    folios: Optional[int]


class MapReport(TargetReport):
    """``map``."""

    spec: str
    kind: str
    head_pfn: int
    order: int
    bytes: int
    nid: Optional[int]
    zone: Optional[str]
    slices: int
    conclusions: _Strings
    rows: list[MapRowEntry]
    shared_frames: list[SharedFrameEntry]
    all_tables_read: bool
