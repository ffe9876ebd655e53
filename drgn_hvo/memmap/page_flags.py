# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page flags and types by name
----------------------------

What ``page->flags`` and ``page->page_type`` of one kernel mean, as ``dump_page()``
(:linux:`mm/debug.c`) prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn_hvo.kernel.bound import Kernel

__all__ = ("PageNames", "page_names")

# Types before v6.12 are macros, which no type records: VMCOREINFO has some of them,
# since they are what makedumpfile leaves out.
_VMCOREINFO_TYPES = {
    "PAGE_BUDDY_MAPCOUNT_VALUE": "buddy",
    "PAGE_HUGETLB_MAPCOUNT_VALUE": "hugetlb",
    "PAGE_OFFLINE_MAPCOUNT_VALUE": "offline",
    "PAGE_SLAB_MAPCOUNT_VALUE": "slab",
}


@dataclass(frozen=True)
class PageNames:
    """
    Names of one kernel, in lower case and without ``PG_`` and ``PGTY_``.

    :param flags: By bit. Of names for one bit it is that of ``enum pageflags``, not
        those that only some users of the bit have.
    :param types: By the value of the highest byte of ``page_type``. Since Linux kernel
        commit 4ffca5a96678 ("mm: support only one page_type per page") (in v6.12).
    :param old_types: By the whole of ``page_type``.
    """

    flags: dict[int, str]
    types: dict[int, str]
    old_types: dict[int, str]

    def of_flags(self, word: int) -> list[str]:
        """The flags that are set, by bit."""
        return [name for bit, name in self.flags.items() if word >> bit & 1]

    def of_type(self, page_type: int, flags: int) -> Optional[str]:
        """
        The type of a page.

        :param page_type: ``page->page_type``, which is ``_mapcount`` of pages that
            have no type.
        :param flags: ``page->flags``, which had types before ``page_type`` did.
        :return: ``None`` if it has none.
        """
        name = self.types.get(page_type >> 24) if self.types else None
        name = name or self.old_types.get(page_type)
        # PG_slab was a flag until v6.10.
        return name or ("slab" if "slab" in self.of_flags(flags) else None)


def page_names(kernel: Kernel) -> PageNames:
    """What types and VMCOREINFO of a kernel tell of flags and types of pages."""
    flags: dict[int, str] = {}
    enum = kernel.type("enum pageflags")
    for enumerator in enum.enumerators or () if enum is not None else ():
        # Behind it are second names of bits.
        if enumerator.name == "__NR_PAGEFLAGS":
            break
        name = enumerator.name[len("PG_") :].lower()
        flags.setdefault(enumerator.value, name)
    types, old_types = {}, {}
    enum = kernel.type("enum pagetype")
    for enumerator in enum.enumerators or () if enum is not None else ():
        prefix, _, name = enumerator.name.lower().partition("_")
        if prefix == "pgty" and name != "mapcount_underflow":
            types[enumerator.value & 0xFF] = name
        elif prefix == "pg":
            # Before v6.12, the bit that is clear.
            old_types[~enumerator.value & 0xFFFFFFFF] = name
    for key, name in _VMCOREINFO_TYPES.items():
        value = kernel.vmcoreinfo.number(key)
        if value is not None and not types:
            old_types[value & 0xFFFFFFFF] = name
    return PageNames(dict(sorted(flags.items())), types, old_types)
