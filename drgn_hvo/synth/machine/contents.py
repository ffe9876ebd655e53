# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What memory holds
-----------------

The bytes of pages that are somebody's, of ``hugetlb_lock``, and of what the kernel
notes of pages that have failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drgn_hvo.synth.described.description import Pages
from drgn_hvo.synth.machine.basic_types import RAW_HWP_PAGE
from drgn_hvo.synth.machine.ctype import Compound
from drgn_hvo.synth.machine.frames import Extent
from drgn_hvo.synth.machine.kernel_image import StructBytes
from drgn_hvo.synth.machine.page_uses import PAGE_USES
from drgn_hvo.synth.machine.plan import Placed, Plan

__all__ = ("FailedPages", "hugetlb_lock", "marks")


def marks(plan: Plan) -> list[Extent]:
    """What pages hold that are somebody's, where a description asks for that."""
    if not plan.description.marked:
        return []
    return [
        _marked(placed, plan.page_size)
        for placed in plan.pages
        if placed.group.kind in PAGE_USES
    ]


def _marked(placed: Placed[Pages], page_size: int) -> Extent:
    """The text of one use of pages, all over a group."""
    text = np.frombuffer(PAGE_USES[placed.group.kind].text, dtype=np.uint8)
    page = np.tile(text, page_size // len(text))
    return Extent(
        placed.first_pfn,
        placed.end_pfn - placed.first_pfn,
        lambda _, count: np.tile(page, (count, 1)),
    )


def hugetlb_lock(plan: Plan) -> bytes:
    """The bytes of ``hugetlb_lock``."""
    is_held = plan.description.is_lock_held
    byteorder = plan.description.model.byteorder
    if plan.description.locks != "rt-mutex":
        # _Q_LOCKED_VAL
        return int(is_held).to_bytes(4, byteorder)
    assert plan.structures.spinlock_t is not None
    spinlock = plan.structures.spinlock_t.target
    assert isinstance(spinlock, Compound)
    lock = StructBytes(spinlock, byteorder)
    # The task that holds it, and RT_MUTEX_HAS_WAITERS, which says nothing alone.
    owner = plan.space.virtual(plan.kernel_pfn) if is_held else 0
    lock.set("lock.owner", owner | 1)
    return bytes(lock.data)


@dataclass(frozen=True)
class FailedPages:
    """
    ``struct raw_hwp_page`` of all pages that have failed.

    :param firsts: The address of the first one of each folio, by its head.
    """

    firsts: dict[int, int]
    extents: tuple[Extent, ...]

    @classmethod
    def of(cls, plan: Plan) -> FailedPages:
        """
        Those of a machine, in the order in which folio_set_hugetlb_hwpoison() lists
        them: the last one first.
        """
        if plan.failed is None:
            return cls({}, ())
        start = plan.space.virtual(plan.failed.first_pfn)
        firsts: dict[int, int] = {}
        data = bytearray()
        for placed in plan.huge:
            following = 0
            for index in placed.group.failed:
                entry = StructBytes(RAW_HWP_PAGE, plan.description.model.byteorder)
                entry.set("node.next", following)
                entry.set("page", plan.space.page_address(placed.first_pfn + index))
                following = start + len(data)
                data += entry.data
            if following:
                firsts[placed.first_pfn] = following
        stored = Extent.stored(plan.failed.first_pfn, bytes(data), plan.page_size)
        return cls(firsts, (stored,))
