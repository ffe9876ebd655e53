# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Shared tail pages
-----------------

The slots of ``vmemmap_tails[]``, and every word of the frames that they name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.audit import subjects
from drgn_hvo.audit.booting import BOOTING
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.defects import BOOT_TAIL_REFCOUNT
from drgn_hvo.audit.findings import Finding, Place, Spot
from drgn_hvo.audit.rules import RuleId, rules_on
from drgn_hvo.formats.tail_words import set_compound_head, tail_mapping
from drgn_hvo.kernel.arrays import (
    BoolArray,
    ByteArray,
    U64Array,
    column,
    distinct,
    distinct_index,
)
from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.shared_tails import SharedTail, Slot
from drgn_hvo.memmap.tail_arrays import TailArray

__all__ = ("BootTail", "TailFaults", "check_alignment", "check_tails")

_ALL_BITS = (1 << 64) - 1

# The values that _mapcount of a shared tail can have, where TailArray does not tell
# which one it has.
_MAPCOUNTS = (0xFFFFFFFF, 0)


@dataclass(frozen=True)
class BootTail:
    """
    A shared tail page with reference counts from boot, which folios can have as their
    own: demoted, a gigantic page gets back struct pages that are copies of it.
    """

    slot: Slot
    subject: subjects.TailWords

    def may_have_been_copied(self, order: int) -> bool:
        """Whether a folio of an order can be a part of one that used it."""
        return self.slot.order > order


@dataclass(frozen=True)
class TailFaults:
    """
    What is wrong with shared tail pages and has to be known of to judge folios.

    :param slots: Slots that are wrong: what disagrees with them is not.
    :param boot_tails: In the order of the slots.
    """

    slots: frozenset[Slot] = frozenset()
    boot_tails: tuple[BootTail, ...] = ()


def check_tails(context: Context) -> TailFaults:
    """Decide the ``shared-tail-`` rules."""
    if context.layout.tails.kind != "shared":
        return TailFaults()
    tails = context.shared_tails
    context.audit.checked["shared_tail_pages"] = len(
        {tail.pfn for tail in tails if tail.pfn is not None}
    )
    usable = [tail for tail in tails if _check_entry(context, tail)]
    unique = _check_unique(context, usable)
    boot_tails = [tail for tail in unique if _check_content(context, tail)]
    return TailFaults(
        frozenset(tail.key for tail in tails if tail not in unique),
        tuple(
            BootTail(tail.key, subjects.TailWords("shared-tail-refcount", tail.key))
            for tail in boot_tails
        ),
    )


def check_alignment(context: Context) -> None:
    """Decide ``vmemmap-alignment``."""
    max_order = context.layout.tails.max_order
    if not context.layout.encoding.has_mask:
        return
    if max_order is None:
        context.audit.skipped["vmemmap-alignment"] = (
            "MAX_FOLIO_ORDER is not known: there is no vmemmap_tails[]"
        )
        return
    required = context.geometry.vmemmap_align(max_order)
    base = context.vmemmap.base
    if base % required:
        context.audit.add(
            Finding(
                "vmemmap-alignment",
                f"vmemmap is not aligned to {required:#x}: masks of the largest orders "
                "lead to wrong heads",
                subjects.VmemmapBase(),
                place=Place(address=base),
                expected=base & -required,
                actual=base,
                affected=0,
            )
        )


def _place(context: Context, tail: SharedTail) -> Place:
    return Place(
        nid=tail.nid,
        zone=context.zone_name(tail.nid, tail.zone_index),
        order=tail.order,
        pfn=tail.pfn,
    )


def _slot_finding(
    context: Context, rule: RuleId, tail: SharedTail, why: str
) -> Finding:
    where = f"vmemmap_tails[{tail.index}] of node {tail.nid}"
    if tail.zone_index is not None:
        where += f" zone {context.zone_name(tail.nid, tail.zone_index)}"
    return Finding(
        rule,
        f"{where} {why}",
        subjects.TailSlot(tail.key),
        affected=context.slot_users(tail.key),
        place=_place(context, tail).at(Spot(tail.slot, context.translate(tail.slot))),
        actual=tail.value,
    )


def _check_entry(context: Context, tail: SharedTail) -> bool:
    """Whether a slot names a frame that can be a shared tail page."""
    why, undecided = _wrong_entry(context, tail)
    if undecided:
        context.audit.missing(
            Need.TAIL_STRUCT_PAGES, "struct pages of shared tail pages", 1
        )
        return True
    if why is None:
        return True
    finding = _slot_finding(context, "shared-tail-entry", tail, why)
    finding = replace(finding, because=_tables_above(context, tail))
    voted = _voted_frame(context, tail)
    if voted is not None:
        by_pfn = tail.value == tail.pfn
        value = voted if by_pfn else context.vmemmap.page_address(voted)
        finding = replace(finding, expected=value)
    context.audit.add(finding)
    return False


