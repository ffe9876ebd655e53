# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a page is used for
-----------------------

Told from the words of its struct page, or of its head: page type, flags and mapping, as
``dump_page()`` (:linux:`mm/debug.c`) reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional

import numpy as np

from drgn_hvo.kernel.arrays import column
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.memmap.page_flags import PageNames, page_names
from drgn_hvo.memmap.vmemmap import Vmemmap

__all__ = ("PageWords", "PageWordsReader")

# PAGE_MAPPING_ANON and PAGE_MAPPING_MOVABLE, include/linux/page-flags.h.
_MAPPING_ANON = 1
_MAPPING_FLAGS = 3

# Uses that a flag tells, where neither type nor mapping do.
_BY_FLAG = {
    "reserved": "reserved: of the firmware, the kernel's image, or allocated at boot",
    "lru": "on the LRU lists",
}


@dataclass(frozen=True)
class PageWords:
    """
    The words of one struct page; ``None`` is not known.

    :param page_type: ``page_type`` or ``_mapcount``, which share a word.
    """

    names: PageNames
    flags: int
    page_type: Optional[int]
    mapping: Optional[int]

    @property
    def flag_names(self) -> Optional[list[str]]:
        """The flags that are set; ``None`` if nothing tells which is which."""
        return self.names.of_flags(self.flags) if self.names.flags else None

    @property
    def type_name(self) -> Optional[str]:
        """The type, if it has one and something tells which it is."""
        return self.names.of_type(self.page_type or 0, self.flags)

    @property
    def use(self) -> Optional[str]:
        """What the page is used for, in words; ``None`` if nothing of it tells."""
        if self.type_name is not None:
            return None
        if self.mapping and self.mapping & _MAPPING_FLAGS == _MAPPING_ANON:
            return "anonymous memory"
        if self.mapping and not self.mapping & _MAPPING_FLAGS:
            return "page cache"
        names = self.flag_names or ()
        return next((use for flag, use in _BY_FLAG.items() if flag in names), None)


class PageWordsReader:
    """Reads the words of single struct pages of one kernel."""

    def __init__(self, kernel: Kernel, vmemmap: Vmemmap) -> None:
        self._kernel = kernel
        self._vmemmap = vmemmap

    @cached_property
    def names(self) -> PageNames:
        """Names of flags and types."""
        return page_names(self._kernel)

    def read(self, pfn: int) -> Optional[PageWords]:
        """
        The words of a struct page.

        :return: ``None`` if the dump does not have it, or it reads as zeros.
        """
        pages = self._vmemmap.read_pages(np.array([pfn], dtype=np.int64))
        if not pages.present[0] or not pages.data.any():
            return None
        struct_page, reader = self._kernel.struct_page, self._kernel.reader

        def word(offset: Optional[int], dtype: np.dtype[Any]) -> Optional[int]:
            return None if offset is None else int(column(pages.data, offset, dtype)[0])

        return PageWords(
            self.names,
            int(self._vmemmap.flags(pages)[0]),
            word(struct_page.mapcount, reader.u32),
            word(struct_page.mapping, reader.u64),
        )
