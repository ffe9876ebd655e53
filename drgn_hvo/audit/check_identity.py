# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where folios lie
----------------

The node and zone that the head of a folio names, against the zones whose ranges hold
its PFN.
"""

from __future__ import annotations

import numpy as np

from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding

__all__ = ("check_folio_nodes",)


def check_folio_nodes(context: Context) -> None:
    """Decide ``folio-node``."""
    mmzone, folios = context.hvo.mmzone, context.hugetlb.folios
    layout = mmzone.flags_layout
    if layout is None:
        reason = "positions in page->flags not known"
        context.audit.undecide("folio-node", reason)
        return
    if not mmzone.knows_all_zones:
        context.audit.undecide("folio-node", "not all zones could be read")
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
    for i in np.flatnonzero(context.readable & held & ~right).tolist():
        if context.in_transition[i]:
            context.audit.in_transition += 1
            continue
        head_pfn, actual = int(folios.head_pfn[i]), int(folios.flags[i])
        context.audit.add(
            Finding(
                "folio-node",
                f"the head of the folio of PFN {head_pfn} names node {int(nids[i])}, "
                f"zone {int(zones[i])}, where it does not lie",
                ("folio-node", head_pfn),
                because=(("head-frame", head_pfn),),
                place=context.place(i).at(
                    context.word_spot(head_pfn, offset), pfn=head_pfn
                ),
                # Of several zones that hold it, none is the right one.
                expected=None if expected[i] == folios.flags[i] else int(expected[i]),
                actual=actual,
            )
        )
