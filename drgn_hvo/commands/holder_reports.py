# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports about holders, typed
----------------------------

What ``who`` and ``sharers`` print as JSON, as :mod:`drgn_hvo.commands.reports` has the
documents of the other commands.
"""

from __future__ import annotations

from typing import Optional, TypedDict

from drgn_hvo.commands.reports import Hex, TargetReport

__all__ = (
    "FileEntry",
    "MappingEntry",
    "SharerEntry",
    "SharersReport",
    "TailOfEntry",
    "WhoReport",
)

# For entries with a key "list", in which that name is no type.
_Strings = list[str]


class FileEntry(TypedDict):
    """The file in whose page cache a huge page is."""

    address: Hex
    kind: Optional[str]
    name: Optional[str]
    inode: Optional[int]
    index: Optional[int]
    references: int


class MappingEntry(TypedDict):
    """Where a process maps a huge page, or a part of it."""

    pid: int
    comm: str
    start: Hex
    end: Hex
    writable: bool


_Mappings = list[MappingEntry]


class WhoReport(TargetReport):
    """``who``: all who have a huge page."""

    spec: str
    read_as: Optional[str]
    pfn: int
    conclusions: _Strings
    head_pfn: int
    order: int
    page_bytes: int
    list: Optional[str]
    refcount: Optional[int]
    mapcount: Optional[int]
    pincount: Optional[int]
    anonymous: Optional[bool]
    file: Optional[FileEntry]
    mappings: _Mappings
    left_over: Optional[int]
    unread: _Strings


class TailOfEntry(TypedDict):
    """The slot of ``vmemmap_tails[]`` that names a frame."""

    nid: int
    zone: Optional[str]
    order: int


class SharerEntry(TypedDict):
    """A huge page whose struct pages lie in a frame, and how many slices of it do."""

    head_pfn: int
    order: int
    nid: Optional[int]
    zone: Optional[str]
    list: Optional[str]
    refcount: Optional[int]
    slices: int


class SharersReport(TargetReport):
    """``sharers``: the huge pages behind a frame of tails."""

    spec: str
    read_as: Optional[str]
    pfn: Optional[int]
    frame: int
    tail: Optional[TailOfEntry]
    mapped_by: Optional[int]
    others: Optional[int]
    huge_pages: list[SharerEntry]
    unread: list[str]
