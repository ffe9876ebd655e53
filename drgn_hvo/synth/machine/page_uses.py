# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Uses of pages
-------------

What tells in a struct page whose page it is, for each kind of pages that a description
can have: :linux:`include/linux/page-flags.h`, :linux:`include/linux/mm_types.h`,
:linux:`include/linux/memcontrol.h`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

__all__ = ("PAGE_USES", "PageUse")

# Bit 0 of page->mapping (PAGE_MAPPING_ANON), bit 1 of memcg_data (MEMCG_DATA_KMEM).
_ANON = 1
_KMEM = 2


@dataclass(frozen=True)
class PageUse:
    """
    What one kind of pages has in the first struct page of each.

    :param reason: Which pages are so.
    :param flags: Page flags by name, without ``PG_``.
    :param mapping: The lowest bits of ``mapping``; ``None`` if that is ``NULL``.
    :param memcg_data: The lowest bits of ``memcg_data``; ``None`` if that is 0.
    :param mapcount: ``_mapcount`` of a page of order 0.
    :param text: What fills the pages where a description asks for that: 16 bytes.
    """

    reason: str
    flags: tuple[str, ...] = ()
    mapping: Optional[int] = None
    memcg_data: Optional[int] = None
    mapcount: int = -1
    text: bytes = b""


#: By the kind that a description names. Pages that have one sign alone are there so
#: that no reader can do without asking for that one.
PAGE_USES = {
    "anonymous": PageUse(
        "memory of a process: __folio_set_anon(), folio_add_lru(), charge_memcg()",
        ("referenced", "uptodate", "lru", "active", "swapbacked"),
        mapping=_ANON,
        memcg_data=0,
        mapcount=0,
        text=b"ANONYMOUS PAGE! ",
    ),
    "page-cache": PageUse(
        "a page of a file: __filemap_add_folio()",
        ("referenced", "uptodate", "lru"),
        mapping=0,
        memcg_data=0,
        text=b"PAGE OF A FILE! ",
    ),
    "thp": PageUse(
        "a transparent huge page: as anonymous memory, in its head alone",
        ("uptodate", "lru", "swapbacked"),
        mapping=_ANON,
        memcg_data=0,
        text=b"TRANSPARENT THP!",
    ),
    "isolated": PageUse(
        "a page of a file without control groups, off its LRU list to be moved: "
        "folio_isolate_lru()",
        ("uptodate",),
        mapping=0,
        text=b"ISOLATED PAGE!! ",
    ),
    "truncated": PageUse(
        "a page that was cut off its file and has not left its LRU list: "
        "truncate_inode_folio(); without control groups",
        ("uptodate", "lru"),
        text=b"TRUNCATED PAGE! ",
    ),
    "charged": PageUse(
        "memory of the kernel for one process, such as its stack: "
        "__memcg_kmem_charge_page()",
        memcg_data=_KMEM,
        text=b"CHARGED TO ONE! ",
    ),
    "slab": PageUse(
        "objects of the kernel: allocate_slab()",
        text=b"OBJECTS OF SLAB!",
    ),
    "compound": PageUse(
        "any other compound page, such as a large kmalloc() or a driver's buffer",
        text=b"LARGE KMALLOC()!",
    ),
}
