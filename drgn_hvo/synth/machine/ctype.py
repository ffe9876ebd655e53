# SPDX-License-Identifier: LGPL-2.1-or-later

"""
C types
-------

A model of C types that is laid out as the x86-64 ABI does, so that a structure
is described once and BTF, VMCOREINFO and the bytes in memory agree about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

__all__ = (
    "BOOL",
    "CHAR",
    "INT",
    "LONG",
    "UCHAR",
    "UINT",
    "ULONG",
    "USHORT",
    "Array",
    "Base",
    "CType",
    "Compound",
    "Enum",
    "Member",
    "Pointer",
    "Typedef",
    "array",
    "filler",
    "pointer",
    "struct",
    "typedef",
    "union",
)

POINTER_SIZE = 8


@dataclass(frozen=True)
class Base:
    """An integer type."""

    name: str
    size: int
    signed: bool = False
    is_bool: bool = False

    @property
    def align(self) -> int:
        """Its alignment, which is its size."""
        return self.size


@dataclass(frozen=True)
class Pointer:
    """A pointer; *target* is a type, ``"struct NAME"``, or ``None`` for void."""

    target: Union[Base, Typedef, Pointer, str, None]
    size: int = POINTER_SIZE
    align: int = POINTER_SIZE


@dataclass(frozen=True)
class Array:
    """An array of *length* elements."""

    element: CType
    length: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.element.size * self.length

    @property
    def align(self) -> int:
        """That of an element."""
        return self.element.align


@dataclass(frozen=True)
class Typedef:
    """A name for another type."""

    name: str
    target: CType

    @property
    def size(self) -> int:
        """That of the target."""
        return self.target.size

    @property
    def align(self) -> int:
        """That of the target."""
        return self.target.align


@dataclass(frozen=True)
class Enum:
    """An enumeration of non-negative values; anonymous if it has no name."""

    name: Optional[str]
    values: tuple[tuple[str, int], ...]
    size: int = 4
    align: int = 4


@dataclass(frozen=True)
class Member:
    """A member of a :class:`Compound`; anonymous if it has no name."""

    name: Optional[str]
    type: CType
    offset: int


@dataclass(frozen=True)
class Compound:
    """
    A structure or a union.

    :param keyword: ``"struct"`` or ``"union"``.
    :param name: Its tag, if it has one.
    """

    keyword: str
    name: Optional[str]
    members: tuple[Member, ...]
    size: int
    align: int

    def find(self, path: str) -> tuple[int, CType]:
        """
        Offset and type of a member, found through anonymous ones.

        :param path: Names separated by dots, and ``[N]`` for an element.
        :raises KeyError: if there is no such member.
        """
        name, _, rest = path.partition(".")
        name, _, index = name.partition("[")
        found = self.find_one(name)
        if found is None:
            raise KeyError(f"{self.keyword} {self.name} has no member {name}")
        offset, member_type = found
        while isinstance(member_type, Typedef):
            member_type = member_type.target
        if index:
            if not isinstance(member_type, Array):
                raise KeyError(f"{name} of {self.keyword} {self.name} is no array")
            member_type = member_type.element
            offset += int(index.rstrip("]")) * member_type.size
        while isinstance(member_type, Typedef):
            member_type = member_type.target
        if not rest:
            return offset, member_type
        if not isinstance(member_type, Compound):
            raise KeyError(f"{name} of {self.keyword} {self.name} has no members")
        inner, inner_type = member_type.find(rest)
        return offset + inner, inner_type

    def find_one(self, name: str) -> Optional[tuple[int, CType]]:
        """
        Offset in bytes and type of a member, also of one in an anonymous member;
        ``None`` if there is none of that name.
        """
        for member in self.members:
            if member.name == name:
                return member.offset, member.type
            if member.name is None and isinstance(member.type, Compound):
                found = member.type.find_one(name)
                if found is not None:
                    return member.offset + found[0], found[1]
        return None

    def offset(self, path: str) -> int:
        """``offsetof()``."""
        return self.find(path)[0]

    def has(self, name: str) -> bool:
        """Whether it has a member of that name."""
        return self.find_one(name) is not None


CType = Union[Base, Pointer, Array, Typedef, Enum, Compound]

CHAR = Base("char", 1, signed=True)
UCHAR = Base("unsigned char", 1)
USHORT = Base("short unsigned int", 2)
INT = Base("int", 4, signed=True)
UINT = Base("unsigned int", 4)
LONG = Base("long int", 8, signed=True)
ULONG = Base("long unsigned int", 8)
BOOL = Base("_Bool", 1, is_bool=True)


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def struct(
    name: Optional[str], *members: tuple[Optional[str], CType], align: int = 1
) -> Compound:
    """A structure with its members at their natural places."""
    placed = []
    offset = 0
    for member_name, member_type in members:
        offset = _align(offset, member_type.align)
        placed.append(Member(member_name, member_type, offset))
        offset += member_type.size
        align = max(align, member_type.align)
    return Compound("struct", name, tuple(placed), _align(offset, align), align)


def union(name: Optional[str], *members: tuple[Optional[str], CType]) -> Compound:
    """A union."""
    align = max(member.align for _, member in members)
    size = _align(max(member.size for _, member in members), align)
    placed = tuple(Member(member_name, member, 0) for member_name, member in members)
    return Compound("union", name, placed, size, align)


def pointer(target: Union[Base, Typedef, Pointer, str, None] = None) -> Pointer:
    """A pointer."""
    return Pointer(target)


def array(element: CType, length: int) -> Array:
    """An array."""
    return Array(element, length)


def typedef(name: str, target: CType) -> Typedef:
    """A typedef."""
    return Typedef(name, target)


def filler(words: int) -> Array:
    """Words of a structure that nobody here cares about."""
    return Array(ULONG, words)