def _tables_above(context: Context, tail: SharedTail) -> tuple[subjects.Subject, ...]:
    """The page table entry that hides the struct page of a frame, if one does."""
    if tail.pfn is None:
        return ()
    entry = context.barrier(tail.pfn * context.size // context.page_size)
    return () if entry is None else (subjects.TableEntry(entry.address),)


def _wrong_entry(context: Context, tail: SharedTail) -> tuple[Optional[str], bool]:
    """Why a slot is wrong, and whether that cannot be told."""
    if tail.pfn is None:
        return f"holds {tail.value:#x}, which names no page", False
    slice_ = tail.pfn * context.size // context.page_size
    if context.vmemmap.mapping(slice_) is None:
        if context.is_missing(slice_):
            return None, True
        return f"names PFN {tail.pfn}, which is no RAM", False
    pages = context.vmemmap.read_pages(np.array([tail.pfn], dtype=np.int64))
    if not pages.present[0] or not pages.data.any():
        return None, True
    why = _wrong_own_page(context, tail, pages.data)
    if why is None and _voted_frame(context, tail) is not None:
        why = "is not the page that the huge pages of this order map"
    return (None if why is None else f"names PFN {tail.pfn}, which {why}"), False


def _voted_frame(context: Context, tail: SharedTail) -> Optional[int]:
    """
    The frame that the folios of a slot map in place of the one that it names, if that
    one is believed: none of them maps the other, and several agree, or only theirs
    has the tails of this order in it.
    """
    folios = context.hugetlb.folios
    mine = context.of_slot(tail.key) & context.hugetlb.optimized_mapping
    slices = folios.tail_slices
    shared = mine[slices.folio] & (slices.shared > 0)
    shared &= (slices.step == 0) | (slices.count == 1)
    frames, counts = slices.pfn[shared], slices.count[shared]
    if not len(frames) or (frames == tail.pfn).any():
        return None
    named, index = distinct_index(frames)
    votes = np.bincount(index, weights=counts)
    voted = int(named[int(np.argmax(votes))])
    voters = len(distinct(slices.folio[shared][frames == voted]))
    is_theirs_right = _own_content(context, replace(tail, pfn=voted))
    if _own_content(context, tail):
        return voted if voters > 1 and is_theirs_right else None
    return voted if voters > 1 or is_theirs_right else None


def _wrong_own_page(
    context: Context, tail: SharedTail, page: ByteArray
) -> Optional[str]:
    kernel = context.kernel
    flags = int(column(page, kernel.struct_page.flags, kernel.reader.u64)[0])
    info = int(column(page, kernel.struct_page.offset, kernel.reader.u64)[0])
    at = kernel.struct_page.require("mapcount")
    kind = int(column(page, at, kernel.reader.u32)[0])
    hwpoison = kernel.constant("PG_hwpoison")
    if hwpoison is not None and flags >> hwpoison & 1:
        return "is poisoned (PG_hwpoison)"
    if not tail.boot and info & 1:
        return "is the tail of a compound page"
    if flags & kernel.PG_head_mask:
        return "is the head of a compound page"
    if kind != 0xFFFFFFFF:
        return f"has a type or is mapped (page_type {kind:#x})"
    if not tail.boot and (tail.frame_refcount or 0) < 1:
        return f"is free (reference count {tail.frame_refcount})"
    return None


def _check_unique(context: Context, tails: list[SharedTail]) -> list[SharedTail]:
    """Report frames that two slots name; give the slots whose content to check."""
    first: dict[Optional[int], SharedTail] = {}
    doubles: set[Optional[int]] = set()
    for tail in tails:
        if tail.pfn in first:
            doubles.add(tail.pfn)
        first.setdefault(tail.pfn, tail)
    for pfn in doubles:
        named = [tail for tail in tails if tail.pfn == pfn]
        # The right one is that of the order that the tails themselves hold.
        right = [t for t in named if _own_content(context, t)] or named[:1]
        wrong = [t for t in named if t is not right[0]]
        for tail in wrong:
            why = f"names PFN {pfn}, as does the slot of order {right[0].order}"
            context.audit.add(_slot_finding(context, "shared-tail-unique", tail, why))
        tails = [t for t in tails if t not in wrong]
    return tails


def _own_content(context: Context, tail: SharedTail) -> bool:
    if tail.pfn is None:
        return False
    rows = _Rows.read(context, tail)
    return rows is not None and bool((rows.infos == np.uint64(rows.word)).any())


@dataclass(frozen=True)
class _Rows:
    """The struct pages in a shared tail page."""

    data: ByteArray
    infos: U64Array
    word: int

    @classmethod
    def read(cls, context: Context, tail: SharedTail) -> Optional[_Rows]:
        if tail.pfn is None:
            return None
        frames = context.kernel.reader.read(np.array([tail.pfn], dtype=np.int64))
        if not frames.present[0]:
            return None
        rows = frames.data.reshape(-1, context.size)
        kernel = context.kernel
        infos = column(rows, kernel.struct_page.offset, kernel.reader.u64)
        word = set_compound_head(context.geometry, 0, tail.order, True)
        return cls(rows, infos.astype(np.uint64), word)

    def most(
        self,
        offset: int,
        dtype: np.dtype[np.generic],
        choices: Sequence[int],
        mask: int = _ALL_BITS,
    ) -> int:
        """The choice that most struct pages have in a word; of several, the first."""
        words = column(self.data, offset, dtype).astype(np.uint64) & np.uint64(mask)
        counts = [int((words == np.uint64(choice & mask)).sum()) for choice in choices]
        return choices[counts.index(max(counts))]


@dataclass(frozen=True)
class _Expectation:
    """What one rule says of a word: ``value & mask == expected``."""

    rule: RuleId
    offset: int
    size: int
    mask: int
    expected: int
    what: str


def _expectations(
    context: Context, tail: SharedTail, rows: _Rows
) -> Iterator[_Expectation]:
    page = context.kernel.struct_page
    array = context.layout.tails.array
    assert array is not None, "it names the tail"
    word = set_compound_head(context.geometry, 0, tail.order, True)
    yield _Expectation("shared-tail-info", page.offset, 8, _ALL_BITS, word, page.member)
    mapping = page.require("mapping")
    yield _Expectation(
        "shared-tail-mapping",
        mapping,
        8,
        _ALL_BITS,
        tail_mapping(context.kernel.illegal_pointer_value),
        "mapping",
    )
    mapcount = page.require("mapcount")
    initial = array.mapcount
    if initial is None:
        initial = rows.most(mapcount, context.kernel.reader.u32, _MAPCOUNTS)
    yield _Expectation(
        "shared-tail-mapcount", mapcount, 4, 0xFFFFFFFF, initial, "_mapcount"
    )
    flags = _expected_flags(context, array, tail, rows)
    if flags is not None:
        yield _Expectation("shared-tail-flags", page.flags, 8, *flags, "flags")
    refcount = page.require("refcount")
    yield _Expectation("shared-tail-refcount", refcount, 4, 0xFFFFFFFF, 0, "_refcount")
    known = {page.flags, page.offset, mapping, mapcount & ~7, refcount & ~7}
    # In pages allocated at boot, lru.prev may be anything; so it may where it is not
    # known whether a page was.
    if tail.boot is not False:
        known.add(page.require("lru") + 8)
    for offset in sorted(set(range(0, context.size, 8)) - known):
        what = f"the word at offset {offset}"
        yield _Expectation("shared-tail-rest", offset, 8, _ALL_BITS, 0, what)


def _expected_flags(
    context: Context, array: TailArray, tail: SharedTail, rows: _Rows
) -> Optional[tuple[int, int]]:
    """Mask and value of ``flags``; ``None`` if the positions are not known."""
    layout = context.hvo.mmzone.flags_layout
    count = context.kernel.constant("__NR_PAGEFLAGS")
    if layout is None or count is None:
        reason = "positions in page->flags not known"
        context.audit.undecide("shared-tail-flags", reason)
        return None
    mask = (1 << count) - 1
    mask |= layout.node_mask << layout.node_shift
    mask |= layout.zone_mask << layout.zone_shift
    expected = array.expected_flags(layout, tail.nid, tail.zone_index)
    if array.names_owner is None:
        choices = [expected, 0]
        if _may_be_reserved(context, tail):
            reserved = 1 << (context.kernel.constant("PG_reserved") or 0)
            choices += [expected | reserved, reserved]
        flags, u64 = context.kernel.struct_page.flags, context.kernel.reader.u64
        expected = rows.most(flags, u64, choices, mask)
    return mask, expected


def _may_be_reserved(context: Context, tail: SharedTail) -> bool:
    """Whether tails may have PG_reserved, as those of device DAX do."""
    return tail.zone_index == context.kernel.constant("ZONE_DEVICE")


def _check_content(context: Context, tail: SharedTail) -> bool:
    """
    Check all words of a shared tail page.

    :return: Whether its reference counts are those from boot.
    """
    rows = _Rows.read(context, tail)
    if rows is None:
        context.audit.missing(Need.TAIL_FRAMES, "shared tail pages", 1)
        return False
    if not rows.data.any():
        # What an ELF core leaves out reads as zeros, and no tail is all zeros.
        context.audit.blank(Need.TAIL_FRAMES, "shared tail pages", 1)
        return False
    if _is_not_yet_made(context, tail, rows):
        for rule in rules_on("slot"):
            if rule.startswith("shared-tail-"):
                context.audit.undecide(rule, BOOTING)
        return False
    overwritten = _is_overwritten(context, rows)
    defects = set()
    for expectation in _expectations(context, tail, rows):
        defects.add(_check_words(context, tail, rows, expectation, overwritten))
        if overwritten:
            break  # all words are wrong, for one reason
    return BOOT_TAIL_REFCOUNT in defects


def _is_not_yet_made(context: Context, tail: SharedTail, rows: _Rows) -> bool:
    """
    Whether a shared tail page may not yet have its tails: sparse_init() maps one of
    memblock memory, and hugetlb_bootmem_struct_page_init() fills it later.
    """
    if tail.boot is False or context.is_booting is False:
        return False
    return bool((rows.infos != np.uint64(rows.word)).any())


def _check_words(
    context: Context,
    tail: SharedTail,
    rows: _Rows,
    expectation: _Expectation,
    overwritten: bool,
) -> Optional[str]:
    """
    Check one word of all struct pages.

    :return: The known defect that makes it wrong, if one does.
    """
    reader = context.kernel.reader
    dtype = reader.u64 if expectation.size == 8 else reader.u32
    values: npt.NDArray[np.uint64] = column(
        rows.data, expectation.offset, dtype
    ).astype(np.uint64)
    wrong: BoolArray = (values & np.uint64(expectation.mask)) != np.uint64(
        expectation.expected
    )
    defect = "memmap-init-overwrite" if overwritten else None
    if expectation.rule == "shared-tail-refcount" and tail.boot:
        # __init_single_page() leaves 1 in each of them; any other count is something
        # else, which must not hide behind what is known.
        left = values == 1
        if int(left.sum()) * 2 > len(values):
            defect = BOOT_TAIL_REFCOUNT
            few = wrong & ~left
            _add_words(context, tail, expectation, values, few, None, are_few=True)
            wrong = left
    _add_words(context, tail, expectation, values, wrong, defect)
    return defect if wrong.any() else None


def _add_words(
    context: Context,
    tail: SharedTail,
    expectation: _Expectation,
    values: npt.NDArray[np.uint64],
    wrong: BoolArray,
    defect: Optional[str],
    *,
    are_few: bool = False,
) -> None:
    """
    Report a word that is wrong in some struct pages, if it is in any.

    :param values: Of all struct pages.
    """
    where = np.flatnonzero(wrong)
    if not len(where):
        return
    first = int(where[0])
    assert tail.pfn is not None, "checked by _wrong_entry()"
    physical = tail.pfn * context.page_size + first * context.size + expectation.offset
    actual = int(values[first])
    context.audit.add(
        Finding(
            expectation.rule,
            _words_message(context, tail, expectation, where, actual),
            subjects.TailWords(expectation.rule, tail.key, are_few),
            defect=defect,
            affected=context.slot_users(tail.key),
            folded=len(where) - 1,
            place=_place(context, tail).at(
                Spot(context.direct_map(physical), physical)
            ),
            expected=actual & ~expectation.mask | expectation.expected,
            actual=actual,
        )
    )


def _words_message(
    context: Context,
    tail: SharedTail,
    expectation: _Expectation,
    where: npt.NDArray[np.intp],
    actual: int,
) -> str:
    total = context.geometry.pages_per_slice
    which = f"struct page {int(where[0])}"
    if len(where) > 1:
        which = f"{len(where)} of {total} struct pages"
    text = (
        f"{expectation.what} of {which} in the shared tail page of order {tail.order} "
        f"is wrong ({actual:#x})"
    )
    if expectation.rule == "shared-tail-info" and tail.mapped_by is not None:
        pages = len(where) * tail.mapped_by
        text += f": {pages} struct pages resolve to a wrong head"
    return text


def _is_overwritten(context: Context, rows: _Rows) -> bool:
    """
    Whether the page looks as ``__init_single_page()`` leaves it: lru points to
    itself in every struct page, and the tail word is the first half of lru.
    """
    page = context.kernel.struct_page
    if page.lru is None or page.offset != page.lru:
        return False
    behind = column(rows.data, page.lru + 8, context.kernel.reader.u64)
    expected = np.uint64(page.lru)
    own = (rows.infos == behind) & (rows.infos % np.uint64(context.size) == expected)
    return bool(own.all())
