#!/usr/bin/env drgn
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Which folios share this tail?

::

    drgn -c vmcore contrib/examples/sharers.py PFN
    drgn -c vmcore contrib/examples/sharers.py page:0xADDR

*PFN* is that of a shared tail page, as ``show`` prints it; ``page:0xADDR`` is any
struct page in one, say the one that a crash was about. One bad word there harms all of
these folios.
"""

from __future__ import annotations

import sys

from drgn import FaultError, get_default_prog
from drgn.helpers.common.format import print_table
import numpy as np

from drgn_hvo.errors import HvoError, UsageError
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec, resolve_page
from drgn_hvo.memmap.pools import LIST_NAMES


def frame_of_tails(hvo: Hvo, text: str) -> int:
    """The page frame of tails that the user means."""
    spec = parse_page_spec(text)
    pfn = resolve_page(hvo.vmemmap, spec)
    if spec.kind == "pfn":
        return pfn
    mapping = hvo.vmemmap.mapping(pfn // hvo.kernel.geometry.pages_per_slice)
    if mapping is None:
        raise UsageError(f"{text}: vmemmap is not mapped there")
    return mapping.pfn


def sharers(hvo: Hvo, frame: int) -> list[int]:
    """Indices of the folios whose slices behind the first map a frame."""
    slices = hvo.hugetlb.folios.tail_slices
    maps = (slices.pfn == frame) & ((slices.step == 0) | (slices.count == 1))
    return np.unique(slices.folio[maps]).tolist()


def main(text: str) -> None:
    """Print a table of folios."""
    hvo = hvo_of(get_default_prog())
    frame = frame_of_tails(hvo, text)
    indices = sharers(hvo, frame)
    if not indices:
        raise UsageError(f"no huge page has its tails on PFN {frame}")
    folios, nids = hvo.hugetlb.folios, hvo.folio_nids
    rows: list[tuple[object, ...]] = [("PFN", "ORDER", "NODE", "LIST", "REFCOUNT")]
    rows += [
        (
            int(folios.head_pfn[i]),
            int(folios.order[i]),
            int(nids[i]),
            LIST_NAMES[folios.on_list[i]] or "none",
            int(folios.refcount[i]),
        )
        for i in indices
    ]
    print_table(rows)
    print(f"{len(indices)} huge pages have their tails on PFN {frame}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: drgn -c CORE sharers.py PFN|page:0xADDR")
    try:
        main(sys.argv[1])
    except (HvoError, FaultError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
