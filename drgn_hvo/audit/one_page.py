# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What an audit says of one page
------------------------------

The rules, on what one page has to do with: the huge page that covers it, those that it
shares frames of vmemmap with by mistake, their pool, the shared tail pages that they
map, and what the page is the frame of. Nothing else is read, so that a page of a
machine with half a million huge pages costs no more than one of a small machine.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Optional

import numpy as np

from drgn_hvo.audit.check_pools import check_links
from drgn_hvo.audit.confirm import confirmed
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Audit, Finding
from drgn_hvo.audit.rules import RULE_BY_ID
from drgn_hvo.audit.run import applicable_checks, run_checks
from drgn_hvo.audit.scope import PartScope
from drgn_hvo.kernel.arrays import Int64Array, distinct, is_in
from drgn_hvo.memmap.covering import Covering
from drgn_hvo.memmap.folios import Hugetlb
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.pools import BrokenLink, HugePageList, hpg_flags
from drgn_hvo.memmap.shared_tails import SharedTail

__all__ = ("PageAudit", "audit_page")

# At most this many others on a frame that should be one huge page's own are looked at.
_MOST_OTHERS = 4

_NOT_FOLLOWED = BrokenLink(0, None, "was not followed")


@dataclass
class PageAudit(Audit):
    """
    An audit of what one page has to do with.

    :param pfn: The page.
    :param covering: The huge page that covers it.
    """

    pfn: int = 0
    covering: Optional[Covering] = None


def audit_page(hvo: Hvo, pfn: int) -> PageAudit:
    """
    Audit what a page has to do with; of a running kernel, as
    :func:`~drgn_hvo.audit.confirm.confirmed()` does.
    """
    return confirmed(hvo, lambda reading: _Surroundings(reading, pfn).audit())


