# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Descriptions for tests of the generator
---------------------------------------

A small machine with a bit of everything, for any generation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from drgn import Program

from drgn_hvo.kernel.finders import install
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.described.description import Description, HugePages, Node, Pages
from drgn_hvo.synth.described.generations import GENERATIONS, generation
from drgn_hvo.synth.machine.machine import Machine, build_machine
from drgn_hvo.synth.machine.plan import AnyPlaced

__all__ = (
    "ALL",
    "FEW",
    "NODES",
    "SHAPES",
    "Expected",
    "describe",
    "expected_folios",
    "expected_heads",
    "loaded",
    "machine_and_program",
)

ALL = [entry.name for entry in GENERATIONS]
#: One for each way in which tails are kept, for what costs too much with all.
FEW = ("fake-head-6.1", "fake-head-6.12", "plain-7.2", "seed-v5", "shared-7.3")
#: One with each shape of the fields of folios, of these if it is among them.
SHAPES = list(
    {
        (entry.fields, entry.struct_page_size): entry.name
        for entry in sorted(GENERATIONS, key=lambda entry: entry.name in FEW)
    }.values()
)

NODES = (
    Node(
        0,
        ((0, 0x9F), (0x100, 0x10000)),
        {"DMA": (1, 0x1000), "DMA32": (0x1000, 0x10000)},
    ),
    Node(
        1,
        ((0x10000, 0x17000), (0x18000, 0x20000)),
        {"DMA32": (0x10000, 0x1C000), "Movable": (0x1C000, 0x20000)},
    ),
)


def describe(name: str, **changes: Any) -> Description:
    """A machine of a generation with folios in many states."""
    optimizes = generation(name).can_optimize
    values: dict[str, Any] = {
        "generation": name,
        "nodes": NODES,
        "huge_pages": (
            HugePages(0, "DMA32", 9, 6),
            HugePages(0, "DMA32", 9, 2, list="active", surplus=True),
            HugePages(0, "DMA32", 9, 3, origin="restored"),
            HugePages(1, "DMA32", 9, 4, first_pfn=0x10400, list="active"),
            HugePages(1, "Movable", 9, 3),
            HugePages(1, "DMA32", 9, 2, optimized=False),
            HugePages(0, "DMA32", 9, 1, list="none", optimized=optimizes),
        ),
        "pages": (
            Pages(0, "DMA32", "slab", 3, 5),
            Pages(0, "DMA32", "thp", 9, 2),
            Pages(1, "DMA32", "compound", 2, 3),
            Pages(1, "DMA32", "buddy", 4, 3),
            Pages(1, "DMA32", "poisoned", 0, 64, first_pfn=0x16000),
            Pages(0, "DMA32", "reserved", 0, 3),
        ),
        "reserved": {9: 2},
        "seed": 11,
    }
    return Description(**{**values, **changes})


def machine_and_program(description: Description) -> tuple[Machine, Program]:
    """A machine, and a program of it that reads types from the core."""
    machine = build_machine(description)
    prog = program(machine)
    install(prog)
    return machine, prog


@dataclass(frozen=True)
class Expected:
    """What was described of one folio."""

    order: int
    nid: int
    zone: str
    list: Optional[str]
    optimized: bool
    refcount: int


def expected_folios(machine: Machine) -> dict[int, Expected]:
    """All folios by the PFN of their head."""
    return {
        pfn: Expected(
            placed.group.order,
            placed.group.node,
            placed.group.zone,
            None if placed.group.list == "none" else placed.group.list,
            placed.optimized,
            int(placed.group.list == "active"),
        )
        for placed in machine.plan.huge
        for pfn in placed.heads()
    }


def expected_heads(machine: Machine) -> dict[int, tuple[int, int]]:
    """Head and order of every page of every compound page."""
    kinds = ("slab", "thp", "compound")
    compound: list[AnyPlaced] = [
        *machine.plan.huge,
        *(p for p in machine.plan.pages if p.group.kind in kinds),
    ]
    heads = [(h, placed.group.order) for placed in compound for h in placed.heads()]
    heads += [
        (head, device.order)
        for device in machine.plan.description.devices
        for head in device.heads()
    ]
    return {
        pfn: (head, order)
        for head, order in heads
        for pfn in range(head, head + (1 << order))
    }


def loaded(path: Union[str, Path]) -> Program:
    """A program of a core, without our finders."""
    prog = Program()
    prog.set_core_dump(path)
    return prog
