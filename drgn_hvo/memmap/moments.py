# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Moments of a kernel
-------------------

What HVO and the pools were like when a kernel was read, and what changed between two
such moments: of a running kernel, or of two dumps. Pages can be compared only within
one boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError
import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.arrays import BoolArray, Int64Array
from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.folios import Folios
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.hwpoison import are_hwpoisoned
from drgn_hvo.memmap.pools import LIST_NAMES, NO_LIST, hpg_names
from drgn_hvo.memmap.shared_tails import SharedTail, Slot

__all__ = (
    "Changes",
    "CounterChange",
    "FolioChange",
    "FolioState",
    "Moment",
    "TailChange",
    "changes",
    "moment_of",
)


# Order, node (None: of all nodes) and name.
_CounterKey = tuple[int, Optional[int], str]


@dataclass(frozen=True)
class Moment:
    """
    A kernel with types, all of it read.

    :param boot: What differs from boot to boot: where things lie, and its random ID.
    :param counters: Of pools, by order, node (``None``: of all) and name.
    :param tails: Shared tail pages by slot.
    :param empty_slots: Slots that surely name nothing.
    :param words: The words of the frame of each, ``None`` if it is not in the dump.
    :param hwpoisoned: Which folios are; ``None`` if nothing tells.
    :param knows_lists: Whether all lists were followed to their ends: if not, a folio
        may be there although none was found.
    :param knows_mappings: Whether all page tables of vmemmap were read.
    :param knows_slots: Whether all slots of shared tail pages were read.
    """

    release: Optional[str]
    boot: tuple[tuple[str, object], ...]
    counters: dict[_CounterKey, Optional[int]]
    tails: dict[Slot, SharedTail]
    empty_slots: frozenset[Slot]
    words: dict[Slot, Optional[npt.NDArray[np.uint64]]]
    folios: Folios
    hwpoisoned: Optional[BoolArray]
    hpg_flags: dict[str, int]
    knows_lists: bool
    knows_mappings: bool
    knows_slots: bool

    def knows_slot(self, slot: Slot) -> bool:
        """Whether it is known what a slot names, or that there is none."""
        return self.knows_slots or slot in self.tails or slot in self.empty_slots


def moment_of(hvo: Hvo) -> Moment:
    """Read a kernel with types, all that is compared at once."""
    tails = {tail.key: tail for tail in hvo.shared_tails}
    return Moment(
        hvo.kernel.release,
        tuple(_boot(hvo)),
        dict(_counters(hvo)),
        tails,
        hvo.tail_slots.empty,
        {slot: _words(hvo, tail.pfn) for slot, tail in tails.items()},
        hvo.hugetlb.folios,
        are_hwpoisoned(hvo),
        hvo.hugetlb.hpg_flags,
        not hvo.unread_lists,
        hvo.vmemmap.has_all_mappings,
        hvo.unread_of(Need.NODES, Need.SLOTS) is None,
    )


def _boot(hvo: Hvo) -> Iterator[tuple[str, object]]:
    kernel = hvo.kernel
    yield "release", kernel.release
    yield "vmemmap", hvo.vmemmap.base
    for name, size in (("hstates", 0), ("sysctl_bootid", 16)):
        try:
            address = kernel.sources.address(name)
            if address is None:
                continue
            yield f"address of {name}", address
            # random_sysctl_boot_id: zeros until somebody asks for it.
            value = kernel.prog.read(address, size) if size else b""
        except (FaultError, UnavailableError):
            continue
        if any(value):
            yield name, bytes(value)


def _counters(hvo: Hvo) -> Iterator[tuple[_CounterKey, Optional[int]]]:
    for hstate in hvo.hugetlb.hstates:
        order = hstate.order
        for name in ("total", "free", "surplus", "reserved"):
            yield (order, None, name), getattr(hstate, name)
        for name in ("total", "free", "surplus"):
            for nid, count in getattr(hstate, f"{name}_node").items():
                yield (order, nid, name), count


