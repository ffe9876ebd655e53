# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``show``
--------

The kernel, its layout and how it was decided, shared tail pages, pools and what
HVO saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional

import numpy as np

from drgn_hvo.audit.properties import kernel_properties
from drgn_hvo.commands.conclusions import show_conclusions
from drgn_hvo.commands.document import kernel_document
from drgn_hvo.kernel.unread import NOT_IN_DUMP, Need
from drgn_hvo.memmap.allocation import AllocationLimits, limits_of, room_of
from drgn_hvo.memmap.devices import device_memory, is_device_zone
from drgn_hvo.memmap.folios import Folios, Hugetlb
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.hwpoison import are_hwpoisoned
from drgn_hvo.memmap.not_optimized import REASONS
from drgn_hvo.memmap.overview import Overview, overview_of
from drgn_hvo.memmap.pools import LIST_NAMES, HState, hpg_names
from drgn_hvo.memmap.shared_tails import SharedTail

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import (
        CgroupLimitEntry,
        DeviceEntry,
        FolioEntry,
        HstateEntry,
        HstateNodeEntry,
        HwpoisonedEntry,
        NotOptimizedEntry,
        PoolsEntry,
        PropertyEntry,
        SavedByEntry,
        SavedEntry,
        SharedTailEntry,
        ShowReport,
        SubpoolEntry,
        TailLayoutEntry,
        VmemmapEntry,
    )

__all__ = ("show_document",)


def show_document(
    hvo: Hvo, target: str, *, folios: bool, limits: bool = False
) -> ShowReport:
    """
    What ``show --json`` prints.

    :param folios: Whether to list every folio.
    :param limits: Whether to look at mounts and cgroups, too, which no extract keeps.
    """
    kernel, layout = hvo.kernel, hvo.layout
    struct_page = kernel.struct_page
    overview = overview_of(hvo, whole=folios) if hvo.has_hugetlb else None
    found = (
        limits_of(hvo)
        if limits and hvo.has_hugetlb
        else AllocationLimits(None, None, ())
    )
    pools = _pools(hvo, overview, folios=folios)
    shown: ShowReport = {
        **kernel_document(target, kernel.release),
        "conclusions": [],
        "arch": kernel.arch,
        "page_size": kernel.geometry.page_size,
        "types_from": kernel.types_from,
        "symbols_from": kernel.symbols_from,
        "struct_page": {
            "size": struct_page.size,
            "member": struct_page.member,
            "offset": struct_page.offset,
        },
        "encoding": {
            "kind": layout.encoding.kind,
            "evidence": list(layout.encoding.evidence),
        },
        "tail_layout": _tail_layout(hvo),
        "hvo_built": hvo.is_built,
        "hvo_enabled": hvo.is_enabled,
        "vmemmap": _vmemmap(hvo),
        **pools,
        "properties": _properties(hvo, overview),
        "hwpoisoned": _hwpoisoned(overview),
        "not_optimized": _not_optimized(overview),
        "subpools": _subpools(found),
        "cgroup_limits": _cgroup_limits(found),
        "devices": _devices(hvo),
        # What could not be read, which is known when all of the above was looked at.
        "notes": [
            *layout.notes,
            *_unread(hvo),
            *_missing_tables(hvo),
            *_unknown_limits(pools["hstates"]),
            *found.unread,
            *(overview.left_out if overview is not None else ()),
        ],
    }
    broken = len(list(_broken_lists(hvo)))
    knows_pools = hvo.unread_of(Need.POOLS) is None
    shown["conclusions"] = show_conclusions(shown, broken, knows_pools=knows_pools)
    return shown


def _pools(hvo: Hvo, overview: Optional[Overview], *, folios: bool) -> PoolsEntry:
    pools: PoolsEntry = {"shared_tails": None, "hstates": None, "saved": None}
    if overview is not None:
        pools["shared_tails"] = [_shared_tail(hvo, t) for t in hvo.shared_tails]
        hstates = [_hstate(hvo, overview, h) for h in overview.hstates]
        # That there are none has to be read, too.
        is_known = bool(hstates) or hvo.unread_of(Need.POOLS) is None
        pools["hstates"] = hstates if is_known else None
        pools["saved"] = _saved(hvo, overview)
    if folios:
        pools["folios"] = None if overview is None else list(_folios(hvo, hvo.hugetlb))
    return pools


def _properties(hvo: Hvo, overview: Optional[Overview]) -> list[PropertyEntry]:
    writable = overview is not None and overview.tails_are_writable
    found = kernel_properties(hvo, tails_are_writable=writable)
    return [{"name": one.name, "text": one.text} for one in found]


def _hwpoisoned(overview: Optional[Overview]) -> Optional[list[HwpoisonedEntry]]:
    if overview is None or overview.hwpoisoned is None:
        return None
    return [
        {
            "head_pfn": one.head_pfn,
            "order": one.order,
            "raw_pages": None if one.raw_pages is None else list(one.raw_pages),
            "unknown": one.unknown,
        }
        for one in overview.hwpoisoned
    ]


