# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pools of huge pages
-------------------

Lists and counters of every ``struct hstate``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Object
import numpy as np
import numpy.typing as npt

from drgn_hvo.audit import subjects
from drgn_hvo.audit.check_shared_tails import BootTail
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.defects import BOOT_TAIL_REFCOUNT
from drgn_hvo.audit.findings import Finding, Place
from drgn_hvo.audit.rules import RuleId
from drgn_hvo.kernel.arrays import BoolArray, distinct
from drgn_hvo.kernel.unread import READS_AS_ZEROS, Need
from drgn_hvo.memmap.pools import (
    ACTIVE_LIST,
    FREE_LIST,
    NO_LIST,
    HState,
    HugePageList,
)

__all__ = ("check_links", "check_pools")

# Rules of this check: what was excused of one of them says that the holder of
# hugetlb_lock was at work.
_MOVED: tuple[RuleId, ...] = ("folio-list", "hstate-lists", "hstate-counters")


def check_pools(
    context: Context, readable: BoolArray, boot_tails: Sequence[BootTail]
) -> None:
    """
    Decide ``folio-list``, ``hstate-lists`` and ``hstate-counters``.

    :param readable: Folios whose own first struct pages can be read.
    :param boot_tails: Shared tail pages whose reference counts free folios can have.
    """
    for a_list in context.hugetlb.lists:
        check_links(context, a_list)
        for i, wrong in _wrong_members(context, readable, a_list):
            _add_member(context, a_list, i, wrong, boot_tails)
    _check_doubles(context)
    for hstate in context.hugetlb.hstates:
        _check_counters(context, hstate)


def _subject(a_list: HugePageList) -> subjects.PoolList:
    return subjects.PoolList(a_list.order, a_list.kind, a_list.nid)


def check_links(context: Context, a_list: HugePageList) -> None:
    """The part of ``hstate-lists`` that is about one list."""
    broken = a_list.broken
    if broken is None or a_list.is_unread:
        return
    # __list_add() and __list_del() store four words, and two: in between, a list can
    # still be followed to its end.
    if not broken.ends and context.is_excused_by_lock("hstate-lists"):
        return
    # The folio whose lru breaks, or the last one in front of it.
    pfn = _folio_of(context, broken.address)
    last = a_list.heads[-1] if a_list.heads else None
    because: list[subjects.Subject] = [
        subjects.HeadFrame(head) for head in (pfn, last) if head is not None
    ]
    if pfn is not None:
        because.append(subjects.FolioHead(pfn))
    context.audit.add(
        Finding(
            "hstate-lists",
            f"the {a_list} is broken behind {len(a_list.heads)} folios: the link at "
            f"{broken.address:#x} {broken.reason}",
            _subject(a_list),
            because=tuple(because),
            place=Place(
                nid=a_list.nid,
                order=a_list.order,
                head_pfn=pfn,
                address=broken.address,
                physical_address=context.translate(broken.address),
            ),
            actual=broken.value,
        )
    )


def _folio_of(context: Context, link: int) -> Optional[int]:
    """The folio whose ``lru`` a link is in."""
    lru = context.kernel.struct_page.require("lru")
    offset = (link - context.vmemmap.base) % context.size
    if offset not in (lru, lru + 8):
        return None
    return context.vmemmap.page_pfn(link - offset)


def _check_doubles(context: Context) -> None:
    lists = context.hugetlb.lists
    if not lists:
        return
    pfns = np.concatenate([a_list.heads for a_list in lists])
    lengths = [len(a_list.heads) for a_list in lists]
    owner = np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
    order = np.argsort(pfns, kind="stable")
    doubles = pfns[order[1:][np.diff(pfns[order]) == 0]]
    first: dict[int, HugePageList] = {}
    for i in np.flatnonzero(np.isin(pfns, doubles)).tolist():
        pfn, a_list = int(pfns[i]), lists[owner[i]]
        if first.setdefault(pfn, a_list) is a_list:
            continue
        context.audit.add(
            Finding(
                "hstate-lists",
                f"the folio of PFN {pfn} is on the {first[pfn]} and on the {a_list}",
                subjects.FolioLists(pfn),
                because=(_subject(a_list), _subject(first[pfn])),
                place=Place(order=a_list.order, head_pfn=pfn),
            )
        )


