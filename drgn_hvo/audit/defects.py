# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Known kernel defects
--------------------

Bugs of released kernels whose traces the audit knows by name, as data: which rule
they break and in what state, how to confirm them, and what they lead to.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("BOOT_TAIL_REFCOUNT", "DEFECTS", "Defect")

#: The name of the one that other findings follow from.
BOOT_TAIL_REFCOUNT = "boot-tail-refcount"


@dataclass(frozen=True)
class Defect:
    """
    A known defect.

    :param rules: The rules that it breaks.
    :param state: What it looks like in memory.
    :param kernels: Which kernels have it.
    :param confirm: How to make sure.
    :param leads_to: What happens if nothing is done.
    """

    name: str
    rules: tuple[str, ...]
    state: str
    kernels: str
    confirm: str
    leads_to: str


DEFECTS = {
    defect.name: defect
    for defect in (
        Defect(
            BOOT_TAIL_REFCOUNT,
            (
                "shared-tail-refcount",
                "folio-tail-refcount",
                "folio-list",
                "stray-head",
            ),
            "every struct page of a shared tail page that was allocated at boot has "
            "reference count 1; so have free huge pages that such a gigantic page was "
            "demoted to, and heads are left of those that were freed",
            "7.1.3, 7.1.13, 7.2.13 and 7.3.4, with gigantic pages allocated at boot",
            "memmap_init() ran __init_single_page() over the page through the entries "
            "of the folios, and init_compound_tail() does not reset _refcount; "
            "lru.prev of each struct page is left pointing into one of the folios",
            "freeing such a huge page prints 'Bad page state ... nonzero _refcount' "
            "and loses its memory; atomic_add_unless() writes to the read-only page",
        ),
        Defect(
            "restored-fake-heads",
            ("stray-head", "folio-optimized-flag"),
            "struct pages with PG_head and the hugetlb type in frames of their own, of "
            "folios that are on no list and not optimized; huge pages that a larger "
            "one was demoted to have its HPG_vmemmap_optimized, but share no frames",
            "6.12.115 and later, and others that took 'mm/hugetlb_vmemmap: fix "
            "incorrect vmemmap restore in rollback' onto mirrored heads",
            "the kernel log has 'corrupted mapping in tail page' or 'nonzero mapcount' "
            "from the time when huge pages were freed",
            "the memory of every huge page that is freed is lost",
        ),
        Defect(
            "memmap-init-overwrite",
            (
                "shared-tail-info",
                "shared-tail-mapping",
                "shared-tail-mapcount",
                "shared-tail-flags",
                "shared-tail-refcount",
                "shared-tail-rest",
            ),
            "every struct page of a shared tail page allocated at boot looks as "
            "__init_single_page() leaves one: lru points to itself, mapping is 0, "
            "reference count 1",
            "the patch series of HVO with masks up to its fifth version",
            "the frame is PG_reserved, and the address in lru lies in a folio that "
            "maps it",
            "all tails of all huge pages on that frame look like order-0 pages; "
            "freeing one prints 'Bad page state' and loses its memory",
        ),
        Defect(
            "boot-tail-writable",
            ("vmemmap-tail-writable",),
            "most slices of a gigantic page allocated at boot are writable, the first "
            "ones are not",
            "6.15 and later without 'mm/hugetlb_vmemmap: fix "
            "__hugetlb_vmemmap_optimize_folios()'",
            "the length of the write-protected range was computed from "
            "pages_per_huge_page() bytes: 64 slices, 256 KiB, of a 1 GiB page",
            "stray writes to shared tails are not caught",
        ),
        Defect(
            "tails-writable-by-design",
            ("vmemmap-tail-writable",),
            "all slices of optimized huge pages are writable, those that share a "
            "frame, too",
            "all of riscv64 and LoongArch that have HVO (seen on 6.12 and 7.2)",
            "vmemmap_remap_pte() asks for PAGE_KERNEL_RO, which neither architecture "
            "defines; include/linux/pgtable.h makes it PAGE_KERNEL there",
            "a stray write to one tail changes the tails of every huge page that "
            "shares the frame, without an oops",
        ),
        Defect(
            "resv-underflow-pinned",
            ("hstate-reserve",),
            "resv_huge_pages of a pool is negative; /proc/meminfo shows it as "
            "HugePages_Rsvd of nearly 2^64",
            "all (seen on 6.12 and 7.3), when a private mapping of huge pages ends "
            "while a page of it is pinned",
            "a program uses io_uring or RDMA buffers, or other long-term pins, in "
            "private mappings of huge pages",
            "no more huge pages can be reserved: mmap() of hugetlb memory fails or is "
            "not held to what there is, and the pool cannot be shrunk as asked",
        ),
        Defect(
            "tail-initialised-late",
            ("shared-tail-info",),
            "a shared tail page that folios map is all zeros or holds tails without "
            "node and zone",
            "7.1 without 'mm/hugetlb: init tails before init_migratetype'",
            "gigantic pages were allocated at boot, and the crash is in early boot",
            "compound_head() of their tails answers the tail itself until the page is "
            "initialised",
        ),
    )
}