def _not_optimized(overview: Optional[Overview]) -> Optional[list[NotOptimizedEntry]]:
    if overview is None or overview.not_optimized is None:
        return None
    return [
        {
            "nid": one.nid,
            "order": one.order,
            "reason": REASONS[one.reason],
            "count": one.count,
        }
        for one in overview.not_optimized
    ]


def _devices(hvo: Hvo) -> Optional[list[DeviceEntry]]:
    found = device_memory(hvo) if hvo.has_hugetlb else None
    if found is None:
        return None
    return [
        {
            "nid": one.nid,
            "first_pfn": one.first_pfn,
            "last_pfn": one.last_pfn,
            "slices": one.slices,
            "frames": one.frames,
            "saved_pages": one.slices - one.frames,
        }
        for one in found
    ]


def _subpools(found: AllocationLimits) -> Optional[list[SubpoolEntry]]:
    if found.subpools is None:
        return None
    return [
        {
            "device": one.device,
            "order": one.order,
            "limit": one.limit,
            "used": one.used,
            "minimum": one.minimum,
            "reserved": one.reserved,
        }
        for one in found.subpools
    ]


def _cgroup_limits(found: AllocationLimits) -> Optional[list[CgroupLimitEntry]]:
    if found.cgroups is None:
        return None
    return [
        {
            "path": one.path,
            "order": one.order,
            "of_reservations": one.of_reservations,
            "limit": one.limit,
            "used": one.used,
        }
        for one in found.cgroups
    ]


def _tail_layout(hvo: Hvo) -> TailLayoutEntry:
    tails = hvo.layout.tails
    array = tails.array if tails.kind == "shared" else None
    return {
        "kind": tails.kind,
        "where": array.where if array else None,
        "element": array.element if array else None,
        "min_order": array.min_order if array else None,
        "slots": array.slots if array else None,
        "evidence": list(tails.evidence),
    }


def _vmemmap(hvo: Hvo) -> VmemmapEntry:
    """The alignment matters for masks only: sparse_init() checks it there."""
    required = None
    max_order = hvo.layout.tails.max_order
    if hvo.layout.encoding.has_mask and max_order is not None:
        required = hvo.kernel.geometry.vmemmap_align(max_order)
    base = hvo.vmemmap.base
    return {
        "base": f"{base:#x}",
        "aligned": None if required is None else base % required == 0,
        "required_alignment": required,
    }


def _zone_name(hvo: Hvo, nid: int, index: Optional[int]) -> Optional[str]:
    return None if index is None else hvo.mmzone.zone_name(nid, index)


def _shared_tail(hvo: Hvo, tail: SharedTail) -> SharedTailEntry:
    return {
        "nid": tail.nid,
        "zone": _zone_name(hvo, tail.nid, tail.zone_index),
        "index": tail.index,
        "order": tail.order,
        "pfn": tail.pfn,
        "frame_nid": tail.frame_nid,
        "frame_refcount": tail.frame_refcount,
        "boot": tail.boot,
        "mapped_by": tail.mapped_by,
        "slot": f"{tail.slot:#x}",
        "value": f"{tail.value:#x}",
    }


def _is_row(hvo: Hvo, hstate: HState, nid: int) -> bool:
    """Whether a node is shown: not one that is offline and has no huge pages."""
    counts = (hstate.total_node, hstate.free_node, hstate.surplus_node)
    known = [count[nid] for count in counts]
    return nid in hvo.mmzone.online_nids or any(known) or None in known


def _hstate(hvo: Hvo, overview: Overview, hstate: HState) -> HstateEntry:
    nodes: list[HstateNodeEntry] = []
    for nid in hvo.mmzone.nids:
        if not _is_row(hvo, hstate, nid):
            continue
        counts = overview.nodes[hstate.order, nid]
        nodes.append(
            {
                "nid": nid,
                "total": hstate.total_node[nid],
                "free": hstate.free_node[nid],
                "surplus": hstate.surplus_node[nid],
                "folios": counts.folios,
                "optimized": counts.optimized,
            }
        )
    room = room_of(hvo, hstate)
    return {
        "order": hstate.order,
        "page_bytes": hvo.kernel.geometry.page_size << hstate.order,
        "total": hstate.total,
        "free": hstate.free,
        "surplus": hstate.surplus,
        "reserved": hstate.reserved,
        "available": room.available,
        "asked": room.asked,
        "overcommit": room.overcommit,
        "surplus_left": room.surplus_left,
        "nodes": nodes,
    }


def _unknown_limits(hstates: Optional[list[HstateEntry]]) -> Iterator[str]:
    """Of which pools it is not known how many huge pages they may get, and why."""
    for hstate in hstates or ():
        if hstate["overcommit"] is None or hstate["asked"] is None:
            yield (
                f"limits of the pool of order {hstate['order']} are not known: "
                f"{NOT_IN_DUMP}, or of a shape that no known kernel has"
            )


