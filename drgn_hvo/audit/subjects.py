# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Subjects of findings
--------------------

What a finding is about, one class a kind of thing. Two findings are about the same if
their subjects are equal; a finding whose ``because`` names a subject is a consequence
of the findings about that.

What has the same fields is derived from one class that has them: a dataclass takes
0.3 ms to make, in each run of each command. Equal is only what is of one class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn_hvo.audit.rules import RuleId
from drgn_hvo.memmap.shared_tails import Slot

__all__ = (
    "BootPages",
    "CompoundPage",
    "EntryBits",
    "FolioHead",
    "FolioList",
    "FolioLists",
    "FolioNode",
    "FolioTails",
    "FormerHeads",
    "HeadFrame",
    "HeadWord",
    "LostHeads",
    "NoPool",
    "OptimizedFlag",
    "PlainFrames",
    "PoolCounters",
    "PoolList",
    "PoolReserve",
    "PoolWord",
    "SectionOrder",
    "StrayHead",
    "StraySlice",
    "Subject",
    "TableEntry",
    "TailFrames",
    "TailProtection",
    "TailSlot",
    "TailSlotUsers",
    "TailWord",
    "TailWords",
    "VmemmapBase",
)


@dataclass(frozen=True)
class Subject:
    """What a finding is about; one of the classes below."""


class VmemmapBase(Subject):
    """Where vmemmap begins."""


@dataclass(frozen=True)
class SectionOrder(Subject):
    """The order that a section has, by its number."""

    number: int


@dataclass(frozen=True)
class _AtAddress(Subject):
    address: int


# Page tables of vmemmap, entries by their physical address.


class TableEntry(_AtAddress):
    """An entry above the lowest level: what it allows."""


class EntryBits(_AtAddress):
    """The user, cache, global and execute bits of an entry."""


@dataclass(frozen=True)
class StraySlice(Subject):
    """A page of vmemmap that maps a shared tail page and should not, by its index."""

    slice_: int


# Slots of vmemmap_tails[], and the frames that they name.


@dataclass(frozen=True)
class _OfSlot(Subject):
    slot: Slot


class TailSlot(_OfSlot):
    """A slot itself."""


class TailSlotUsers(_OfSlot):
    """The folios that a wrong slot is for, as one."""


@dataclass(frozen=True)
class TailWords(Subject):
    """
    One word of all struct pages in the frame that a slot names.

    :param are_few: Of a few of them, where a known defect has all others.
    """

    rule: RuleId
    slot: Slot
    are_few: bool = False


# Folios, each by the PFN of its head.


@dataclass(frozen=True)
class _OfFolio(Subject):
    head_pfn: int


class HeadFrame(_OfFolio):
    """The private frames of a folio: where its head lies, and who else maps that."""


class TailFrames(_OfFolio):
    """The frames that slices behind the private ones map."""


class TailProtection(_OfFolio):
    """How those slices are mapped: read-only, by base-page entries."""


class OptimizedFlag(_OfFolio):
    """``HPG_vmemmap_optimized``."""


class PlainFrames(_OfFolio):
    """The slices of a folio that is not optimized."""


class FolioHead(_OfFolio):
    """The words that make a struct page the head of a folio."""


class HeadWord(_OfFolio):
    """``HPG_cma``."""


class FolioNode(_OfFolio):
    """The node and the zone in the flags of the head."""


class FolioTails(_OfFolio):
    """The tail words in the folio's own pages of vmemmap."""


@dataclass(frozen=True)
class TailWord(_OfFolio):
    """All other words of private tails that one rule is about."""

    rule: RuleId


class FolioList(_OfFolio):
    """What a folio says of the list that it is on."""


class FolioLists(_OfFolio):
    """On which lists a folio is."""


class BootPages(Subject):
    """All folios with reference counts of a shared tail page from boot, as one."""


# Heads that belong to no folio.


@dataclass(frozen=True)
class StrayHead(Subject):
    """A struct page with PG_head, by its PFN, or that of the folio it lies in."""

    pfn: int


class LostHeads(Subject):
    """All heads of huge pages whose memory was lost when they were freed, as one."""


class FormerHeads(Subject):
    """All copies of heads that were left in huge pages since freed, as one."""


@dataclass(frozen=True)
class CompoundPage(Subject):
    """The tails of a compound page, by the PFN that they lead to; -1 if to none."""

    head_pfn: int


# Pools, each by its order.


class PoolWord(_AtAddress):
    """A word that identifies a pool, by its virtual address."""


@dataclass(frozen=True)
class _OfPool(Subject):
    order: int


class NoPool(_OfPool):
    """All folios of an order that no pool has, as one."""


@dataclass(frozen=True)
class PoolList(_OfPool):
    """
    A list of a pool.

    :param nid: Of a free list; ``None`` for the active list.
    """

    kind: int
    nid: Optional[int]


class PoolCounters(_OfPool):
    """The counters of a pool."""


class PoolReserve(_OfPool):
    """``resv_huge_pages`` of a pool."""
