# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pointers that commands follow
-----------------------------

Finds each word of a synthetic machine that leads commands on to other memory, by
recording what is read of it, and makes it lead to somebody's page.
"""

from dataclasses import dataclass, replace
import re
from typing import Union

import numpy as np

from drgn_hvo.extract.recorder import record
from drgn_hvo.synth.containers.elf import program
from tests.extract_support import Marked
from tests.synth_support import describe

__all__ = ("KINDS", "WAYS", "Pointer", "Watched", "described", "lead", "pointers")

#: Whose pages: those of a huge page, a transparent one, a slab cache, a driver's
#: buffer, and free ones.
KINDS = ("huge", "thp", "slab", "compound", "buddy")

#: What is followed: entries of page tables; addresses of struct pages, in the direct
#: map and in the kernel image, where such words are read; what heads have in their list
#: links; symbols of VMCOREINFO.
WAYS = ("entry", "page", "direct", "image", "link", "symbol")

_FRAME = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 0x80


@dataclass(frozen=True)
class Pointer:
    """
    A word that is followed.

    :param place: Its physical address; of a symbol, the name.
    """

    way: str
    place: Union[int, str]


def described(name):
    """A machine with pages of all kinds."""
    description = describe(name)
    some = next(group for group in description.pages if group.kind == "slab")
    have = {group.kind for group in description.pages}
    more = [
        replace(some, kind=kind, order=2, count=1)
        for kind in KINDS[1:]
        if kind not in have
    ]
    return replace(description, pages=(*description.pages, *more))


class Watched(Marked):
    """
    A marked machine that knows whether a page of it was read.

    :param kind: Whose. The page is a tail, where there are several.
    """

    def __init__(self, machine, kind):
        groups = machine.plan.huge if kind == "huge" else machine.plan.pages
        placed = next(p for p in groups if getattr(p.group, "kind", "huge") == kind)
        self.victim = placed.first_pfn + 1
        self.was_read = False
        super().__init__(machine)

    def _read(self, address, count, offset, physical):
        if address >> 12 <= self.victim <= (address + count - 1) >> 12:
            self.was_read = True
        return super()._read(address, count, offset, physical)


def _word(machine, at):
    return int.from_bytes(machine.image.read(at, 8), "little")


def _tables(machine, root, levels):
    """The frames of all page tables, and their entries, from the top."""
    frames = [root >> 12]
    for level in range(levels - 1, -1, -1):
        below = []
        for pfn in dict.fromkeys(frames):
            entries = machine.image.read_frame(pfn).view("<u8")
            present = np.flatnonzero(entries & np.uint64(_PRESENT))
            for i in present.tolist():
                yield (pfn << 12) + 8 * i
                if level and not int(entries[i]) & _LARGE:
                    below.append((int(entries[i]) & _FRAME) >> 12)
        frames = below


def _physical(machine, address):
    """Where an address of the direct map or the kernel image lies."""
    space = machine.plan.space
    direct = address - space.direct(0)
    if 0 <= direct < machine.plan.max_pfn << 12:
        return direct
    return space.image_physical(address)


def _way(machine, value):
    """What a word leads to, if it is an address at all."""
    plan, space = machine.plan, machine.plan.space
    size = space.struct_page_size
    if 0 <= value - space.page_address(0) < plan.max_pfn * size:
        return "page"
    if 0 <= value - space.direct(0) < plan.max_pfn << 12:
        return "direct"
    if (
        0
        <= space.image_physical(value) - (plan.kernel_pfn << 12)
        < (plan.kernel_pages << 12)
    ):
        return "image"
    return None


def pointers(machine):
    """All that commands follow on a healthy machine, by how it is found."""
    recording = record(program(machine), [], {})
    page_table = recording.hvo.kernel.page_table_format
    assert page_table is not None
    found: dict[str, list[Pointer]] = {way: [] for way in WAYS}
    entries = _tables(machine, page_table.root, len(page_table.levels))
    found["entry"] = [Pointer("entry", at) for at in dict.fromkeys(entries)]
    reads = recording.virtual["words"]
    seen: set[int] = set()
    for address, size in reads:
        start = _physical(machine, address) & -8
        seen.update(range(start, start + size, 8))
    # What nothing read begins at was looked at, but not followed.
    followed = {address for address, _ in reads}
    for at in sorted(seen):
        value = _word(machine, at) if machine.image.has(at >> 12) else 0
        way = _way(machine, value)
        if way == "page" or (way is not None and value in followed):
            found[way].append(Pointer(way, at))
    lru = recording.hvo.kernel.struct_page.lru
    for placed in machine.plan.huge:
        for pfn in placed.heads():
            at = machine.page_physical(pfn) + lru
            found["link"] += [Pointer("link", at), Pointer("link", at + 8)]
    names = re.findall(rb"^SYMBOL\(([^)]+)\)=", machine.vmcoreinfo, re.MULTILINE)
    found["symbol"] = [Pointer("symbol", name.decode()) for name in names]
    return found


def lead(machine, pointer, pfn):
    """Make a pointer lead to a page."""
    space = machine.plan.space
    direct = space.direct(pfn << 12)
    if pointer.way == "symbol":
        pattern = rf"^SYMBOL\({re.escape(pointer.place)}\)=.*$".encode()
        line = f"SYMBOL({pointer.place})={direct:x}".encode()
        changed = re.sub(pattern, line, machine.vmcoreinfo, flags=re.MULTILINE)
        object.__setattr__(machine, "vmcoreinfo", changed)
        return
    if pointer.way == "entry":
        value = _word(machine, pointer.place) & ~_FRAME | pfn << 12
    elif pointer.way == "page":
        value = space.page_address(pfn)
    else:
        value = direct
    machine.image.write(pointer.place, value.to_bytes(8, "little"))
