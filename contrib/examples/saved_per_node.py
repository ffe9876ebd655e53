#!/usr/bin/env drgn
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What did HVO save on each node?

::

    drgn -c vmcore contrib/examples/saved_per_node.py

A node gets back the frames of struct pages that its optimized folios no longer have,
and pays for the shared tail pages that lie on it, whoever uses them.
"""

from __future__ import annotations

from collections import Counter
import sys

from drgn import FaultError, get_default_prog
from drgn.helpers.common.format import number_in_binary_units, print_table

from drgn_hvo.errors import HvoError
from drgn_hvo.memmap.hvo import Hvo, hvo_of


def saved_per_node(hvo: Hvo) -> dict[int, tuple[int, int, int]]:
    """Optimized folios, frames saved and shared tail pages, by node."""
    folios = hvo.hugetlb.folios
    optimized = hvo.hugetlb.optimized_mapping
    nids = hvo.folio_nids[optimized].tolist()
    saved: Counter[int] = Counter()
    for nid, shared in zip(nids, folios.shared_ptes[optimized].tolist()):
        saved[nid] += shared
    # Two slots may name one frame only by damage, and then it is paid for once.
    tails = Counter(
        nid
        for _, nid in {(t.pfn, t.frame_nid) for t in hvo.shared_tails}
        if nid is not None
    )
    count = Counter(nids)
    nodes = sorted({*hvo.mmzone.pgdats, *count, *tails})
    return {nid: (count[nid], saved[nid], tails[nid]) for nid in nodes}


def main() -> None:
    """Print a table."""
    hvo = hvo_of(get_default_prog())
    page_size = hvo.kernel.geometry.page_size
    rows: list[tuple[object, ...]] = [("NODE", "OPTIMIZED", "SAVED", "TAILS", "NET")]
    for nid, (count, saved, tails) in saved_per_node(hvo).items():
        net = number_in_binary_units((saved - tails) * page_size)
        rows.append(("?" if nid < 0 else nid, count, saved, tails, net))
    print_table(rows)
    for unread in hvo.unread:
        print(f"Note: {unread}")


if __name__ == "__main__":
    try:
        main()
    except (HvoError, FaultError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
