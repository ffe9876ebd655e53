# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Private tails
-------------

The words of the struct pages behind the head of a folio, in the page of vmemmap that
it has to itself and that is mapped writable: what a stray ``get_page()`` hits. Nearly
all folios are known to be as they should be since their heads were read; the others are
looked at here, word by word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Optional, cast

import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.check_shared_tails import BootTail
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.defects import BOOT_TAIL_REFCOUNT
from drgn_hvo.audit.findings import Finding
from drgn_hvo.audit.rules import RuleId
from drgn_hvo.kernel.arrays import BoolArray, ByteArray, Int64Array, U64Array
from drgn_hvo.kernel.unread import NOT_IN_DUMP, Need
from drgn_hvo.memmap.pools import FREE_LIST
from drgn_hvo.memmap.private_tails import FolioFacts
from drgn_hvo.memmap.tail_fields import TailField

__all__ = ("check_private_tails",)

# How many folios are read together: 1 MiB of 4 KiB pages.
_AT_ONCE = 256

# MAX_PAGE_ORDER (MAX_ORDER - 1 before v6.4) of most kernels, where VMCOREINFO does not
# say how many free_area there are.
_USUAL_MAX_PAGE_ORDER = 10

# At most this many folios that break one rule get findings of their own; the rest are
# counted with the first.
_MAX_TOLD = 64


def check_private_tails(
    context: Context, readable: BoolArray, boot_tails: Sequence[BootTail]
) -> None:
    """
    Decide the ``folio-tail-`` rules on words other than the tail word, and the part of
    ``folio-head`` that is about single words.

    :param readable: Folios whose own first struct pages can be read.
    :param boot_tails: Shared tail pages whose reference counts tails can have.
    """
    if context.hvo.private_tails.flags_mask is None:
        reason = "positions in page->flags not known"
        context.audit.undecide("folio-tail-flags", reason)
    _PrivateTails(context, readable, boot_tails).check()


@dataclass(frozen=True)
class _WrongField:
    """A field that breaks a rule, and the struct page of its folio that it is in."""

    rule: RuleId
    field: TailField
    index: int
    expected: int
    actual: int


