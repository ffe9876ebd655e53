# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in ``drgn_hvo/extract/``
---------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant

__all__ = ("EXTRACT",)

EXTRACT = (
    Mutant(
        "extract-has-a-mapping",
        "extract/owners.py::_SIGNS",
        "lambda rows: rows.word(rows.hvo.kernel.struct_page.mapping) != 0",
        "lambda rows: rows.word(rows.hvo.kernel.struct_page.mapping) == 1",
        "memory of processes would leave the machine",
        (
            "test_extract_signs.py::test_memory_of_processes_and_page_cache_have_a_mapping",
            "test_extract_signs.py::test_one_sign_is_enough[isolated]",
        ),
    ),
    Mutant(
        "extract-is-on-an-lru-list",
        "extract/owners.py::_SIGNS",
        'lambda rows: rows.flag("PG_lru")',
        'lambda rows: rows.flag("PG_no_such_flag")',
        "memory of processes would leave the machine",
        ("test_extract_signs.py::test_one_sign_is_enough[truncated]",),
    ),
    Mutant(
        "extract-is-charged",
        "extract/owners.py::_SIGNS",
        "lambda rows: rows.memcg_data() != 0",
        "lambda rows: rows.memcg_data() == 1",
        "kernel stacks, with what they hold of users, would leave the machine",
        ("test_extract_signs.py::test_one_sign_is_enough[charged]",),
    ),
    Mutant(
        "extract-is-free",
        "extract/owners.py::_SIGNS",
        "rows.word(rows.hvo.kernel.struct_page.refcount, 4) == 0",
        "rows.word(rows.hvo.kernel.struct_page.refcount, 4) < 0",
        "what the last user of a page left would leave the machine",
        ("test_extract_signs.py::test_what_is_free_has_what_its_last_user_left",),
    ),
    Mutant(
        "extract-is-a-slab",
        "extract/owners.py::_SIGNS",
        "_Sign(_is_slab, Owner.OBJECTS",
        "_Sign(_is_slab, Owner.KERNEL",
        "objects of the kernel, keys among them, would leave the machine",
        ("test_extract_signs.py::test_what_a_tail_is_its_head_says",),
    ),
    Mutant(
        "extract-is-inside-a-huge-page",
        "extract/owners.py::owners",
        "found[_inside_folios(hvo, pfns)] = Owner.DATA",
        "pass",
        "a huge page with damaged struct pages would leave the machine",
        (
            "test_extract_signs.py::test_what_is_inside_a_huge_page_is_whatever_its_struct_pages_say",
        ),
    ),
    Mutant(
        "extract-asks-the-head",
        "extract/owners.py::owners",
        "first = vmemmap.read_pages(head_pfns)",
        "first = vmemmap.read_pages(pfns)",
        "tails say nothing: all but the first page of a THP would leave the machine",
        (
            "test_extract_signs.py::test_a_tail_is_what_its_head_says",
            "test_extract_signs.py::test_what_a_tail_is_its_head_says",
        ),
    ),
    Mutant(
        "extract-became-data-meanwhile",
        "extract/core.py::_drop_changed",
        'extract.drop("pages that stopped being part of vmemmap meanwhile", gone)',
        "pass",
        "a page that a running kernel gave away would leave the machine",
        ("test_extract.py::test_a_page_that_was_freed_meanwhile_is_left_out",),
    ),
    Mutant(
        "extract-user-half-of-the-top-table",
        "extract/needs.py::Needs.masks",
        "mask[pfns == self.root, : self.user_half] = False",
        "",
        "where a process has its memory would leave the machine",
        ("test_extract_signs.py::test_only_the_kernels_half_of_the_top_table_is_kept",),
    ),
    Mutant(
        "extract-words-of-struct-pages",
        "extract/needs.py::_columns_mask",
        "return np.tile(mask, page_size // size)",
        "return np.ones(page_size, dtype=np.bool_)",
        "pointers of struct pages that nobody looks at would leave the machine",
        (
            "test_extract_signs.py::test_of_other_struct_pages_only_what_is_looked_at_is_kept",
        ),
    ),
    Mutant(
        "extract-names-no-machine",
        "extract/recorder.py::_UTSNAME",
        '("nodename", False)',
        '("nodename", True)',
        "the file would say where it comes from",
        ("test_extract_signs.py::test_the_name_of_the_machine_is_not_kept",),
    ),
    Mutant(
        "extract-tables-that-lead-back",
        "extract/tables.py::Translator.tables",
        "for level in range(len(page_table.levels) - 1, -1, -1):",
        "for level in range(len(page_table.levels) - 1, 0, -1):",
        "the lowest page tables would be left out and vmemmap not be found",
        ("test_extract.py::test_generations",),
    ),
)
