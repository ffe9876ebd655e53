# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Containers
----------

The formats in which dumps come, written: ELF as QEMU's ``dump-guest-memory`` and as the
kernel's ``/proc/vmcore`` lay it out (:mod:`~drgn_hvo.synth.containers.kdump` has the
others), and a :class:`drgn.Program` without any file. Memory itself is written in bulk,
and zeros are left as holes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import struct
from typing import IO

from drgn import Architecture, Platform, PlatformFlags, Program
import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.kdump_writer import core_note
from drgn_hvo.synth.machine.frames import Bytes, Image, Range, subtract
from drgn_hvo.synth.machine.machine import Machine

__all__ = (
    "CHUNK_FRAMES",
    "Progress",
    "core_notes",
    "program",
    "write_elf",
    "write_vmcore",
)

#: ``progress(frames)`` counts frames that were written.
Progress = Callable[[int], None]

#: 16 MiB at once.
CHUNK_FRAMES = 4096

# Elf64_Ehdr behind its e_ident, and Elf64_Phdr.
_EHDR, _EHDR_SIZE = "HHIQQQIHHHHHH", 64
_PHDR, _PHDR_SIZE = "IIQQQQQQ", 56
_ELFDATA = {"little": 1, "big": 2}
_ET_CORE, _PT_LOAD, _PT_NOTE = 4, 1, 4
_NT_PRSTATUS = 1


def core_notes(machine: Machine) -> bytes:
    """The notes of a dump: one CPU, and VMCOREINFO."""
    model = machine.plan.description.model
    registers = bytes(model.prstatus_size)
    prstatus = core_note(b"CORE", _NT_PRSTATUS, registers, model.byteorder)
    return prstatus + core_note(b"VMCOREINFO", 0, machine.vmcoreinfo, model.byteorder)


@dataclass(frozen=True)
class _Segment:
    """A PT_LOAD: physical pages, and where the kernel has them (0: nowhere)."""

    start: int
    end: int
    vaddr: int


def _dumped(image: Image) -> list[Range]:
    return subtract(image.memory, [(pfn, pfn + 1) for pfn in image.missing])


def write_elf(machine: Machine, file: IO[bytes], progress: Progress) -> None:
    """ELF as QEMU writes it: physical segments, ``p_vaddr`` 0."""
    segments = [_Segment(start, end, 0) for start, end in _dumped(machine.image)]
    _write(machine, file, segments, progress)


def write_vmcore(machine: Machine, file: IO[bytes], progress: Progress) -> None:
    """
    ELF as ``/proc/vmcore`` has it (:linux:`fs/proc/vmcore.c`): the kernel image
    where it runs, and all memory where the direct map has it.
    """
    space = machine.plan.space
    first = machine.plan.kernel_pfn
    segments = [_Segment(first, first + machine.plan.kernel_pages, space.text)]
    segments += [
        _Segment(start, end, space.virtual(start))
        for start, end in _dumped(machine.image)
    ]
    _write(machine, file, segments, progress)


def _write(
    machine: Machine, file: IO[bytes], segments: list[_Segment], progress: Progress
) -> None:
    notes, page = core_notes(machine), machine.plan.page_size
    description = machine.plan.description
    order = machine.plan.order
    count = len(segments) + 1
    note_offset = _EHDR_SIZE + count * _PHDR_SIZE
    ident = bytes((0x7F, *b"ELF", 2, _ELFDATA[description.model.byteorder], 1))
    file.write(
        ident.ljust(16, b"\0")
        + struct.pack(
            order + _EHDR,
            _ET_CORE,
            ARCHITECTURES[description.architecture].elf_machine,
            1,  # EV_CURRENT
            0,
            _EHDR_SIZE,
            0,
            0,
            _EHDR_SIZE,
            _PHDR_SIZE,
            count,
            0,
            0,
            0,
        )
    )

    def header(kind: int, offset: int, vaddr: int, paddr: int, size: int) -> bytes:
        flags = 7 if kind == _PT_LOAD else 0
        return struct.pack(
            order + _PHDR, kind, flags, offset, vaddr, paddr, size, size, 0
        )

    file.write(header(_PT_NOTE, note_offset, 0, 0, len(notes)))
    data = -(-(note_offset + len(notes)) // page) * page
    offsets = []
    for segment in segments:
        size = (segment.end - segment.start) * page
        address = segment.start * page
        file.write(header(_PT_LOAD, data, segment.vaddr, address, size))
        offsets.append((segment.start, segment.end, data))
        data += size
    file.write(notes)
    _write_memory(machine.image, file, offsets, progress)
    file.truncate(data)


def _write_memory(
    image: Image,
    file: IO[bytes],
    places: list[tuple[int, int, int]],
    progress: Progress,
) -> None:
    """
    Write what is not zero; the rest of the file is one hole.

    :param places: PFN range and file offset of each segment.
    """
    for pfn, rows in image.chunks(CHUNK_FRAMES):
        used: npt.NDArray[np.bool_] = np.any(rows, axis=1)
        for start, end, offset in places:
            first, last = max(pfn, start), min(pfn + len(rows), end)
            if first < last:
                part = slice(first - pfn, last - pfn)
                at = offset + (first - start) * image.page_size
                _write_used(file, at, rows[part], used[part])
        progress(len(rows))


def _write_used(
    file: IO[bytes], offset: int, rows: Bytes, used: npt.NDArray[np.bool_]
) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], used.view(np.int8), [0]))))
    for first, last in edges.reshape(-1, 2).tolist():
        file.seek(offset + first * rows.shape[1])
        file.write(np.ascontiguousarray(rows[first:last]).data)


def program(machine: Machine, *, is_live: bool = False) -> Program:
    """
    A :class:`drgn.Program` of a machine, without a file.

    :param is_live: Whether to pass it off as a running kernel, whose memory may
        change from one read to the next.
    """
    description = machine.plan.description
    flags = PlatformFlags.IS_64_BIT
    if description.model.byteorder == "little":
        flags |= PlatformFlags.IS_LITTLE_ENDIAN
    architecture = Architecture[description.architecture.upper()]
    prog = Program(Platform(architecture, flags))

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        return machine.image.read(address, count)

    page = machine.plan.page_size
    for start, end in _dumped(machine.image):
        prog.add_memory_segment(start * page, (end - start) * page, read, True)
    prog.set_linux_kernel_custom(machine.vmcoreinfo, is_live)
    return prog
