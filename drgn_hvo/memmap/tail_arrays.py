# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where the kernel keeps its shared tail pages
--------------------------------------------

The array that names them, ``vmemmap_tails[]``, changed its owner and its elements from
version to version. An owner is one entry in a table, and so is a type of elements: what
follows from them, such as what shared tails hold, is said there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Callable, Optional

from drgn import Object, Type, TypeKind

from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.unread import KnownWords
from drgn_hvo.memmap.mapping import VmemmapMapping
from drgn_hvo.memmap.zones import FlagsLayout

__all__ = ("OwnedArray", "TailArray", "tail_array")

_MEMBER = "vmemmap_tails"


@dataclass(frozen=True)
class OwnedArray:
    """
    The array of one node or zone.

    :param zone_index: ``zone_idx()``; ``None`` where the array is the node's.
    :param array: The array, a reference: nothing of it has been read.
    """

    nid: int
    zone_index: Optional[int]
    array: Object
    _owner: Object

    def may_be_used(self, known: KnownWords) -> bool:
        """Whether the zone has pages, or may have; a node that is online has some."""
        if self.zone_index is None:
            return True
        return known.find(self._owner.spanned_pages) != 0


@dataclass(frozen=True)
class _Owner:
    """
    A structure that has the array.

    :param struct: Its tag.
    :param per_zone: Whether each zone has its own shared tails, or each node.
    :param implies_masks: Whether every kernel with it has ``compound_info_has_mask()``
        where ``sizeof(struct page)`` is a power of two, which drgn's own helpers rely
        on, too.
    :param mapcount: ``_mapcount`` of a shared tail, as unsigned.
    :param names_owner: Whether ``flags`` of a shared tail hold node and zone of the
        folios that use it.
    """

    struct: str
    per_zone: bool
    implies_masks: bool
    mapcount: int
    names_owner: bool


_OWNERS = (
    # Since Linux kernel commit 622026e87c40 ("mm/hugetlb: remove fake head pages") (in
    # v7.1). vmemmap_get_tail() in mm/hugetlb_vmemmap.c makes tails with
    # init_compound_tail(), which sets the initial _mapcount, -1, and the zone. The same
    # #ifdef guards the array and the masks.
    _Owner("zone", True, implies_masks=True, mapcount=0xFFFFFFFF, names_owner=True),
    # Earlier versions of that series, with either encoding: tails were zeroed, but for
    # the words that prep_compound_tail() writes.
    _Owner("pglist_data", False, implies_masks=False, mapcount=0, names_owner=False),
)


@dataclass(frozen=True)
class _Element:
    """
    A type of elements.

    :param name: What documents call it.
    :param pfn: The frame that an element names, ``None`` if it names none.
    :param page: Address of the struct page that an element names.
    :param caveat: What users must know of it.
    """

    kind: TypeKind
    name: str
    pfn: Callable[[VmemmapMapping, int], Optional[int]]
    page: Callable[[VmemmapMapping, int], int]
    caveat: Optional[str] = None


_ELEMENTS = (
    _Element(
        TypeKind.POINTER,
        "struct page *",
        pfn=lambda vmemmap, value: vmemmap.page_pfn(value),
        page=lambda _vmemmap, value: value,
    ),
    # The fifth version of the patch series.
    _Element(
        TypeKind.INT,
        "pfn",
        pfn=lambda vmemmap, pfn: pfn if pfn < vmemmap.kernel.max_pfn_limit else None,
        page=lambda vmemmap, pfn: vmemmap.page_address(pfn) % (1 << 64),
        caveat="an element of 0 means empty, although PFN 0 is a legal frame: a tail "
        "page there could not be told from none",
    ),
)


