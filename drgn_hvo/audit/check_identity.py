# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where folios lie
----------------

What the head of a folio says of the place of its memory, against the zones and CMA
areas whose ranges hold its PFN.
"""

from __future__ import annotations

from drgn import FaultError
import numpy as np

from drgn_hvo.audit import subjects
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding
from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.arrays import BoolArray
from drgn_hvo.kernel.unread import NOT_ALL_ZONES
from drgn_hvo.memmap.cma import hugetlb_cma_ranges

__all__ = ("check_cma", "check_folio_nodes")


def check_cma(context: Context, readable: BoolArray) -> None:
    """
    Decide the part of ``folio-head`` that is about ``HPG_cma``.

    :param readable: Folios whose own first struct pages can be read.
    """
    marked, folios = context.hugetlb.has_hpg_flag("cma"), context.hugetlb.folios
    if marked is None or not (marked & readable).any():
        return
    try:
        ranges = hugetlb_cma_ranges(context.kernel, context.hvo.mmzone.nids)
    except (FaultError, UnavailableError):
        context.audit.undecide("folio-head", "CMA areas of hugetlb could not be read")
        return
    inside = np.zeros(len(folios), dtype=np.bool_)
    for start, end in ranges:
        inside |= (start <= folios.head_pfn) & (folios.head_pfn < end)
    offset = context.kernel.struct_page.require("private")
    bit = 1 << context.hugetlb.hpg_flags["cma"]
    for i in np.flatnonzero(marked & readable & ~inside).tolist():
        head_pfn, actual = int(folios.head_pfn[i]), int(folios.private[i])
        context.audit.add(
            Finding(
                "folio-head",
                f"the head of the folio of PFN {head_pfn} has HPG_cma, but lies in no "
                "CMA area of hugetlb",
                subjects.HeadWord(head_pfn),
                because=(subjects.HeadFrame(head_pfn),),
                place=context.place(i).at(
                    context.word_spot(head_pfn, offset), pfn=head_pfn
                ),
                expected=actual ^ bit,
                actual=actual,
            )
        )


def check_folio_nodes(context: Context, readable: BoolArray) -> None:
    """
    Decide ``folio-node``.

    :param readable: Folios whose own first struct pages can be read.
    """
    mmzone, folios = context.hvo.mmzone, context.hugetlb.folios
    layout = mmzone.flags_layout
    if layout is None:
        reason = "positions in page->flags not known"
        context.audit.undecide("folio-node", reason)
        return
    if not mmzone.knows_all_zones:
        context.audit.undecide("folio-node", NOT_ALL_ZONES)
        return
    nids, zones = layout.nids(folios.flags), layout.zonenums(folios.flags)
    # Zones of different nodes may interleave: any of them will do.
    held = np.zeros(len(folios), dtype=np.bool_)
    right = held.copy()
    for zone in mmzone.zones:
        inside = zone.holds(folios.head_pfn)
        held |= inside
        right |= inside & (nids == zone.nid) & (zones == zone.index)
    offset = context.kernel.struct_page.flags
    expected = layout.with_places(folios.flags, context.nids, context.zones)
    for i in np.flatnonzero(readable & held & ~right).tolist():
        if context.in_transition[i]:
            context.audit.transitional.add(int(folios.head_pfn[i]))
            continue
        head_pfn, actual = int(folios.head_pfn[i]), int(folios.flags[i])
        context.audit.add(
            Finding(
                "folio-node",
                f"the head of the folio of PFN {head_pfn} names node {int(nids[i])}, "
                f"zone {int(zones[i])}, where it does not lie",
                subjects.FolioNode(head_pfn),
                because=(subjects.HeadFrame(head_pfn),),
                place=context.place(i).at(
                    context.word_spot(head_pfn, offset), pfn=head_pfn
                ),
                # Where several zones hold the page, no single value is expected.
                expected=None if expected[i] == folios.flags[i] else int(expected[i]),
                actual=actual,
            )
        )
