# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Generations
-----------

The kernels that can be made up, as data. An entry says how one of them encodes
tails and where HVO keeps those of optimized folios, and which of the shapes of
structures it has; each is here for a reason. Offsets differ between entries as
they do in the wild.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn_hvo.errors import UsageError
from drgn_hvo.formats.tail_words import (
    Geometry,
    compound_info_has_mask,
    max_folio_order,
)

__all__ = ("GENERATIONS", "Generation", "generation")


@dataclass(frozen=True)
class Generation:
    """
    A kind of kernel.

    :param reason: Which kernels are so, and why that matters.
    :param release: What such a kernel calls itself.
    :param hvo_built: ``CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP``.
    :param tail_word: What ``struct page`` calls the word of a tail.
    :param mask: The word is a mask where sizeof(struct page) is a power of two.
    :param tails: What optimized folios have behind their first page of struct
        pages: ``"first-tail"``, ``"fake-head"``, ``"shared"``, or ``"plain"`` for
        nothing.
    :param array: ``"zone"`` or ``"pglist_data"``: where ``vmemmap_tails[]`` is.
    :param element_is_pfn: Its elements are PFNs, not ``struct page *``.
    :param array_is_allocated: The structure has the array's address, and none before
        the first tail.
    :param fields: Shape of ``struct page``, ``struct folio`` and their flags: an
        entry of :data:`drgn_hvo.synth.machine.structures.FIELDS`.
    :param zone_stats: Words of ``struct zone`` in front of ``vmemmap_tails[]``.
    :param pgdat_zonelists: Words of ``struct pglist_data`` behind its zones.
    :param hstate_lock: Words of ``struct hstate`` in front of everything else.
    :param max_numnodes: ``MAX_NUMNODES``.
    :param zone_device: ``CONFIG_ZONE_DEVICE``: one zone more.
    :param kallsyms: How kallsyms gives addresses, see
        :func:`~drgn_hvo.formats.kallsyms_writer.kallsyms_tables()`.
    :param exports_vmemmap: VMCOREINFO has ``SYMBOL(vmemmap)``.
    :param struct_page_size: sizeof(struct page).
    :param tail_mapcount: ``_mapcount`` of a shared tail allocated at run time.
    :param tail_has_zone: A shared tail has its owner's node and zone bits.
    :param hvo_enabled: Whether it makes sense to switch HVO on.
    :param page_size: ``PAGE_SIZE``, which is the architecture's to say.
    :param largest_order: ``MAX_FOLIO_ORDER``, where there are no gigantic pages.
    :param dax: What slices of compound pages of device DAX map behind the first:
        ``"first-tail"`` (the frame of the second one) or ``"shared"`` (the shared
        tail page of ``ZONE_DEVICE``); ``None`` if frames of their own.
    """

    name: str
    reason: str
    release: str
    hvo_built: bool
    tail_word: str
    mask: bool
    tails: str
    array: Optional[str]
    element_is_pfn: bool
    fields: str
    zone_stats: int
    pgdat_zonelists: int
    hstate_lock: int
    max_numnodes: int
    zone_device: bool
    kallsyms: str
    exports_vmemmap: bool
    struct_page_size: int = 64
    tail_mapcount: int = -1
    tail_has_zone: bool = True
    hvo_enabled: bool = True
    page_size: int = 4096
    largest_order: Optional[int] = None
    array_is_allocated: bool = False
    dax: Optional[str] = None

    @property
    def geometry(self) -> Geometry:
        """Page size and sizeof(struct page)."""
        return Geometry(self.page_size, self.struct_page_size)

    @property
    def has_mask(self) -> bool:
        """``compound_info_has_mask()``."""
        return self.mask and compound_info_has_mask(self.geometry, self.hvo_built)

    @property
    def max_order(self) -> int:
        """``MAX_FOLIO_ORDER``."""
        if self.largest_order is not None:
            return self.largest_order
        return max_folio_order(self.geometry.page_shift)

    @property
    def min_order(self) -> int:
        """The smallest order that HVO can optimize."""
        return self.geometry.vmemmap_tail_min_order + self.private_slices - 1

    @property
    def can_optimize(self) -> bool:
        """Whether HVO can do anything: ``vmemmap_should_optimize_folio()``."""
        return self.hvo_built and self.hvo_enabled and self.geometry.power_of_2

    @property
    def fake_heads(self) -> bool:
        """Whether optimized folios show fake heads."""
        return self.tails == "fake-head"

    @property
    def private_slices(self) -> int:
        """``RESERVE_VMEMMAP_NR``."""
        return 2 if self.tails == "first-tail" else 1

    @property
    def lists_failed(self) -> bool:
        """
        Whether a folio lists which of its pages have failed, since Linux kernel commit
        161df60e9e89 ("mm, hwpoison, hugetlb: support saving mechanism of raw error
        pages") (in v6.0).
        """
        return self.private_slices == 1

    @property
    def shared(self) -> bool:
        """Whether optimized folios share pages of tails."""
        return self.tails == "shared"

    @property
    def slots(self) -> int:
        """``NR_VMEMMAP_TAILS``, if there is an array."""
        return self.geometry.nr_vmemmap_tails(self.max_order) if self.array else 0


