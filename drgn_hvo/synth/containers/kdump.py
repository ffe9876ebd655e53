# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kdump-compressed dumps of machines
----------------------------------

What :mod:`drgn_hvo.formats.kdump_writer` writes, and the flattened form of any file
that ``makedumpfile -F`` sends through a pipe.
"""

from __future__ import annotations

from typing import IO
import zlib

import numpy as np

from drgn_hvo.formats.kdump import FLATTENED_DATA, FLATTENED_HEADER, FLATTENED_SIGNATURE
from drgn_hvo.formats.kdump_writer import (
    KdumpHeader,
    KdumpWriter,
    pack_page,
    pfn_bitmap,
)
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.synth.containers.elf import CHUNK_FRAMES, Progress, core_notes
from drgn_hvo.synth.machine.frames import Range, subtract
from drgn_hvo.synth.machine.machine import Machine

__all__ = ("FlattenedFile", "write_kdump")

# MAX_SIZE_MDF_HEADER.
_HEADER_SIZE = 4096

# Everything but zero pages is filtered: cache, user and free pages.
_DUMP_LEVEL = 30


def _dumped(machine: Machine) -> list[Range]:
    """
    The pages in the dump: those with content. What folios and free pages hold is
    excluded, as makedumpfile does; pages of the kernel stay, zero or not.
    """
    image = machine.image
    extents = [(e.pfn, e.pfn + e.count) for e in image.extents]
    return subtract(extents, [(pfn, pfn + 1) for pfn in image.missing])


def write_kdump(machine: Machine, file: IO[bytes], progress: Progress) -> None:
    """Write a machine."""
    image, plan = machine.image, machine.plan
    header = KdumpHeader(
        nodename="synthetic",
        release=plan.description.release_string,
        version="#1 SMP",
        machine=plan.description.model.uname,
        page_size=plan.page_size,
        phys_base=Vmcoreinfo(machine.vmcoreinfo).number("phys_base") or 0,
        vmcoreinfo=machine.vmcoreinfo,
        notes=core_notes(machine),
        dump_level=_DUMP_LEVEL,
        max_mapnr=plan.max_pfn,
        byteorder=plan.description.model.byteorder,
    )
    memory = pfn_bitmap(image.memory, plan.max_pfn)
    dumped = pfn_bitmap(_dumped(machine), plan.max_pfn)
    writer = KdumpWriter(file, header, memory, dumped)
    for pfn, rows in image.chunks(CHUNK_FRAMES):
        zero = ~np.any(rows, axis=1)
        for i, row in enumerate(rows):
            if pfn + i not in image.missing:
                page = pack_page(row.tobytes(), zlib.Z_BEST_SPEED)
                writer.add(page, is_zero=bool(zero[i]))
        progress(len(rows))
    writer.finish()


def _piece(offset: int, size: int) -> bytes:
    return np.array((offset, size), dtype=FLATTENED_DATA).tobytes()


class FlattenedFile:
    """
    A file that records what is written where, for a pipe that cannot seek.

    :param file: Gets the records.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        header = np.array((FLATTENED_SIGNATURE, 1, 1), dtype=FLATTENED_HEADER)
        file.write(header.tobytes().ljust(_HEADER_SIZE, b"\0"))

    def write(self, data: bytes) -> int:
        """Record data at the present position."""
        self._file.write(_piece(self._position, len(data)))
        self._file.write(data)
        self._position += len(data)
        return len(data)

    def seek(self, offset: int) -> int:
        """Set the position."""
        self._position = offset
        return offset

    def finish(self) -> None:
        """Record the end."""
        self._file.write(_piece(-1, -1))
