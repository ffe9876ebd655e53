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

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from drgn import FaultError, Object, Program, sizeof
import numpy as np

from drgn_hvo.errors import DetectionError
from drgn_hvo.formats.tail_words import BITS_PER_LONG
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.shapes import SHAPES, fault_of, require_shapes
from drgn_hvo.kernel.unread import Need, Unread, why
from drgn_hvo.memmap.vmemmap import Vmemmap

__all__ = ("FlagsLayout", "Mmzone", "Zone")

# How many pages of each zone must confirm where flags have node and zone.
_PAGES_OF_A_ZONE = 8

# No zone has a longer name than "Movable" or "Highmem".
_MAX_ZONE_NAME = 32

# An array of MAX_NUMNODES elements in struct hstate.
_BY_NODE = "nr_huge_pages_node"


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

    def holds(self, pfns: Int64Array) -> BoolArray:
        """Which pages lie in its range, holes included."""
        end = self.start_pfn + self.spanned
        # What damage made of it need not fit into 64 bits.
        last = np.int64(min(end, (1 << 63) - 1))
        first = np.int64(min(self.start_pfn, (1 << 63) - 1))
        inside: BoolArray = (first <= pfns) & (pfns < last)
        return inside


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

    @property
    def place_mask(self) -> int:
        """The bits of both."""
        mask = self.node_mask << self.node_shift
        return mask | self.zone_mask << self.zone_shift

    def with_places(
        self, flags: U64Array, nids: Int64Array, zones: Int64Array
    ) -> U64Array:
        """Words changed to name other nodes and zones."""
        place = nids.astype(np.uint64) << np.uint64(self.node_shift)
        place |= zones.astype(np.uint64) << np.uint64(self.zone_shift)
        mask = np.uint64(self.place_mask)
        return flags & ~mask | place & mask


# drgn has helpers for both, but importing them imports all of drgn.helpers.linux: a
# sixth of the time of a check.


def _nr_node_ids(kernel: Kernel) -> int:
    try:
        return kernel.known_words.value(kernel.prog["nr_node_ids"])
    except LookupError:
        return 1  # CONFIG_NUMA=n: a macro.


def _node_data(kernel: Kernel, nid: int) -> Object:
    """Mirror of ``NODE_DATA()``."""
    prog = kernel.prog
    with suppress(LookupError):
        pointer = prog["node_data"][nid]
        return Object(prog, pointer.type_, kernel.known_words.value(pointer))
    try:
        return prog["contig_page_data"].address_of_()  # CONFIG_NUMA=n
    except LookupError:
        raise DetectionError(
            "the kernel has neither node_data nor contig_page_data"
        ) from None


@dataclass(frozen=True)
class _Nodes:
    """
    Nodes of a kernel.

    :param nids: IDs of all nodes that there can be.
    :param pgdats: ``struct pglist_data *`` of each online node that could be read.
    :param offline: That of each node that is not online, but was, or may become so.
    :param unread: Why others could not.
    """

    nids: tuple[int, ...]
    knows_all_nids: bool
    online: frozenset[int]
    pgdats: dict[int, Object]
    offline: dict[int, Object]
    unread: tuple[Unread, ...]


def _name_of(zone: Object) -> str:
    """
    The name of a ``struct zone``, however long damage makes it: what is read is an
    array with an end, not a string.

    :raises FaultError: if it is not in the dump.
    """
    prog = zone.prog_
    characters = prog.array_type(prog.int_type("char", 1, True), _MAX_ZONE_NAME)
    text = Object(prog, characters, address=zone.name.value_()).string_()
    return text.decode("ascii", "replace")


