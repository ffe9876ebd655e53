# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Heads in bulk, against drgn
---------------------------

``python -m benchmarks.heads CORE``: resolve the heads of all struct pages of a core
in three ways, and print the seconds of each as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
import json
import sys
import time

from drgn import FaultError
from drgn.helpers.linux.mm import compound_head
import numpy as np

from drgn_hvo.kernel.arrays import distinct
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.heads import HeadResolver
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.memmap.vmemmap import Vmemmap

# Windows that drgn's loop runs over a turn, and pages of each; it is scaled up.
_WINDOWS, _PAGES = 10, 50

_TURNS = 61
_MIB = 1 << 20


def _seconds(work: Callable[[], object]) -> float:
    """
    Processor time, since what else the machine does is not ours; of a second time,
    since what ran before has left its own things in the caches.
    """
    work()
    start = time.process_time()
    work()
    return time.process_time() - start


def _bulk(bound: Hvo) -> None:
    # A new one each time: page tables are walked, too.
    vmemmap = Vmemmap(bound.kernel)
    for _ in HeadResolver(vmemmap, bound.layout).range(0, vmemmap.end_pfn):
        pass


def _read(bound: Hvo) -> None:
    runs, prog = bound.vmemmap.runs, bound.kernel.prog
    page = bound.vmemmap.page_size
    start = end = 0
    spans = []
    for va, count in zip(runs.va.tolist(), runs.count.tolist()):
        if va != end:
            spans.append((start, end))
            start = va
        end = va + count * page
    for first, last in [*spans, (start, end)]:
        for address in range(first, last, _MIB):
            prog.read(address, min(_MIB, last - address))


def _parts(bound: Hvo) -> dict[str, float]:
    """Parts of :func:`_bulk()`: page tables; frames; frames and words out of them."""
    vmemmap, reader = bound.vmemmap, bound.kernel.reader
    slices = np.arange(-(-vmemmap.end_pfn * vmemmap.size // vmemmap.page_size))
    pfns = distinct(vmemmap.frames(slices)[0])

    def frames() -> None:
        for _ in reader.stream(pfns):
            pass

    parts: dict[str, Callable[[], object]] = {
        "walk": lambda: Vmemmap(bound.kernel).runs,
        "read_frames": frames,
        "take_words": lambda: bound.heads.frame_words(reader.stream(pfns), len(pfns)),
    }
    return {
        name: min(_seconds(work) for _ in range(_TURNS)) for name, work in parts.items()
    }


def _drgn_loop(bound: Hvo) -> int:
    """
    :return: How many heads were resolved.
    """
    page, pages = bound.kernel.prog["vmemmap"].read_(), bound.vmemmap.end_pfn
    step = max(1, (pages - _PAGES) // _WINDOWS)
    resolved = 0
    for first in range(0, max(1, pages - _PAGES), step):
        for pfn in range(first, first + _PAGES):
            try:
                compound_head(page + pfn)
                resolved += 1
            except FaultError:
                continue
    return resolved


def main() -> None:
    """Measure, and print."""
    bound = hvo_of(open_target(sys.argv[1]))
    pages = int(bound.vmemmap.runs.count.sum()) * bound.kernel.geometry.pages_per_slice
    ways = (_bulk, _read, _drgn_loop)
    # In turns, so that all meet the same neighbours; the best, since these only add.
    turns = [[_seconds(partial(way, bound)) for way in ways] for _ in range(_TURNS)]
    bulk, read, drgn = map(min, zip(*turns))
    figures = {
        "pages": pages,
        "bulk": bulk,
        "read": read,
        "drgn": drgn / _drgn_loop(bound) * pages,
        "parts": _parts(bound),
    }
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