def _words(hvo: Hvo, pfn: Optional[int]) -> Optional[npt.NDArray[np.uint64]]:
    if pfn is None:
        return None
    frames = hvo.kernel.reader.read(np.array([pfn], dtype=np.int64))
    # What is all zeros was left out: no shared tail page is.
    if not frames.present[0] or not frames.data.any():
        return None
    return frames.data[0].view(hvo.kernel.reader.u64).astype(np.uint64)


@dataclass(frozen=True)
class CounterChange:
    """A counter of a pool; of all nodes if *nid* is ``None``."""

    order: int
    nid: Optional[int]
    counter: str
    before: int
    after: int


@dataclass(frozen=True)
class TailChange:
    """
    A shared tail page.

    :param before: ``None`` if its slot was not in use then.
    :param after: ``None`` if it is no longer in use.
    :param words: How many of its words changed; ``None`` if it is another frame, or
        was not read.
    """

    slot: Slot
    before: Optional[SharedTail]
    after: Optional[SharedTail]
    words: Optional[int]


@dataclass(frozen=True)
class FolioState:
    """
    A hugetlb folio; what is ``None`` is not known.

    :param on_list: ``"free"`` or ``"active"``; ``None`` also if it is on none.
    :param flags: Names of its ``HPG_`` flags.
    :param optimized: Whether it shares frames, by the page tables.
    """

    order: int
    on_list: Optional[str]
    refcount: Optional[int]
    flags: Optional[tuple[str, ...]]
    optimized: Optional[bool]
    head_frame: Optional[int]
    hwpoison: Optional[bool]


@dataclass(frozen=True)
class FolioChange:
    """A hugetlb folio; ``None`` when it is not there."""

    head_pfn: int
    before: Optional[FolioState]
    after: Optional[FolioState]


@dataclass(frozen=True)
class Changes:
    """
    What changed between two moments.

    :param same_boot: ``None`` if nothing says that it was another one, and nothing
        proves that it was not.
    :param tails: ``None``, as *folios*, if they cannot be compared.
    """

    same_boot: Optional[bool]
    counters: tuple[CounterChange, ...]
    tails: Optional[tuple[TailChange, ...]]
    folios: Optional[tuple[FolioChange, ...]]


def changes(before: Moment, after: Moment) -> Changes:
    """What changed between two moments."""
    same_boot = _same_boot(before, after)
    counters = tuple(_counter_changes(before, after))
    if same_boot is False:
        return Changes(same_boot, counters, None, None)
    return Changes(
        same_boot,
        counters,
        tuple(_tail_changes(before, after)),
        tuple(_folio_changes(before, after)),
    )


def _same_boot(before: Moment, after: Moment) -> Optional[bool]:
    first, second = dict(before.boot), dict(after.boot)
    common = first.keys() & second.keys()
    if any(first[key] != second[key] for key in common):
        return False
    return True if "sysctl_bootid" in common else None


def _counter_changes(before: Moment, after: Moment) -> Iterator[CounterChange]:
    for key in sorted(
        before.counters.keys() | after.counters.keys(),
        key=lambda one: (one[0], one[1] is not None, one[1] or 0, one[2]),
    ):
        was, became = before.counters.get(key), after.counters.get(key)
        if was is not None and became is not None and was != became:
            yield CounterChange(*key, was, became)


def _tail_changes(before: Moment, after: Moment) -> Iterator[TailChange]:
    slots = before.tails.keys() | after.tails.keys()
    for slot in sorted(slots, key=lambda s: (s.nid, s.zone_index or 0, s.order)):
        if not (before.knows_slot(slot) and after.knows_slot(slot)):
            continue
        was, became = before.tails.get(slot), after.tails.get(slot)
        words = None
        if was is not None and became is not None and was.pfn == became.pfn:
            first, second = before.words[slot], after.words[slot]
            if first is not None and second is not None:
                words = int((first != second).sum())
        if words or _tails_differ(was, became):
            yield TailChange(slot, was, became, words)


