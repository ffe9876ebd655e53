# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Shapes of the members that we read
----------------------------------

A kernel that nobody has seen may declare a member as something else than all kernels so
far: an array as a pointer, a word as a bit field. :data:`SHAPES` says of every member
that is read by name what it is, and :func:`require_shapes()` holds the types of the
kernel at hand against it, so that what was found and what was expected is said, and
nothing is misread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import Type, TypeKind, TypeMember, sizeof

from drgn_hvo.errors import DetectionError, HvoError

__all__ = (
    "ANY_WORD",
    "ATOMIC",
    "BYTE",
    "FLAGS",
    "INT",
    "LINKS",
    "POINTER",
    "SHAPES",
    "SHORT",
    "WORD",
    "Shape",
    "array_of",
    "fault_of",
    "has_member",
    "require_shapes",
)

_NUMBERS = (TypeKind.INT, TypeKind.ENUM)


@dataclass(frozen=True)
class Shape:
    """
    What a member is.

    :param words: What it is called where it is none.
    :param kinds: What it can be, typedefs and qualifiers apart.
    :param size: In bytes; ``None`` if any will do.
    :param element: Of an array, what its elements are.
    :param refers_to: The name of the type that it is, or is a pointer to.
    """

    words: str
    kinds: tuple[TypeKind, ...]
    size: Optional[int] = None
    element: Optional[Shape] = None
    refers_to: Optional[str] = None


WORD = Shape("an integer of 8 bytes", _NUMBERS, 8)
INT = Shape("an integer of 4 bytes", _NUMBERS, 4)
SHORT = Shape("an integer of 2 bytes", _NUMBERS, 2)
BYTE = Shape("a byte", (*_NUMBERS, TypeKind.BOOL), 1)
POINTER = Shape("a pointer", (TypeKind.POINTER,), 8)
#: ``page->flags``: a structure of one word since Linux kernel commit 53fbef56e07d ("mm:
#: introduce memdesc_flags_t") (in v6.18).
FLAGS = Shape("a word of flags", (*_NUMBERS, TypeKind.STRUCT), 8)
#: ``atomic_t`` or what shares its bytes.
ATOMIC = Shape("an atomic_t", (*_NUMBERS, TypeKind.STRUCT), 4)
#: ``page->private`` and ``page->mapping``: a number or a pointer.
ANY_WORD = Shape("a word", (*_NUMBERS, TypeKind.POINTER), 8)

#: ``struct list_head``.
LINKS = Shape("a struct list_head", (TypeKind.STRUCT,), 16, refers_to="list_head")
_ZONE = Shape("a struct zone", (TypeKind.STRUCT,), refers_to="zone")
_CHAR = Shape("a char", _NUMBERS, 1)
_TEXT = Shape("a pointer to char", (TypeKind.POINTER,), 8, refers_to="char")


def array_of(of: Shape) -> Shape:
    """An array of such elements."""
    return Shape(f"an array of which each element is {of.words}", _ARRAY, None, of)


_ARRAY = (TypeKind.ARRAY,)

#: By structure, the members that are read by their names. What only some kernels have
#: is asked for where it is read.
SHAPES: dict[str, dict[str, Shape]] = {
    "struct pglist_data": {"node_zones": array_of(_ZONE), "node_id": INT},
    "struct zone": {"zone_start_pfn": WORD, "spanned_pages": WORD, "name": _TEXT},
    "nodemask_t": {"bits": array_of(WORD)},
    "struct hstate": {
        "order": INT,
        # Since v5.16.
        "demote_order": INT,
        "mask": WORD,
        "name": array_of(_CHAR),
        "max_huge_pages": WORD,
        "nr_huge_pages": WORD,
        "free_huge_pages": WORD,
        "surplus_huge_pages": WORD,
        "resv_huge_pages": WORD,
        "hugepage_activelist": LINKS,
        "hugepage_freelists": array_of(LINKS),
        "nr_huge_pages_node": array_of(INT),
        "free_huge_pages_node": array_of(INT),
        "surplus_huge_pages_node": array_of(INT),
    },
}


# Members that not every kernel has.
_ONLY_SOME = frozenset({"demote_order"})


def has_member(owner: Type, name: str) -> bool:
    """
    Whether a structure has a member, as :meth:`drgn.Type.has_member()`; false if it is
    no structure.
    """
    try:
        return owner.has_member(name)
    except (AttributeError, HvoError, RecursionError, TypeError):
        return False


def _unaliased(found: Type) -> Type:
    """A type without typedefs and qualifiers."""
    return found.unaliased()


def _text(found: Type) -> str:
    """A type and its size, for people."""
    try:
        return f"{found.type_name()} ({sizeof(found)} bytes)"
    except TypeError:
        return found.type_name()


def _is_named(found: Type, name: str) -> bool:
    """Whether a type, or what it points to, has a name."""
    if found.kind is TypeKind.POINTER:
        found = _unaliased(found.type)
    if found.kind in (TypeKind.INT, TypeKind.FLOAT, TypeKind.BOOL):
        return found.name == name
    return getattr(found, "tag", None) == name


def _fits(found: Type, shape: Shape) -> bool:
    found = _unaliased(found)
    if found.kind not in shape.kinds or not found.is_complete():
        return False
    if shape.size is not None and sizeof(found) != shape.size:
        return False
    if shape.refers_to is not None and not _is_named(found, shape.refers_to):
        return False
    if shape.element is None:
        return True
    return bool(found.length) and _fits(found.type, shape.element)


def _member_fault(owner: Type, member: TypeMember, shape: Shape) -> Optional[str]:
    if member.bit_field_size is not None or member.bit_offset % 8:
        return "a bit field"
    if not _fits(member.type, shape):
        return _text(member.type)
    end = member.offset + sizeof(member.type)
    if end > sizeof(owner):
        return f"behind the end of the {sizeof(owner)} bytes, at {member.offset}"
    return None


def fault_of(owner: Type, name: str, shape: Shape) -> Optional[str]:
    """
    What is wrong with a member.

    :param owner: A structure or union, or a typedef of one.
    :return: What was found and what was expected; ``None`` if nothing is wrong.
    """
    what = f"{owner.type_name()}.{name}"
    try:
        found = _unaliased(owner)
        if found.kind not in (TypeKind.STRUCT, TypeKind.UNION):
            return f"{owner.type_name()} is {_text(found)}, expected a structure"
        if not has_member(found, name):
            return f"{what} is missing, expected {shape.words}"
        wrong = _member_fault(found, found.member(name), shape)
    except (HvoError, RecursionError, TypeError) as e:
        # A type that contains itself, or has no size.
        wrong = f"unreadable ({e})"
    return None if wrong is None else f"{what} is {wrong}, expected {shape.words}"


def require_shapes(owner: Type, name: str) -> None:
    """
    Hold the members of a structure against :data:`SHAPES`.

    :param name: As the table has it.
    :raises DetectionError: if one is of a shape that no known kernel has.
    """
    for member, shape in SHAPES[name].items():
        if member in _ONLY_SOME and not has_member(owner, member):
            continue
        fault = fault_of(owner, member, shape)
        if fault is not None:
            raise DetectionError(fault)
