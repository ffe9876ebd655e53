# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Slabs of Pages
--------------

The ``drgn_hvo.helpers.slab`` module provides what ``drgn.helpers.linux.slab`` has no
public helper for: the slab of a page.
"""

from __future__ import annotations

from drgn import NULL, Object, Program, Type
from drgn.helpers.linux.mm import PageSlab

from drgn_hvo.helpers.compound import compound_head

__all__ = ("page_slab",)


def _slab_type(prog: Program) -> Type:
    try:
        return prog.type("struct slab *")
    except LookupError:
        return prog.type("struct page *")


def page_slab(page: Object) -> Object:
    """
    Return the slab that a page belongs to.

    This mirrors ``page_slab()`` (:linux:`mm/slab.h`) as it is in Linux 7.1: the
    tails of a slab resolve to it, and a page that is of no slab has none. Earlier
    versions left it to the caller to make sure that the page is of a slab.

    :param page: ``struct page *``
    :return: ``struct slab *``, ``NULL`` if the page is of no slab. Before Linux kernel
        commit d122019bf061 ("mm: Split slab into its own type") (in v5.17), ``struct
        page *``.
    :raises FaultError: if the struct page or its head cannot be read.
    """
    prog = page.prog_
    head = compound_head(page)
    slab_type = _slab_type(prog)
    if not PageSlab(head):
        return NULL(prog, slab_type)
    return Object(prog, slab_type, head.value_())
