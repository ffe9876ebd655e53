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

from drgn import Object, Type, TypeKind, sizeof

from drgn_hvo.errors import DetectionError
from drgn_hvo.formats.tail_words import max_folio_order
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.shapes import Shape, fault_of, has_member
from drgn_hvo.kernel.unread import KnownWords
from drgn_hvo.memmap.mapping import VmemmapMapping
from drgn_hvo.memmap.zones import FlagsLayout

__all__ = ("OwnedArray", "TailArray", "tail_array")

_MEMBER = "vmemmap_tails"

_WORD_SIZE = 8

_ARRAY = Shape("an array, or a pointer to one", (TypeKind.ARRAY, TypeKind.POINTER))


@dataclass(frozen=True)
class OwnedArray:
    """
    The array of one node or zone.

    :param zone_index: ``zone_idx()``; ``None`` where the array is the node's.
    """

    nid: int
    zone_index: Optional[int]
    _owner: Object
    _shape: TailArray

    def array(self, known_words: KnownWords) -> Optional[Object]:
        """
        The array, a reference: nothing of it has been read.

        :return: ``None`` if none was allocated yet.
        :raises FaultError: if where it is cannot be read.
        """
        # Where there are no pages, zeros are what they should be.
        read = known_words.value if self.may_be_used(known_words) else Object.value_
        return self._shape.array_in(self._owner, read)

    def may_be_used(self, known_words: KnownWords) -> bool:
        """Whether the zone has pages, or may have; a node that is online has some."""
        if self.zone_index is None:
            return True
        return known_words.find(self._owner.spanned_pages) != 0


@dataclass(frozen=True)
class _Owner:
    """
    A structure that has the array.

    :param struct: Its tag.
    :param per_zone: Whether each zone has its own shared tails, or each node.
    :param implies_masks: Whether every kernel with it has ``compound_info_has_mask()``
        where ``sizeof(struct page)`` is a power of two, which drgn's own helpers rely
        on, too.
    :param mapcount: ``_mapcount`` of a shared tail, as unsigned; ``None`` if it may be
        the initial one or 0.
    :param names_owner: Whether ``flags`` of a shared tail hold node and zone of the
        folios that use it; ``None`` if they may or may not.
    :param is_allocated: Whether the array is allocated when it is first used, and the
        structure has its address.
    """

    struct: str
    per_zone: bool
    implies_masks: bool
    mapcount: Optional[int]
    names_owner: Optional[bool]
    is_allocated: bool = False


