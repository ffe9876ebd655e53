# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports about changes, typed
----------------------------

What ``diff`` prints as JSON, as :mod:`drgn_hvo.commands.reports` has the documents of
the other commands.
"""

from __future__ import annotations

from typing import Literal, Optional, TypedDict

from drgn_hvo.commands.reports import FindingEntry, TargetReport

__all__ = (
    "CounterChangeEntry",
    "DiffReport",
    "FindingChangeEntry",
    "FolioChangeEntry",
    "FolioStateEntry",
    "TailChangeEntry",
    "TailStateEntry",
)

_Strings = list[str]


class CounterChangeEntry(TypedDict):
    """A counter of a pool; of all nodes if ``nid`` is ``None``."""

    order: int
    nid: Optional[int]
    counter: str
    before: int
    after: int


class TailStateEntry(TypedDict):
    """A shared tail page."""

    pfn: Optional[int]
    frame_refcount: Optional[int]
    mapped_by: Optional[int]


class TailChangeEntry(TypedDict):
    """A slot of ``vmemmap_tails[]``: ``words`` of its frame changed."""

    nid: int
    zone: Optional[str]
    order: int
    before: Optional[TailStateEntry]
    after: Optional[TailStateEntry]
    words: Optional[int]


class FolioStateEntry(TypedDict):
    """A huge page."""

    order: int
    list: Optional[str]
    refcount: Optional[int]
    flags: Optional[_Strings]
    optimized: Optional[bool]
    head_frame: Optional[int]
    hwpoison: Optional[bool]


class FolioChangeEntry(TypedDict):
    """A huge page that is new (no ``before``), gone (no ``after``) or changed."""

    head_pfn: int
    before: Optional[FolioStateEntry]
    after: Optional[FolioStateEntry]


class FindingChangeEntry(TypedDict):
    """
    A finding of ``check`` that only one of the moments has; ``change`` is ``None`` if
    its rule could not be decided in the other one.
    """

    change: Optional[Literal["new", "gone"]]
    found_in: Literal["before", "after"]
    finding: FindingEntry


class DiffReport(TargetReport):
    """``diff``: what changed between two dumps or two moments."""

    other: str
    other_release: Optional[str]
    same_boot: Optional[bool]
    conclusions: list[str]
    counters: list[CounterChangeEntry]
    tails: Optional[list[TailChangeEntry]]
    folios: Optional[list[FolioChangeEntry]]
    findings: list[FindingChangeEntry]
    findings_in_both: int
    complete: bool