@dataclass(frozen=True)
class _Wrong:
    """What is wrong with a folio on a list, and where that is written."""

    what: str
    offset: int
    expected: Optional[int]
    actual: Optional[int]
    is_freed_flag: bool = False


def _wrong_members(
    context: Context, readable: BoolArray, a_list: HugePageList
) -> Iterator[tuple[int, _Wrong]]:
    """What is wrong with folios on a list that nothing excuses, by their index."""
    folios = context.hugetlb.folios
    heads = np.asarray(a_list.heads)
    index = np.searchsorted(folios.head_pfn, heads)
    if a_list.kind == FREE_LIST:
        homeless = int((context.nids[index] < 0).sum())
        context.audit.missing(Need.FOLIO_ZONES, "nodes of folios", homeless)
    suspect = readable[index] & _may_be_wrong(context, a_list, index)
    for i in index[suspect].tolist():
        for wrong in _wrong_member(context, a_list, i):
            if wrong.is_freed_flag and context.is_excused_by_lock("folio-list"):
                continue
            yield i, wrong


def _add_member(
    context: Context,
    a_list: HugePageList,
    i: int,
    wrong: _Wrong,
    boot_tails: Sequence[BootTail],
) -> None:
    head_pfn = int(context.hugetlb.folios.head_pfn[i])
    boot_tail = None
    if wrong.offset == context.kernel.struct_page.refcount and wrong.actual == 1:
        fitting = (t for t in boot_tails if t.may_have_been_copied(a_list.order))
        boot_tail = next(fitting, None)
    context.audit.add(
        Finding(
            "folio-list",
            f"the folio of PFN {head_pfn} is on the {a_list}, but {wrong.what}",
            subjects.FolioList(head_pfn),
            because=(
                subjects.FolioLists(head_pfn),
                subjects.HeadFrame(head_pfn),
                subjects.FolioHead(head_pfn),
                _subject(a_list),
                *(() if boot_tail is None else (boot_tail.subject,)),
            ),
            defect=None if boot_tail is None else BOOT_TAIL_REFCOUNT,
            place=context.place(i).at(
                context.word_spot(head_pfn, wrong.offset), pfn=head_pfn
            ),
            expected=wrong.expected,
            actual=wrong.actual,
        )
    )


def _may_be_wrong(
    context: Context, a_list: HugePageList, index: npt.NDArray[np.intp]
) -> BoolArray:
    """Which folios of a list to look at one by one."""
    folios, is_free = context.hugetlb.folios, a_list.kind == FREE_LIST
    freed = context.hugetlb.has_hpg_flag("freed")
    suspect = np.zeros(len(index), dtype=np.bool_)
    if freed is not None:
        suspect |= freed[index] != is_free
    if is_free:
        suspect |= folios.refcount[index] != 0
        suspect |= context.nids[index] != a_list.nid
    return suspect


def _wrong_member(context: Context, a_list: HugePageList, i: int) -> Iterator[_Wrong]:
    folios, page = context.hugetlb.folios, context.kernel.struct_page
    private, refcount = int(folios.private[i]), int(folios.refcount[i])
    bit = context.hugetlb.hpg_flags.get("freed")
    if bit is not None and bool(private >> bit & 1) != (a_list.kind == FREE_LIST):
        has = "lacks" if a_list.kind == FREE_LIST else "has"
        yield _Wrong(
            f"{has} HPG_freed",
            page.require("private"),
            private ^ 1 << bit,
            private,
            is_freed_flag=True,
        )
    if a_list.kind != FREE_LIST:
        return
    if refcount:
        yield _Wrong(
            f"has reference count {refcount}", page.require("refcount"), 0, refcount
        )
    nid = int(context.nids[i])
    if nid >= 0 and nid != a_list.nid:
        yield _Wrong(f"lies on node {nid}", page.flags, None, int(folios.flags[i]))