def _saved(hvo: Hvo, overview: Overview) -> SavedEntry:
    pages: Optional[int] = None
    by_node_order: Optional[list[SavedByEntry]] = None
    if overview.saved is not None:
        pages = sum(overview.saved.values())
        by_node_order = [
            {"nid": nid, "order": order, "pages": count}
            for (nid, order), count in overview.saved.items()
        ]
    shared: Optional[int] = None
    if not any(unread.need in _TAIL_PAGES for unread in hvo.unread):
        # A frame that two slots name is one frame. Those of ZONE_DEVICE are no huge
        # page's: what they save is counted with the memory of devices.
        tails = [t for t in hvo.shared_tails if not is_device_zone(hvo, t.zone_index)]
        shared = len({tail.pfn for tail in tails if tail.pfn is not None})
    net = None if pages is None or shared is None else pages - shared
    return {
        "pages": pages,
        "shared_tail_pages": shared,
        "net_pages": net,
        "net_bytes": None if net is None else net * hvo.kernel.geometry.page_size,
        "by_node_order": by_node_order,
    }


# What has to be read to count shared tail pages.
_TAIL_PAGES = (Need.NODES, Need.SLOTS)


def _folios(hvo: Hvo, hugetlb: Hugetlb) -> Iterator[FolioEntry]:
    """One document a folio, by head PFN."""
    folios = hugetlb.folios
    nids = hvo.folio_nids.tolist()
    zones = hvo.folio_zones.tolist()
    optimized = hugetlb.has_hpg_flag("vmemmap_optimized")
    mapping = hugetlb.optimized_mapping.tolist()
    in_transition = hugetlb.in_transition.tolist()
    hwpoison = are_hwpoisoned(hvo)
    holes = (folios.mapped < folios.slices) & bool(hvo.vmemmap.walk.missing)
    whole_orders = _orders_with_whole_lists(hugetlb)
    tail_frames = _tail_frames(folios)
    hpg_flags = dict(sorted(hugetlb.hpg_flags.items(), key=lambda flag: flag[1]))
    for i in range(len(folios)):
        present = bool(folios.present[i])
        private = int(folios.private[i])
        zone = None
        if nids[i] >= 0:
            zone = hvo.mmzone.zone_name(nids[i], zones[i])
        head_frame = int(folios.head_frame[i])
        on_list = LIST_NAMES[folios.on_list[i]]
        is_list_known = on_list is not None or (
            not hugetlb.unread_pools and int(folios.order[i]) in whole_orders
        )
        yield {
            "head_pfn": int(folios.head_pfn[i]),
            "order": int(folios.order[i]),
            "nid": None if nids[i] < 0 else nids[i],
            "zone": zone,
            "list": on_list,
            "refcount": int(folios.refcount[i]) if present else None,
            "flags": hpg_names(hpg_flags, private) if present else None,
            "optimized_flag": (
                bool(optimized[i]) if present and optimized is not None else None
            ),
            "optimized_mapping": mapping[i] or (None if holes[i] else False),
            "head_frame": None if head_frame < 0 else head_frame,
            "tail_frames": tail_frames.get(i, []),
            "private_frames": int(folios.mapped[i] - folios.shared_ptes[i]),
            "shared_ptes": int(folios.shared_ptes[i]),
            "writable_shared_ptes": int(folios.writable_shared_ptes[i]),
            "in_transition": in_transition[i] if present and is_list_known else None,
            "hwpoison": (
                bool(hwpoison[i]) if present and hwpoison is not None else None
            ),
        }


def _orders_with_whole_lists(hugetlb: Hugetlb) -> set[int]:
    """Orders of pools of which every list could be followed to its end."""
    broken = {a_list.order for a_list in hugetlb.lists if not a_list.is_whole}
    return {hstate.order for hstate in hugetlb.hstates} - broken


def _tail_frames(folios: Folios) -> dict[int, list[int]]:
    """The distinct frames that the slices of each folio share."""
    slices = folios.tail_slices
    frames: dict[int, set[int]] = {}
    for i in np.flatnonzero(slices.shared > 0).tolist():
        pfn, count = int(slices.pfn[i]), int(slices.count[i])
        # Slices that map one frame, or a stretch with shared ones among others.
        mapped = {pfn} if slices.step[i] == 0 else set(range(pfn, pfn + count))
        frames.setdefault(int(slices.folio[i]), set()).update(mapped)
    return {folio: sorted(pfns) for folio, pfns in frames.items()}


def _unread(hvo: Hvo) -> Iterator[str]:
    """What could not be read of nodes, slots and pools, and where lists are broken."""
    yield from map(str, hvo.unread)
    yield from _broken_lists(hvo)


def _broken_lists(hvo: Hvo) -> Iterator[str]:
    for a_list in hvo.hugetlb.lists if hvo.has_read_folios else ():
        link = a_list.broken
        if link is not None and not a_list.is_unread:
            yield f"the {a_list} is broken: the link at {link.address:#x} {link.reason}"


def _missing_tables(hvo: Hvo) -> list[str]:
    if not hvo.vmemmap.has_mappings:
        return [hvo.vmemmap.no_mappings_reason or ""]
    missing = hvo.vmemmap.walk.missing
    lines = [
        f"page table {t.address:#x} for {t.start:#x} to {t.end:#x} {t.reason}"
        for t in missing[:3]
    ]
    if len(missing) > len(lines):
        lines.append(f"and {len(missing) - len(lines)} more page tables")
    return lines
