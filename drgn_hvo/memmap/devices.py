# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Memory of devices
-----------------

``ZONE_DEVICE``: memory that drivers such as device DAX have mapped. Compound pages of
device DAX do with few pages of vmemmap, too. Since Linux kernel commit 4917f55b4ef9
("mm/sparse-vmemmap: improve memory savings for compound devmaps") (in v5.19), slices
behind the second one map the frame of that one. Kernels whose ``vmemmap_tails[]`` is
allocated map the shared tail page of the zone instead. All of these mappings are
writable, and none is HVO's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from drgn_hvo.kernel.arrays import Int64Array, distinct, ranges
from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.zones import Zone

__all__ = ("DeviceMemory", "device_memory", "is_device_zone")

# What has to be read to know the zones of all nodes.
_ZONES = (None, Need.NODES)


@dataclass(frozen=True)
class DeviceMemory:
    """
    The memory of devices of one node.

    :param slices: How many pages of vmemmap are mapped for it.
    :param frames: How many frames these map.
    """

    nid: int
    first_pfn: int
    last_pfn: int
    slices: int
    frames: int


def is_device_zone(hvo: Hvo, zone_index: Optional[int]) -> bool:
    """Whether the index of a zone is ``ZONE_DEVICE``."""
    return zone_index is not None and zone_index == hvo.kernel.constant("ZONE_DEVICE")


def device_memory(hvo: Hvo) -> Optional[list[DeviceMemory]]:
    """
    The memory of devices, by node.

    :return: ``None`` if zones, or how their struct pages are mapped, were not all read.
    """
    if hvo.kernel.constant("ZONE_DEVICE") is None:
        return None if hvo.kernel.type("enum zone_type") is None else []
    if not hvo.vmemmap.has_all_mappings:
        return None
    if any(one.need in _ZONES for one in hvo.mmzone.unread):
        return None
    zones = [
        zone
        for zone in hvo.mmzone.zones
        if is_device_zone(hvo, zone.index) and zone.spanned
    ]
    found = []
    for zone in zones:
        slices = _slices(hvo, zone)
        if slices is None:
            return None
        if not len(slices):
            continue
        frames, _ = hvo.vmemmap.frames(slices)
        per_slice = hvo.vmemmap.page_size // hvo.vmemmap.size
        pfns = slices[[0, -1]] * hvo.vmemmap.page_size // hvo.vmemmap.size
        found.append(
            DeviceMemory(
                zone.nid,
                int(pfns[0]),
                int(pfns[1]) + per_slice - 1,
                len(slices),
                len(distinct(frames)),
            )
        )
    return found


def _slices(hvo: Hvo, zone: Zone) -> Optional[Int64Array]:
    """
    The mapped slices of a zone of devices, ascending: other memory can lie between two
    devices. ``None`` if it is not known whose some are.
    """
    vmemmap = hvo.vmemmap
    firsts, ends = vmemmap.run_slices
    per_slice = vmemmap.page_size / vmemmap.size
    begin = int(zone.start_pfn // per_slice)
    end = int(-(-(zone.start_pfn + zone.spanned) // per_slice))
    firsts, ends = np.clip(firsts, begin, end), np.clip(ends, begin, end)
    slices = ranges(firsts, np.maximum(ends - firsts, 0))
    pfns = -(-slices * vmemmap.page_size // vmemmap.size)
    nids, zones = hvo.mmzone.places(pfns)
    mine = (nids == zone.nid) & (zones == zone.index)
    unsure = np.flatnonzero(nids < 0)
    if not len(unsure):
        return slices[mine]
    layout = hvo.mmzone.flags_layout
    pages = vmemmap.read_pages(pfns[unsure])
    if layout is None or not pages.present.all():
        return None
    flags = vmemmap.flags(pages)
    mine[unsure] = layout.nids(flags) == zone.nid
    mine[unsure] &= layout.zonenums(flags) == zone.index
    return slices[mine]
