# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Writing an extract
------------------

Reads what is needed, makes the rest zero, and writes it as a kdump-compressed file.
The same target gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO

from drgn import Program, ProgramFlags
import numpy as np

from drgn_hvo.extract.needs import Needs
from drgn_hvo.formats.kdump_writer import (
    KdumpHeader,
    KdumpWriter,
    PackedPage,
    core_note,
    pack_page,
    pfn_bitmap,
)
from drgn_hvo.formats.vmcoreinfo import EXTRACT_KEY, Vmcoreinfo
from drgn_hvo.kernel.arrays import Int64Array
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.vmemmap import Vmemmap
from drgn_hvo.progress import Bar

__all__ = ("Extract", "Kept", "collect", "write_extract")

_FRAMES_PER_CHUNK = 256

# As small as zlib makes it, because an extract is made to be sent.
_ZLIB_LEVEL = 9

# The dump level that says that all was left out that makedumpfile can leave out.
_DUMP_LEVEL = 31

# What a kernel has as domainname until one is set.
_NO_NAME = "(none)"


@dataclass
class Kept:
    """How much is kept for one reason."""

    pages: int = 0
    bytes: int = 0


@dataclass
class Extract:
    """
    What goes into the file.

    :param pages: Packed pages by PFN, and whether they are all zero.
    """

    pages: dict[int, tuple[PackedPage, bool]] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, pages: int, size: int) -> None:
        """Count what is kept."""
        if pages:
            kept = self.kept.setdefault(reason, Kept())
            kept.pages += pages
            kept.bytes += size

    def drop(self, what: str, pfns: Int64Array) -> None:
        """Leave out pages after all."""
        gone = [pfn for pfn in pfns.tolist() if self.pages.pop(pfn, None) is not None]
        if gone:
            self.left_out[what] = self.left_out.get(what, 0) + len(gone)


def collect(
    base: Program,
    hvo: Hvo,
    needs: Needs,
    replaced: dict[int, dict[int, bytes]],
    bar: Bar,
) -> Extract:
    """
    Read what is needed.

    :param bar: Is told how many frames were read.
    :param replaced: Bytes that take the place of others, by frame and offset.
    """
    extract = Extract(left_out=dict(needs.left_out))
    page_size = hvo.kernel.geometry.page_size
    reader = FrameReader(base, page_size)
    more = np.array(sorted(replaced), dtype=np.int64)
    pfns = np.union1d(needs.frames(), more)
    for first in range(0, len(pfns), _FRAMES_PER_CHUNK):
        chunk = pfns[first : first + _FRAMES_PER_CHUNK]
        frames = reader.read(chunk)
        keep = np.zeros(frames.data.shape, dtype=np.bool_)
        for reason, mask in needs.masks(chunk):
            mask &= frames.present[:, None]
            extract.add(reason, int(mask.any(axis=1).sum()), int(mask.sum()))
            keep |= mask
        rows = np.where(keep, frames.data, 0).astype(np.uint8)
        for i, pfn in enumerate(chunk.tolist()):
            for offset, data in replaced.get(pfn, {}).items():
                new = np.frombuffer(data, dtype=np.uint8)
                rows[i, offset : offset + len(data)] = new
            if frames.present[i]:
                packed = pack_page(rows[i].tobytes(), _ZLIB_LEVEL)
                extract.pages[pfn] = packed, not rows[i].any()
        bar.update(len(chunk))
    missing = len(pfns) - len(extract.pages)
    if missing:
        extract.left_out["pages that the target itself does not have"] = missing
    if base.flags & ProgramFlags.IS_LIVE:
        _drop_changed(extract, hvo, needs)
    return extract


def _drop_changed(extract: Extract, hvo: Hvo, needs: Needs) -> None:
    """
    In a running kernel a page of vmemmap can become somebody's data between the walk
    and the read: drop what is not mapped any more.
    """
    again = Vmemmap(hvo.kernel)
    mapped = np.concatenate([needs.columns, *needs.whole.values()])
    mapped = np.setdiff1d(mapped, needs.whole["page-tables"])
    gone = mapped[again.users_of(mapped) == 0]
    extract.drop("pages that stopped being part of vmemmap meanwhile", gone)


def _vmcoreinfo(prog: Program, kind: str) -> bytes:
    """VMCOREINFO, with a line that says what this is."""
    text: bytes = prog["VMCOREINFO"].string_()
    mark = EXTRACT_KEY.encode() + b"="
    lines = [line for line in text.split(b"\n") if line and not line.startswith(mark)]
    return b"\n".join([*lines, mark + kind.encode(), b""])


def write_extract(
    file: IO[bytes],
    hvo: Hvo,
    extract: Extract,
    kind: str,
    *,
    is_incomplete: bool = False,
) -> None:
    """
    Write the file.

    :param kind: ``"full"`` or ``"small"``.
    :param is_incomplete: Whether the dump that it was made from is.
    """
    vmemmap, page_size = hvo.vmemmap, hvo.kernel.geometry.page_size
    note = _vmcoreinfo(hvo.kernel.prog, kind)
    pfns = sorted(extract.pages)
    max_mapnr = max([vmemmap.end_pfn, *(pfn + 1 for pfn in pfns[-1:])])
    firsts, ends = vmemmap.run_slices
    memory = [
        (first * page_size // vmemmap.size, -(-end * page_size // vmemmap.size))
        for first, end in zip(firsts.tolist(), ends.tolist())
    ]
    dumped = [(pfn, pfn + 1) for pfn in pfns]
    header = KdumpHeader(
        # The name of the machine is not ours to tell, and its kernel's version string
        # is not kept; libkdumpfile takes a header with empty names for none.
        nodename=_NO_NAME,
        release=hvo.kernel.release or _NO_NAME,
        version=_NO_NAME,
        machine=hvo.kernel.arch,
        page_size=page_size,
        phys_base=Vmcoreinfo(note).number("phys_base") or 0,
        vmcoreinfo=note,
        notes=core_note(b"VMCOREINFO", 0, note, hvo.kernel.sources.byteorder),
        dump_level=_DUMP_LEVEL,
        max_mapnr=max_mapnr,
        byteorder=hvo.kernel.sources.byteorder,
        # An extract lacks most pages anyway, so that its reader could not tell that the
        # core was incomplete.
        is_incomplete=is_incomplete,
    )
    writer = KdumpWriter(
        file,
        header,
        pfn_bitmap([*memory, *dumped], max_mapnr),
        pfn_bitmap(dumped, max_mapnr),
    )
    for pfn in pfns:
        packed, is_zero = extract.pages[pfn]
        writer.add(packed, is_zero=is_zero)
    writer.finish()
