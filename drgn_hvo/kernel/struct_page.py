# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where the words of struct page are
----------------------------------

:class:`StructPageLayout` has the offsets that every reader of ``struct page`` needs,
from types or, without any, from VMCOREINFO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import Program, Type, TypeKind, offsetof, sizeof

from drgn_hvo.errors import DetectionError, FormatError, TargetError, UnavailableError
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.shapes import (
    ANY_WORD,
    ATOMIC,
    FLAGS,
    LINKS,
    WORD,
    Shape,
    fault_of,
    has_member,
)

__all__ = ("StructPageLayout", "struct_page_from_types", "struct_page_from_vmcoreinfo")


@dataclass(frozen=True)
class StructPageLayout:
    """
    Where the words of ``struct page`` are, in bytes. ``None`` is not known.

    :param member: ``compound_info`` or ``compound_head``: the tail word.
    :param offset: Where that word is.
    :param source: ``"dwarf"``, ``"btf"`` or ``"vmcoreinfo"``.
    """

    size: int
    member: str
    offset: int
    flags: int
    refcount: Optional[int]
    mapcount: Optional[int]
    mapping: Optional[int]
    private: Optional[int]
    lru: Optional[int]
    source: str

    def require(self, name: str) -> int:
        """
        The offset of a word that not every source knows.

        :raises UnavailableError: if it is not known.
        """
        offset: Optional[int] = getattr(self, name)
        if offset is None:
            raise UnavailableError(f"{self.source} does not say where page->{name} is")
        return offset


# Renamed by Linux kernel commit d50569612c29 ("mm: rename the 'compound_head'
# field in the 'struct page' to 'compound_info'") (in v7.1).
_TAIL_WORD_MEMBERS = ("compound_info", "compound_head")


def struct_page_from_vmcoreinfo(vmcoreinfo: Vmcoreinfo) -> Optional[StructPageLayout]:
    """
    The layout that VMCOREINFO tells, for kernels without types.

    :return: ``None`` if it does not say how large ``struct page`` is, or where the tail
        word or the flags are.
    :raises FormatError: if an offset does not lie in ``struct page``.
    """
    size = vmcoreinfo.size("page")
    flags = vmcoreinfo.offset("page.flags")
    for member in _TAIL_WORD_MEMBERS:
        # The key proves nothing about the encoding: makedumpfile -g writes the
        # old name on new kernels, and stable kernels use masks under it.
        offset = vmcoreinfo.offset(f"page.{member}")
        if offset is not None:
            break
    else:
        return None
    if size is None or flags is None:
        return None
    for what in (offset, flags):
        if not 0 <= what <= size - 8 or what % 8:
            raise FormatError(f"VMCOREINFO has an offset of {what} in struct page")
    return StructPageLayout(
        size=size,
        member=member,
        offset=offset,
        flags=flags,
        refcount=vmcoreinfo.offset("page._refcount"),
        mapcount=vmcoreinfo.offset("page._mapcount"),
        mapping=vmcoreinfo.offset("page.mapping"),
        private=vmcoreinfo.offset("page.private"),
        lru=vmcoreinfo.offset("page.lru"),
        source="vmcoreinfo",
    )


def struct_page_from_types(prog: Program, source: str) -> StructPageLayout:
    """
    The layout that types tell.

    :param source: ``"dwarf"`` or ``"btf"``.
    :raises TargetError: if the types have no such structure, or it has no tail word.
    :raises DetectionError: if a member is of a shape that no known kernel has.
    """
    try:
        page = prog.type("struct page")
    except LookupError:
        raise TargetError(f"{source} has no struct page") from None
    if page.kind is not TypeKind.STRUCT or not page.is_complete():
        raise TargetError(f"{source} has no struct page, only {page.type_name()}")
    if has_member(page, "memdesc"):
        # What a page is a part of would be told by that word, and the fields of folios
        # lie elsewhere.
        raise DetectionError(
            f"struct page has memdesc, and {sizeof(page)} bytes: kernels that allocate "
            "folios apart from struct pages are not supported"
        )
    for member in _TAIL_WORD_MEMBERS:
        if has_member(page, member):
            break
    else:
        raise TargetError(
            f"struct page has neither {' nor '.join(_TAIL_WORD_MEMBERS)}: kernels "
            "before v4.4 are not supported"
        )

    return StructPageLayout(
        size=sizeof(page),
        member=member,
        offset=_place(page, member, WORD),
        flags=_place(page, "flags", FLAGS),
        refcount=_place(page, "_refcount", ATOMIC),
        mapcount=_place(page, "_mapcount", ATOMIC),
        mapping=_place(page, "mapping", ANY_WORD),
        private=_place(page, "private", ANY_WORD),
        lru=_place(page, "lru", LINKS),
        source=source,
    )


def _place(page: Type, member: str, shape: Shape) -> int:
    """
    The offset of a member of ``struct page``, in bytes.

    :raises DetectionError: if it is of a shape that no known kernel has.
    """
    fault = fault_of(page, member, shape)
    if fault is not None:
        raise DetectionError(fault)
    return offsetof(page, member)
