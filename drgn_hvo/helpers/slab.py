# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Slabs of Pages
--------------

The ``drgn_hvo.helpers.slab`` module provides what ``drgn.helpers.linux.slab`` has no
public helper for: the slab of a page.
"""

from __future__ import annotations

from drgn import NULL, Object
from drgn.helpers.linux.mm import PageSlab

from drgn_hvo.helpers._arguments import named_type
from drgn_hvo.helpers._struct_page import read_page

__all__ = ("page_slab",)


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
    read = read_page(page)
    prog = page.prog_
    slab_type = named_type(prog, "struct slab *") or named_type(prog, "struct page *")
    assert slab_type is not None, "page has a type"
    head = Object(prog, page.type_, read.head_address())
    # A struct page of all ones has PG_slab, too.
    if read.is_poisoned or not PageSlab(head):
        return NULL(prog, slab_type)
    return Object(prog, slab_type, head.value_())
