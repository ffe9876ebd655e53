# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Nodes and Zones of Pages
------------------------

The ``drgn_hvo.helpers.mmzone`` module provides helpers that tell which NUMA node and
which memory zone a page belongs to. drgn has none.

Both are in the upper bits of ``page->flags``, at positions that the kernel computes
with the preprocessor; here they are derived from types and confirmed by pages whose
node and zone are known.
"""

from __future__ import annotations

from drgn import Object
import numpy as np

from drgn_hvo.errors import HvoError, NotInDumpError, UnavailableError
from drgn_hvo.helpers._struct_page import read_page
from drgn_hvo.kernel.arrays import U64Array
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.memmap.zones import FlagsLayout

__all__ = ("page_to_nid", "page_zone", "page_zonenum")


def _layout(hvo: Hvo) -> FlagsLayout:
    layout = hvo.mmzone.flags_layout
    if layout is None:
        raise UnavailableError(
            "where page->flags holds node and zone cannot be told in this kernel"
        )
    return layout


def _flags(page: Object) -> U64Array:
    """
    The flags that hold node and zone of a page, an array of one word.

    Where those of a shared tail do not say them, the patch series had page_zonenum()
    go through compound_head().
    """
    read = read_page(page)
    array = read.hvo.layout.tails.array
    if array is not None and not array.names_owner:
        read = read.head()
    if read.is_poisoned:
        raise HvoError(f"the struct page at {read.address:#x} was never initialised")
    if not any(read.data):
        raise NotInDumpError(
            f"the struct page at {read.address:#x} is all zeros: never initialised, "
            "or left out of this dump"
        )
    return np.array([read.flags], dtype=np.uint64)


def page_to_nid(page: Object) -> int:
    """
    Return the ID of the NUMA node that a page belongs to.

    This mirrors ``page_to_nid()`` (:linux:`include/linux/mm.h`). A page of the patch
    series that had shared tail pages per node is asked through its head, since its
    tails say nothing.

    :param page: ``struct page *``
    :raises FaultError: if the struct page cannot be read.
    :raises HvoError: if the struct page says nothing (all ones or all zeros), or the
        kernel's types do not tell where it would say it.
    """
    flags = _flags(page)
    return int(_layout(hvo_of(page.prog_)).nids(flags)[0])


def page_zonenum(page: Object) -> int:
    """
    Return the index of the memory zone that a page belongs to: a value of ``enum
    zone_type``.

    This mirrors ``page_zonenum()`` (:linux:`include/linux/mmzone.h`). The patch series
    that had shared tail pages per node went through ``compound_head()`` here; so does
    this on its kernels.

    :param page: ``struct page *``
    :raises FaultError: if the struct page cannot be read.
    :raises HvoError: as :func:`page_to_nid()`.
    """
    flags = _flags(page)
    return int(_layout(hvo_of(page.prog_)).zonenums(flags)[0])


def page_zone(page: Object) -> Object:
    """
    Return the memory zone that a page belongs to.

    This mirrors ``page_zone()`` (:linux:`include/linux/mm.h`).

    >>> page_zone(page).name.string_()
    b'DMA32'

    :param page: ``struct page *``
    :return: ``struct zone *``
    :raises FaultError: if the struct page cannot be read.
    :raises HvoError: as :func:`page_to_nid()`, or if the struct page names a node that
        is not online or a zone that does not exist.
    """
    flags = _flags(page)
    hvo = hvo_of(page.prog_)
    layout = _layout(hvo)
    nid, index = int(layout.nids(flags)[0]), int(layout.zonenums(flags)[0])
    pgdat = hvo.mmzone.pgdats.get(nid)
    if pgdat is None:
        raise HvoError(f"flags {int(flags[0]):#x} name node {nid}, which is not online")
    if index >= (pgdat.node_zones.type_.length or 0):
        raise HvoError(f"flags {int(flags[0]):#x} name zone {index}; there is none")
    return pgdat.node_zones[index].address_of_()