_OWNERS = (
    # Since Linux kernel commit 622026e87c40 ("mm/hugetlb: remove fake head pages") (in
    # v7.1). vmemmap_get_tail() in mm/hugetlb_vmemmap.c makes tails with
    # init_compound_tail(), which sets the initial _mapcount, -1, and the zone. The same
    # #ifdef guards the array and the masks.
    _Owner("zone", True, implies_masks=True, mapcount=0xFFFFFFFF, names_owner=True),
    # "Generalize vmemmap optimization for DAX and HugeTLB", in linux-next in October
    # 2026: CONFIG_SPARSEMEM_VMEMMAP_OPTIMIZATION, later CONFIG_VMEMMAP_OPTIMIZATION,
    # guards it, which device DAX has without masks, too. vmemmap_shared_tail_page() of
    # mm/sparse-vmemmap.c sets the initial _mapcount, node and zone there, and
    # PG_reserved in ZONE_DEVICE; it is not in any release, so what it writes besides
    # tail words is not settled.
    _Owner(
        "zone",
        True,
        implies_masks=False,
        mapcount=None,
        names_owner=None,
        is_allocated=True,
    ),
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
    def is_allocated(self) -> bool:
        """
        Whether the array was allocated when it was first used. Such kernels share tails
        with device DAX, too, and may leave a folio partly optimized for good.
        """
        return self._owner.is_allocated

    @property
    def names_owner(self) -> Optional[bool]:
        """
        Whether ``flags`` of shared tails hold node and zone; ``None`` if not settled.
        """
        return self._owner.names_owner

    @property
    def mapcount(self) -> Optional[int]:
        """
        ``_mapcount`` of a shared tail, as an unsigned 32-bit number; ``None`` if it may
        be the initial one or 0.
        """
        return self._owner.mapcount

    @property
    def max_order(self) -> int:
        """``MAX_FOLIO_ORDER``, which the length of the array follows from."""
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
                yield OwnedArray(nid, None, pgdat, self)
                continue
            for index, zone in enumerate(pgdat.node_zones):
                yield OwnedArray(nid, index, zone, self)

    def array_in(
        self, owner: Object, read: Callable[[Object], int] = Object.value_
    ) -> Optional[Object]:
        """
        The array of a structure that has it.

        :param read: Reads where it is, if the structure has its address.
        :return: ``None`` if none was allocated yet.
        :raises FaultError: if where it is cannot be read.
        """
        member = owner.member_(_MEMBER)
        if not self.is_allocated:
            return member
        address = read(member)
        if not address:
            return None
        elements = member.prog_.array_type(member.type_.unaliased().type, self.slots)
        return Object(member.prog_, elements, address=address)

    def slot_address(self, pgdat: Object, zone_index: Optional[int], index: int) -> int:
        """
        Where an element of a node or zone is; where the array should be named, if it
        was never allocated.

        :param pgdat: ``struct pglist_data *``
        :param zone_index: As :meth:`owner_of()` gives it.
        """
        owner = pgdat if zone_index is None else pgdat.node_zones[zone_index]
        array = self.array_in(owner)
        slot = owner.member_(_MEMBER) if array is None else array[index]
        address: int = slot.address_of_().value_()
        return address

    def array_of_zone(self, zone: Object) -> Object:
        """
        The array that serves a zone, ``struct zone *``; one of empty elements if none
        was allocated yet.
        """
        owner = zone if self._owner.per_zone else zone.zone_pgdat
        array = self.array_in(owner)
        if array is not None:
            return array
        member = owner.member_(_MEMBER)
        elements = zone.prog_.array_type(member.type_.unaliased().type, self.slots)
        return Object(zone.prog_, elements, [0] * self.slots)

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
        Node and zone in ``flags`` of a shared tail, if it holds them.

        :param zone_index: As :meth:`owner_of()` gives it.
        """
        if self._owner.names_owner is False:
            return 0
        return nid << layout.node_shift | (zone_index or 0) << layout.zone_shift


def tail_array(kernel: Kernel) -> Optional[TailArray]:
    """
    ``vmemmap_tails[]`` as the types have it, ``None`` if they do not have it.

    :raises DetectionError: if several structures have it, or it is of a type that no
        known kernel has.
    """
    found: dict[str, Type] = {}
    for struct in dict.fromkeys(owner.struct for owner in _OWNERS):
        owner_type = kernel.type(f"struct {struct}")
        if owner_type is not None and has_member(owner_type, _MEMBER):
            fault = fault_of(owner_type, _MEMBER, _ARRAY)
            if fault is not None:
                raise DetectionError(fault)
            found[struct] = owner_type.member(_MEMBER).type
    if len(found) > 1:
        raise DetectionError(f"both struct {' and '.join(found)} have vmemmap_tails")
    for struct, member in found.items():
        return _shape(kernel, struct, member.unaliased())
    return None


def _shape(kernel: Kernel, struct: str, member: Type) -> TailArray:
    """The array that a structure has as a member of some type."""
    is_allocated = member.kind == TypeKind.POINTER
    for owner in _OWNERS:
        if (owner.struct, owner.is_allocated) != (struct, is_allocated):
            continue
        if not is_allocated and member.kind != TypeKind.ARRAY:
            break
        element = member.type.unaliased()
        min_order = kernel.geometry.vmemmap_tail_min_order
        slots = member.length or 0 if not is_allocated else _length(kernel, min_order)
        return TailArray(slots, min_order, owner, _element(element, owner))
    raise DetectionError(
        f"vmemmap_tails of struct {struct} is a {member.type_name()}, which it is in "
        "no known kernel: expected an array, or a pointer to one"
    )


def _length(kernel: Kernel, min_order: int) -> int:
    """
    How many elements an array has whose length no type tells: from the smallest order
    to MAX_FOLIO_ORDER (include/linux/mmzone.h).
    """
    shift, largest = kernel.geometry.page_shift, None
    if kernel.architecture is not None:
        largest = kernel.architecture.model.max_folio_order.get(shift)
    if largest is None:
        largest = max_folio_order(shift)
    return max(0, largest - min_order + 1)


def _element(element_type: Type, owner: _Owner) -> _Element:
    for element in _ELEMENTS:
        if element_type.kind == element.kind and sizeof(element_type) == _WORD_SIZE:
            return element
    raise DetectionError(
        f"vmemmap_tails of struct {owner.struct} has elements of type "
        f"{element_type.type_name()}, which no known kernel has"
    )
