# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Arguments of helpers
--------------------

What helpers need of a kernel, and what they accept.
"""

from __future__ import annotations

from typing import Optional

from drgn import Object, Program, Type, TypeKind

from drgn_hvo.errors import UnavailableError
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("folio_type", "named_type", "pointer_value", "require_hugetlb")


def require_hugetlb(hvo: Hvo) -> None:
    """
    Make sure that the pools and folios of a kernel can be read.

    :raises UnavailableError: if they cannot: without types or page tables.
    """
    if not hvo.kernel.has_types:
        raise UnavailableError(
            f"huge pages cannot be read without types: {hvo.kernel.no_types_reason}; "
            "debuginfo would do"
        )
    if not hvo.vmemmap.has_mappings:
        raise UnavailableError(
            f"nothing tells what HVO did: {hvo.vmemmap.no_mappings_reason}"
        )


def named_type(prog: Program, name: str) -> Optional[Type]:
    """
    A type.

    :return: ``None`` if the kernel has none of that name.
    """
    try:
        return prog.type(name)
    except LookupError:
        return None


def pointer_value(argument: object, *tags: str) -> tuple[Program, int]:
    """
    The program and the address of what a helper was given.

    :param tags: Tags of the structures that it may point to, the documented one first.
    :raises TypeError: if it is no pointer to any of them.
    :raises FaultError: if the pointer itself cannot be read.
    """
    if not isinstance(argument, Object):
        raise TypeError(f"expected struct {tags[0]} *, not {type(argument).__name__}")
    pointer = argument.type_.unaliased()
    if pointer.kind == TypeKind.POINTER:
        target = pointer.type.unaliased()
        if target.kind == TypeKind.STRUCT and target.tag in tags:
            return argument.prog_, argument.value_()
    raise TypeError(f"expected struct {tags[0]} *, not {argument.type_.type_name()}")


def folio_type(prog: Program) -> Type:
    """
    ``struct folio *``. Since Linux kernel commit 7b230db3b8d3 ("mm: Introduce struct
    folio") (in v5.16).

    :raises UnavailableError: if the kernel has no such type.
    """
    found = named_type(prog, "struct folio *")
    if found is None:
        raise UnavailableError(
            "this kernel has no struct folio, which came with Linux 5.16; "
            "compound_head() gives the head as a struct page"
        )
    return found
