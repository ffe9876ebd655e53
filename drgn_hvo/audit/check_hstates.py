# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What pools say of themselves
----------------------------

Of which size their huge pages are, how many pools there are, and how many huge pages
are promised to somebody.
"""

from __future__ import annotations

from drgn import Object
import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding, Place
from drgn_hvo.kernel.arrays import is_in
from drgn_hvo.memmap.pools import HState

__all__ = ("check_identities", "check_reserves")


def check_identities(context: Context) -> None:
    """Decide ``hstate-identity``."""
    for word in context.hugetlb.wrong_pool_words:
        context.audit.add(
            Finding(
                "hstate-identity",
                word.what,
                subjects.PoolWord(word.address),
                place=Place(
                    order=word.order,
                    address=word.address,
                    physical_address=context.translate(word.address),
                ),
                expected=word.expected,
                actual=word.actual,
                affected=0 if word.order is None else _count(context, word.order),
            )
        )
    _check_orders(context)


def _count(context: Context, order: int) -> int:
    """How many folios of an order there are."""
    return int((context.hugetlb.folios.order == order).sum())


def _check_orders(context: Context) -> None:
    """Folios that share frames of vmemmap, of an order that no pool has."""
    if context.hugetlb.unread_pools:
        return
    folios = context.hugetlb.folios
    known = [hstate.order for hstate in context.hugetlb.hstates]
    strange = folios.present & ~is_in(
        folios.order, np.array(sorted(known), dtype=np.int64)
    )
    for order in sorted(set(folios.order[strange].tolist())):
        which = np.flatnonzero(strange & (folios.order == order))
        first, count = int(which[0]), len(which)
        context.audit.add(
            Finding(
                "hstate-identity",
                f"no pool has huge pages of order {order}, but there are {count}",
                subjects.NoPool(order),
                because=(subjects.FolioHead(int(folios.head_pfn[first])),),
                place=context.place(first),
                affected=count,
            )
        )


def check_reserves(context: Context) -> None:
    """Decide ``hstate-reserve``."""
    for hstate in context.hugetlb.hstates:
        _check_reserve(context, hstate)


def _check_reserve(context: Context, hstate: HState) -> None:
    reserved, free = hstate.reserved, hstate.free
    if reserved is None or free is None or 0 <= reserved <= max(free, 0):
        return
    # No holder of the lock leaves it negative.
    may_be_excused = reserved >= 0 or context.lock.state == "unknown"
    if may_be_excused and context.is_excused_by_lock("hstate-reserve"):
        return
    pool = Object(context.kernel.prog, "struct hstate *", hstate.address)
    address = pool.resv_huge_pages.address_of_().value_()
    text = f"the pool of order {hstate.order} has {reserved} huge pages reserved"
    text += f" of {free} that are free" if reserved >= 0 else ", less than none"
    context.audit.add(
        Finding(
            "hstate-reserve",
            text,
            subjects.PoolReserve(hstate.order),
            because=(subjects.PoolCounters(hstate.order),),
            defect="resv-underflow-pinned" if reserved < 0 else None,
            place=Place(
                order=hstate.order,
                address=address,
                physical_address=context.translate(address),
            ),
            actual=reserved,
            affected=0,
        )
    )
