# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Fields of private tails
-----------------------

Which words of the struct pages of a head and behind it, in the page of vmemmap that a
hugetlb folio has to itself, are fixed, and to what. ``prep_compound_tail()`` makes all
tails alike; the first ones hold fields of the folio, which the table in
:mod:`~drgn_hvo.memmap.folio_members` knows by name. Where those are, the types of the
kernel say; what the table does not know is free to be anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Optional

from drgn import Type, TypeKind, TypeMember, offsetof, sizeof

from drgn_hvo.errors import HvoError, UnavailableError
from drgn_hvo.formats.tail_words import ALL_ONES, tail_mapping
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.shapes import (
    ATOMIC,
    FLAGS,
    INT,
    LINKS,
    POINTER,
    SHORT,
    WORD,
    Shape,
    array_of,
    fault_of,
    has_member,
)
from drgn_hvo.kernel.struct_page import StructPageLayout
from drgn_hvo.memmap.folio_members import (
    MEMBERS,
    NO_HEAD_FLAGS,
    OVERLAYS,
    PAGE_MEMBERS,
    SUBPAGE_INDICES,
    USED_HPG_FLAGS,
    FolioMember,
    Kind,
    Verdict,
    When,
)
from drgn_hvo.memmap.zones import FlagsLayout

__all__ = ("ALIGNED", "FIRST_PLAIN", "TailField", "TailFields")

#: From here on tails are all alike: struct folio has had at most four struct pages, and
# up to v6.2 the private word of the next one belonged to hugetlb.
FIRST_PLAIN = 5

# Its owner, where CONFIG_MEMCG is set.
_MEMCG = "memcg_data"

#: No pointer to what is allocated has these bits.
ALIGNED = 7


@dataclass(frozen=True)
class TailField:
    """
    A field of a private tail, or of the head in front of them.

    :param name: As the kernel calls it.
    :param index: Which struct page from the head on; the highest one of all fields
        stands for all behind it, too.
    :param offset: In the struct page.
    :param mask: Of the bits that are fixed.
    :param value: What they are; of links, how far behind the head they are.
    """

    name: str
    verdict: Verdict
    kind: Kind
    when: When
    index: int
    offset: int
    size: int
    mask: int
    value: int


def _members(struct: Type, base: int = 0) -> Iterator[tuple[str, int, TypeMember]]:
    """
    All members that have names, those of anonymous ones as well.

    :raises TypeError: if an anonymous one has no members.
    """
    if struct.kind not in (TypeKind.STRUCT, TypeKind.UNION):
        raise TypeError(f"an anonymous {struct.type_name()}")
    for member in struct.members or ():
        offset = base + member.bit_offset // 8
        if member.name is None:
            yield from _members(member.type, offset)
        else:
            yield member.name, offset, member


def _mask_of(bits: Iterable[Optional[int]]) -> int:
    """A word with some bits set; damaged types name bits that no word has."""
    return sum({1 << bit for bit in bits if bit is not None and 0 <= bit < 64})


def _size(member: TypeMember) -> int:
    """
    The size of a member in bytes; 0 if it has none.

    :raises TypeError: if it is no type of a member.
    """
    found = member.type
    while found.kind is TypeKind.TYPEDEF:
        found = found.type
    return 0 if found.kind is TypeKind.ARRAY and not found.length else sizeof(found)


# What members of each kind are.
_SHAPES: dict[Kind, tuple[Shape, ...]] = {
    # Pairs of mm_id_mapcount_t are short or int.
    "number": (array_of(SHORT), array_of(INT), WORD, ATOMIC),
    "pages": (ATOMIC, WORD),
    "links": (LINKS,),
    "pointer": (POINTER,),
}


