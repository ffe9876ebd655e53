# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Struct pages, written
---------------------

What the kernel left in the struct pages of folios, of free pages and of its own:
prep_compound_page(), prep_compound_head(), __init_single_page() and their like, in
bulk. Nothing here is done page by page.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Union

import numpy as np
import numpy.typing as npt

from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.tail_words import ALL_ONES, prep_compound_tail
from drgn_hvo.synth.described.description import DeviceMemory, HugePages, Pages
from drgn_hvo.synth.machine.basic_types import SUBPAGE_INDEX
from drgn_hvo.synth.machine.ctype import Compound
from drgn_hvo.synth.machine.page_uses import PAGE_USES, PageUse
from drgn_hvo.synth.machine.plan import DEVICE_ZONE, Placed, Plan, Region
from drgn_hvo.synth.machine.structures import COMPOUND_DTORS, HPG_FLAGS, SECOND_FLAGS

__all__ = ("Links", "PageWriter", "flags_shifts")

U64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

# include/linux/poison.h: where list_del() left the page, above ILLEGAL_POINTER_VALUE.
_LIST_POISON1 = 0x100
_LIST_POISON2 = 0x122
_MINUS_1 = 0xFFFFFFFF
# The destructors of those that have one of their own, before v6.6.
_DTORS = {"hugetlb": "HUGETLB_PAGE", "thp": "TRANSHUGE_PAGE"}
# And what took their place in the flags of the first tail.
_SECOND_FLAGS = {"hugetlb": "hugetlb", "thp": "large_rmappable"}


@dataclass(frozen=True)
class Links:
    """What a group of list entries is linked to: addresses of list heads."""

    before: int
    after: int


def flags_shifts(plan: Plan) -> tuple[int, int, int]:
    """
    Shifts of node, zone and last_cpupid in ``page->flags``
    (:linux:`include/linux/page-flags-layout.h`).
    """
    nodes = plan.generation.max_numnodes
    nr_zones = 5 if plan.generation.zone_device else 4
    node = 64 - (nodes - 1).bit_length()
    zone = node - (nr_zones - 1).bit_length()
    return node, zone, zone - plan.structures.fields.last_cpupid_bits


@dataclass(frozen=True)
class _PageOffsets:
    """Offsets in ``struct page``."""

    tail_word: int
    lru: int
    mapping: int
    private: int
    mapcount: int
    refcount: int
    memcg_data: int

    @classmethod
    def of(cls, page: Compound, tail_word: str) -> _PageOffsets:
        return cls(
            page.offset(tail_word),
            page.offset("lru"),
            page.offset("mapping"),
            page.offset("private"),
            page.offset("_mapcount"),
            page.offset("_refcount"),
            page.offset("memcg_data"),
        )


