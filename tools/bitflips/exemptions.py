# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What the kernel leaves free
---------------------------

Bits that may be either way round in a healthy kernel, as data: which ones, and which
kernel code leaves them so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import re

from drgn_hvo.memmap.hvo import Hvo
from tools.bitflips.words import Word

__all__ = ("EXEMPTIONS", "Exemption", "exempt_bits")

_ALL = (1 << 64) - 1


@dataclass(frozen=True)
class Exemption:
    """
    Bits that are free.

    :param kind: Of :attr:`Word.kind <tools.bitflips.words.Word.kind>`, a pattern.
    :param name: Of :attr:`Word.name <tools.bitflips.words.Word.name>`, a pattern.
    :param bits: Which bits of such a word.
    :param reason: Why they are free.
    :param source: The kernel code that leaves them so.
    """

    kind: str
    name: str
    bits: Callable[[Hvo, Word], int]
    reason: str
    source: str

    def applies(self, word: Word) -> bool:
        """Whether it is about a word."""
        kind, name = (
            re.fullmatch(self.kind, word.kind),
            re.fullmatch(self.name, word.name),
        )
        return kind is not None and name is not None


def _every(_hvo: Hvo, _word: Word) -> int:
    return _ALL


def _flags_between(hvo: Hvo, _word: Word) -> int:
    """``page->flags`` between the flags proper and the zone."""
    layout = hvo.mmzone.flags_layout
    count = hvo.kernel.constant("__NR_PAGEFLAGS")
    assert layout is not None
    assert count is not None
    return ((1 << layout.zone_shift) - 1) & ~((1 << count) - 1)


def _page_flags(*names: str) -> Callable[[Hvo, Word], int]:
    """Flags by name, as far as a kernel has them."""

    def bits(hvo: Hvo, _word: Word) -> int:
        found = (hvo.kernel.constant(f"PG_{name}") for name in names)
        return sum(1 << bit for bit in set(found) if bit is not None)

    return bits


def _hpg_flags(*names: str) -> Callable[[Hvo, Word], int]:
    """``HPG_`` flags by name."""

    def bits(hvo: Hvo, _word: Word) -> int:
        flags = hvo.hugetlb.hpg_flags
        return sum(1 << flags[name] for name in names if name in flags)

    return bits


def _address(_hvo: Hvo, _word: Word) -> int:
    """A pointer to what was allocated, which is aligned."""
    return _ALL & ~7


def _subpage_private(hvo: Hvo, _word: Word) -> int:
    """Pointers that nothing names: neither members nor enumerators."""
    folio = hvo.kernel.prog.type("struct folio")
    if folio.has_member("_hugetlb_subpool"):
        return 0
    return _ALL & ~7


def _processor(hvo: Hvo, _word: Word) -> int:
    """Bits of an entry that say how it was used."""
    page_table = hvo.kernel.page_table_format
    assert page_table is not None
    used = page_table.accessed | page_table.dirty
    return used | page_table.protections.write_protected


def _reserve(hvo: Hvo, word: Word) -> int:
    """Bits with which a pool promises no more huge pages than it has."""
    found = [
        hstate.free
        for hstate in hvo.hugetlb.hstates
        if hstate.reserved == word.value and hstate.free is not None
    ]
    most = max(found, default=0)
    return sum(1 << bit for bit in range(64) if (word.value ^ 1 << bit) <= most)


def _healed(_bound: Hvo, word: Word) -> int:
    """The bit of a reference count of 1 without which it is 0."""
    return int(word.value == 1)


_COUNTS = r"_(total|large|entire)_mapcount\.counter|_pincount\.counter"

