# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Random machines
---------------

Strategies of hypothesis for descriptions of small machines of any generation.
"""

from hypothesis import assume, strategies as st

from drgn_hvo.errors import UsageError
from drgn_hvo.synth.described.description import (
    Description,
    DeviceMemory,
    HugePages,
    Node,
    Pages,
)
from drgn_hvo.synth.described.generations import generation
from drgn_hvo.synth.machine.machine import build_machine

__all__ = ("machines",)

SECTION = 0x8000


@st.composite
def nodes(draw):
    """One to three nodes behind each other, with holes, each with two zones."""
    made: list[Node] = []
    at = 0
    for nid in draw(st.permutations(range(draw(st.integers(1, 3))))):
        at += draw(st.integers(0, 2)) * SECTION if made else 0
        size = draw(st.integers(0x4000, 0xA000)) & ~0x1FF
        hole = draw(st.integers(at + 0x3000, at + size))
        end = min(at + size, hole + draw(st.integers(0, 0x800)))
        ranges = [r for r in ((at, hole), (end, at + size)) if r[0] < r[1]]
        first = max(at, 1)
        middle = draw(st.integers(first + 0x2000, at + size - 1))
        names = draw(
            st.sampled_from(
                [("DMA32", "Normal"), ("Normal", "Movable"), ("DMA", "DMA32")]
            )
        )
        zones = {names[0]: (first, middle), names[1]: (middle, at + size)}
        made.append(Node(nid, tuple(ranges), zones))
        at = -(-(at + size) // SECTION) * SECTION
    return tuple(made)


@st.composite
def devices(draw, machine):
    """Up to two devices behind all memory, with sections of their own."""
    end = max(stop for node in machine for _, stop in node.ranges)
    made = []
    for _ in range(draw(st.integers(0, 2))):
        first = -(-end // SECTION) * SECTION + draw(st.integers(0, 1)) * SECTION
        count = draw(st.integers(1, 2)) * SECTION >> 9
        node = draw(st.sampled_from(machine))
        made.append(DeviceMemory(node.id, first, 9, count))
        end = made[-1].end_pfn
    return tuple(made)


@st.composite
def descriptions(draw, name):
    """Small machines of a generation; some have no room for what they ask."""
    entry = generation(name)
    machine = draw(nodes())

    def place():
        node = draw(st.sampled_from(machine))
        zone = draw(st.sampled_from(sorted(node.zones)))
        return {"node": node.id, "zone": zone}

    orders = draw(st.sampled_from([(9,), (9, 7), (8, 9), (4, 9)]))
    huge = []
    for _ in range(draw(st.integers(1, 5))):
        order = draw(st.sampled_from(orders))
        can = entry.can_optimize and order >= entry.min_order
        origin = draw(st.sampled_from(["runtime", "boot", "restored", "demoted"]))
        if origin == "demoted" and order == max(orders):
            origin = "runtime"
        where = draw(st.sampled_from(["free", "active", "none"]))
        if order == entry.min_order and where == "none":
            # The reader finds folios on no list by frames that repeat; of two
            # slices, only one maps the shared frame. No kernel has such huge pages.
            where = "free"
        optimized = can and origin != "restored" and draw(st.integers(0, 3)) < 3
        # One slice at least is shared, or nothing tells that the folio is optimized.
        most = (1 << order) // 64 - 2 if optimized and entry.array_is_allocated else 0
        huge.append(
            HugePages(
                **place(),
                order=order,
                count=draw(st.integers(1, 3)),
                list=where,
                optimized=optimized,
                origin=origin,
                surplus=draw(st.booleans()),
                restored_slices=draw(st.integers(0, min(most, 3))) if most > 2 else 0,
            )
        )
    pages = [
        Pages(
            **place(),
            kind=kind,
            order=draw(st.integers(1, 5)) if kind != "thp" else 9,
            count=2,
        )
        for kind in draw(
            st.lists(st.sampled_from(["slab", "thp", "compound", "buddy"]), max_size=4)
        )
    ]
    return Description(
        generation=name,
        nodes=machine,
        huge_pages=tuple(huge),
        pages=tuple(pages),
        devices=draw(devices(machine)) if entry.dax else (),
        hstates=orders,
        paging_levels=draw(st.sampled_from([4, 5])),
        kernel_offset=draw(st.integers(0, 400)) << 21,
        physical_start=draw(st.integers(1, 16)) << 21,
        page_offset_shift=draw(st.integers(0, 1000)) << 30,
        vmemmap_shift=draw(st.integers(0, 100)) << 30,
        seed=draw(st.integers(0, 1 << 32)),
    )


@st.composite
def machines(draw, name):
    try:
        return build_machine(draw(descriptions(name)))
    except UsageError:
        assume(False)
