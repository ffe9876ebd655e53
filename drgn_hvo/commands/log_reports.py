# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports about logs, typed
-------------------------

What ``oops`` and ``page --oops`` print as JSON, as :mod:`drgn_hvo.commands.reports` has
the documents of the other commands.
"""

from __future__ import annotations

from typing import Literal, Optional, TypedDict

from drgn_hvo.commands.reports import Hex
from drgn_hvo.commands.single_page_reports import PageReport

__all__ = (
    "FaultEntry",
    "FaultSliceEntry",
    "FaultTailEntry",
    "LogFindings",
    "LogReportEntry",
    "LogReportStart",
    "OopsReport",
    "PageTableEntry",
    "PointerEntry",
    "PrintedPageEntry",
    "PrintedTableEntry",
    "StoryEntry",
)


class PageTableEntry(TypedDict):
    """The last page table entry that the kernel printed, and that of the dump."""

    level: str
    value: Hex
    frame: Optional[int]
    writable: Optional[bool]
    in_dump: Optional[Hex]
    same: Optional[bool]


class PrintedTableEntry(TypedDict):
    """A page table entry of a process that the kernel printed."""

    level: str
    value: Hex


class FaultSliceEntry(TypedDict):
    """The page of vmemmap at which a fault happened."""

    address: Hex
    index_in_folio: Optional[int]
    frame: Optional[int]
    writable: Optional[bool]
    mapped: Optional[bool]


class FaultTailEntry(TypedDict):
    """The shared tail page that a faulting address is mapped to."""

    pfn: int
    order: int
    nid: int
    zone: Optional[str]


class FaultEntry(TypedDict):
    """A page fault of a log; ``page`` is an index into ``pages``."""

    line: int
    address: Hex
    access: Optional[Literal["read", "write", "fetch"]]
    error_code: Optional[Hex]
    supervisor: Optional[bool]
    protection: Optional[bool]
    ip: Optional[str]
    pid: Optional[int]
    comm: Optional[str]
    in_vmemmap: Optional[bool]
    not_this_boot: Optional[str]
    entry: Optional[PageTableEntry]
    pfn: Optional[int]
    offset: Optional[int]
    words: list[str]
    slice: Optional[FaultSliceEntry]
    head_pfn: Optional[int]
    order: Optional[int]
    tail: Optional[FaultTailEntry]
    verdict: str
    signature: Optional[bool]
    explanation: str
    defect: Optional[str]
    page: Optional[int]


class PrintedPageEntry(TypedDict):
    """A struct page as ``dump_page()`` printed it."""

    kind: Optional[Literal["tail", "head", "page"]]
    encoding: Optional[str]
    mask_order: Optional[int]
    head_pfn: Optional[int]
    order: Optional[int]
    tail_mapping: Optional[bool]
    refcount: Optional[int]
    mapcount: Optional[int]
    counts: dict[str, int]
    flags: Optional[Hex]
    flag_names: Optional[list[str]]
    positions: dict[str, int]
    page_type: Optional[str]
    words: list[Hex]
    head_words: list[Hex]


class PointerEntry(TypedDict):
    """A register, or a word of the stack, that points into vmemmap."""

    where: str
    value: Hex
    pfn: Optional[int]
    text: str


class LogReportStart(TypedDict):
    """How an entry for a report of a log begins."""

    form: str
    line: int
    title: str
    release: Optional[str]
    pid: Optional[int]
    comm: Optional[str]
    ip: Optional[str]
    calls: list[str]


class LogReportEntry(LogReportStart):
    """
    A report of a log; ``oops`` and ``page`` are indices into ``oopses`` and ``pages``.
    """

    pfn: Optional[int]
    address: Optional[Hex]
    reason: Optional[str]
    check: Optional[str]
    check_in: Optional[str]
    entry: Optional[PrintedTableEntry]
    dump: Optional[PrintedPageEntry]
    not_this_boot: Optional[str]
    against_dump: Optional[Literal["unchanged", "changed", "other-page", "not-in-dump"]]
    changed: list[str]
    pointers: list[PointerEntry]
    verdict: str
    explanation: str
    defect: Optional[str]
    oops: Optional[int]
    page: Optional[int]


class StoryEntry(TypedDict):
    """Reports that have one cause; ``reports`` has their indices."""

    count: int
    verdict: str
    explanation: str
    defect: Optional[str]
    is_certain: bool
    forms: dict[str, int]
    reasons: dict[str, int]
    pfns: list[int]
    reports: list[int]


class LogFindings(TypedDict):
    """What a log says."""

    oopses: list[FaultEntry]
    reports: list[LogReportEntry]
    stories: list[StoryEntry]
    suppressed: int
    not_understood: list[str]


class OopsReport(PageReport, LogFindings):
    """``page --oops``, and ``oops``."""