EXEMPTIONS = (
    # Struct pages of heads.
    Exemption(
        ".* head",
        "flags",
        _flags_between,
        "which CPU and process used the page last, its KASAN tag, its generation",
        "page_cpupid_xchg_last(), page_kasan_tag_set(), folio_update_gen()",
    ),
    Exemption(
        ".* head",
        "flags",
        _page_flags(
            "locked",
            "referenced",
            "uptodate",
            "dirty",
            "waiters",
            "active",
            "workingset",
            "error",
            "owner_priv_1",
            "owner_2",
            "mappedtodisk",
            "arch_1",
            "arch_2",
            "arch_3",
            "young",
            "idle",
            "hwpoison",
        ),
        "states of a huge page in use; free_huge_folio() takes none back, only "
        "__update_and_free_hugetlb_folio() does",
        "folio_lock(), folio_mark_accessed(), hugetlb_no_page(), "
        "SetPageAnonExclusive(), folio_set_hugetlb_hwpoison()",
    ),
    Exemption(
        ".* head",
        "index",
        _every,
        "the offset in the file or mapping of its last user",
        "hugetlb_add_to_page_cache(); free_huge_folio() does not clear it",
    ),
    Exemption(
        "(used|unlisted) head",
        r"mapping|memcg_data",
        _every,
        "of its user: an inode's address_space, an anon_vma, a memory cgroup",
        "hugetlb_add_to_page_cache(), hugetlb_add_new_anon_rmap(), "
        "mem_cgroup_charge_hugetlb()",
    ),
    Exemption(
        "(used|unlisted) head",
        r"_refcount",
        _every,
        "as many references as there are mappings and pins",
        "folio_get(), folio_put()",
    ),
    Exemption(
        "(used|unlisted) head",
        "private",
        _hpg_flags("restore_reserve", "migratable", "temporary", "raw_hwp_unreliable"),
        "states of a huge page in use",
        "alloc_hugetlb_folio(), hugetlb_no_page(), alloc_migrate_hugetlb_folio()",
    ),
    Exemption(
        "free head",
        "private",
        _hpg_flags("raw_hwp_unreliable"),
        "memory of it failed, and which part is not known",
        "folio_set_hugetlb_hwpoison()",
    ),
    # Private tails.
    Exemption(
        ".* tail",
        "flags",
        _flags_between,
        "what free_pages_prepare() leaves: last_cpupid, KASAN tag",
        "PAGE_FLAGS_CHECK_AT_PREP",
    ),
    Exemption(
        "(free|used|unlisted) tail",
        r"lru\.prev(, byte \d)?|index(, byte \d)?",
        _every,
        "what the page held in its last life",
        "prep_compound_tail() writes mapping, the tail word and private only",
    ),
    Exemption(
        "(used|unlisted) tail",
        _COUNTS,
        _every,
        "as many mappings and pins as its users have",
        "hugetlb_add_file_rmap(), try_grab_folio()",
    ),
    Exemption(
        "(used|unlisted) tail",
        r"_hugetlb_(subpool|cgroup|cgroup_rsvd)",
        _address,
        "of its user: the subpool and the cgroups that are charged",
        "hugetlb_set_folio_subpool(), hugetlb_cgroup_commit_charge()",
    ),
    Exemption(
        ".* tail",
        r"private of tail [1234]",
        _subpage_private,
        "subpool, cgroups and list of failed memory, where nothing names them",
        "SUBPAGE_INDEX_SUBPOOL and the like in include/linux/hugetlb.h up to v6.2",
    ),
    Exemption(
        "(free|used|unlisted) tail",
        r"_nr_pages_mapped\.counter",
        _every,
        "not kept with CONFIG_NO_PAGE_MAPCOUNT, which no type shows",
        "prep_compound_head() since v6.15",
    ),
    # Shared tails.
    Exemption(
        "boot shared tail",
        r"lru\.prev",
        _every,
        "what __init_single_page() wrote through the last alias",
        "memmap_init(); init_compound_tail() does not touch it",
    ),
    Exemption(
        "boot shared tail",
        "_refcount",
        _healed,
        "0, which every shared tail should have, where boot left 1",
        "__init_single_page(), after it page_ref_freeze()",
    ),
    # Page table entries.
    Exemption(
        ".* entry",
        "level .",
        _processor,
        "whether it was used and written through: the processor's bits",
        "pte_mkyoung(), pte_mkdirty(), pte_wrprotect()",
    ),
    # Pools.
    Exemption(
        "pool",
        r"resize_lock|max_huge_pages|max_huge_pages_node|nr_overcommit_huge_pages|"
        r"next_nid_to_(alloc|free)",
        _every,
        "a lock; what the administrator asked for; where to go on",
        "set_max_huge_pages(), hugetlb_overcommit_handler(), "
        "hstate_next_node_to_alloc()",
    ),
    Exemption(
        "pool",
        "resv_huge_pages",
        _reserve,
        "any number up to that of free huge pages",
        "hugetlb_acct_memory()",
    ),
)


def exempt_bits(hvo: Hvo, word: Word) -> int:
    """The bits of a word that are free."""
    found = 0
    for exemption in EXEMPTIONS:
        if exemption.applies(word):
            found |= exemption.bits(hvo, word)
    return found