GENERATIONS: tuple[Generation, ...] = (
    Generation(
        name="5.15",
        reason="v5.14 to v5.17: two private pages a folio, the tails behind them show "
        "the second one, and nothing shows copies of a head; up to v5.15 there is no "
        "struct folio",
        release="5.15.0-synth",
        hvo_built=True,
        tail_word="compound_head",
        mask=False,
        tails="first-tail",
        array=None,
        element_is_pfn=False,
        fields="5.15",
        zone_stats=17,
        pgdat_zonelists=18,
        hstate_lock=4,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="percpu",
        exports_vmemmap=False,
    ),
    Generation(
        name="fake-head-6.1",
        reason="v5.18 to v6.1: fake heads, the destructor and the order of a folio "
        "in its first tail, PG_head is bit 16, no SYMBOL(vmemmap)",
        release="6.1.0-synth",
        hvo_built=True,
        tail_word="compound_head",
        mask=False,
        tails="fake-head",
        array=None,
        element_is_pfn=False,
        fields="6.1",
        zone_stats=18,
        pgdat_zonelists=20,
        hstate_lock=4,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="percpu",
        exports_vmemmap=False,
        dax="first-tail",
    ),
    Generation(
        name="fake-head-6.4",
        reason="v6.3 to v6.5: the same destructor and order, which only struct folio "
        "names, and fields of hugetlb in the second tail",
        release="6.4.0-synth",
        hvo_built=True,
        tail_word="compound_head",
        mask=False,
        tails="fake-head",
        array=None,
        element_is_pfn=False,
        fields="6.4",
        zone_stats=19,
        pgdat_zonelists=21,
        hstate_lock=4,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="percpu",
        exports_vmemmap=False,
        dax="first-tail",
    ),
    Generation(
        name="fake-head-6.6",
        reason="v6.6 to v6.9: hugetlb is PG_hugetlb in the flags of the first tail, "
        "the order is in _flags_1, PG_head is bit 6",
        release="6.6.0-synth",
        hvo_built=True,
        tail_word="compound_head",
        mask=False,
        tails="fake-head",
        array=None,
        element_is_pfn=False,
        fields="6.6",
        zone_stats=19,
        pgdat_zonelists=22,
        hstate_lock=4,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="percpu",
        exports_vmemmap=False,
        dax="first-tail",
    ),
    Generation(
        name="fake-head-6.11",
        reason="v6.10 and v6.11, and stable v6.6: hugetlb is a bit of page_type that "
        "is clear",
        release="6.11.0-synth",
        hvo_built=True,
        tail_word="compound_head",
        mask=False,
        tails="fake-head",
        array=None,
        element_is_pfn=False,
        fields="6.11",
        zone_stats=20,
        pgdat_zonelists=21,
        hstate_lock=4,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="percpu",
        exports_vmemmap=True,
        dax="first-tail",
    ),
    Generation(
        name="fake-head-6.12",
        reason="v6.12 to v7.0: fake heads, hugetlb is a page type, the order is in "
        "_flags_1, PG_head is bit 6",
        release="6.12.0-synth",
        hvo_built=True,
        tail_word="compound_head",
        mask=False,
        tails="fake-head",
        array=None,
        element_is_pfn=False,
        fields="6.12",
        zone_stats=20,
        pgdat_zonelists=22,
        hstate_lock=4,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="percpu",
        exports_vmemmap=True,
        dax="first-tail",
    ),
    Generation(
        name="mask-6.18-stable",
        reason="6.18.51 stable: masks (8c846c879e22) under the name compound_head, "
        "and fake heads still: the name decides nothing, and drgn takes the masks "
        "for pointers",
        release="6.18.51-synth",
        hvo_built=True,
        tail_word="compound_head",
        mask=True,
        tails="fake-head",
        array=None,
        element_is_pfn=False,
        fields="7.2",
        zone_stats=22,
        pgdat_zonelists=24,
        hstate_lock=3,
        max_numnodes=64,
        zone_device=False,
        kallsyms="absolute",
        exports_vmemmap=True,
    ),
    Generation(
        name="plain-7.2",
        reason="v7.1 and later without CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP: the "
        "new name, but pointers",
        release="7.2.0-synth-nohvo",
        hvo_built=False,
        tail_word="compound_info",
        mask=True,
        tails="plain",
        array=None,
        element_is_pfn=False,
        fields="7.2",
        zone_stats=18,
        pgdat_zonelists=26,
        hstate_lock=3,
        max_numnodes=64,
        zone_device=True,
        kallsyms="place",
        exports_vmemmap=True,
        dax="first-tail",
    ),
    Generation(
        name="seed-v5",
        reason="patch series v5, never merged: masks, shared tails per node as PFNs, "
        "whose struct pages have neither node and zone bits nor _mapcount -1",
        release="7.2.0-synth-v5",
        hvo_built=True,
        tail_word="compound_info",
        mask=True,
        tails="shared",
        array="pglist_data",
        element_is_pfn=True,
        fields="7.2",
        zone_stats=18,
        pgdat_zonelists=28,
        hstate_lock=3,
        max_numnodes=64,
        zone_device=False,
        kallsyms="place",
        exports_vmemmap=True,
        tail_mapcount=0,
        tail_has_zone=False,
    ),
    Generation(
        name="seed-v6",
        reason="patch series v6, never merged: as v5, with struct page * in the array",
        release="7.2.0-synth-v6",
        hvo_built=True,
        tail_word="compound_info",
        mask=True,
        tails="shared",
        array="pglist_data",
        element_is_pfn=False,
        fields="7.2",
        zone_stats=18,
        pgdat_zonelists=30,
        hstate_lock=3,
        max_numnodes=64,
        zone_device=False,
        kallsyms="place",
        exports_vmemmap=True,
        tail_mapcount=0,
        tail_has_zone=False,
    ),
    Generation(
        name="shared-7.1",
        reason="v7.1: masks, shared tails per zone (622026e87c40)",
        release="7.1.0-synth",
        hvo_built=True,
        tail_word="compound_info",
        mask=True,
        tails="shared",
        array="zone",
        element_is_pfn=False,
        fields="7.2",
        zone_stats=20,
        pgdat_zonelists=32,
        hstate_lock=4,
        max_numnodes=64,
        zone_device=True,
        kallsyms="place",
        exports_vmemmap=True,
        dax="first-tail",
    ),
    Generation(
        name="shared-7.3",
        reason="v7.2 and v7.3: as v7.1 with more statistics in front of the array",
        release="7.3.0-synth",
        hvo_built=True,
        tail_word="compound_info",
        mask=True,
        tails="shared",
        array="zone",
        element_is_pfn=False,
        fields="7.2",
        zone_stats=36,
        pgdat_zonelists=34,
        hstate_lock=3,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="place",
        exports_vmemmap=True,
        dax="first-tail",
    ),
    Generation(
        name="shared-7.3-off",
        reason="the same kernel with HVO never switched on: masks all the same, and "
        "an empty array",
        release="7.3.0-synth",
        hvo_built=True,
        tail_word="compound_info",
        mask=True,
        tails="shared",
        array="zone",
        element_is_pfn=False,
        fields="7.2",
        zone_stats=36,
        pgdat_zonelists=34,
        hstate_lock=3,
        max_numnodes=1024,
        zone_device=True,
        kallsyms="place",
        exports_vmemmap=True,
        hvo_enabled=False,
        dax="first-tail",
    ),
    Generation(
        name="next",
        reason="linux-next in October 2026 ('Generalize vmemmap optimization for DAX "
        "and HugeTLB'): zones have the address of an array that is allocated with the "
        "first tail; device DAX uses it, too",
        release="7.4.0-rc1-next-synth",
        hvo_built=True,
        tail_word="compound_info",
        mask=True,
        tails="shared",
        array="zone",
        element_is_pfn=False,
        fields="7.2",
        zone_stats=38,
        pgdat_zonelists=36,
        hstate_lock=3,
        max_numnodes=64,
        zone_device=True,
        kallsyms="place",
        exports_vmemmap=True,
        array_is_allocated=True,
        dax="shared",
    ),
    Generation(
        name="odd-size-7.3",
        reason="HVO is built, but struct page has 80 bytes (as with KMSAN), no power "
        "of two: pointers, and nothing can be optimized",
        release="7.3.0-synth-kmsan",
        hvo_built=True,
        tail_word="compound_info",
        mask=True,
        tails="shared",
        array="zone",
        element_is_pfn=False,
        fields="7.2",
        zone_stats=38,
        pgdat_zonelists=34,
        hstate_lock=3,
        max_numnodes=64,
        zone_device=True,
        kallsyms="place",
        exports_vmemmap=True,
        struct_page_size=80,
    ),
)


def generation(name: str) -> Generation:
    """
    The generation of a name.

    :raises UsageError: if there is none.
    """
    for entry in GENERATIONS:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in GENERATIONS)
    raise UsageError(f"there is no generation {name!r}; there are: {known}")
