# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Nodes, zones and page flags
---------------------------

Which node and zone a page belongs to is in the upper bits of its flags
(:linux:`include/linux/page-flags-layout.h`). The kernel computes their
positions with the preprocessor; here they follow from array lengths and
enumerators, and are checked against pages whose zone is known otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from drgn import FaultError, Object, Program, sizeof
import numpy as np

from drgn_hvo.formats.tail_words import BITS_PER_LONG
from drgn_hvo.kernel.arrays import Int64Array, U64Array
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.memmap.vmemmap import Vmemmap

__all__ = ("FlagsLayout", "Mmzone", "Zone")

# No zone has a longer name than "Movable" or "Highmem".
_MAX_ZONE_NAME = 32


@dataclass(frozen=True)
class Zone:
    """
    A populated or empty zone of an online node.

    :param index: ``zone_idx()``.
    :param spanned: Number of pages from *start_pfn* on, holes included.
    :param address: Of the ``struct zone``.
    """

    nid: int
    index: int
    name: str
    start_pfn: int
    spanned: int
    address: int


@dataclass(frozen=True)
class FlagsLayout:
    """Where ``page->flags`` holds node and zone: shifts and masks."""

    node_shift: int
    node_mask: int
    zone_shift: int
    zone_mask: int

    def nids(self, flags: U64Array) -> Int64Array:
        """Mirror of ``page_to_nid()`` over words."""
        field = flags >> np.uint64(self.node_shift) & np.uint64(self.node_mask)
        return field.astype(np.int64)

    def zonenums(self, flags: U64Array) -> Int64Array:
        """Mirror of ``page_zonenum()`` over words."""
        field = flags >> np.uint64(self.zone_shift) & np.uint64(self.zone_mask)
        return field.astype(np.int64)


# drgn has helpers for both, but importing them imports all of drgn.helpers.linux: a
# sixth of the time of a check.


def _nr_node_ids(prog: Program) -> int:
    try:
        return int(prog["nr_node_ids"].value_())
    except LookupError:
        return 1  # CONFIG_NUMA=n: a macro.


def _node_data(prog: Program, nid: int) -> Object:
    """Mirror of ``NODE_DATA()``."""
    try:
        return prog["node_data"][nid].read_()
    except LookupError:
        return prog["contig_page_data"].address_of_()  # CONFIG_NUMA=n


class Mmzone:
    """
    Nodes and zones of a kernel with types.

    :param notes: Gets a line for each node or zone that cannot be read.
    :param like: Another one of the same running kernel, which has the same positions in
        ``page->flags``.
    """

    def __init__(
        self,
        kernel: Kernel,
        vmemmap: Vmemmap,
        notes: list[str],
        like: Optional[Mmzone] = None,
    ) -> None:
        self._kernel = kernel
        self._vmemmap = vmemmap
        self._notes = notes
        self._like = like

    @cached_property
    def pgdats(self) -> dict[int, Object]:
        """``struct pglist_data *`` of each online node, by node ID."""
        prog: Program = self._kernel.prog
        pgdats = {}
        try:
            online = prog["node_states"][prog["N_ONLINE"]].bits
            # A damaged nr_node_ids must not lead behind the mask.
            most, count = 8 * sizeof(online), _nr_node_ids(prog)
            if count > most:
                self._notes.append(f"nr_node_ids is more than {most}, MAX_NUMNODES")
            for nid in range(min(count, most)):
                word, bit = divmod(nid, BITS_PER_LONG)
                if not online[word].value_() >> bit & 1:
                    continue
                pgdat = _node_data(prog, nid)
                if pgdat.node_id.value_() == nid:
                    pgdats[nid] = pgdat
                else:
                    self._notes.append(f"pglist_data of node {nid} is damaged")
        except FaultError as e:
            self._notes.append(f"not all nodes are in this dump: {e}")
        return pgdats

    @cached_property
    def zones(self) -> tuple[Zone, ...]:
        """All zones of all online nodes."""
        zones = []
        for nid, pgdat in self.pgdats.items():
            for index, zone in enumerate(pgdat.node_zones):
                try:
                    zones.append(self._zone(nid, index, zone))
                except FaultError as e:
                    self._notes.append(
                        f"zone {index} of node {nid} is not in this dump: {e}"
                    )
        return tuple(zones)

    def _zone(self, nid: int, index: int, zone: Object) -> Zone:
        try:
            name = zone.name.string_()[:_MAX_ZONE_NAME].decode("ascii", "replace")
        except FaultError:
            name = self._zone_type_name(index)
        return Zone(
            nid,
            index,
            name,
            zone.zone_start_pfn.value_(),
            zone.spanned_pages.value_(),
            zone.address_of_().value_(),
        )

    def _zone_type_name(self, index: int) -> str:
        """``ZONE_NORMAL`` for index 2, and so on, as ``enum zone_type`` says."""
        zone_type = self._kernel.type("enum zone_type")
        for enumerator in (zone_type.enumerators or ()) if zone_type else ():
            if enumerator.value == index:
                return enumerator.name.replace("ZONE_", "", 1)
        return str(index)

    def zone_name(self, nid: int, index: int) -> Optional[str]:
        """The name of a zone, as the kernel prints it."""
        for zone in self.zones:
            if (zone.nid, zone.index) == (nid, index):
                return zone.name
        return None

    @cached_property
    def flags_layout(self) -> Optional[FlagsLayout]:
        """
        Positions of node and zone in ``page->flags``; ``None`` if they cannot be
        derived or pages of known zones contradict them.
        """
        if self._like is not None and self._like.flags_layout is not None:
            return self._like.flags_layout
        layout = self._derived_flags_layout()
        return layout if layout and self._agrees(layout) else None

    def _derived_flags_layout(self) -> Optional[FlagsLayout]:
        nr_zones = self._kernel.constant("__MAX_NR_ZONES")
        max_numnodes = self._max_numnodes()
        if not max_numnodes or not nr_zones:
            return None
        # With CONFIG_SPARSEMEM_VMEMMAP there are no section bits, so the node is
        # at the top: NODES_SHIFT and ZONES_SHIFT are the bits of the last index.
        node_bits = (max_numnodes - 1).bit_length()
        zone_bits = (nr_zones - 1).bit_length()
        node_shift = 64 - node_bits
        return FlagsLayout(
            node_shift,
            (1 << node_bits) - 1,
            node_shift - zone_bits,
            (1 << zone_bits) - 1,
        )

    def _max_numnodes(self) -> Optional[int]:
        """``MAX_NUMNODES``, from an array of that length."""
        hstate = self._kernel.type("struct hstate")
        if hstate is not None:
            return hstate.member("nr_huge_pages_node").type.length
        return self._kernel.vmcoreinfo.length("node_data")

    def _agrees(self, layout: FlagsLayout) -> bool:
        limit = self._kernel.max_pfn_limit
        zones = [zone for zone in self.zones if zone.spanned and zone.start_pfn < limit]
        pfns = np.array([zone.start_pfn for zone in zones], dtype=np.int64)
        pages = self._vmemmap.read_pages(pfns)
        flags = self._vmemmap.flags(pages)
        # An all-zero page is one that the dump left out.
        usable = pages.present & pages.data.any(axis=1)
        expected_nids = np.array([zone.nid for zone in zones])
        expected_zones = np.array([zone.index for zone in zones])
        matches = (layout.nids(flags) == expected_nids) & (
            layout.zonenums(flags) == expected_zones
        )
        if not usable.any():
            return False
        # Damage to one page must not take the answer away.
        return bool(2 * matches[usable].sum() > usable.sum())
