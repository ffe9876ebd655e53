# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Machines to measure
-------------------

Descriptions of large machines, written as cores into a directory for the time of a
run. Files are sparse: what folios hold is a hole.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
import os
from pathlib import Path

from drgn_hvo.synth.containers.output import write_core
from drgn_hvo.synth.described.description import Description, HugePages, Node, Pages

__all__ = ("FIRST_PFN", "empty", "folios", "without_hvo", "write")

_PAGES_PER_GIB = 1 << 18
# Where ZONE_NORMAL begins: 4 GiB.
_NORMAL = 4 * _PAGES_PER_GIB

#: The head of the first huge page of :func:`folios()`.
FIRST_PFN = _NORMAL


def _nodes(gib: int) -> tuple[Node, ...]:
    """So much memory on node 0; node 1 has room for what the kernel allocates."""
    end = _NORMAL + gib * _PAGES_PER_GIB
    spare = end + max(12, gib // 64) * _PAGES_PER_GIB
    zones = {"DMA": (1, 0x1000), "DMA32": (0x1000, _NORMAL), "Normal": (_NORMAL, end)}
    ranges = ((0, 3 * _PAGES_PER_GIB), (_NORMAL, end))
    return Node(0, ranges, zones), Node(1, ((end, spare),), {"Normal": (end, spare)})


def empty() -> Description:
    """A machine without huge pages."""
    return Description("shared-7.3", _nodes(1))


def folios(gib: int, order: int, *, optimized: bool = True) -> Description:
    """
    A machine with huge pages.

    :param gib: Memory in huge pages; as much again is not, unless *optimized*.
    """
    count = gib * _PAGES_PER_GIB >> order
    total = gib if optimized else 2 * gib
    pages = HugePages(0, "Normal", order, count, _NORMAL, optimized=optimized)
    return Description("shared-7.3", _nodes(total), (pages,))


def without_hvo(gib: int) -> Description:
    """A kernel without HVO: half its memory in transparent huge pages and slabs."""
    pages = gib * _PAGES_PER_GIB
    return Description(
        "plain-7.2",
        _nodes(gib),
        pages=(
            Pages(0, "Normal", "thp", 9, pages // 4 >> 9),
            Pages(0, "Normal", "slab", 3, pages // 4 >> 3),
        ),
    )


def write(description: Description, path: Path, container: str = "elf") -> Path:
    """Write the core of a machine, in a process whose memory is not measured."""
    with ProcessPoolExecutor(1) as pool:
        pool.submit(write_core, description, path, container).result()
    # The kernel would write it to disk while others are measured.
    os.sync()
    return path