def _tails_differ(was: Optional[SharedTail], became: Optional[SharedTail]) -> bool:
    """Whether a shared tail page changed, in what is known both times."""
    if was is None or became is None:
        return was is not became
    if was.value != became.value or was.pfn != became.pfn:
        return True
    pairs = [
        (getattr(was, name), getattr(became, name))
        for name in ("frame_nid", "frame_refcount", "boot", "mapped_by")
    ]
    return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def _folio_changes(before: Moment, after: Moment) -> Iterator[FolioChange]:
    first, second = before.folios, after.folios
    pfns = np.union1d(first.head_pfn, second.head_pfn)
    here, there = _rows(first, pfns), _rows(second, pfns)
    both = (here >= 0) & (there >= 0)
    changed = ~both
    # What was not found may be there, if not all that leads to it was read.
    changed &= (here >= 0) | _would_be_found(before, second, there)
    changed &= (there >= 0) | _would_be_found(after, first, here)
    changed[both] = _differ(before, after, here[both], there[both])
    for i in np.flatnonzero(changed).tolist():
        yield FolioChange(
            int(pfns[i]), _state(before, int(here[i])), _state(after, int(there[i]))
        )


def _would_be_found(moment: Moment, others: Folios, rows: Int64Array) -> BoolArray:
    """
    Which folios of another moment would have been found in this one: those that were on
    a list by lists, others by the frames that they share alone.

    :param rows: Of *others*; -1 stands for none.
    """
    found = np.full(len(rows), moment.knows_lists)
    if not (moment.knows_mappings and moment.knows_slots) and len(others):
        found &= others.on_list[rows] != NO_LIST
    return found


def _rows(folios: Folios, pfns: Int64Array) -> Int64Array:
    """Which of the folios have their heads at PFNs, -1 if none has."""
    rows = np.searchsorted(folios.head_pfn, pfns)
    rows = np.minimum(rows, max(len(folios) - 1, 0))
    if not len(folios):
        return np.full(len(pfns), -1, dtype=np.int64)
    return np.where(folios.head_pfn[rows] == pfns, rows, -1)


def _differ(
    before: Moment, after: Moment, here: Int64Array, there: Int64Array
) -> BoolArray:
    """Which folios that are there both times changed, in what is known both times."""
    first, second = before.folios, after.folios
    differ: BoolArray = first.order[here] != second.order[there]
    lists = first.on_list[here], second.on_list[there]
    known = np.ones(len(here), dtype=np.bool_)
    if not (before.knows_lists and after.knows_lists):
        known = (lists[0] != NO_LIST) & (lists[1] != NO_LIST)
    differ |= known & (lists[0] != lists[1])
    present = first.present[here] & second.present[there]
    differ |= present & (first.refcount[here] != second.refcount[there])
    differ |= present & (first.private[here] != second.private[there])
    if before.hwpoisoned is not None and after.hwpoisoned is not None:
        differ |= present & (before.hwpoisoned[here] != after.hwpoisoned[there])
    if before.knows_mappings and after.knows_mappings:
        differ |= first.shared_ptes[here] != second.shared_ptes[there]
        differ |= first.head_frame[here] != second.head_frame[there]
    return differ


def _state(moment: Moment, i: int) -> Optional[FolioState]:
    if i < 0:
        return None
    folios, present = moment.folios, bool(moment.folios.present[i])
    private, frame = int(folios.private[i]), int(folios.head_frame[i])
    names = hpg_names(moment.hpg_flags, private)
    shared = bool(folios.shared_ptes[i])
    hwpoison = None if moment.hwpoisoned is None else bool(moment.hwpoisoned[i])
    return FolioState(
        order=int(folios.order[i]),
        on_list=LIST_NAMES[folios.on_list[i]],
        refcount=int(folios.refcount[i]) if present else None,
        flags=tuple(sorted(names)) if present else None,
        optimized=shared or (False if moment.knows_mappings else None),
        head_frame=None if frame < 0 else frame,
        hwpoison=hwpoison if present else None,
    )
