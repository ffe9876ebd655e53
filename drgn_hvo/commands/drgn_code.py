# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``--drgn``
----------

Code for a drgn session that does what a command does, for those who want to go on
from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import dedent

from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec

__all__ = ("page_code", "show_code")


@dataclass(frozen=True)
class _Part:
    """
    Some statements.

    :param imports: The names that they use, by module.
    """

    imports: dict[str, tuple[str, ...]]
    code: str


_HUGETLB = "drgn.helpers.linux.hugetlb"
_MM = "drgn.helpers.linux.mm"

_ENCODING = _Part(
    {"drgn_hvo": ("compound_info_has_mask",)},
    """\
    print("mask" if compound_info_has_mask(prog) else "pointer")
    """,
)

_SHARED_TAILS = _Part(
    {"drgn_hvo": ("for_each_vmemmap_tail",), _MM: ("page_to_pfn",)},
    """\
    for tail in for_each_vmemmap_tail(prog):
        zone = tail.zone.name.string_().decode() if tail.zone else None
        print(tail.nid, zone, tail.order, page_to_pfn(tail.page).value_())
    """,
)

_POOLS = _Part(
    {"drgn_hvo": ("vmemmap_saved",), _HUGETLB: ("for_each_hstate",)},
    """\
    for hstate in for_each_hstate(prog):
        print(
            hstate.order.value_(),
            hstate.nr_huge_pages.value_(),
            hstate.free_huge_pages.value_(),
            hstate.surplus_huge_pages.value_(),
        )
    for (nid, order), pages in vmemmap_saved(prog).items():
        print(nid, order, pages)
    """,
)

_FOLIOS = _Part(
    {
        "drgn_hvo": (
            "for_each_hugetlb_folio",
            "hugetlb_vmemmap_optimized",
            "page_to_nid",
        ),
        _MM: ("page_to_pfn",),
    },
    """\
    for folio in for_each_hugetlb_folio(prog):
        page = folio.page.address_of_()
        print(
            page_to_pfn(page).value_(),
            page_to_nid(page),
            hugetlb_vmemmap_optimized(folio),
        )
    """,
)

_EXPLAIN_PAGE = _Part(
    {
        "drgn_hvo": (
            "PageHuge",
            "compound_head",
            "compound_order",
            "folio_vmemmap_frames",
            "hugetlb_vmemmap_optimized",
            "page_to_nid",
            "page_zone",
        ),
        _MM: ("page_to_pfn",),
    },
    """\
    def explain(page):
        head = compound_head(page)
        print(page_to_pfn(page).value_(), page_to_pfn(head).value_())
        print(compound_order(head).value_(), PageHuge(page))
        print(page_to_nid(page), page_zone(page).name.string_().decode())
        if PageHuge(page):
            print(hugetlb_vmemmap_optimized(head))
            frames = folio_vmemmap_frames(head)
            print(frames.pfn.tolist(), frames.writable.tolist())


    """,
)

# How each kind of specification leads to a page.
_FIND_PAGE = {
    "pfn": _Part({_MM: ("pfn_to_page",)}, "pfn_to_page(prog, {value})"),
    "page": _Part({"drgn": ("Object",)}, 'Object(prog, "struct page *", {value:#x})'),
    "virt": _Part(
        {_MM: ("follow_page",)},
        'follow_page(prog["init_mm"].address_of_(), {value:#x})',
    ),
    "phys": _Part({_MM: ("phys_to_page",)}, "phys_to_page(prog, {value:#x})"),
    "task": _Part(
        {_MM: ("follow_page",), "drgn.helpers.linux.pid": ("find_task",)},
        "follow_page(find_task(prog, {pid}).mm, {value:#x})",
    ),
}


def show_code(hvo: Hvo, *, folios: bool) -> str:
    """
    What :func:`~drgn_hvo.commands.show.show_document()` finds out, as drgn code.

    :param folios: Whether to list every folio.
    """
    parts = [_ENCODING]
    if hvo.layout.tails.kind == "shared":
        parts.append(_SHARED_TAILS)
    parts.append(_POOLS)
    if folios:
        parts.append(_FOLIOS)
    return _assemble(parts)


def page_code(specs: Iterable[PageSpec]) -> str:
    """What :func:`~drgn_hvo.commands.page.page_document()` finds out, as drgn code."""
    parts = [_EXPLAIN_PAGE]
    for spec in specs:
        find = _FIND_PAGE[spec.kind]
        page = find.code.format(value=spec.value, pid=spec.pid)
        parts.append(_Part(find.imports, f"explain({page})\n"))
    return _assemble(parts)


def _assemble(parts: list[_Part]) -> str:
    names: dict[str, set[str]] = {}
    for part in parts:
        for module, imported in part.imports.items():
            names.setdefault(module, set()).update(imported)
    imports = "".join(
        f"from {module} import {', '.join(sorted(imported, key=str.lower))}\n"
        for module, imported in sorted(names.items())
    )
    return f"{imports}\n{''.join(dedent(part.code) for part in parts)}"
