# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Moments of Huge Page Pools
--------------------------

The ``drgn_hvo.helpers.moments`` module provides helpers to compare huge pages, their
pools and shared tail pages at two moments of a running kernel, or in two vmcores of one
boot.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from drgn import Program
from drgn.helpers.common.prog import takes_program_or_default

from drgn_hvo.helpers._arguments import require_hugetlb
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.moments import (
    CounterChange,
    FolioChange,
    Moment,
    TailChange,
    changes,
    moment_of,
)

__all__ = (
    "HugetlbChanges",
    "HugetlbSnapshot",
    "hugetlb_changes",
    "snapshot_hugetlb",
)


class HugetlbSnapshot(NamedTuple):
    """All that :func:`hugetlb_changes()` compares; see :func:`snapshot_hugetlb()`."""

    moment: Moment
    """What was read, as arrays."""


class HugetlbChanges(NamedTuple):
    """What changed; see :func:`hugetlb_changes()`."""

    same_boot: Optional[bool]
    """``None`` if nothing says that it was another one, and nothing proves it."""

    counters: list[CounterChange]
    """Counters of pools, each with ``order``, ``nid`` (``None``: of all) and name."""

    tails: Optional[list[TailChange]]
    """Shared tail pages, with how many ``words`` changed; ``None``: another boot."""

    folios: Optional[list[FolioChange]]
    """Hugetlb folios by ``head_pfn``, each with its state ``before`` and ``after``."""


@takes_program_or_default
def snapshot_hugetlb(prog: Program) -> HugetlbSnapshot:
    """
    Read all huge pages, pools and shared tail pages, to compare them later. A snapshot
    of a running kernel is not of one instant: what changes while it is read may show in
    a part of it.

    >>> before = snapshot_hugetlb()
    >>> after = snapshot_hugetlb()
    >>> hugetlb_changes(before, after).counters
    []

    :return: What was read.
    :raises HvoError: if pools and page tables cannot be read.
    """
    hvo = hvo_of(prog)
    require_hugetlb(hvo)
    return HugetlbSnapshot(moment_of(hvo))


def hugetlb_changes(before: HugetlbSnapshot, after: HugetlbSnapshot) -> HugetlbChanges:
    """
    Compare huge pages, pools and shared tail pages at two moments. What was not read at
    one of them is no change.

    >>> for change in hugetlb_changes(before, after).folios:
    ...     print(change.head_pfn, change.before.on_list, change.after.on_list)
    29184 None free

    :param before: The earlier moment.
    :param after: The later one, of the same program or another.
    :return: Lists of what changed, by order, node or PFN.
    :raises HvoError: never, as the snapshots hold all that it needs.
    """
    found = changes(before.moment, after.moment)
    return HugetlbChanges(
        found.same_boot,
        list(found.counters),
        None if found.tails is None else list(found.tails),
        None if found.folios is None else list(found.folios),
    )
