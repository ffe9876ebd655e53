# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in ``drgn_hvo/formats/``
---------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant

__all__ = ("FORMATS",)

FORMATS = (
    Mutant(
        "formats-search-few-symbols",
        "formats/kallsyms_search.py::_with_addresses",
        "if len(symbols) < _ENOUGH:",
        "if not symbols:",
        "tables in which two symbols agree by chance would be believed",
        ("test_kallsyms_search.py::test_two_symbols_prove_nothing",),
    ),
    Mutant(
        "formats-search-first-of-many",
        "formats/kallsyms_search.py::find_kallsyms",
        "if len(found) > 1:",
        "if len(found) > 9:",
        "of two tables that can be kallsyms one would be taken",
        (
            "test_kallsyms_search.py::"
            "test_tables_that_are_there_twice_are_not_guessed_at",
        ),
    ),
    Mutant(
        "formats-poison-is-no-tail",
        "formats/tail_words.py::is_tail",
        "and info != ALL_ONES",
        "and info != 0",
        "a struct page that nobody initialised would be a tail of a head at -2",
        ("test_encoding.py::test_poisoned_page_is_neither_head_nor_tail",),
    ),
    Mutant(
        "formats-mask-of-order-0",
        "formats/tail_words.py::mask_order",
        "or order < 1",
        "or order < 0",
        "a folio of one page has no tail, so that no kernel writes such a mask",
        ("test_bounds.py::test_no_tail_has_the_mask_of_a_single_page",),
    ),
    Mutant(
        "formats-largest-mask",
        "formats/tail_words.py::is_mask",
        "order <= max_order",
        "order < max_order",
        "tails of the largest folios would look like pointers",
        ("test_encoding.py",),
    ),
    Mutant(
        "formats-pointer-end",
        "formats/tail_words.py::is_pointer",
        "base <= head < end",
        "base <= head <= end",
        "a word that leads right behind vmemmap would be a pointer to a head",
        ("test_bounds.py::test_pointers_end_with_vmemmap",),
    ),
    Mutant(
        "formats-pointer-alignment",
        "formats/tail_words.py::is_pointer",
        "% geometry.struct_page_size == 0",
        "% 8 == 0",
        "a word into the middle of a struct page would be a pointer to a head",
        ("test_bounds.py::test_pointers_are_to_the_beginning_of_a_struct_page",),
    ),
    Mutant(
        "formats-fake-head-needs-PG_head",
        "formats/tail_words.py::page_fixed_fake_head",
        "if has_PG_head and not info & 1",
        "if not info & 1",
        "an order-0 page in front of a compound page would be its tail",
        ("test_encoding.py::test_first_page_without_PG_head_is_no_fake_head",),
    ),
    Mutant(
        "formats-fake-heads-in-bulk",
        "formats/tail_words.py::fixed_fake_infos",
        "& (next_infos != np.uint64(ALL_ONES))",
        "",
        "a head in front of struct pages that nobody initialised would be lost",
        ("test_encoding.py",),
    ),
    Mutant(
        "formats-poison-in-bulk",
        "formats/tail_words.py::compound_heads",
        "infos.max() == ALL_ONES",
        "infos.min() == ALL_ONES",
        "struct pages that nobody initialised would have heads",
        ("test_encoding.py",),
    ),
    Mutant(
        "formats-tail-min-order",
        "formats/tail_words.py::Geometry.vmemmap_tail_min_order",
        "2 * self.page_size",
        "self.page_size",
        "slots of vmemmap_tails[] would be taken for those of other orders",
        (
            "test_encoding.py::"
            "test_min_order_is_the_first_with_a_page_of_tails_to_share",
        ),
    ),
    Mutant(
        "formats-vmcoreinfo-contradiction",
        "formats/vmcoreinfo.py::Vmcoreinfo.__getitem__",
        "if len(values) > 1:",
        "if len(values) > 2:",
        "of two values that contradict each other the first would be believed",
        ("test_vmcoreinfo.py::test_repeated_with_another_value_names_both",),
    ),
    Mutant(
        "formats-vmcoreinfo-value-symbols",
        "formats/vmcoreinfo.py::Vmcoreinfo.address",
        "None if name in VALUE_SYMBOLS else ",
        "",
        "the value of vmemmap would be taken for where a variable lies",
        (
            "test_vmcoreinfo.py::"
            "test_values_that_look_like_addresses_are_not_offered_as_such",
        ),
    ),
    Mutant(
        "formats-vmcoreinfo-64-bits",
        "formats/vmcoreinfo.py::Vmcoreinfo._integer",
        "number < 1 << 64",
        "number < 1 << 65",
        "a number of more than 64 bits is damage, not an address",
        ("test_bounds.py::test_the_first_number_of_more_than_64_bits",),
    ),
    Mutant(
        "formats-kallsyms-absolute-percpu",
        "formats/kallsyms.py::_percpu_absolute",
        "offsets >= 0",
        "offsets > 0",
        "the first per-CPU symbol would lie in the kernel image",
        ("test_kallsyms.py::test_percpu_symbols_are_absolute",),
    ),
    Mutant(
        "formats-kallsyms-big-symbols",
        "formats/kallsyms.py::_places",
        "if length < 0x80:",
        "if length <= 0x80:",
        "from a name of 128 codes on all symbols would be wrong",
        ("test_kallsyms.py::test_big_symbols",),
    ),
    Mutant(
        "formats-kallsyms-all-known-agree",
        "formats/kallsyms.py::Kallsyms._find_addressing",
        "addresses is not None and all(",
        "addresses is not None and any(",
        "one symbol that happens to fit would choose how all addresses are read",
        ("test_kallsyms.py::test_one_of_the_known_symbols_that_disagrees_is_enough",),
    ),
    Mutant(
        "formats-kallsyms-gap",
        "formats/kallsyms.py::Kallsyms.nearest",
        "or end - entry.address > _MAX_EXTENT",
        "",
        "addresses between per-CPU offsets and the image would belong to a symbol",
        ("test_kallsyms.py::test_nothing_lies_between_per_cpu_offsets_and_the_image",),
    ),
    Mutant(
        "formats-kallsyms-markers-agree",
        "formats/kallsyms.py::_marked_places",
        "if (position[:-1] == marks[1:]).all():",
        "if len(marks):",
        "damaged marks would lead to wrong names",
        ("test_kallsyms.py",),
    ),
    Mutant(
        "formats-btf-signed-integers",
        "formats/btf.py::Btf.integer",
        "is_signed=bool(encoding & 1)",
        "is_signed=bool(encoding & 2)",
        "negative reference counts would read as four thousand million",
        ("test_btf.py::test_every_kind_is_read",),
    ),
    Mutant(
        "formats-btf-type-0",
        "formats/btf.py::Btf.position",
        "if 0 < type_id < len(self._positions):",
        "if 0 < type_id <= len(self._positions):",
        "a reference behind the last type is damage and must be said to be",
        ("test_btf.py",),
    ),
    Mutant(
        "formats-kdump-page-larger-than-block",
        "formats/kdump.py",
        "self.oversized or bool((sizes > frame.block).any())",
        "self.oversized",
        "a descriptor of more than a block is damage; readers trust it",
        ("test_command_words.py::test_a_page_larger_than_a_block_is_damage",),
    ),
    Mutant(
        "formats-kdump-writer-larger-when-packed",
        "formats/kdump_writer.py::pack_page",
        "len(stored) >= len(data)",
        "len(stored) > 2 * len(data)",
        "a page stored larger than it is would not be read by anything",
        ("test_bounds.py::test_a_page_that_does_not_compress_is_stored_as_it_is",),
    ),
    Mutant(
        "formats-kdump-writer-zero-pages",
        "formats/kdump_writer.py::KdumpWriter.add",
        "if not (is_zero and place[1]):",
        "if not place[1]:",
        "every page behind a zero one would read as zeros",
        ("test_synth_containers.py::test_containers_show_the_same",),
    ),
    Mutant(
        "formats-oops-offset-of-its-boot",
        "formats/oops_log.py::_Parser._take_offset",
        "self.reports[self._boot :]",
        "self.reports",
        "the offset of a later boot would be that of earlier oopses",
        ("test_oops.py::test_offset_belongs_to_its_boot",),
    ),
    Mutant(
        "formats-page-tables-5-levels",
        "formats/architectures.py::_x86_64",
        '2 if vmcoreinfo.number("pgtable_l5_enabled") else 1',
        "1",
        "nothing would be found on a machine with five levels",
        ("test_page_table_formats.py::test_reach",),
    ),
    Mutant(
        "formats-page-tables-large-page-address",
        "formats/page_table_formats.py::PageTableFormat.decode",
        "& -(1 << self.shift(level))",
        "",
        "flag bits of a large page would be part of its address",
        (
            "test_page_table_formats.py::test_entries_that_were_seen",
            "test_walk.py::test_pages_are_mapped_as_all_levels_say_together",
        ),
    ),
    Mutant(
        "formats-page-tables-encryption",
        "formats/architectures.py::_x86_64",
        '& ~(vmcoreinfo.number("sme_mask") or 0)',
        "",
        "with AMD memory encryption every address would have a bit too many",
        ("test_page_table_formats.py::test_entries_that_were_seen",),
    ),
    Mutant(
        "formats-page-tables-write-in-tables",
        "formats/page_table_formats.py::PageTableFormat._decode_tables",
        "~is_mapping if below is None else below.hold(entries)",
        "~is_mapping",
        "what a read-only upper table protects would count as writable",
        ("test_walk.py::test_pages_are_mapped_as_all_levels_say_together",),
    ),
)