class _PrivateTails:
    def __init__(
        self, context: Context, readable: BoolArray, boot_tails: Sequence[BootTail]
    ) -> None:
        self._context = context
        self._readable = readable
        self._boot_tails = boot_tails
        self._folios = context.hugetlb.folios
        self._tails = context.hvo.private_tails
        # The folios that have findings of their own, by rule.
        self._told: dict[RuleId, list[subjects.TailWord]] = {}
        # Folios whose tails have the reference counts of a shared tail page.
        self._residues: list[tuple[int, list[_WrongField], BootTail]] = []

    def check(self) -> None:
        folios, context = self._folios, self._context
        is_free = folios.on_list == FREE_LIST
        suspects = self._readable & ~np.where(is_free, folios.idle, folios.regular)
        # A folio that fills more than one page of vmemmap is looked at in its first
        # one.
        per_slice = context.geometry.pages_per_slice
        counts = np.minimum(1 << folios.order, per_slice)
        for batch in _batches(suspects):
            for count in sorted(set(counts[batch].tolist())):
                self._look(batch[counts[batch] == count], is_free, count)
        if context.layout.tails.private_slices > 1:
            # From v5.14 to v5.17, all further slices repeat the second one.
            for batch in _batches(self._readable & context.hugetlb.optimized_mapping):
                self._look(batch, is_free, per_slice, per_slice)
        if self._residues:
            self._add_residues()

    def _look(
        self, which: Int64Array, is_free: BoolArray, count: int, behind: int = 0
    ) -> None:
        """
        Look at *count* struct pages of each folio that lie in one page.

        :param behind: As of :meth:`_compare()`.
        """
        context, folios = self._context, self._folios
        pages = context.vmemmap.read_pages(folios.head_pfn[which] + behind, count)
        unread = int((~pages.present).sum())
        context.audit.missing(Need.FOLIO_TAILS, "private tails of folios", unread)
        present = pages.present
        if behind:  # heads that read as zeros were not readable
            present = present & pages.data.any(axis=1)
            zeros = int(pages.present.sum() - present.sum())
            context.audit.blank(Need.FOLIO_TAILS, "private tails of folios", zeros)
            if unread + zeros:
                # No other check looks at these pages: its rules are undecided.
                for rule in {_rule(f) for f in self._tails.fields} - {"folio-head"}:
                    why = f"second pages of folios {NOT_IN_DUMP}"
                    context.audit.undecide(rule, why, unread + zeros)
        there = which[present]
        facts = FolioFacts(
            context.vmemmap.page_addresses(folios.head_pfn[there]),
            folios.order[there],
            self._flags(there),
            is_free[there],
        )
        found = self._compare(pages.data[present], facts, count, behind)
        for row, wrong in found.items():
            i = int(there[row])
            if folios.order[i] > self._max_page_order:
                wrong = _without_unset_mappings(wrong)
            self._add_all(i, wrong)

    @cached_property
    def _max_page_order(self) -> int:
        """The largest order of the buddy allocator; hugetlb makes larger ones."""
        areas = self._context.kernel.vmcoreinfo.length("zone.free_area")
        return areas - 1 if areas else _USUAL_MAX_PAGE_ORDER

    def _flags(self, which: Int64Array) -> U64Array:
        """Flags of heads, with the node and zone that they should name."""
        context, layout = self._context, self._context.hvo.mmzone.flags_layout
        flags = self._folios.flags[which]
        if layout is None:
            return flags
        nids, zones = context.nids[which], context.zones[which]
        return layout.with_places(flags, nids, zones)

    def _compare(
        self, rows: ByteArray, facts: FolioFacts, count: int, behind: int
    ) -> dict[int, list[_WrongField]]:
        """
        What is wrong with folios of *count* struct pages in one page, by row.

        :param behind: How many struct pages are in front of these; then all of them
            are as the last ones that have fields of their own.
        """
        last = max(field.index for field in self._tails.fields)
        found: dict[int, list[_WrongField]] = {}
        for field in self._tails.fields:
            expected, mask = self._tails.expected(field, facts)
            end = count if field.index == last else min(field.index + 1, count)
            if behind and field.index != last:
                continue
            for index in range(0 if behind else field.index, end):
                actual = self._tails.values(rows, field, index)
                odd = (actual ^ expected) & mask != 0
                for row in np.flatnonzero(odd).tolist():
                    kept = int(actual[row]) & ~int(mask[row])
                    found.setdefault(row, []).append(
                        _WrongField(
                            _rule(field),
                            field,
                            behind + index,
                            kept | int(expected[row] & mask[row]),
                            int(actual[row]),
                        )
                    )
        return found

    def _add_all(self, i: int, wrong: list[_WrongField]) -> None:
        """Add a finding for each rule that a folio breaks."""
        if self._context.in_transition[i]:
            self._context.audit.transitional.add(int(self._folios.head_pfn[i]))
            return
        by_rule: dict[RuleId, list[_WrongField]] = {}
        for one in sorted(wrong, key=lambda one: (one.index, one.field.offset)):
            by_rule.setdefault(one.rule, []).append(one)
        for rule, fields in by_rule.items():
            residue = self._boot_tail(i, fields)
            if residue is not None:
                self._residues.append((i, fields, residue))
                continue
            told = self._told.setdefault(rule, [])
            if len(told) < _MAX_TOLD:
                told.append(subjects.TailWord(int(self._folios.head_pfn[i]), rule))
                self._add(i, told[-1], fields)
            else:
                self._context.audit.again(rule, told[0], len(fields))

    def _add(self, i: int, about: subjects.TailWord, fields: list[_WrongField]) -> None:
        context, first = self._context, fields[0]
        head_pfn = int(self._folios.head_pfn[i])
        pfn = head_pfn + first.index
        where = f"tail of PFN {pfn}, struct page {first.index} of its folio,"
        if not first.index:
            where = f"head of the folio of PFN {pfn}"
        context.audit.add(
            Finding(
                first.rule,
                f"{first.field.name} of the {where} is wrong ({first.actual:#x})",
                about,
                because=(
                    subjects.HeadFrame(head_pfn),
                    subjects.FolioHead(head_pfn),
                    subjects.FolioTails(head_pfn),
                    subjects.StrayHead(head_pfn),
                ),
                folded=len(fields) - 1,
                place=context.place(i).at(
                    context.word_spot(pfn, first.field.offset), pfn=pfn
                ),
                expected=first.expected,
                actual=first.actual,
            )
        )

    def _add_residues(self) -> None:
        """Tell all folios that have the reference counts of shared tail pages once."""
        i, fields, _ = self._residues[0]
        first, context = fields[0], self._context
        pfn = int(self._folios.head_pfn[i]) + first.index
        words = sum(len(fields) for _, fields, _ in self._residues)
        context.audit.add(
            Finding(
                first.rule,
                f"tails of {len(self._residues)} folios have the reference counts of "
                "the shared tail page of a larger one that they were a part of",
                subjects.BootPages(),
                because=tuple({tail.subject: None for _, _, tail in self._residues}),
                defect=BOOT_TAIL_REFCOUNT,
                affected=len(self._residues),
                folded=words - 1,
                place=context.place(i).at(
                    context.word_spot(pfn, first.field.offset), pfn=pfn
                ),
                expected=first.expected,
                actual=first.actual,
            )
        )

    def _boot_tail(self, i: int, fields: list[_WrongField]) -> Optional[BootTail]:
        """The shared tail page whose reference counts the tails have as their own."""
        if fields[0].rule != "folio-tail-refcount" or any(
            one.actual != 1 for one in fields
        ):
            return None
        order = int(self._folios.order[i])
        fitting = (t for t in self._boot_tails if t.may_have_been_copied(order))
        return next(fitting, None)


def _without_unset_mappings(wrong: list[_WrongField]) -> list[_WrongField]:
    """
    What is wrong with a gigantic folio, but for mappings that are NULL in all tails.

    prep_compound_gigantic_page() and its successor __prep_compound_gigantic_folio()
    (:linux:`mm/hugetlb.c`) call set_compound_head() alone: the tails have no
    TAIL_MAPPING until hugetlb_folio_init_tail_vmemmap() (at boot, in v6.7) and
    "mm: hugetlb: use __GFP_COMP for gigantic folio allocation" (in v6.12) have
    prep_compound_tail() make them. Some that are NULL, among others that are not, are
    damage.
    """
    mappings = [one for one in wrong if one.rule == "folio-tail-mapping"]
    unset = [one for one in mappings if not one.actual]
    indices = {one.index for one in unset}
    if not unset or len(indices) * 2 < max(one.index for one in mappings):
        return wrong
    return [
        replace(one, expected=0) if one in mappings else one
        for one in wrong
        if one not in unset
    ]


def _batches(which: BoolArray) -> Iterator[Int64Array]:
    """The indices of what is true, in pieces of at most ``_AT_ONCE``."""
    places = np.flatnonzero(which)
    for start in range(0, len(places), _AT_ONCE):
        yield places[start : start + _AT_ONCE]


def _rule(field: TailField) -> RuleId:
    if field.verdict == "head":
        return "folio-head"
    return cast(RuleId, f"folio-tail-{field.verdict}")