class PageWriter:
    """
    Writes struct pages.

    :param regions: What pages are used for.
    :param links: What the folios of a group are linked to, by its first PFN.
    :param failed: What the list of pages that have failed begins with, by head.
    """

    def __init__(
        self,
        plan: Plan,
        regions: list[Region],
        links: dict[int, Links],
        failed: dict[int, int],
    ) -> None:
        self._plan = plan
        self._regions = regions
        self._starts = [region.start for region in regions]
        self._links = links
        self._failed = failed
        self._size = plan.generation.struct_page_size
        self.offsets = _PageOffsets.of(plan.structures.page, plan.generation.tail_word)
        self._shifts = flags_shifts(plan)
        architecture = ARCHITECTURES[plan.description.architecture]
        self._illegal_pointer_value = architecture.illegal_pointer_value

    # Fields of rows of struct pages.

    def put(self, rows: U64, offset: int, value: Union[int, U64]) -> None:
        """Set a word of all rows."""
        rows[..., offset // 8] = (
            np.uint64(value) if isinstance(value, int) else value
        )  # fmt: skip

    def put32(self, rows: U64, offset: int, value: int) -> None:
        """Set half a word of all rows."""
        rows.view(f"{self._plan.order}u4")[..., offset // 4] = np.uint32(
            value & 0xFFFFFFFF
        )

    def blank(self, *shape: int) -> U64:
        """Rows of zeros."""
        return np.zeros((*shape, self._size // 8), dtype=f"{self._plan.order}u8")

    def flags(self, nid: int, zone: int, *, last_cpupid: bool = True) -> int:
        """The upper part of ``page->flags``."""
        node_shift, zone_shift, cpupid_shift = self._shifts
        bits = self._plan.structures.fields.last_cpupid_bits
        cpupid = ((1 << bits) - 1) << cpupid_shift if last_cpupid else 0
        return nid << node_shift | zone << zone_shift | cpupid

    def addresses(self, pfns: Int64) -> U64:
        """``pfn_to_page()``."""
        base = np.uint64(self._plan.space.vmemmap)
        return base + pfns.astype(np.uint64) * np.uint64(self._size)

    # Pages.

    def pages(self, first: int, end: int) -> U64:
        """The struct pages of a range of PFNs on frames of their own."""
        parts = []
        at = first
        while at < end:
            region = self._regions[bisect_right(self._starts, at) - 1]
            stop = min(end, region.end)
            parts.append(self._region(region, at, stop))
            at = stop
        if len(parts) == 1:
            return parts[0]
        # concatenate() gives them the byte order of this machine.
        return np.concatenate(parts).astype(parts[0].dtype, copy=False)

    def _region(self, region: Region, first: int, end: int) -> U64:
        placed = region.placed
        if placed is None:
            return self._single(region, end - first)
        pfns = np.arange(first, end, dtype=np.int64)
        if isinstance(placed.group, HugePages):
            return self.folios(placed, pfns)
        return self._other(region, placed.group, placed.first_pfn, pfns)

    def _single(self, region: Region, count: int) -> U64:
        """Order-0 pages in use."""
        rows = self.blank(count)
        flags = self.flags(region.nid, region.zone)
        if region.use == "reserved":
            flags |= self._plan.structures.page_flag("reserved")
        self.put(rows, 0, flags)
        self._off_list(rows)
        self.put32(rows, self.offsets.mapcount, _MINUS_1)
        self.put32(rows, self.offsets.refcount, region.refcount)
        return rows

    def _off_list(self, rows: U64) -> None:
        poison = self._illegal_pointer_value
        self.put(rows, self.offsets.lru, poison + _LIST_POISON1)
        self.put(rows, self.offsets.lru + 8, poison + _LIST_POISON2)

    def _tails(self, flags: int, pfns: Int64, head: int, order: int) -> U64:
        """
        Rows as prep_compound_tail() leaves them. What __init_single_page() wrote to
        ``lru.prev`` at boot is still there: the page's own address.
        """
        generation = self._plan.generation
        rows = self.blank(*pfns.shape)
        self.put(rows, 0, flags)
        self.put(
            rows,
            self.offsets.lru + 8,
            self.addresses(pfns) + np.uint64(self.offsets.lru),
        )
        word, mapping = prep_compound_tail(
            generation.geometry,
            self._plan.space.page_address(head),
            order,
            generation.has_mask,
            self._illegal_pointer_value,
        )
        if generation.has_mask:
            self.put(rows, self.offsets.tail_word, word)
        else:
            heads = (pfns - head) >> order << order
            self.put(
                rows,
                self.offsets.tail_word,
                self.addresses(head + heads) | np.uint64(1),
            )
        self.put(rows, self.offsets.mapping, mapping)
        self.put32(rows, self.offsets.mapcount, _MINUS_1)
        return rows

    def _first_tails(self, rows: U64, index: Int64, flags: int, order: int) -> None:
        """
        The fields that a folio keeps in its first tails.

        :param index: Of each row in its folio.
        """
        fields = self._plan.structures.fields
        folio = self._plan.structures.folio
        # Where the kernel keeps fields, init_compound_tail() wrote no mapping that
        # has stayed. Before v6.18, those of a slab have none and TAIL_MAPPING stays.
        for i in range(1, fields.metadata_pages + 1):
            which = np.flatnonzero(index == i)
            if not len(which) or i >= 1 << order:
                continue
            tail = rows[which]
            self.put(tail, self.offsets.lru + 8, 0)
            self.put(tail, self.offsets.mapping, 0)
            for member, value in self._metadata(order).items():
                where = folio.offset(member)
                if where // self._size == i:
                    self._put_member(tail, folio, member, value)
            if i == 1 and fields.order_member == "_flags_1":
                self.put(tail, 0, flags | order)
            if i == 2 and not self._is_list_shared:
                self._put_deferred_list(tail, which, rows)
            rows[which] = tail

    @property
    def _is_list_shared(self) -> bool:
        """Whether ``_deferred_list`` has the bytes of fields of hugetlb."""
        folio = self._plan.structures.folio
        if not folio.has("_hugetlb_subpool"):
            return False
        return folio.offset("_deferred_list") == folio.offset("_hugetlb_subpool")

    def _put_deferred_list(self, tail: U64, which: Int64, rows: U64) -> None:
        offset = self._plan.structures.folio.offset("_deferred_list") - 2 * self._size
        self._put_list_to_self(tail, offset, which, rows)

    def _put_list_to_self(
        self, tail: U64, offset: int, which: Int64, rows: U64
    ) -> None:
        # The address is in what _tails() left in lru.prev.
        address = rows[which][..., (self.offsets.lru + 8) // 8] - np.uint64(
            self.offsets.lru
        )
        self.put(tail, offset, address + np.uint64(offset))
        self.put(tail, offset + 8, address + np.uint64(offset))

    def _metadata(self, order: int) -> dict[str, int]:
        fields = self._plan.structures.fields
        values = {fields.nr_pages_member: 1 << order}
        if fields.order_member == "_folio_order":
            values["_folio_order"] = order
        if self._plan.structures.folio.has("_mm_id_mapcount"):
            values["_mm_id_mapcount"] = ALL_ONES
        for name in ("_total_mapcount", "_large_mapcount", "_entire_mapcount"):
            if self._plan.structures.folio.has(name):
                values[name] = _MINUS_1
        return values

    def _put_member(self, rows: U64, folio: Compound, member: str, value: int) -> None:
        offset, member_type = folio.find(member)
        offset %= self._size
        width = member_type.size
        byte_rows = rows.view(np.uint8)
        data = (value & (1 << 8 * width) - 1).to_bytes(
            width, self._plan.description.model.byteorder
        )
        for i, byte in enumerate(data):
            byte_rows[..., offset + i] = byte

    def _set_type(self, rows: U64, heads: Int64, firsts: Int64, type_name: str) -> None:
        """Mark heads as hugetlb or slab, the way this kernel does."""
        structures = self._plan.structures
        types = structures.fields.page_types
        if type_name in types:
            which = rows[heads]
            self.put32(which, self.offsets.mapcount, types[type_name])
            rows[heads] = which
        if type_name == "slab":
            rows[heads, 0] |= np.uint64(structures.page_flag("slab"))
        second = _SECOND_FLAGS.get(type_name)
        if second is not None and structures.fields.hugetlb in ("flag", "type bit"):
            bit = structures.page_flag(SECOND_FLAGS[second])
            if second != "hugetlb" or structures.fields.hugetlb == "flag":
                rows[firsts, 0] |= np.uint64(bit)
        if structures.fields.hugetlb != "destructor":
            return
        dtor = _DTORS.get(type_name, "COMPOUND_PAGE")
        which = rows[firsts]
        folio = structures.folio
        self._put_member(which, folio, "_folio_dtor", COMPOUND_DTORS[dtor])
        rows[firsts] = which

    def _compound(
        self,
        first_pfn: int,
        order: int,
        pfns: Int64,
        flags: int,
        head_flags: int,
        type_name: str,
    ) -> tuple[U64, Int64, Int64]:
        """
        Rows of compound pages behind each other.

        :return: The rows, where heads are among them, and their indices in folios.
        """
        index = (pfns - first_pfn) & ((1 << order) - 1)
        rows = self._tails(flags, pfns, first_pfn, order)
        self._first_tails(rows, index, flags, order)
        heads = np.flatnonzero(index == 0)
        head = self.blank(len(heads))
        PG_head = self._plan.structures.page_flag("head")
        self.put(head, 0, flags | PG_head | head_flags)
        self._off_list(head)
        self.put32(head, self.offsets.mapcount, _MINUS_1)
        self.put32(head, self.offsets.refcount, 1)
        rows[heads] = head
        self._set_type(rows, heads, np.flatnonzero(index == 1), type_name)
        seconds = np.flatnonzero(index == 2)
        if type_name == "thp" and self._is_list_shared and len(seconds):
            tail = rows[seconds]
            plain = self._tails(flags, pfns[seconds], first_pfn, order)
            self._put_deferred_list(tail, np.arange(len(seconds)), plain)
            rows[seconds] = tail
        return rows, heads, index

    def folios(self, placed: Placed[HugePages], pfns: Int64) -> U64:
        """
        Struct pages of hugetlb folios, in folios of this group, as they are in
        frames that the folios do not share.
        """
        group = placed.group
        zone = self._plan.zone_of(placed.first_pfn)
        # What restoring copied from a shared tail knows no CPU.
        copied = self._plan.generation.shared
        fresh = group.origin == "demoted" and copied
        flags = self.flags(zone.nid, zone.index, last_cpupid=not fresh)
        rows, heads, index = self._compound(
            placed.first_pfn, group.order, pfns, flags, 0, "hugetlb"
        )
        if copied and (
            group.restored_slices or group.origin in ("restored", "demoted")
        ):
            per_slice = self._plan.generation.geometry.pages_per_slice
            start = 4 if fresh else per_slice
            behind = np.flatnonzero(index >= start)
            bare = self.flags(zone.nid, zone.index, last_cpupid=False)
            tails = rows[behind]
            self.put(tails, 0, bare)
            self.put(tails, self.offsets.lru + 8, 0)
            rows[behind] = tails
        head = rows[heads]
        self.put(head, self.offsets.private, self._hpg(placed))
        self.put32(head, self.offsets.refcount, int(group.list == "active"))
        if placed.first_pfn in self._links:
            self._link(head, pfns[heads], placed)
        rows[heads] = head
        if placed.first_pfn in self._failed:
            self._fail(rows, pfns - placed.first_pfn, self._failed[placed.first_pfn])
        return rows

    def _fail(self, rows: U64, index: Int64, first: int) -> None:
        """
        What folio_set_hugetlb_hwpoison() and the like leave in a folio.

        :param index: Of each row, counted from the head.
        :param first: The first entry of the list.
        """
        folio = self._plan.structures.folio
        if folio.has("_hugetlb_hwpoison"):
            page, offset = divmod(folio.offset("_hugetlb_hwpoison"), self._size)
        else:
            page, offset = SUBPAGE_INDEX["SUBPAGE_INDEX_HWPOISON"], self.offsets.private
        flag = np.uint64(self._plan.structures.page_flag("hwpoison"))
        rows[index == 0, 0] |= flag
        rows[index == page, offset // 8] = np.uint64(first)

    def _hpg(self, placed: Placed[HugePages]) -> int:
        names = {"free": ("freed",), "active": ("migratable",), "none": ()}
        flags = list(names[placed.group.list])
        if placed.optimized:
            flags.append("vmemmap_optimized")
        return sum(1 << HPG_FLAGS.index(name) for name in flags)

    def _link(
        self, head: U64, pfns: Int64, placed: Union[Placed[HugePages], Placed[Pages]]
    ) -> None:
        links = self._links[placed.first_pfn]
        lru = np.uint64(self.offsets.lru)
        span = np.uint64(self._size << placed.group.order)
        addresses = self.addresses(pfns) + lru
        last = placed.end_pfn - (1 << placed.group.order)
        following = np.where(pfns == last, np.uint64(links.after), addresses + span)
        before = np.where(
            pfns == placed.first_pfn, np.uint64(links.before), addresses - span
        )
        self.put(head, self.offsets.lru, following)
        self.put(head, self.offsets.lru + 8, before)

    def _other(self, region: Region, group: Pages, first: int, pfns: Int64) -> U64:
        flags = self.flags(region.nid, region.zone)
        if group.kind == "poisoned":
            rows = self.blank(len(pfns))
            rows[:] = np.uint64(ALL_ONES)  # page_init_poison()
            return rows
        if group.kind == "reserved":
            reserved = Region(
                region.start, region.end, "reserved", region.nid, region.zone, None
            )
            return self._single(reserved, len(pfns))
        if group.kind == "buddy":
            return self._buddy(region, first, pfns)
        use = PAGE_USES[group.kind]
        set_flags = sum(map(self._plan.structures.page_flag, use.flags))
        if group.order:
            rows, heads, _ = self._compound(
                first, group.order, pfns, flags, set_flags, group.kind
            )
        else:
            rows, heads = self._single(region, len(pfns)), np.arange(len(pfns))
            self.put(rows, 0, flags | set_flags)
            self.put32(rows, self.offsets.mapcount, use.mapcount)
        head = rows[heads]
        self._use(head, use, pfns[heads])
        rows[heads] = head
        return rows

    def _use(self, head: U64, use: PageUse, pfns: Int64) -> None:
        """What tells in first struct pages whose pages they are."""
        # The objects that words lead to are somewhere in the kernel's memory.
        somewhere = self._plan.space.virtual(self._plan.kernel_pfn)
        if use.mapping is not None:
            self.put(head, self.offsets.mapping, somewhere | use.mapping)
        if use.memcg_data is not None:
            self.put(head, self.offsets.memcg_data, somewhere | use.memcg_data)
        if "lru" in use.flags:
            # Lists of one.
            lru = self.addresses(pfns) + np.uint64(self.offsets.lru)
            self.put(head, self.offsets.lru, lru)
            self.put(head, self.offsets.lru + 8, lru)

    def _buddy(self, region: Region, first: int, pfns: Int64) -> U64:
        placed = region.placed
        assert placed is not None
        order = placed.group.order
        rows = self._single(
            Region(region.start, region.end, "used", region.nid, region.zone, None),
            len(pfns),
        )
        self.put32(rows, self.offsets.refcount, 0)
        heads = np.flatnonzero((pfns - first) % (1 << order) == 0)
        head = rows[heads]
        value = self._plan.structures.fields.page_types["buddy"]
        self.put32(head, self.offsets.mapcount, value)
        self.put(head, self.offsets.private, order)
        self._link(head, pfns[heads], placed)
        rows[heads] = head
        return rows

    def device(self, device: DeviceMemory, pfns: Int64) -> U64:
        """
        Struct pages of compound pages of a device, as memmap_init_zone_device() leaves
        them: all reserved, and ``pgmap`` and ``zone_device_data`` where others have
        ``lru``.
        """
        structures = self._plan.structures
        flags = self.flags(device.node, DEVICE_ZONE) | structures.page_flag("reserved")
        rows, heads, index = self._compound(
            device.first_pfn, device.order, pfns, flags, 0, "compound"
        )
        # Of the fields in the first tails, the third one has those of hugetlb only.
        behind = np.flatnonzero(index > min(structures.fields.metadata_pages, 2))
        tails = self._tails(flags, pfns[behind], device.first_pfn, device.order)
        self.put(tails, self.offsets.lru + 8, 0)
        rows[behind] = tails
        head = rows[heads]
        # Somewhere in memory of the kernel.
        self.put(head, self.offsets.lru, self._plan.space.direct(0x5CAE40))
        self.put(head, self.offsets.lru + 8, 0)
        rows[heads] = head
        return rows

    def device_tail(self, nid: int, order: int) -> U64:
        """A shared page of tails of ``ZONE_DEVICE``: vmemmap_shared_tail_page()."""
        rows = self.shared_tail(nid, DEVICE_ZONE, order)
        flags = self.flags(nid, DEVICE_ZONE, last_cpupid=False)
        self.put(rows, 0, flags | self._plan.structures.page_flag("reserved"))
        return rows

    def shared_tail(self, nid: int, zone: int, order: int) -> U64:
        """A page of tails as vmemmap_get_tail() makes it."""
        generation = self._plan.generation
        rows = self.blank(generation.geometry.pages_per_slice)
        if generation.tail_has_zone:
            self.put(rows, 0, self.flags(nid, zone, last_cpupid=False))
        word, mapping = prep_compound_tail(
            generation.geometry, 0, order, True, self._illegal_pointer_value
        )
        self.put(rows, self.offsets.tail_word, word)
        self.put(rows, self.offsets.mapping, mapping)
        self.put32(rows, self.offsets.mapcount, generation.tail_mapcount)
        return rows

    def boot_tail(self, nid: int, zone: int, order: int, last_alias: int) -> U64:
        """
        A page of tails over which memmap_init() ran: init_compound_tail() did not
        reset the reference count, last_cpupid and lru.prev that it left.

        :param last_alias: First PFN of the last slice that maps the page.
        """
        rows = self.shared_tail(nid, zone, order)
        generation = self._plan.generation
        if not generation.tail_has_zone or generation.array_is_allocated:
            return rows
        self.put(rows, 0, self.flags(nid, zone))
        pfns = last_alias + np.arange(len(rows), dtype=np.int64)
        self.put(
            rows,
            self.offsets.lru + 8,
            self.addresses(pfns) + np.uint64(self.offsets.lru),
        )
        self.put32(rows, self.offsets.refcount, 1)
        return rows
