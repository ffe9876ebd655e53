# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Huge page pools
---------------

The pools of huge pages (``struct hstate``) and their lists. A list in a dead
kernel may be broken: what is followed is checked and counted, and a list that
breaks says where.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Object, sizeof

from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.shapes import require_shapes
from drgn_hvo.kernel.unread import NOT_IN_DUMP, READS_AS_ZEROS, Need, Unread, why
from drgn_hvo.memmap.hstate_identity import WrongWord, read_identities
from drgn_hvo.memmap.list_links import ListLinks, Passed
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.memmap.zones import Mmzone

__all__ = (
    "ACTIVE_LIST",
    "FREE_LIST",
    "LIST_NAMES",
    "NO_LIST",
    "BrokenLink",
    "HState",
    "HugePageList",
    "Pools",
    "hpg_flags",
    "hpg_names",
    "read_lists",
    "read_pools",
)

#: Kinds of lists, and what they are called.
NO_LIST, FREE_LIST, ACTIVE_LIST = 0, 1, 2
LIST_NAMES: tuple[Optional[str], ...] = (None, "free", "active")


@dataclass(frozen=True)
class HState:
    """
    A pool of huge pages of one size: ``struct hstate``.

    Counters are in huge pages, ``None`` if not known; the dictionaries are by node ID,
    of all nodes that there can be.

    :param unread: What could not be read.
    """

    address: int
    order: int
    total: Optional[int]
    free: Optional[int]
    surplus: Optional[int]
    reserved: Optional[int]
    total_node: dict[int, Optional[int]]
    free_node: dict[int, Optional[int]]
    surplus_node: dict[int, Optional[int]]
    unread: tuple[Unread, ...] = ()


@dataclass(frozen=True)
class BrokenLink:
    """
    Where a list breaks.

    :param address: Of the word that is wrong.
    :param value: What it holds, ``None`` if it is not in the dump.
    :param reason: What is wrong with it.
    :param ends: Whether the list could not be followed behind it.
    """

    address: int
    value: Optional[int]
    reason: str
    ends: bool = True


@dataclass(frozen=True)
class HugePageList:
    """
    A list of the folios of a pool.

    :param kind: :data:`FREE_LIST` or :data:`ACTIVE_LIST`.
    :param nid: The node of a free list, ``None`` for the active list.
    :param heads: PFNs of the folios, in list order, up to where it breaks; of 64 bits,
        for :func:`numpy.asarray()`.
    :param broken: The first link that is wrong, if one is.
    """

    order: int
    kind: int
    nid: Optional[int]
    heads: array[int]
    broken: Optional[BrokenLink]

    @property
    def is_whole(self) -> bool:
        """Whether the list was followed to its end."""
        return self.broken is None or not self.broken.ends

    @property
    def is_damaged(self) -> bool:
        """Whether it ends at a wrong link, not at one that could not be read."""
        return not self.is_whole and not self.is_unread

    @property
    def is_unread(self) -> bool:
        """Whether a link of it could not be read."""
        return self.broken is not None and self.broken.value is None

    def __str__(self) -> str:
        where = "" if self.nid is None else f" of node {self.nid}"
        return f"{LIST_NAMES[self.kind]} list{where} of order {self.order}"


def hpg_flags(kernel: Kernel) -> dict[str, int]:
    """
    The bits of ``folio->private`` of a hugetlb folio, ``enum hugetlb_page_flags``.

    :return: Bit by name in lower case, without ``HPG_``.
    """
    flags = kernel.type("enum hugetlb_page_flags")
    return {
        enumerator.name[len("HPG_") :].lower(): enumerator.value
        for enumerator in (flags.enumerators or () if flags is not None else ())
        # Damaged types have bits that no word has.
        if enumerator.name.startswith("HPG_") and 0 <= enumerator.value < 64
    }


def hpg_names(flags: Mapping[str, int], private: int) -> list[str]:
    """
    The flags that are set in ``folio->private``.

    :param flags: As :func:`hpg_flags()` gives them.
    """
    return [name for name, bit in flags.items() if private >> bit & 1]


def _signed(counter: Object) -> int:
    """The kernel's counters are unsigned; that one ran below zero has to show."""
    bits, value = 8 * sizeof(counter), counter.value_()
    signed: int = value - (value >> (bits - 1) << bits)
    return signed


