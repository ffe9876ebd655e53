# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Checks of the kernel
--------------------

What the kernel gives as the reason when it dumps a page, and what that means: the
strings of ``bad_page()``'s callers in :linux:`mm/page_alloc.c` and of others that call
``dump_page()``.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Optional

__all__ = ("CHECKS", "Check", "check_of")


@dataclass(frozen=True)
class Check:
    """
    A check that failed.

    :param reason: What the kernel prints behind "page dumped because:".
    :param source: The function that makes the check.
    :param text: What was wrong.
    :param of_tails: Whether it is about the tails of a compound page.
    """

    reason: str
    source: str
    text: str
    of_tails: bool = False


_BAD_REASON = "page_bad_reason()"
_FREE_TAIL = "free_tail_page_prepare()"
_FIRST_TAIL = (
    "a field of the folio that is zero when nobody uses it, in the first tails"
)

CHECKS = {
    check.reason: check
    for check in (
        Check(
            "nonzero mapcount",
            _BAD_REASON,
            "_mapcount is not what it is when nobody maps the page, or the page still "
            "has a type",
        ),
        Check("non-NULL mapping", _BAD_REASON, "the page still has a mapping"),
        Check(
            "nonzero _refcount",
            _BAD_REASON,
            "the page is given back, but its reference count is not 0",
        ),
        Check(
            "PAGE_FLAGS_CHECK_AT_PREP flag(s) set",
            _BAD_REASON,
            "a page flag is set that no free page has",
        ),
        Check(
            "PAGE_FLAGS_CHECK_AT_FREE flag(s) set",
            _BAD_REASON,
            "a page flag is set that no page has when it is given back",
        ),
        Check(
            "page still charged to cgroup", _BAD_REASON, "the page still has a memcg"
        ),
        Check("page_pool leak", _BAD_REASON, "the page still belongs to a page pool"),
        Check("nonzero private", "free_pages_prepare()", "private of a tail is not 0"),
        Check(
            "corrupted mapping in tail page",
            _FREE_TAIL,
            "mapping of a tail is not TAIL_MAPPING",
            of_tails=True,
        ),
        Check(
            "PageTail not set",
            _FREE_TAIL,
            "the word that makes a tail does not",
            of_tails=True,
        ),
        Check(
            "compound_head not consistent",
            _FREE_TAIL,
            "a tail names another head than that of the page that is given back",
            of_tails=True,
        ),
        *(
            Check(reason, _FREE_TAIL, _FIRST_TAIL, of_tails=True)
            for reason in (
                "nonzero compound_mapcount",
                "nonzero entire_mapcount",
                "nonzero large_mapcount",
                "nonzero nr_pages_mapped",
                "nonzero pincount",
                "nonzero mm mapcount 0",
                "nonzero mm mapcount 1",
                "on deferred list",
            )
        ),
        Check(
            "bad pte",
            "print_bad_pte()",
            "a process maps a page that it should not, or counts of who maps it are "
            "wrong",
        ),
        Check(
            "bad page map",
            "print_bad_page_map()",
            "a process maps a page that it should not, or counts of who maps it are "
            "wrong",
        ),
        Check(
            "migration failure",
            "do_migrate_range()",
            "memory that is to go offline holds a page that cannot be moved now: no "
            "damage",
        ),
        Check(
            "isolation failed",
            "do_migrate_range()",
            "memory that is to go offline holds a page that is in use just now: no "
            "damage",
        ),
        Check(
            "unmovable page",
            "set_migratetype_isolate()",
            "memory that is to go offline holds a page that can never be moved: no "
            "damage",
        ),
        Check(
            "still mapped when deleted",
            "filemap_unaccount_folio()",
            "a file is cut short, but processes still map a page of it",
        ),
        Check(
            "pagealloc: corrupted page details",
            "check_poison_mem()",
            "somebody wrote to a page while it was free",
        ),
        Check(
            "kasan: bad access detected",
            "print_address_description()",
            "KASAN found an access to memory that is not to be accessed; this is the "
            "page that it lies in",
        ),
    )
}

_VM_CHECK = re.compile(r"(VM_(?:BUG|WARN)_ON\w*)\((.*?)\)?")


def check_of(reason: str) -> Optional[Check]:
    """
    The check that gives a reason.

    :return: ``None`` if it is not known.
    """
    known = CHECKS.get(reason)
    if known is not None:
        return known
    match = _VM_CHECK.fullmatch(reason)
    if match is None:
        return None
    return Check(
        reason,
        f"{match[1]}()",
        f"a check of CONFIG_DEBUG_VM: this must not be so: {match[2]}",
    )