@dataclass(frozen=True)
class TailArray:
    """
    ``vmemmap_tails[]`` of one kernel.

    :param slots: ``NR_VMEMMAP_TAILS``: how many elements each array has.
    :param min_order: ``VMEMMAP_TAIL_MIN_ORDER``: the order of folios that element 0 is
        for.
    """

    slots: int
    min_order: int
    _owner: _Owner
    _element: _Element

    @property
    def where(self) -> str:
        """Tag of the structure that has the array."""
        return self._owner.struct

    @property
    def element(self) -> str:
        """``"struct page *"`` or ``"pfn"``."""
        return self._element.name

    @property
    def caveat(self) -> Optional[str]:
        """What users must know of the elements, ``None`` if nothing."""
        return self._element.caveat

    @property
    def implies_masks(self) -> bool:
        """Whether kernels with this array hold masks if the size allows it."""
        return self._owner.implies_masks

    @property
    def names_owner(self) -> bool:
        """Whether ``flags`` of shared tails hold node and zone."""
        return self._owner.names_owner

    @property
    def mapcount(self) -> int:
        """``_mapcount`` of a shared tail, as an unsigned 32-bit number."""
        return self._owner.mapcount

    @property
    def max_order(self) -> int:
        """``MAX_FOLIO_ORDER``, from the length of the array."""
        return self.order(self.slots) - 1

    def order(self, index: int) -> int:
        """The order of the folios that an element is for."""
        return index + self.min_order

    def index(self, order: int) -> Optional[int]:
        """The element for folios of an order, ``None`` if there is none."""
        index = order - self.min_order
        return index if 0 <= index < self.slots else None

    def arrays(self, pgdats: Mapping[int, Object]) -> Iterator[OwnedArray]:
        """
        The arrays of all nodes or zones, by node and zone.

        :param pgdats: ``struct pglist_data *`` by node ID.
        """
        for nid, pgdat in pgdats.items():
            if not self._owner.per_zone:
                yield OwnedArray(nid, None, pgdat.member_(_MEMBER), pgdat)
                continue
            for index, zone in enumerate(pgdat.node_zones):
                yield OwnedArray(nid, index, zone.member_(_MEMBER), zone)

    def array_of(self, pgdat: Object, zone_index: Optional[int]) -> Object:
        """
        The array of a node or zone.

        :param pgdat: ``struct pglist_data *``
        :param zone_index: As :meth:`owner_of()` gives it.
        """
        owner = pgdat if zone_index is None else pgdat.node_zones[zone_index]
        return owner.member_(_MEMBER)

    def array_of_zone(self, zone: Object) -> Object:
        """The array that serves a zone, ``struct zone *``."""
        owner = zone if self._owner.per_zone else zone.zone_pgdat
        return owner.member_(_MEMBER)

    def owner_of(self, nid: int, zone_index: int) -> tuple[int, Optional[int]]:
        """
        Whose array serves the folios of a zone.

        :return: Node ID, and index of the zone or ``None`` for the node itself.
        """
        return nid, zone_index if self._owner.per_zone else None

    def pfn(self, vmemmap: VmemmapMapping, value: int) -> Optional[int]:
        """The frame that an element names, ``None`` if it names none."""
        return self._element.pfn(vmemmap, value)

    def page(self, vmemmap: VmemmapMapping, value: int) -> int:
        """Address of the struct page that an element names, or would name."""
        return self._element.page(vmemmap, value)

    def expected_flags(
        self, layout: FlagsLayout, nid: int, zone_index: Optional[int]
    ) -> int:
        """
        Node and zone in ``flags`` of a shared tail.

        :param zone_index: As :meth:`owner_of()` gives it.
        """
        if not self._owner.names_owner:
            return 0
        return nid << layout.node_shift | (zone_index or 0) << layout.zone_shift


def tail_array(kernel: Kernel) -> Optional[TailArray]:
    """
    ``vmemmap_tails[]`` as the types have it, ``None`` if they do not have it.

    :raises DetectionError: if several structures have it, or its elements are of a type
        that no known kernel has.
    """
    found: list[tuple[_Owner, Type]] = []
    for owner in _OWNERS:
        struct = kernel.type(f"struct {owner.struct}")
        if struct is not None and struct.has_member(_MEMBER):
            found.append((owner, struct.member(_MEMBER).type))
    if len(found) > 1:
        names = " and ".join(owner.struct for owner, _ in found)
        raise DetectionError(f"both struct {names} have vmemmap_tails")
    if not found:
        return None
    ((owner, array),) = found
    return TailArray(
        array.length or 0,
        kernel.geometry.vmemmap_tail_min_order,
        owner,
        _element(array.type.unaliased(), owner),
    )


def _element(element_type: Type, owner: _Owner) -> _Element:
    for element in _ELEMENTS:
        if element_type.kind == element.kind:
            return element
    raise DetectionError(
        f"vmemmap_tails of struct {owner.struct} has elements of type "
        f"{element_type.type_name()}, which no known kernel has"
    )