class _Counters:
    """
    The counters of one pool. What cannot be read is ``None``.

    Whole pages of ``hstates[]`` are zeros where a pool or node has no huge pages, and
    so is a page that was left out. Such zeros are believed if they fit the other
    counters, or if these are wrong by themselves; beside the mask of the pool, which
    is never zero (huge_page_mask()), they are not.
    """

    def __init__(self, kernel: Kernel, hstate: Object, nids: Sequence[int]) -> None:
        self._hstate = hstate
        self._nids = nids
        self._known_words = kernel.known_words
        self._page_size = kernel.geometry.page_size
        #: Why counters could not be read, and how many.
        self.unread: dict[str, int] = {}
        self.total, self.total_node = self._read("nr_huge_pages")
        self.free, self.free_node = self._read("free_huge_pages")
        self.surplus, self.surplus_node = self._read("surplus_huge_pages")
        self.reserved = self._number(hstate.resv_huge_pages)
        self._doubt()

    def _number(self, counter: Object) -> Optional[int]:
        try:
            count = _signed(counter)
        except FaultError:
            self._miss(NOT_IN_DUMP)
            return None
        if not count and self._is_beside_mask(counter) and self._is_blank(counter):
            return None
        return count

    def _is_beside_mask(self, counter: Object) -> bool:
        """Whether a counter is in the page of the mask of the pool."""
        mask = self._hstate.mask.address_ or 0
        return not ((counter.address_ or 0) ^ mask) & -self._page_size

    def _miss(self, reason: str) -> None:
        self.unread[reason] = self.unread.get(reason, 0) + 1

    def _read(self, name: str) -> tuple[Optional[int], dict[int, Optional[int]]]:
        counts = self._hstate.member_(f"{name}_node")
        by_node = {nid: self._number(counts[nid]) for nid in self._nids}
        return self._number(self._hstate.member_(name)), by_node

    def _doubt(self) -> None:
        """Forget zeros of pages of zeros that contradict other counters."""
        # max_huge_pages has the number of persistent huge pages a second time.
        most = self._number(self._hstate.max_huge_pages)
        if not self._are_wrong(most):
            self.total = self._forget("nr_huge_pages", self.total, self.total_node)
            self.surplus = self._forget(
                "surplus_huge_pages", self.surplus, self.surplus_node
            )
        if self.total != 0:
            self.free = self._forget("free_huge_pages", self.free, self.free_node)

    def _are_wrong(self, most: Optional[int]) -> bool:
        """Whether totals contradict each other, whatever the nodes have."""
        if not most or self.total is None or self.surplus is None:
            return False
        return self.total - self.surplus != most

    def _forget(
        self, name: str, total: Optional[int], by_node: dict[int, Optional[int]]
    ) -> Optional[int]:
        known = [count for count in by_node.values() if count is not None]
        if len(known) < len(by_node) or total in (None, sum(known)):
            return total
        counts = self._hstate.member_(f"{name}_node")
        for nid in by_node:
            if not by_node[nid] and self._is_blank(counts[nid]):
                by_node[nid] = None
        return (
            None if not total and self._is_blank(self._hstate.member_(name)) else total
        )

    def _is_blank(self, counter: Object) -> bool:
        blank = self._known_words.is_blank(counter.address_ or 0)
        if blank:
            self._miss(READS_AS_ZEROS)
        return blank


def _read_hstate(
    kernel: Kernel, hstate: Object, order: int, nids: Sequence[int]
) -> HState:
    counters = _Counters(kernel, hstate, nids)
    what = f"counters of the pool of order {order}"
    return HState(
        address=hstate.value_(),
        order=order,
        total=counters.total,
        free=counters.free,
        surplus=counters.surplus,
        reserved=counters.reserved,
        total_node=counters.total_node,
        free_node=counters.free_node,
        surplus_node=counters.surplus_node,
        unread=tuple(
            Unread(Need.COUNTERS, what, reason, count)
            for reason, count in counters.unread.items()
        ),
    )


@dataclass(frozen=True)
class Pools:
    """
    All pools.

    :param hstates: In the kernel's order.
    :param wrong: Words that say something else of them than the others do.
    :param unread: What could not be read.
    """

    hstates: tuple[HState, ...]
    wrong: tuple[WrongWord, ...]
    unread: tuple[Unread, ...]