def _check_counters(context: Context, hstate: HState) -> None:
    lists = context.hugetlb.lists_of(hstate.order)
    pool = Object(context.kernel.prog, "struct hstate *", hstate.address)
    if context.hvo.mmzone.knows_all_nids:
        for total in _totals(context, hstate):
            _check_total(context, hstate, pool, total)
    if any(a_list.is_damaged for a_list in lists):
        reason = f"lists of order {hstate.order} are broken"
        context.audit.undecide("hstate-counters", reason)
        return
    for a_list in lists:
        if a_list.kind == FREE_LIST and a_list.nid is not None and a_list.is_whole:
            counter = pool.free_huge_pages_node[a_list.nid]
            free = hstate.free_node[a_list.nid]
            if free is not None and free != len(a_list.heads):
                what = f"free huge pages of node {a_list.nid}"
                _add_counter(context, hstate, counter, len(a_list.heads), free, what)
    if hstate.total is None or not lists:
        return
    if not all(a_list.is_whole for a_list in lists):
        return
    on_lists = len(distinct(np.concatenate([a_list.heads for a_list in lists])))
    if hstate.total < on_lists:
        what = "huge pages, fewer than are on its lists"
        _add_counter(context, hstate, pool.nr_huge_pages, on_lists, hstate.total, what)


@dataclass(frozen=True)
class _Total:
    """
    A counter of a pool that must be the sum of those of its nodes.

    :param member: Of ``struct hstate``; ``_node`` behind it for those of the nodes.
    :param seen: How many huge pages were found on lists, by node, if all were.
    """

    member: str
    name: str
    total: Optional[int]
    by_node: dict[int, Optional[int]]
    seen: Optional[dict[int, int]]


def _totals(context: Context, hstate: HState) -> Iterator[_Total]:
    lists = context.hugetlb.lists_of(hstate.order)
    on_lists = free = None
    if lists and all(a_list.is_whole for a_list in lists):
        free = {a.nid: len(a.heads) for a in lists if a.nid is not None}
        on_lists = _on_lists(context, hstate)
    yield _Total(
        "nr_huge_pages", "huge pages", hstate.total, hstate.total_node, on_lists
    )
    yield _Total(
        "free_huge_pages", "free huge pages", hstate.free, hstate.free_node, free
    )
    yield _Total(
        "surplus_huge_pages",
        "surplus huge pages",
        hstate.surplus,
        hstate.surplus_node,
        _surplus(context, hstate),
    )


def _on_lists(context: Context, hstate: HState) -> Optional[dict[int, int]]:
    """How many huge pages are on the lists, by node, if the nodes of all are known."""
    folios, nids = context.hugetlb.folios, context.nids
    mine = (folios.order == hstate.order) & (folios.on_list != NO_LIST)
    if (nids[mine] < 0).any():
        return None
    return {nid: int((nids[mine] == nid).sum()) for nid in hstate.total_node}


def _surplus(context: Context, hstate: HState) -> Optional[dict[int, int]]:
    """
    What the surplus of each node has to be, if the total is right and one node is not.
    What is not surplus is persistent_huge_pages() (mm/hugetlb.c), which the kernel
    keeps in max_huge_pages, too.
    """
    pool = Object(context.kernel.prog, "struct hstate *", hstate.address)
    counts = {nid: n for nid, n in hstate.surplus_node.items() if n is not None}
    if hstate.total is None or hstate.surplus is None:
        return None
    try:
        persistent = context.kernel.known_words.value(pool.max_huge_pages)
    except FaultError:
        return None
    if hstate.total - hstate.surplus != persistent:
        return None
    excess = sum(counts.values()) - hstate.surplus
    # An excess can only be in a node that counts that many; what is missing is taken to
    # be missing where most are.
    nid = max(counts, key=lambda nid: counts[nid], default=None)
    if nid is None or counts[nid] < excess:
        return None
    return {**counts, nid: counts[nid] - excess}