def _folio_fault(folio: Type, page: StructPageLayout) -> Optional[str]:
    """
    What is wrong with members of ``struct folio`` that are known; ``None`` if nothing
    is.
    """
    try:
        names = [name for name, _, member in _members(folio) if _size(member) >= 0]
    except (HvoError, RecursionError, TypeError) as e:
        return f"struct folio has a member that cannot be one: {e}"
    for index in range(1, sizeof(folio) // page.size):
        # FOLIO_MATCH() in include/linux/mm_types.h asserts that.
        flags = f"_flags_{index}"
        fault = fault_of(folio, flags, FLAGS)
        if fault is None and offsetof(folio, flags) != index * page.size + page.flags:
            fault = f"struct folio.{flags} does not lie where flags of a page do"
        if fault is not None:
            return fault
    for name, member in MEMBERS.items():
        faults = [fault_of(folio, name, shape) for shape in _SHAPES[member.kind]]
        if name in names and all(faults):
            return faults[-1]
    return None


class TailFields:
    """
    The fields of private tails of one kernel.

    :param layout: Where flags have node and zone; ``None`` if that is not known.
    :param hpg_flags: Bits of ``folio->private`` by name; empty if they are not known.
    """

    def __init__(
        self,
        kernel: Kernel,
        layout: Optional[FlagsLayout],
        hpg_flags: Mapping[str, int],
    ) -> None:
        self._kernel = kernel
        self._hpg_flags = hpg_flags
        self._page = kernel.struct_page
        self._size = kernel.struct_page.size
        self._byteorder = kernel.sources.byteorder
        count = kernel.constant("__NR_PAGEFLAGS")
        #: Bits of flags that name node and zone; 0 if it is not known which.
        self.place_mask = 0
        #: Bits of flags that are fixed; ``None`` if it is not known which.
        self.flags_mask: Optional[int] = None
        # Damaged types have more flags than bits.
        if layout is not None and count is not None and 0 <= count <= 64:
            self.place_mask = layout.node_mask << layout.node_shift
            self.place_mask |= layout.zone_mask << layout.zone_shift
            self.flags_mask = self.place_mask | (1 << count) - 1

    @cached_property
    def fault(self) -> Optional[str]:
        """Why it is not known what the first tails hold; ``None`` if it is."""
        page, folio = map(self._kernel.type, ("struct page", "struct folio"))
        if page is not None and has_member(page, _MEMCG):
            wrong = fault_of(page, _MEMCG, WORD)
            if wrong is not None:
                return wrong
        return None if folio is None else _folio_fault(folio, self._page)

    @cached_property
    def all(self) -> tuple[TailField, ...]:
        """All fields that are fixed, by struct page and offset."""
        found = [*self._head_fields(), *self._plain_fields(FIRST_PLAIN)]
        for index in range(1, FIRST_PLAIN) if self.fault is None else ():
            found += self._first_fields(index)
        return tuple(sorted(found, key=lambda field: (field.index, field.offset)))

    def _plain_fields(self, index: int) -> list[TailField]:
        """The fields of a tail that holds none of the folio."""
        page = self._page
        mapping = tail_mapping(self._kernel.illegal_pointer_value)
        wanted: tuple[tuple[str, Verdict, Optional[int], int, int], ...] = (
            ("mapping", "mapping", page.mapping, 8, mapping),
            ("private", "rest", page.private, 8, 0),
            ("_mapcount", "mapcount", page.mapcount, 4, -1),
            ("_refcount", "refcount", page.refcount, 4, 0),
            ("memcg_data", "rest", self._memcg_data, 8, 0),
        )
        found = [
            self._number(name, verdict, "always", (index, offset, size), value)
            for name, verdict, offset, size, value in wanted
            if offset is not None
        ]
        if index in self._private_indices:
            found = [self._as_pointer(f) if f.name == "private" else f for f in found]
        if self.flags_mask is not None:
            flags = self._number("flags", "flags", "always", (index, page.flags, 8), 0)
            mask = self.flags_mask & ~(self._second_flags if index == 1 else 0)
            found.append(replace(flags, kind="flags", mask=mask))
        return found

    def _head_fields(self) -> list[TailField]:
        """
        The fields of a head that have no rule of their own: what a user would have left
        there, and bits that mean nothing.
        """
        page, kernel = self._page, self._kernel
        wanted: list[tuple[str, When, Optional[int], int, int, int]] = [
            ("mapping", "free", page.mapping, 8, ALL_ONES, 0),
            ("memcg_data", "free", self._memcg_data, 8, ALL_ONES, 0),
        ]
        mask = _mask_of(kernel.constant(name) for name in NO_HEAD_FLAGS)
        wanted.append(("flags", "always", page.flags, 8, mask, 0))
        if kernel.constant("PGTY_hugetlb") is not None:
            # The type itself has a rule.
            wanted.append(("page_type", "always", page.mapcount, 4, (1 << 24) - 1, 0))
        elif kernel.vmcoreinfo.number("PAGE_HUGETLB_MAPCOUNT_VALUE") is None:
            mask = (1 << 32) - 1
            wanted.append(("_mapcount", "always", page.mapcount, 4, mask, mask))
        flags = self._hpg_flags
        if flags:
            known = _mask_of(flags.values())
            wanted.append(("private", "always", page.private, 8, ALL_ONES ^ known, 0))
            used = _mask_of(flags.get(name) for name in USED_HPG_FLAGS)
            wanted.append(("private", "free", page.private, 8, used, 0))
        return [
            TailField(name, "head", "number", when, 0, offset, size, mask, value)
            for name, when, offset, size, mask, value in wanted
            if offset is not None and mask
        ]

    @cached_property
    def _memcg_data(self) -> Optional[int]:
        page = self._kernel.type("struct page")
        if page is None or fault_of(page, _MEMCG, WORD) is not None:
            return None
        return offsetof(page, _MEMCG)

    def _number(
        self,
        name: str,
        verdict: Verdict,
        when: When,
        place: tuple[int, int, int],
        value: int,
    ) -> TailField:
        mask = (1 << 8 * place[2]) - 1
        return TailField(
            name, verdict, "number", when, *place, mask=mask, value=value & mask
        )

    @staticmethod
    def _as_pointer(field: TailField) -> TailField:
        """A field of which nothing is known but that it is a pointer."""
        mask = ALIGNED & field.mask
        return replace(field, kind="pointer", when="never", mask=mask)

    @property
    def _second_flags(self) -> int:
        """
        Bits of the first tail's flags that say something of the folio, which are
        ``PAGE_FLAGS_SECOND`` since v6.6: the order, and flags that hugetlb does not
        have since folio_clear_large_rmappable() in alloc_buddy_hugetlb_folio().
        """
        if not self._has("struct folio", "_flags_1"):
            return 0
        if self._has("struct folio", "_folio_order"):
            return 0  # up to v6.5
        if self._kernel.constant("PGTY_hugetlb") is not None:
            return 0xFF
        names = ("PG_has_hwpoisoned", "PG_large_rmappable", "PG_hugetlb")
        return 0xFF | _mask_of(map(self._kernel.constant, names))

    @cached_property
    def _private_indices(self) -> frozenset[int]:
        """Tails whose private word belongs to hugetlb, and has no other name."""
        if self._has("struct folio", "_hugetlb_subpool"):
            return frozenset()
        known = [self._kernel.constant(name) for name in SUBPAGE_INDICES]
        indices = frozenset(index for index in known if index is not None)
        return indices or frozenset(range(1, FIRST_PLAIN))

    @cached_property
    def _folio_members(self) -> list[tuple[str, int, int]]:
        """Members of ``struct folio`` behind the head: name, offset, size."""
        folio = self._kernel.type("struct folio")
        places = [] if folio is None else list(_members(folio))
        return [(name, at, _size(m)) for name, at, m in places if at >= self._size]

    def _first_fields(self, index: int) -> list[TailField]:
        """The fields of a struct page that may hold some of the folio."""
        plain = self._plain_fields(index)
        if not self._folio_members:
            # Before v6.1, struct page has the fields of all kinds of tails.
            some = ("mapcount", "refcount", "flags")
            found = [f for f in plain if f.verdict in some or f.kind == "pointer"]
            return found + (self._page_members() if index == 1 else [])
        start = index * self._size
        mine = [
            (name, at - start, size)
            for name, at, size in self._folio_members
            if 0 <= at - start < self._size and not OVERLAYS.fullmatch(name)
        ]
        found = []
        for name, at, size in mine:
            shares = any(n != name and b < at + size and at < b + s for n, b, s in mine)
            found += self._member_fields(name, (index, at, size), shares)
        covered = {at + i for _, at, size in mine for i in range(size)}
        outside = (self._outside(field, covered) for field in plain)
        return found + [field for field in outside if field.mask]

    def _page_members(self) -> list[TailField]:
        """The fields of a folio that ``struct page`` of its first tail has."""
        page = self._kernel.type("struct page")
        found = []
        for name, member in PAGE_MEMBERS.items():
            if page is None or fault_of(page, name, ATOMIC) is not None:
                continue
            place = (1, offsetof(page, name), 4)
            field = self._number(name, member.verdict, member.when, place, member.value)
            found.append(replace(field, kind=member.kind))
        return found

    def _member_fields(
        self, name: str, place: tuple[int, int, int], shares: bool
    ) -> list[TailField]:
        """
        The fields of a member.

        :param shares: Whether another one has the same bytes.
        """
        member = MEMBERS.get(name)
        index, offset, _ = place
        if member is None or (shares and member.kind != "pointer"):
            return []
        if not self._applies(member):
            return []
        if member.kind == "links":
            at = index * self._size + offset
            return [
                replace(self._number(f"{name}.{link}", "rest", "always",
                                     (index, offset + behind, 8), at), kind="links")
                for link, behind in (("next", 0), ("prev", 8))
            ]  # fmt: skip
        field = self._number(name, member.verdict, member.when, place, member.value)
        if member.kind == "pointer" and (shares or not self._has_cgroups):
            # Nobody need have cleared what others left there.
            return [self._as_pointer(field)]
        return [replace(field, kind=member.kind)]

    def _applies(self, member: FolioMember) -> bool:
        """Whether this kernel keeps a member as the table says."""
        if member.not_with is not None and self._has("struct folio", member.not_with):
            return False
        return member.only_with is None or self._has(*member.only_with)

    def _has(self, type_name: str, member: str) -> bool:
        try:
            owner = self._kernel.type(type_name)
        except UnavailableError:
            return False  # an extract, which has some of the types
        return owner is not None and has_member(owner, member)

    @property
    def _has_cgroups(self) -> bool:
        """``CONFIG_CGROUP_HUGETLB``."""
        return self._kernel.type("struct hugetlb_cgroup") is not None

    def _outside(self, field: TailField, covered: set[int]) -> TailField:
        """What of a field lies in no member of the folio."""
        mask = field.mask.to_bytes(field.size, self._byteorder)
        left = bytes(
            0 if field.offset + i in covered else byte for i, byte in enumerate(mask)
        )
        return replace(field, mask=int.from_bytes(left, self._byteorder))
