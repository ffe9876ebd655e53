# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Machines whose memory leads their readers astray
------------------------------------------------

A few frames, mapped many times, look like terabytes; counts claim millions.
"""

import struct

import drgn

from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.synth_support import describe

__all__ = (
    "HOSTILE",
    "Hostile",
    "direct_map_as_vmemmap",
    "large_leaves",
    "physical_of",
    "same_table_everywhere",
    "tables_of_nothing",
)

# Frames that no machine here has.
_FIRST = 1 << 26
_TABLE = 0x63  # present, writable, accessed, dirty
_TOP_INDEX = 400  # of the kernel's half of the top table; used by nothing
_PRESENT, _LARGE = 1, 0x80
_FRAME = 0x000F_FFFF_FFFF_F000


class Hostile:
    """A machine with four levels of page tables, and frames that were added to it."""

    def __init__(self):
        self.machine = build_machine(describe("shared-7.3", paging_levels=4))
        self.frames = {}
        note = Vmcoreinfo(self.machine.vmcoreinfo)
        top = note.address("init_top_pgt")
        assert top is not None
        self.root = self.machine.plan.space.image_physical(top)

    def frame(self, data):
        """Add a frame."""
        pfn = _FIRST + len(self.frames)
        self.frames[pfn] = data
        return pfn

    def table(self, pfn, flags=_TABLE):
        """Add a table of which all entries name one frame."""
        return self.frame(struct.pack("<Q", pfn << 12 | flags) * 512)

    def region(self, data):
        """Map a frame over and over, 512 GiB of it."""
        table = self.frame(data)
        for _ in range(3):
            table = self.table(table)
        entry = self.root + 8 * _TOP_INDEX
        assert self.machine.image.read(entry, 8) == bytes(8)
        self.machine.image.write(entry, struct.pack("<Q", table << 12 | _TABLE))
        return (0xFFFF << 48) | _TOP_INDEX << 39

    def word(self, at):
        return int.from_bytes(self.machine.image.read(at, 8), "little")

    def write(self, at, value, size=8):
        self.machine.image.write(at, value.to_bytes(size, "little"))

    def note(self, **values):
        """Change lines of VMCOREINFO."""
        lines = self.machine.vmcoreinfo.decode().split("\n")
        for name, value in values.items():
            key = f"SYMBOL({name})="
            lines = [x for x in lines if not x.startswith(key)] + [f"{key}{value:x}"]
        text = "\n".join(line for line in lines if line) + "\n"
        object.__setattr__(self.machine, "vmcoreinfo", text.encode())

    def physical(self, name):
        return self.machine.kernel.physical(name)

    def entries(self, address):
        """The entries that lead to an address, from the top: where they are."""
        table = self.root
        for shift in (39, 30, 21, 12):
            at = table + 8 * (address >> shift & 511)
            yield at
            value = self.word(at)
            if not value & _PRESENT or value & _LARGE:
                return
            table = value & _FRAME

    def program(self):
        prog = drgn.Program(program(self.machine).platform)
        for start, end in self.machine.image.memory:
            size = (end - start) << 12
            prog.add_memory_segment(start << 12, size, self._read, True)
        first, size = _FIRST << 12, max(1, len(self.frames)) << 12
        prog.add_memory_segment(first, size, self._read, True)
        prog.set_linux_kernel_custom(self.machine.vmcoreinfo, False)
        install(prog)
        return prog

    def _read(self, address, count, offset, physical):
        first, end = address >> 12, (address + count + 4095) >> 12
        parts = [
            self.frames[pfn]
            if pfn in self.frames
            else self.machine.image.read_frame(pfn).tobytes()
            for pfn in range(first, end)
        ]
        return b"".join(parts)[address % 4096 :][:count]


def zone_name(hostile):
    """The name of a zone leads into 512 GiB of one letter."""
    address = hostile.region(b"A" * 4096)
    prog = hostile.program()
    zone = hvo_of(prog).mmzone.pgdats[0].node_zones[1]
    hostile.write(physical_of(hostile, zone.name.address_of_().value_()), address)


def physical_of(hostile, address):
    space = hostile.machine.plan.space
    direct = address - space.direct(0)
    if 0 <= direct < hostile.machine.plan.max_pfn << 12:
        return direct
    return space.image_physical(address)


def _kallsyms_at(hostile, address):
    """Let all tables be where one frame is mapped over and over."""
    hostile.note(
        kallsyms_names=address,
        kallsyms_token_table=address + (32 << 20),
        kallsyms_token_index=address + (33 << 20),
        kallsyms_offsets=address + (34 << 20),
    )


def many_symbols(hostile):
    """Four million symbols that have one name of one letter."""
    address = hostile.region(b"\1\0" * 2048)
    _kallsyms_at(hostile, address)
    hostile.write(hostile.physical("kallsyms_num_syms"), 3_999_999, 4)


def too_many_symbols(hostile):
    """As many as the word can say."""
    hostile.write(hostile.physical("kallsyms_num_syms"), (1 << 32) - 1, 4)


def long_names(hostile):
    """Each byte of a name stands for a token that does not end."""
    _kallsyms_at(hostile, hostile.region(b"\1A" * 2048))


def endless_types(hostile):
    """BTF that ends half a terabyte behind its start."""
    hostile.note(__stop_BTF=hostile.machine.kernel.address("__start_BTF") + (1 << 30))


def overlapping_nodes(hostile):
    """All nodes that there can be are online, and are one."""
    first = hostile.physical("node_data")
    hostile.machine.image.write(first, hostile.machine.image.read(first, 8) * 64)
    hostile.machine.image.write(hostile.physical("node_states"), b"\xff" * 128)


def large_leaves(hostile):
    """512 pages of 1 GiB over all of vmemmap."""
    vmemmap = hostile.machine.plan.space.vmemmap
    (top, *_) = hostile.entries(vmemmap)
    leaves = b"".join(struct.pack("<Q", i << 30 | 0x1E3) for i in range(512))
    hostile.write(top, hostile.frame(leaves) << 12 | _TABLE)


def tables_of_nothing(hostile):
    """Tables whose entries all name frames that are nowhere."""
    vmemmap = hostile.machine.plan.space.vmemmap
    (top, *_) = hostile.entries(vmemmap)
    nowhere = b"".join(
        struct.pack("<Q", (1 << 30) + i << 12 | _TABLE) for i in range(512)
    )
    middle = hostile.table(hostile.frame(nowhere))
    hostile.write(top, middle << 12 | _TABLE)


def same_table_everywhere(hostile):
    """One page table, of 512 frames, that all entries above lead to."""
    vmemmap = hostile.machine.plan.space.vmemmap
    (top, *_) = hostile.entries(vmemmap)
    table = hostile.frame(
        b"".join(struct.pack("<Q", i << 12 | _TABLE) for i in range(512))
    )
    hostile.write(top, hostile.table(hostile.table(table)) << 12 | _TABLE)


def direct_map_as_vmemmap(hostile):
    """The entry for vmemmap names the table of the direct map."""
    space = hostile.machine.plan.space
    (top, *_) = hostile.entries(space.vmemmap)
    (direct, *_) = hostile.entries(space.direct(0))
    hostile.write(top, hostile.word(direct))


#: All that is done to a machine.
HOSTILE = (
    *(zone_name, many_symbols, too_many_symbols, long_names, endless_types),
    *(overlapping_nodes, large_leaves, tables_of_nothing, same_table_everywhere),
    direct_map_as_vmemmap,
)
