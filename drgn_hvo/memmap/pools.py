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
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Object

from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.memmap.list_links import Links, Passed
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
    "hpg_flags",
    "read_hstates",
    "read_lists",
)

#: Kinds of lists, and what they are called.
NO_LIST, FREE_LIST, ACTIVE_LIST = 0, 1, 2
LIST_NAMES: tuple[Optional[str], ...] = (None, "free", "active")


@dataclass(frozen=True)
class HState:
    """
    A pool of huge pages of one size: ``struct hstate``.

    Counters are in huge pages; the dictionaries are by node ID.
    """

    address: int
    order: int
    total: int
    free: int
    surplus: int
    reserved: int
    total_node: dict[int, int]
    free_node: dict[int, int]
    surplus_node: dict[int, int]


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
        if enumerator.name.startswith("HPG_")
    }


def _read_hstate(hstate: Object, nids: list[int]) -> HState:
    def by_node(member: str) -> dict[int, int]:
        counts = hstate.member_(member)
        return {nid: counts[nid].value_() for nid in nids}

    return HState(
        address=hstate.value_(),
        order=hstate.order.value_(),
        total=hstate.nr_huge_pages.value_(),
        free=hstate.free_huge_pages.value_(),
        surplus=hstate.surplus_huge_pages.value_(),
        reserved=hstate.resv_huge_pages.value_(),
        total_node=by_node("nr_huge_pages_node"),
        free_node=by_node("free_huge_pages_node"),
        surplus_node=by_node("surplus_huge_pages_node"),
    )


def read_hstates(kernel: Kernel, mmzone: Mmzone, notes: list[str]) -> list[HState]:
    """
    All pools, in the kernel's order.

    :param notes: Gets a line for each pool that cannot be read or cannot be one.
    """
    # As drgn's for_each_hstate(); importing that costs a sixth of the time of a check.
    prog = kernel.prog
    try:
        hstates, count = prog["hstates"], prog["hugetlb_max_hstate"].value_()
    except LookupError:
        return []  # CONFIG_HUGETLBFS=n
    # A damaged count must not lead behind the array.
    most = hstates.type_.length or 0
    if not 0 <= count <= most:
        notes.append(f"hugetlb_max_hstate is not of the {most} pools there can be")
        count = most
    states = []
    for index in range(count):
        hstate = hstates[index].address_of_()
        try:
            state = _read_hstate(hstate, list(mmzone.pgdats))
        except FaultError as e:
            notes.append(f"hstate {hstate.value_():#x} is not in this dump: {e}")
            continue
        if not 0 < state.order <= kernel.geometry.largest_order:
            notes.append(f"hstate {state.address:#x} has order {state.order}: ignored")
            continue
        states.append(state)
    return states


def read_lists(
    vmemmap: Vmemmap, hstate: HState, nids: list[int], links: Links
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


def _follow(
    vmemmap: Vmemmap, order: int, head: int, links: Links
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
        except FaultError:
            return pfns, BrokenLink(entry, None, "is not in this dump")
        pfn = vmemmap.page_pfn(following - lru)
        if following != head and pfn is None:
            return pfns, BrokenLink(entry, following, "leads to no folio")
        if (pfn is not None and pfn in passed) or len(pfns) > most:
            return pfns, BrokenLink(entry, following, "leads back into the list")
        try:
            liar = _check_back(entry, following, order, links)
        except FaultError:
            liar = BrokenLink(following, None, "is not in this dump")
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


def _check_back(
    entry: int, following: int, order: int, links: Links
) -> Optional[BrokenLink]:
    """
    Whether an entry is the one in front of the next. If not, either word may be the
    wrong one: the back link is right if it leads to an entry that leads here.
    """
    _, previous = links.find(following, order)
    if previous == entry:
        return None
    try:
        confirmed = links.find(previous, order)[0] == following
    except (FaultError, OverflowError):
        confirmed = False
    if confirmed:
        return BrokenLink(entry, following, "leads into another list or place")
    return BrokenLink(following + 8, previous, "leads back elsewhere", ends=False)