class _Surroundings:
    """What one page has to do with."""

    def __init__(self, hvo: Hvo, pfn: int) -> None:
        self._hvo = hvo
        self._vmemmap = hvo.vmemmap
        self._pfn = pfn
        self._slice = self._slice_of(pfn)
        self._covering = hvo.covering.of(pfn)

    def _slice_of(self, pfn: int) -> int:
        return pfn * self._vmemmap.size // self._vmemmap.page_size

    def _pfn_of(self, slice_: int) -> int:
        return -(-slice_ * self._vmemmap.page_size // self._vmemmap.size)

    def audit(self) -> PageAudit:
        """Apply the rules."""
        audit = PageAudit(pfn=self._pfn, covering=self._covering)
        context = Context(self._hvo, audit, scope=self._scope, within=self._within)
        for a_list in self._broken_lists():
            check_links(context, a_list)
        run_checks(context, applicable_checks(self._hvo))
        for unread in self._hvo.covering.pools.unread:
            audit.unread(unread)
        audit.findings = [f for f in audit.findings if self._is_about(f)]
        return audit

    @cached_property
    def _within(self) -> Int64Array:
        """The slices of the page and of the huge page that covers it, or did once."""
        slices = [np.array([self._slice], dtype=np.int64)]
        head, end = self._pfn, self._pfn + 1
        if self._covering is not None:
            head, end = self._covering.head_pfn, self._covering.end_pfn
        elif self._hvo.covering.pools.hstates:
            order = min(h.order for h in self._hvo.covering.pools.hstates)
            head = self._pfn >> order << order
            end = head + (1 << order)
        first, last = self._slice_of(head), self._slice_of(end - 1)
        slices.append(np.arange(first, last + 1, dtype=np.int64))
        return distinct(np.concatenate(slices))

    @cached_property
    def _frames(self) -> frozenset[int]:
        """The frames behind those slices."""
        frames, mapped = self._vmemmap.frames(self._within)
        return frozenset(frames[mapped].tolist())

    @cached_property
    def _others(self) -> dict[int, Covering]:
        """
        Other huge pages, by head: those whose slices map the frame of this page's
        slice, or of the first slice of its huge page, which should be one's own; and
        the one whose head lies in the frame that this page is.
        """
        own_slices = [self._slice]
        if self._covering is not None:
            own_slices.append(self._slice_of(self._covering.head_pfn))
        frames, mapped = self._vmemmap.frames(np.array(own_slices, dtype=np.int64))
        named = {tail.pfn for tail in self._hvo.shared_tails}
        suspect = set(frames[mapped].tolist()) - named
        found: dict[int, Covering] = {}
        for frame in [*suspect, *({self._pfn} - named)]:
            slices = self._vmemmap.slices_on(frame)
            others = slices[~is_in(slices, self._within)]
            for slice_ in others[:_MOST_OTHERS].tolist():
                other = self._hvo.covering.of(self._pfn_of(slice_))
                if other is not None:
                    found[other.head_pfn] = other
        return found

    @cached_property
    def _folios(self) -> list[Covering]:
        known = dict(self._others)
        if self._covering is not None:
            known[self._covering.head_pfn] = self._covering
        return [known[head] for head in sorted(known)]

    @cached_property
    def _scope(self) -> PartScope:
        """Nothing but these."""
        hvo, covering = self._hvo, self._hvo.covering
        orders = {one.order for one in self._folios}
        pools, folios = covering.pools, covering.folios(self._folios)
        hugetlb = Hugetlb(
            hstates=tuple(h for h in pools.hstates if h.order in orders or not orders),
            lists=tuple(self._lists()),
            folios=folios,
            hpg_flags=hpg_flags(hvo.kernel),
            may_be_writable=hvo.kernel.tails_are_writable,
            unread=pools.unread,
            wrong_pool_words=tuple(
                word
                for word in pools.wrong
                if word.order in orders or (word.order is None and orders)
            ),
        )
        nids, zones = hvo.places_of(folios)
        tails = [
            replace(tail, mapped_by=self._uses(tail))
            for tail in hvo.shared_tails
            if self._concerns(tail, nids, zones)
        ]
        return PartScope(hugetlb, nids, zones, tails)

    def _uses(self, tail: SharedTail) -> int:
        """How many of the slices that are looked at map a shared tail page."""
        slices = [self._within]
        for one in self._others.values():
            first = self._slice_of(one.head_pfn)
            slices.append(np.arange(first, self._slice_of(one.end_pfn - 1) + 1))
        frames, _ = self._vmemmap.frames(distinct(np.concatenate(slices)))
        return int((frames == tail.pfn).sum())

    def _concerns(self, tail: SharedTail, nids: Int64Array, zones: Int64Array) -> bool:
        """Whether a shared tail page is, or should be, mapped here, or is this page."""
        if tail.pfn is not None and tail.pfn in {*self._frames, self._pfn}:
            return True
        if self._covering is None:
            return False
        i = self._folios.index(self._covering)
        nid, zone = int(nids[i]), int(zones[i])
        places = {(nid, zone), (nid, None)}
        return (tail.nid, tail.zone_index) in places and (
            tail.order == self._covering.order
        )

    def _lists(self) -> list[HugePageList]:
        """The lists that these are on, with nothing else on them."""
        lists = []
        for hstate in self._hvo.covering.pools.hstates:
            mine = [one for one in self._folios if one.order == hstate.order]
            for a_list in self._hvo.covering.places.lists(hstate) if mine else ():
                heads = array("q", [h for h in a_list.heads if self._is_one(h)])
                lists.append(replace(a_list, heads=heads, broken=_NOT_FOLLOWED))
            for one in mine:
                by_links = one.place.by_links and one.place.as_list(
                    one.order, one.head_pfn
                )
                if by_links:
                    lists.append(replace(by_links, broken=_NOT_FOLLOWED))
        return lists

    def _is_one(self, head_pfn: int) -> bool:
        return any(one.head_pfn == head_pfn for one in self._folios)

    def _broken_lists(self) -> list[HugePageList]:
        """Lists that break at a link of the huge page, or at one to it."""
        one = self._covering
        if one is None:
            return []
        lru = self._hvo.kernel.struct_page.require("lru")
        own = self._vmemmap.page_address(one.head_pfn) + lru
        broken = []
        for hstate in self._hvo.covering.pools.hstates:
            if hstate.order != one.order:
                continue
            for a_list in self._hvo.covering.places.lists(hstate):
                link = a_list.broken
                if link is not None and {link.address, link.value} & {own, own + 8}:
                    broken.append(a_list)
        if one.place.broken is not None and not broken:
            by_links = one.place.as_list(one.order, one.head_pfn)
            broken += [by_links] if by_links is not None else []
        return broken

    def _is_about(self, finding: Finding) -> bool:
        """Whether a finding is about this page or what it has to do with directly."""
        place, one = finding.place, self._covering
        others = self._others.keys() - ({one.head_pfn} if one is not None else set())
        if place.head_pfn in others:
            # Who maps the frame of another: that is told at both.
            return finding.rule == "vmemmap-head-frame"
        if one is not None:
            return True
        if finding.rule == "stray-head":
            return self._looks_like_head
        if RULE_BY_ID[finding.rule].subject == "hstate":
            return False  # nobody's pool
        if RULE_BY_ID[finding.rule].subject != "slice" or place.address is None:
            return True
        offset = place.address - self._vmemmap.base
        return offset // self._vmemmap.page_size == self._slice

    @property
    def _looks_like_head(self) -> bool:
        """Whether this page has ``PG_head`` and is no tail."""
        pages = self._vmemmap.read_pages(np.array([self._pfn], dtype=np.int64))
        flags = int(self._vmemmap.flags(pages)[0])
        is_tail = bool(int(self._vmemmap.tail_words(pages)[0]) & 1)
        return bool(flags & self._hvo.kernel.PG_head_mask) and not is_tail
