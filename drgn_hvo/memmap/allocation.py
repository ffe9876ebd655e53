# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Why no huge page can be had
---------------------------

A process gets a huge page if its pool has a free one that nobody has reserved, or may
make a surplus one, and if neither the mount that it asks through (a subpool) nor its
cgroup has had its share: hugepage_subpool_get_pages(), hugetlb_cgroup_charge_cgroup()
and hugetlb_acct_memory() in :linux:`mm/hugetlb.c` and :linux:`mm/hugetlb_cgroup.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Optional, TypeVar

from drgn import FaultError, Object, sizeof

from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.shapes import WORD, fault_of
from drgn_hvo.kernel.unread import why
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.pools import HState

__all__ = (
    "AllocationLimits",
    "CgroupLimit",
    "PoolRoom",
    "Subpool",
    "limits_of",
    "room_of",
)

# No machine has more mounts of file systems.
_MAX_MOUNTS = 1 << 16
# No machine has more cgroups.
_MAX_CGROUPS = 1 << 20

# Linux's own limits.
_NAME_MAX, _PATH_MAX = 255, 4096

_Found = TypeVar("_Found")
_Reader = Callable[[Hvo], Iterator[_Found]]

# "No limit" of a subpool.
_NO_LIMIT = -1


@dataclass(frozen=True)
class PoolRoom:
    """
    What a pool has left; what is ``None`` is not known.

    :param available: Free huge pages that nobody has reserved.
    :param asked: ``max_huge_pages``: how many persistent ones it should have.
    :param overcommit: How many surplus ones it may have.
    :param surplus_left: How many more of these.
    """

    order: int
    available: Optional[int]
    asked: Optional[int]
    overcommit: Optional[int]
    surplus_left: Optional[int]


@dataclass(frozen=True)
class Subpool:
    """
    The share of a mount of hugetlbfs.

    :param device: Of the mount, as ``/proc/self/mountinfo`` has it: ``0:24``.
    :param limit: ``size=`` in huge pages, ``None`` if there is no limit.
    :param used: How many of them it has.
    :param minimum: ``min_size=`` in huge pages, ``None`` if there is none.
    :param reserved: How many of these are reserved and not used.
    """

    device: str
    order: int
    limit: Optional[int]
    used: int
    minimum: Optional[int]
    reserved: int


@dataclass(frozen=True)
class CgroupLimit:
    """
    A limit of a cgroup, in huge pages.

    :param path: From the root of the hierarchy on.
    :param of_reservations: Whether it limits what is reserved, not what is used.
    """

    path: str
    order: int
    of_reservations: bool
    limit: int
    used: int


@dataclass(frozen=True)
class AllocationLimits:
    """
    The limits of mounts and cgroups.

    :param subpools: ``None`` if they were not read.
    :param cgroups: ``None`` if they were not read; those without a limit are left out.
    :param unread: Why not, and what may be missing, a sentence each.
    """

    subpools: Optional[tuple[Subpool, ...]]
    cgroups: Optional[tuple[CgroupLimit, ...]]
    unread: tuple[str, ...]


class _EndlessError(UnavailableError):
    """Something leads back into itself, or goes on for ever."""


def room_of(hvo: Hvo, hstate: HState) -> PoolRoom:
    """What a pool has left."""
    pool = Object(hvo.kernel.prog, "struct hstate *", hstate.address)
    asked = _number(hvo, pool, "max_huge_pages")
    overcommit = _number(hvo, pool, "nr_overcommit_huge_pages")
    available = left = None
    if hstate.free is not None and hstate.reserved is not None:
        available = max(hstate.free - max(hstate.reserved, 0), 0)
    if overcommit is not None and hstate.surplus is not None:
        left = max(overcommit - hstate.surplus, 0)
    return PoolRoom(hstate.order, available, asked, overcommit, left)


def _number(hvo: Hvo, pool: Object, member: str) -> Optional[int]:
    try:
        if fault_of(hvo.kernel.prog.type("struct hstate"), member, WORD) is not None:
            return None
        return int(hvo.kernel.known_words.value(pool.member_(member)))
    except (FaultError, LookupError):
        return None


def limits_of(hvo: Hvo) -> AllocationLimits:
    """The limits of all mounts and cgroups."""
    unread: list[str] = []
    subpools = _all(hvo, "limits of mounts of hugetlbfs", _subpools, unread)
    cgroups = _all(hvo, "limits of cgroups", _cgroups, unread)
    return AllocationLimits(subpools, cgroups, tuple(unread))


def _all(
    hvo: Hvo, what: str, read: _Reader[_Found], unread: list[str]
) -> Optional[tuple[_Found, ...]]:
    """All of one kind, ``None`` if not all could be read, which is noted."""
    try:
        return tuple(read(hvo))
    except FaultError as e:
        unread.append(f"{what} are not known: they are {why(e)}")
    except _EndlessError as e:
        unread.append(f"{what} are not known: {e}")
    except (AttributeError, LookupError, TypeError, UnavailableError):
        # An extract says no more than a core that never had it.
        unread.append(f"{what} are not known: nothing here leads to them")
    return None


# Mounts.


def _subpools(hvo: Hvo) -> Iterator[Subpool]:
    from drgn.helpers.linux.list import list_for_each_entry

    prog, known = hvo.kernel.prog, hvo.kernel.known_words.value
    head = prog["super_blocks"].address_of_()
    for count, block in enumerate(
        list_for_each_entry("struct super_block", head, "s_list")
    ):
        if count > _MAX_MOUNTS:
            raise _EndlessError("the list of mounts has no end")
        if _text(hvo, block.s_type.name) != "hugetlbfs":
            continue
        info = Object(prog, "struct hugetlbfs_sb_info *", known(block.s_fs_info))
        if not known(info.spool):
            continue
        spool = info.spool.read_()
        device = known(block.s_dev)
        yield Subpool(
            # MAJOR() and MINOR() of include/linux/kdev_t.h.
            f"{device >> 20}:{device & 0xFFFFF}",
            int(info.hstate.order),
            _limit(known(spool.max_hpages)),
            known(spool.used_hpages),
            _limit(known(spool.min_hpages)),
            known(spool.rsv_hpages),
        )


def _limit(number: int) -> Optional[int]:
    return None if number == _NO_LIMIT else number


# Cgroups.


def _cgroups(hvo: Hvo) -> Iterator[CgroupLimit]:
    prog = hvo.kernel.prog
    if hvo.kernel.type("struct hugetlb_cgroup") is None:
        return  # CONFIG_CGROUP_HUGETLB=n
    if not hvo.kernel.known_words.value(prog["root_h_cgroup"]):
        return
    root = prog["root_h_cgroup"].read_()
    hstates, size = prog["hstates"].address_, sizeof(prog.type("struct hstate"))
    for path, css in _tree(hvo, root.css.address_of_()):
        group = _group(css)
        for hstate in hvo.pools.hstates:
            index = (hstate.address - hstates) // size
            for name in ("hugepage", "rsvd_hugepage"):
                yield from _limits(
                    hvo, path, hstate, group.member_(name)[index], name != "hugepage"
                )


def _group(css: Object) -> Object:
    from drgn import container_of

    return container_of(css, "struct hugetlb_cgroup", "css")


def _tree(hvo: Hvo, root: Object) -> Iterator[tuple[str, Object]]:
    """All cgroups by path, but not the root, which has no limit."""
    from drgn.helpers.linux.list import list_for_each_entry

    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        path, css = waiting.pop()
        for child in list_for_each_entry(
            "struct cgroup_subsys_state", css.children.address_of_(), "sibling"
        ):
            if child.value_() in seen or len(seen) > _MAX_CGROUPS:
                raise _EndlessError("the tree of cgroups has no end")
            seen.add(child.value_())
            below = f"{path}/{_text(hvo, child.cgroup.kn.name)}"
            if len(below) > _PATH_MAX:
                raise _EndlessError("the tree of cgroups is too deep")
            waiting.append((below, child))
            yield below, child


def _limits(
    hvo: Hvo, path: str, hstate: HState, counter: Object, of_reservations: bool
) -> Iterator[CgroupLimit]:
    pages = 1 << hstate.order
    # PAGE_COUNTER_MAX, rounded down to whole huge pages, is no limit.
    most = (1 << 63) // hvo.kernel.geometry.page_size // pages - 1
    known = hvo.kernel.known_words.value
    limit = known(counter.max) // pages
    if limit < most:
        used = known(counter.usage.counter) // pages
        yield CgroupLimit(path, hstate.order, of_reservations, limit, used)


def _text(hvo: Hvo, pointer: Object) -> str:
    address = pointer.value_()
    data = hvo.kernel.prog.read_c_string(address, max_size=_NAME_MAX)
    return data.decode(errors="replace")