def read_pools(kernel: Kernel, mmzone: Mmzone) -> Pools:
    """All pools, and what of them could not be read."""
    # As drgn's for_each_hstate(); importing that costs a sixth of the time of a check.
    try:
        hstates = kernel.prog["hstates"]
        require_shapes(kernel.prog.type("struct hstate"), "struct hstate")
        identities = read_identities(kernel, hstates)
    except LookupError:
        return Pools((), (), ())  # CONFIG_HUGETLBFS=n
    except DetectionError as e:
        return Pools((), (), (Unread(Need.POOLS, "pools", str(e)),))
    states = tuple(
        _read_hstate(kernel, hstates[pool.index].address_of_(), pool.order, mmzone.nids)
        for pool in identities.pools
        if pool.order is not None
    )
    unread = (*identities.unread, *(u for state in states for u in state.unread))
    return Pools(states, identities.wrong, unread)


def read_lists(
    vmemmap: Vmemmap, hstate: HState, nids: Sequence[int], links: ListLinks
) -> list[HugePageList]:
    """
    The free list of each node and the active list of a pool.

    :param links: Where to look links up.
    """
    kernel = vmemmap.kernel
    pool = Object(kernel.prog, "struct hstate *", hstate.address)
    heads = [(FREE_LIST, nid, pool.hugepage_freelists[nid]) for nid in nids]
    lists = []
    for kind, nid, head in [*heads, (ACTIVE_LIST, None, pool.hugepage_activelist)]:
        address = head.address_of_().value_()
        pfns, broken = _follow(vmemmap, hstate.order, address, links)
        lists.append(HugePageList(hstate.order, kind, nid, pfns, broken))
    return lists


def _unread_link(fault: FaultError) -> str:
    """What a broken list says of a link that cannot be read."""
    reason = why(fault)
    return reason if reason == READS_AS_ZEROS else f"is {reason}"


def _follow(
    vmemmap: Vmemmap, order: int, head: int, links: ListLinks
) -> tuple[array[int], Optional[BrokenLink]]:
    """Follow a list of folios from its head on, as far as it makes sense."""
    lru = vmemmap.kernel.struct_page.require("lru")
    most = vmemmap.end_pfn >> order
    pfns = array("q")
    passed = Passed(links)
    broken: Optional[BrokenLink] = None
    entry = head
    while True:
        stretch = links.stretch(entry, passed, most + 1 - len(pfns))
        if len(stretch):
            pfns.frombytes(stretch.tobytes())
            entry = links.address(pfns[-1])
        try:
            following, _ = links.find(entry, order)
        except FaultError as e:
            return pfns, BrokenLink(entry, None, _unread_link(e))
        pfn = vmemmap.page_pfn(following - lru)
        if following != head and pfn is None:
            return pfns, BrokenLink(entry, following, "leads to no folio")
        if (pfn is not None and pfn in passed) or len(pfns) > most:
            return pfns, BrokenLink(entry, following, "leads back into the list")
        try:
            liar = _check_back(entry, following, order, links)
        except FaultError as e:
            liar = BrokenLink(following, None, _unread_link(e))
        broken = broken or liar
        if liar is not None and liar.ends and liar.value is not None:
            return pfns, broken
        if following == head or pfn is None:
            return pfns, broken
        pfns.append(pfn)
        if liar is not None and liar.ends:
            return pfns, broken
        passed.add(pfn)
        entry = following


def _is_on_no_list(entry: int, previous: int, order: int, links: ListLinks) -> bool:
    """
    Whether nothing leads to an entry.

    :param previous: Where it says that it is led to from.
    """
    try:
        return links.find(previous, order)[0] != entry
    except (FaultError, OverflowError):
        return True  # poisoned, or never set


def _check_back(
    entry: int, following: int, order: int, links: ListLinks
) -> Optional[BrokenLink]:
    """
    Whether an entry is the one in front of the next. If not, either word may be the
    wrong one: the back link is right if it leads to an entry that leads here.
    """
    _, previous = links.find(following, order)
    if previous == entry:
        return None
    try:
        onward, back = links.find(previous, order)
    except (FaultError, OverflowError):
        onward = back = 0
    if onward == following and _is_on_no_list(previous, back, order, links):
        # __list_add() in include/linux/list.h stores entry->next last.
        reason = "leads past an entry that is being added"
        return BrokenLink(entry, following, reason, ends=False)
    if onward == following:
        return BrokenLink(entry, following, "leads into another list or place")
    return BrokenLink(following + 8, previous, "leads back elsewhere", ends=False)