class Mmzone:
    """
    Nodes and zones of a kernel with types.

    :param like: Another one of the same running kernel, which has the same positions in
        ``page->flags``.
    """

    def __init__(
        self,
        kernel: Kernel,
        vmemmap: Vmemmap,
        like: Optional[Mmzone] = None,
    ) -> None:
        self._kernel = kernel
        self._vmemmap = vmemmap
        self._like = like

    @property
    def pgdats(self) -> dict[int, Object]:
        """
        ``struct pglist_data *`` of each online node that can be read, by node ID.
        """
        return self._nodes.pgdats

    @property
    def offline_pgdats(self) -> dict[int, Object]:
        """``struct pglist_data *`` of nodes that are not online, as far as known."""
        return self._nodes.offline

    def pgdat(self, nid: int) -> Optional[Object]:
        """``struct pglist_data *`` of a node, online or not, if it can be read."""
        return self.pgdats.get(nid, self.offline_pgdats.get(nid))

    @property
    def nids(self) -> tuple[int, ...]:
        """IDs of all nodes that there can be, online or not."""
        return self._nodes.nids

    @property
    def online_nids(self) -> frozenset[int]:
        """IDs of nodes that are known to be online."""
        return self._nodes.online

    @property
    def knows_all_nids(self) -> bool:
        """Whether :attr:`nids` are all, and not just those that could be found."""
        return self._nodes.knows_all_nids

    @property
    def zones(self) -> tuple[Zone, ...]:
        """All zones that can be read."""
        return self._zones[0]

    @property
    def knows_all_zones(self) -> bool:
        """Whether :attr:`zones` are all that there are."""
        return not self.unread and self.knows_all_nids

    def places(self, pfns: Int64Array) -> tuple[Int64Array, Int64Array]:
        """
        Node and zone index of pages by the ranges of zones; -1 where none holds a page,
        or several do, or not all are known.
        """
        nids = np.full(len(pfns), -1, dtype=np.int64)
        zones, times = nids.copy(), np.zeros(len(pfns), dtype=np.int64)
        for zone in self.zones if self.knows_all_zones else ():
            inside = zone.holds(pfns)
            times += inside
            nids[inside], zones[inside] = zone.nid, zone.index
        nids[times != 1] = -1
        zones[times != 1] = -1
        return nids, zones

    @property
    def unread(self) -> tuple[Unread, ...]:
        """Nodes and zones that cannot be read."""
        return (*self._nodes.unread, *self._zones[1])

    @cached_property
    def _nodes(self) -> _Nodes:
        try:
            for name in ("nodemask_t", "struct pglist_data", "struct zone"):
                require_shapes(self._kernel.prog.type(name), name)
            return self._read_nodes()
        except (DetectionError, LookupError) as e:
            # What needs neither nodes nor zones still works.
            unknown = Unread(Need.NODES, "nodes and zones", str(e))
            return _Nodes((), False, frozenset(), {}, {}, (unknown,))

    def _read_nodes(self) -> _Nodes:
        unread: list[Unread] = []
        most, online = self._online(unread)
        # A damaged nr_node_ids must not lead behind the mask.
        count = None
        try:
            count = _nr_node_ids(self._kernel)
            if not 0 < count <= most:
                reason = f"is {count}, but MAX_NUMNODES is {most}"
                unread.append(Unread(Need.NODES, "nr_node_ids", reason))
                count = None
        except FaultError as e:
            unread.append(Unread(Need.NODES, "nr_node_ids", why(e)))
        pgdats: dict[int, Object] = {}
        offline: dict[int, Object] = {}
        for nid in range(most if count is None else count):
            if online is not None and nid not in online:
                self._add_offline(nid, offline)
                continue
            what = f"pglist_data of node {nid}"
            try:
                pgdat = _node_data(self._kernel, nid)
                if pgdat and self._is_of(pgdat, nid):
                    pgdats[nid] = pgdat
                elif online is not None:
                    unread.append(Unread(Need.SLOTS, what, "is damaged"))
            except FaultError as e:
                if online is not None:
                    unread.append(Unread(Need.SLOTS, what, why(e)))
        # Without nr_node_ids, those that are known of.
        known = sorted({*pgdats, *(online or ())})
        nids = known if count is None else range(count)
        is_known = count is not None
        return _Nodes(
            tuple(nids), is_known, frozenset(known), pgdats, offline, tuple(unread)
        )

    def _add_offline(self, nid: int, offline: dict[int, Object]) -> None:
        """
        Add what is left of a node: try_offline_node() (mm/memory_hotplug.c) does not
        free its pglist_data. Most have never been online, and nothing is missed if
        they cannot be read.
        """
        with suppress(FaultError):
            pgdat = _node_data(self._kernel, nid)
            if pgdat and self._kernel.known_words.value(pgdat.node_id) == nid:
                offline[nid] = pgdat

    def _online(self, unread: list[Unread]) -> tuple[int, Optional[set[int]]]:
        """
        MAX_NUMNODES, and the IDs of online nodes; ``None`` if they cannot be read.

        :param unread: Gets the reason.
        """
        prog: Program = self._kernel.prog
        bits = prog["node_states"][prog["N_ONLINE"]].bits
        most = 8 * sizeof(bits)
        try:
            words = [bits[i].value_() for i in range(most // BITS_PER_LONG)]
            mask = sum(word << i * BITS_PER_LONG for i, word in enumerate(words))
            self._kernel.known_words.check(mask, bits.address_ or 0)
        except FaultError as e:
            unread.append(Unread(Need.NODES, "node_states[N_ONLINE]", why(e)))
            return most, None
        return most, {nid for nid in range(mask.bit_length()) if mask >> nid & 1}

    def _is_of(self, pgdat: Object, nid: int) -> bool:
        """Whether nothing speaks against a node's being that of an ID."""
        try:
            return self._kernel.known_words.value(pgdat.node_id) == nid
        except FaultError:
            # node_data[] has led here: what of it can be read is that node's.
            return True

    @cached_property
    def _zones(self) -> tuple[tuple[Zone, ...], tuple[Unread, ...]]:
        zones, unread = [], []
        for nid, pgdat in self.pgdats.items():
            for index, zone in enumerate(pgdat.node_zones):
                try:
                    zones.append(self._zone(nid, index, zone))
                except FaultError as e:
                    unread.append(Unread(None, f"zone {index} of node {nid}", why(e)))
        return tuple(zones), tuple(unread)

    def _zone(self, nid: int, index: int, zone: Object) -> Zone:
        try:
            name = _name_of(zone)
        except FaultError:
            name = ""
        return Zone(
            nid,
            index,
            name or self._zone_type_name(index),
            zone.zone_start_pfn.value_(),
            # Of an empty zone, too, something is not zero: its name and pglist_data.
            self._kernel.known_words.value(zone.spanned_pages),
            zone.address_of_().value_(),
        )

    def _zone_type_name(self, index: int) -> str:
        """
        As ``zone_names[]`` of mm/page_alloc.c has it, by ``enum zone_type``:
        ``"Normal"`` for ``ZONE_NORMAL``, and so on.
        """
        zone_type = self._kernel.type("enum zone_type")
        for enumerator in (zone_type.enumerators or ()) if zone_type else ():
            if enumerator.value == index:
                name = enumerator.name.replace("ZONE_", "", 1)
                return name if name.startswith("DMA") else name.capitalize()
        return str(index)

    def zone_name(self, nid: int, index: int) -> Optional[str]:
        """
        The name of a zone, as the kernel prints it; by its index, which says as much,
        if the zone was not read. ``None`` if nothing is known of the node.
        """
        pgdat = self.pgdat(nid)
        if pgdat is None:
            return None
        for zone in self.zones:
            if (zone.nid, zone.index) == (nid, index):
                return zone.name
        with suppress(FaultError):
            return _name_of(pgdat.node_zones[index]) or self._zone_type_name(index)
        return self._zone_type_name(index)

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
        shape = SHAPES["struct hstate"][_BY_NODE]
        if hstate is not None and not fault_of(hstate, _BY_NODE, shape):
            return hstate.member(_BY_NODE).type.length
        return self._kernel.vmcoreinfo.length("node_data")

    def _agrees(self, layout: FlagsLayout) -> bool:
        """
        Whether most pages whose zone is known have it: the first one of each zone, and
        more of them if not most of those have. Damage to one must not take the answer
        away.
        """
        right, usable = self._pages_agree(layout, 1)
        if 2 * right <= usable:
            right, usable = self._pages_agree(layout, _PAGES_OF_A_ZONE)
        return 2 * right > usable

    def _pages_agree(self, layout: FlagsLayout, count: int) -> tuple[int, int]:
        """How many of some pages of each zone have its node and index, of how many."""
        limit = self._kernel.max_pfn_limit
        zones = [zone for zone in self.zones if zone.spanned and zone.start_pfn < limit]
        wanted = [
            (zone.start_pfn + i * zone.spanned // count, zone)
            for zone in zones
            for i in range(count)
        ]
        wanted = [(pfn, zone) for pfn, zone in wanted if pfn < limit]
        pfns = np.array([pfn for pfn, _ in wanted], dtype=np.int64)
        pages = self._vmemmap.read_pages(pfns)
        flags = self._vmemmap.flags(pages)
        # An all-zero page is one that the dump left out.
        usable = pages.present & pages.data.any(axis=1)
        matches = layout.nids(flags) == np.array([zone.nid for _, zone in wanted])
        matches &= layout.zonenums(flags) == np.array(
            [zone.index for _, zone in wanted]
        )
        return int(matches[usable].sum()), int(usable.sum())
