# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where the words of struct page are
----------------------------------

:class:`StructPage` has the offsets that every reader of ``struct page`` needs, from
types or, without any, from VMCOREINFO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import Program, offsetof, sizeof

from drgn_hvo.errors import FormatError, TargetError, UnavailableError
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

__all__ = ("StructPage", "struct_page_from_types", "struct_page_from_vmcoreinfo")


@dataclass(frozen=True)
class StructPage:
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


def struct_page_from_vmcoreinfo(vmcoreinfo: Vmcoreinfo) -> Optional[StructPage]:
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
    return StructPage(
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


def struct_page_from_types(prog: Program, source: str) -> StructPage:
    try:
        page = prog.type("struct page")
    except LookupError:
        raise TargetError(f"{source} has no struct page") from None
    for member in _TAIL_WORD_MEMBERS:
        if page.has_member(member):
            break
    else:
        raise TargetError(
            f"struct page has neither {' nor '.join(_TAIL_WORD_MEMBERS)}: kernels "
            "before v4.4 are not supported"
        )

    def offset(name: str) -> Optional[int]:
        return offsetof(page, name) if page.has_member(name) else None

    return StructPage(
        size=sizeof(page),
        member=member,
        offset=offsetof(page, member),
        flags=offsetof(page, "flags"),
        refcount=offset("_refcount"),
        mapcount=offset("_mapcount"),
        mapping=offset("mapping"),
        private=offset("private"),
        lru=offset("lru"),
        source=source,
    )