def _check_total(context: Context, hstate: HState, pool: Object, one: _Total) -> None:
    """
    Hold a total against its nodes. Where they disagree, the lists vote: a node that
    alone differs from them is the wrong one, if the total does not.
    """
    counts = [count for count in one.by_node.values() if count is not None]
    if len(counts) < len(one.by_node) or one.total in (None, sum(counts)):
        return
    seen = one.seen
    if seen is not None and sum(seen.values()) == one.total:
        nodes = pool.member_(f"{one.member}_node")
        for nid, count in one.by_node.items():
            if count != seen.get(nid, 0):
                what = f"{one.name} of node {nid}"
                counter, expected = nodes[nid], seen.get(nid, 0)
                _add_counter(context, hstate, counter, expected, count, what)
        return
    counter, what = pool.member_(one.member), f"{one.name} in total"
    _add_counter(context, hstate, counter, sum(counts), one.total, what)


def _is_moving(context: Context, hstate: HState) -> bool:
    """Whether a huge page is seen that the holder of hugetlb_lock may be moving."""
    return (
        any(context.audit.excused.get(rule) for rule in _MOVED)
        or bool(context.in_transition.any())
        or _is_free_one_on_its_way(context, hstate)
    )


def _is_free_one_on_its_way(context: Context, hstate: HState) -> bool:
    """
    Whether a free list, the count of free huge pages and that of the nodes differ as
    enqueue_hugetlb_folio() and dequeue_hugetlb_folio() leave them, which change them in
    this order: the first two, or the last two, agree.
    """
    lists = context.hugetlb.lists_of(hstate.order)
    frees = [a_list for a_list in lists if a_list.kind == FREE_LIST]
    counts = [count for count in hstate.free_node.values() if count is not None]
    if len(counts) < len(hstate.free_node) or not all(a.is_whole for a in frees):
        return False
    length, of_nodes = sum(len(a.heads) for a in frees), sum(counts)
    return abs(length - of_nodes) == 1 and hstate.free in (length, of_nodes)


def _add_counter(
    context: Context,
    hstate: HState,
    counter: Object,
    expected: Optional[int],
    actual: Optional[int],
    what: str,
) -> None:
    address = counter.address_of_().value_()
    if not actual and context.kernel.known_words.is_blank(address):
        reason = f"counters of the pool of order {hstate.order} {READS_AS_ZEROS}"
        context.audit.undecide("hstate-counters", reason)
        return
    held = context.lock.state == "held"
    # The lock excuses one huge page that is seen on its way; any other difference stays
    # a warning.
    may_be_excused = not held or (
        abs((expected or 0) - (actual or 0)) == 1 and _is_moving(context, hstate)
    )
    if may_be_excused and context.is_excused_by_lock("hstate-counters"):
        return
    context.audit.add(
        Finding(
            "hstate-counters",
            f"the pool of order {hstate.order} counts {actual} {what}, not {expected}"
            + (" (hugetlb_lock is held)" if held else ""),
            subjects.PoolCounters(hstate.order),
            because=tuple(
                subjects.PoolList(hstate.order, kind, nid)
                for kind in (FREE_LIST, ACTIVE_LIST)
                for nid in (*hstate.free_node, None)
            ),
            severity="warning" if held else "",
            place=Place(
                order=hstate.order,
                address=address,
                physical_address=context.translate(address),
            ),
            expected=expected,
            actual=actual,
            affected=0,
        )
    )
