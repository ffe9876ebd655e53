# SPDX-License-Identifier: LGPL-2.1-or-later

"""
vmemmap, written
----------------

Which frames lie behind vmemmap: whole 2 MiB blocks where nothing was touched, base
pages where HVO split a block, one frame for many slices where it did its work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import numpy.typing as npt

from drgn_hvo.errors import UsageError
from drgn_hvo.synth.described.description import DeviceMemory, HugePages
from drgn_hvo.synth.machine.frames import Bytes, Extent, Range, subtract
from drgn_hvo.synth.machine.pagetables import (
    PageTables,
    tail_flags,
)
from drgn_hvo.synth.machine.plan import DEVICE_ZONE, Counted, Placed, Plan
from drgn_hvo.synth.machine.struct_pages import PageWriter

__all__ = ("DeviceFrames", "HeadFrames", "TailPage", "Take", "VmemmapWriter")

U64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

#: ``take(nid, count, what, align, boot)``: hands out frames behind each other.
Take = Callable[[int, int, str, int, bool], int]


@dataclass(frozen=True)
class TailPage:
    """
    A shared page of tails.

    :param zone: Index of the zone, ``None`` where they are per node.
    :param boot: Allocated and mapped before memmap_init().
    :param last_alias: First PFN of the last slice that maps it.
    """

    nid: int
    zone: Optional[int]
    order: int
    pfn: int
    boot: bool
    last_alias: int


@dataclass(frozen=True)
class HeadFrames:
    """
    The frames of the private slices of optimized folios.

    :param pfn: The first frame of first slices; those of second ones follow.
    :param folios: Index of the folio that each frame of a slice belongs to.
    :param slices: How many private slices each folio has.
    """

    placed: Placed[HugePages]
    pfn: int
    folios: Int64
    slices: int = 1

    def frame(self, folio: int, slice_: int = 0) -> int:
        """The frame of a private slice of a folio."""
        index = int(np.flatnonzero(self.folios == folio)[0])
        return self.pfn + slice_ * len(self.folios) + index


@dataclass(frozen=True)
class DeviceFrames:
    """
    The frames behind struct pages of a device that its compound pages do not share.

    :param pfn: The first frame of first slices; those of second ones follow.
    :param slices: How many slices of each compound page have one.
    """

    device: DeviceMemory
    pfn: int
    slices: int

    def frame(self, index: int, slice_: int) -> int:
        """The frame of such a slice of a compound page."""
        return self.pfn + slice_ * self.device.count + index


@dataclass(frozen=True)
class _Run:
    """Slices behind each other on frames behind each other."""

    first_slice: int
    count: int
    pfn: int


def _shuffled(count: int, seed: int) -> Int64:
    """
    A permutation that is the same everywhere: NumPy's generators may change from
    version to version, splitmix64 does not.
    """
    x = np.arange(count, dtype=np.uint64) + np.uint64(seed)
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable").astype(np.int64)


@dataclass
class VmemmapWriter:
    """
    Maps vmemmap.

    :param take: Hands out frames.
    """

    plan: Plan
    tables: PageTables
    take: Take
    tails: list[TailPage] = field(default_factory=list)
    heads: list[HeadFrames] = field(default_factory=list)
    devices: list[DeviceFrames] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    _runs: list[_Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._per_slice = self.plan.generation.geometry.pages_per_slice
        self._page_size = self.plan.page_size
        # A large page of vmemmap.
        self._block = self.tables.format.pages(1)
        self._power_of_2 = self.plan.generation.geometry.power_of_2

    def slice_of(self, pfn: int) -> int:
        """The slice in which the struct page of a PFN begins."""
        return pfn * self.plan.generation.struct_page_size // self._page_size

    def _address(self, slice_: int) -> int:
        return self.plan.space.vmemmap + slice_ * self._page_size

    def _slices(self, placed: Placed[HugePages]) -> Range:
        return self.slice_of(placed.first_pfn), self.slice_of(placed.end_pfn)

    def map(self) -> None:
        """Map all of it."""
        optimized = [placed for placed in self.plan.huge if placed.optimized]
        pages = self._shared(optimized) if self.plan.generation.shared else {}
        for placed in optimized:
            self._map_optimized(placed, pages)
        holes = [self._slices(placed) for placed in optimized]
        for split, start, end in self._stretches():
            for first, last in subtract([(start, end)], holes):
                self._map_own(first, last, split)
        tails = self._device_tails() if self.plan.generation.dax == "shared" else {}
        for device in self.plan.description.devices:
            self._map_device(device, tails.get((device.node, device.order)))

    def _device_tails(self) -> dict[tuple[int, int], int]:
        """
        The shared tail pages of ``ZONE_DEVICE``, by node and order: their owner has one
        reference to each, and each mapping has one.
        """
        devices = self.plan.description.devices
        pages: dict[tuple[int, int], int] = {}
        for nid, order in dict.fromkeys((d.node, d.order) for d in devices):
            mine = [d for d in devices if (d.node, d.order) == (nid, order)]
            behind = self.plan.generation.geometry.slices(order) - 1
            pfn = self.take(nid, 1, "shared tails", 1, False)
            last = max(d.end_pfn for d in mine) - self._per_slice
            self.tails.append(TailPage(nid, DEVICE_ZONE, order, pfn, False, last))
            mappings = sum(d.count for d in mine) * behind
            self.counted.append((pfn, pfn + 1, 1 + mappings))
            pages[nid, order] = pfn
        return pages

    def _map_device(self, device: DeviceMemory, tail: Optional[int]) -> None:
        """
        Map struct pages of a device: vmemmap_populate_compound_pages(), which takes a
        reference to a frame for each mapping but the first.

        :param tail: The shared tail page; ``None`` if slices map the second one's.
        """
        count, form = device.count, self.tables.format
        slices = self.plan.generation.geometry.slices(device.order)
        own = 2 if tail is None else 1
        pfn = self.take(device.node, own * count, "struct pages of devices", 1, False)
        self.devices.append(DeviceFrames(device, pfn, own))
        rows = np.empty((count, slices), dtype=np.uint64)
        rows[:, 0] = np.arange(pfn, pfn + count)
        if tail is None:
            rows[:, 1:] = rows[:, :1] + np.uint64(count)
            self.counted.append((pfn + count, pfn + 2 * count, slices - 1))
        else:
            rows[:, 1:] = tail
        rows *= np.uint64(self._page_size)
        entries = form.make(rows, 0, form.protections.kernel)
        first = self.slice_of(device.first_pfn)
        self.tables.map_entries(self._address(first), entries.reshape(-1))

    def _key(self, placed: Placed[HugePages]) -> tuple[int, Optional[int], int]:
        zone = self.plan.zone_of(placed.first_pfn)
        per_zone = self.plan.generation.array == "zone"
        return zone.nid, zone.index if per_zone else None, placed.group.order

    def _shared(
        self, optimized: list[Placed[HugePages]]
    ) -> dict[tuple[int, Optional[int], int], TailPage]:
        users: dict[tuple[int, Optional[int], int], list[Placed[HugePages]]] = {}
        for placed in optimized:
            users.setdefault(self._key(placed), []).append(placed)
        pages = {}
        for key, group in sorted(users.items(), key=lambda item: str(item[0])):
            boot = [p for p in group if p.group.origin == "boot"]
            pfn = self.take(key[0], 1, "shared tails", 1, bool(boot))
            last = max(p.end_pfn for p in boot or group) - self._per_slice
            pages[key] = TailPage(*key, pfn, bool(boot), last)
        self.tails = list(pages.values())
        return pages

    def _map_optimized(
        self,
        placed: Placed[HugePages],
        pages: dict[tuple[int, Optional[int], int], TailPage],
    ) -> None:
        group = placed.group
        boot = group.origin == "boot"
        seed = self.plan.description.seed ^ placed.first_pfn << 20
        order = _shuffled(group.count, seed & ((1 << 64) - 1))
        private = self.plan.generation.private_slices + group.restored_slices
        pfn = self.take(group.node, private * group.count, "heads of folios", 1, boot)
        self.heads.append(HeadFrames(placed, pfn, order, private))
        frames = np.empty(group.count, dtype=np.uint64)
        frames[order] = np.uint64(pfn) + np.arange(group.count, dtype=np.uint64)
        slices = self.plan.generation.geometry.slices(group.order)
        entries = np.empty((group.count, slices), dtype=np.uint64)
        page = pages.get(self._key(placed))
        # Since v6.6, x86's PAGE_KERNEL_RO has no _PAGE_DIRTY.
        dirty = self.plan.generation.fields in ("5.15", "6.1", "6.4")
        form = self.tables.format
        flags = tail_flags(form, boot=boot, dirty=dirty)
        heads = frames * np.uint64(self._page_size)
        if page is None:
            last = heads + np.uint64((private - 1) * group.count * self._page_size)
            entries[:] = form.make(last[:, None], 0, flags)
            entries[:, private - 1] = form.make(last, 0, form.protections.kernel)
        else:
            entries[:] = form.make(page.pfn * self._page_size, 0, flags)
            for slice_ in range(1, private):
                own = heads + np.uint64(slice_ * group.count * self._page_size)
                entries[:, slice_] = form.make(own, 0, form.protections.kernel)
        entries[:, 0] = form.make(heads, 0, form.protections.kernel)
        first = self.slice_of(placed.first_pfn)
        self.tables.map_entries(self._address(first), entries.reshape(-1))

    def _stretches(self) -> list[tuple[bool, int, int]]:
        """Slices of present sections: whether HVO split them, first and end."""
        section_pages = self.plan.description.section_pages
        touched = {
            section
            for placed in self.plan.huge
            if placed.optimized or placed.group.origin in ("restored", "demoted")
            for section in range(
                placed.first_pfn // section_pages,
                (placed.end_pfn - 1) // section_pages + 1,
            )
        }
        stretches: list[tuple[bool, int, int]] = []
        node = -1
        for section in self.plan.sections:
            first = self.slice_of(section * section_pages)
            end = self.slice_of((section + 1) * section_pages)
            split = section in touched or not self._power_of_2
            nid = self.plan.nid_of(section * section_pages)
            same = stretches and stretches[-1][0] == split and node == nid
            if same and stretches[-1][2] == first:
                stretches[-1] = (split, stretches[-1][1], end)
            else:
                stretches.append((split, first, end))
            node = nid
        return stretches

    def _map_own(self, first: int, end: int, split: bool) -> None:
        nid = self.plan.nid_of(
            first * self._page_size // self.plan.generation.struct_page_size
        )
        count = end - first
        shift = self.tables.format.shift(1)
        aligned = self._address(first) % (1 << shift) == count % self._block == 0
        split = split or not aligned
        if not split:
            try:
                pfn = self.take(nid, count, "vmemmap", self._block, True)
            except UsageError:
                split = True  # vmemmap_populate() falls back to base pages, too.
        if split:
            pfn = self.take(nid, count, "vmemmap", 1, True)
        step = 1 if split else self._block
        frames = pfn + np.arange(0, count, step, dtype=np.int64)
        flags = self.tables.format.protections.kernel
        self.tables.map(self._address(first), frames, flags, level=int(not split))
        self._runs.append(_Run(first, count, pfn))

    def frame_of(self, slice_: int) -> Optional[int]:
        """The frame of a slice that no folio shares."""
        for run in self._runs:
            if run.first_slice <= slice_ < run.first_slice + run.count:
                return run.pfn + slice_ - run.first_slice
        for frames in self.devices:
            per_page = self.plan.generation.geometry.slices(frames.device.order)
            index, rest = divmod(
                slice_ - self.slice_of(frames.device.first_pfn), per_page
            )
            if 0 <= index < frames.device.count and rest < frames.slices:
                return frames.frame(index, rest)
        return None

    def extents(self, writer: PageWriter) -> list[Extent]:
        """What all of these frames hold."""
        extents = [
            Extent(run.pfn, run.count, self._own_maker(writer, run))
            for run in self._runs
        ]
        for heads in self.heads:
            count = len(heads.folios) * heads.slices
            extents.append(Extent(heads.pfn, count, self._head_maker(writer, heads)))
        for frames in self.devices:
            count = frames.device.count * frames.slices
            maker = self._device_maker(writer, frames)
            extents.append(Extent(frames.pfn, count, maker))
        for tail in self.tails:
            zone = tail.zone or 0
            if tail.zone == DEVICE_ZONE:
                rows = writer.device_tail(tail.nid, tail.order)
            elif tail.boot:
                rows = writer.boot_tail(tail.nid, zone, tail.order, tail.last_alias)
            else:
                rows = writer.shared_tail(tail.nid, zone, tail.order)
            extents.append(Extent.stored(tail.pfn, rows.tobytes(), self._page_size))
        return extents

    def _own_maker(self, writer: PageWriter, run: _Run) -> Callable[[int, int], Bytes]:
        size = self.plan.generation.struct_page_size

        def make(first: int, count: int) -> Bytes:
            start = (run.first_slice + first) * self._page_size
            end = start + count * self._page_size
            rows = writer.pages(start // size, -(-end // size))
            flat = rows.view(np.uint8).reshape(-1)
            skip = start % size
            return flat[skip : skip + count * self._page_size].reshape(
                count, self._page_size
            )

        return make

    def _head_maker(
        self, writer: PageWriter, heads: HeadFrames
    ) -> Callable[[int, int], Bytes]:
        placed = heads.placed

        def make(first: int, count: int) -> Bytes:
            slice_, which = np.divmod(
                np.arange(first, first + count, dtype=np.int64), len(heads.folios)
            )
            folios = heads.folios[which]
            pfns = placed.first_pfn + (folios << placed.group.order)
            pfns += slice_ * self._per_slice
            behind = np.arange(self._per_slice, dtype=np.int64)
            rows = writer.folios(placed, (pfns[:, None] + behind).reshape(-1))
            return rows.view(np.uint8).reshape(count, self._page_size)

        return make

    def _device_maker(
        self, writer: PageWriter, frames: DeviceFrames
    ) -> Callable[[int, int], Bytes]:
        device = frames.device

        def make(first: int, count: int) -> Bytes:
            slice_, index = np.divmod(
                np.arange(first, first + count, dtype=np.int64), device.count
            )
            pfns = device.first_pfn + (index << device.order)
            pfns += slice_ * self._per_slice
            behind = np.arange(self._per_slice, dtype=np.int64)
            rows = writer.device(device, (pfns[:, None] + behind).reshape(-1))
            return rows.view(np.uint8).reshape(count, self._page_size)

        return make
