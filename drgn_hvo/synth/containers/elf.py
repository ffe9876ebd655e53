# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Containers
----------

The formats in which dumps come, written: ELF as QEMU's ``dump-guest-memory`` and as the
kernel's ``/proc/vmcore`` lay it out (:mod:`~drgn_hvo.synth.containers.kdump` has the
others), and a :class:`drgn.Program` without any file. Formats are declared with
construct; memory itself is written in bulk, and zeros are left as holes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import construct
from drgn import Architecture, Platform, Program
import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.kdump_writer import core_note
from drgn_hvo.synth.described.generations import PAGE_SIZE
from drgn_hvo.synth.machine.frames import Bytes, Image, Range, subtract
from drgn_hvo.synth.machine.machine import Machine
from drgn_hvo.synth.machine.plan import KERNEL_PAGES

__all__ = (
    "CHUNK_FRAMES",
    "Progress",
    "core_notes",
    "program",
    "write_elf",
    "write_vmcore",
)

#: ``progress(frames)``: so many more frames were written.
Progress = Callable[[int], None]

#: 16 MiB at once.
CHUNK_FRAMES = 4096

_EHDR = construct.Struct(
    "e_ident" / construct.Bytes(16),
    "e_type" / construct.Int16ul,
    "e_machine" / construct.Int16ul,
    "e_version" / construct.Int32ul,
    "e_entry" / construct.Int64ul,
    "e_phoff" / construct.Int64ul,
    "e_shoff" / construct.Int64ul,
    "e_flags" / construct.Int32ul,
    "e_ehsize" / construct.Int16ul,
    "e_phentsize" / construct.Int16ul,
    "e_phnum" / construct.Int16ul,
    "e_shentsize" / construct.Int16ul,
    "e_shnum" / construct.Int16ul,
    "e_shstrndx" / construct.Int16ul,
)
_PHDR = construct.Struct(
    "p_type" / construct.Int32ul,
    "p_flags" / construct.Int32ul,
    "p_offset" / construct.Int64ul,
    "p_vaddr" / construct.Int64ul,
    "p_paddr" / construct.Int64ul,
    "p_filesz" / construct.Int64ul,
    "p_memsz" / construct.Int64ul,
    "p_align" / construct.Int64ul,
)
_ELFCLASS64_LSB = b"\x7fELF\x02\x01\x01" + bytes(9)
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE = 4, 62, 1, 4
_NT_PRSTATUS = 1
# sizeof(struct elf_prstatus) on x86-64.
_PRSTATUS_SIZE = 336


def core_notes(vmcoreinfo: bytes) -> bytes:
    """The notes of a dump: one CPU, and VMCOREINFO."""
    return core_note(b"CORE", _NT_PRSTATUS, bytes(_PRSTATUS_SIZE)) + core_note(
        b"VMCOREINFO", 0, vmcoreinfo
    )


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
    segments = [_Segment(first, first + KERNEL_PAGES, space.text)]
    segments += [
        _Segment(start, end, space.virtual(start))
        for start, end in _dumped(machine.image)
    ]
    _write(machine, file, segments, progress)


def _write(
    machine: Machine, file: IO[bytes], segments: list[_Segment], progress: Progress
) -> None:
    notes = core_notes(machine.vmcoreinfo)
    count = len(segments) + 1
    note_offset = _EHDR.sizeof() + count * _PHDR.sizeof()
    file.write(
        _EHDR.build(
            {
                "e_ident": _ELFCLASS64_LSB,
                "e_type": _ET_CORE,
                "e_machine": _EM_X86_64,
                "e_version": 1,
                "e_entry": 0,
                "e_phoff": _EHDR.sizeof(),
                "e_shoff": 0,
                "e_flags": 0,
                "e_ehsize": _EHDR.sizeof(),
                "e_phentsize": _PHDR.sizeof(),
                "e_phnum": count,
                "e_shentsize": 0,
                "e_shnum": 0,
                "e_shstrndx": 0,
            }
        )
    )
    file.write(_phdr(_PT_NOTE, note_offset, 0, 0, len(notes)))
    data = -(-(note_offset + len(notes)) // PAGE_SIZE) * PAGE_SIZE
    offsets = []
    for segment in segments:
        size = (segment.end - segment.start) * PAGE_SIZE
        address = segment.start * PAGE_SIZE
        file.write(_phdr(_PT_LOAD, data, segment.vaddr, address, size))
        offsets.append((segment.start, segment.end, data))
        data += size
    file.write(notes)
    _write_memory(machine.image, file, offsets, progress)
    file.truncate(data)


def _phdr(kind: int, offset: int, vaddr: int, paddr: int, size: int) -> bytes:
    header: bytes = _PHDR.build(
        {
            "p_type": kind,
            "p_flags": 7 if kind == _PT_LOAD else 0,
            "p_offset": offset,
            "p_vaddr": vaddr,
            "p_paddr": paddr,
            "p_filesz": size,
            "p_memsz": size,
            "p_align": 0,
        }
    )
    return header


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
                at = offset + (first - start) * PAGE_SIZE
                _write_used(file, at, rows[part], used[part])
        progress(len(rows))


def _write_used(
    file: IO[bytes], offset: int, rows: Bytes, used: npt.NDArray[np.bool_]
) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], used.view(np.int8), [0]))))
    for first, last in edges.reshape(-1, 2).tolist():
        file.seek(offset + first * PAGE_SIZE)
        file.write(np.ascontiguousarray(rows[first:last]).data)


def program(machine: Machine, *, is_live: bool = False) -> Program:
    """
    A :class:`drgn.Program` of a machine, without a file.

    :param is_live: Whether to pass it off as a running kernel, whose memory may
        change from one read to the next.
    """
    prog = Program(Platform(Architecture.X86_64))

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        return machine.image.read(address, count)

    for start, end in _dumped(machine.image):
        size = (end - start) * PAGE_SIZE
        prog.add_memory_segment(start * PAGE_SIZE, size, read, True)
    prog.set_linux_kernel_custom(machine.vmcoreinfo, is_live)
    return prog
