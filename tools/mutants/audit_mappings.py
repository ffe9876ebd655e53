# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in checks of shared tails and mappings
-----------------------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant
from tools.mutants.named_tests import healthy, notices

__all__ = ("AUDIT_MAPPINGS",)

AUDIT_MAPPINGS = (
    Mutant(
        "audit-shared-tail-mapping",
        "audit/check_shared_tails.py::_expectations",
        "tail_mapping(context.kernel.illegal_pointer_value),",
        "tail_mapping(0),",
        "every healthy shared tail would be accused",
        (healthy(),),
    ),
    Mutant(
        "audit-shared-tail-rest",
        "audit/check_shared_tails.py::_expectations",
        "range(0, context.size, 8)",
        "range(0, context.size - 8, 8)",
        "the last word of shared tails would not be checked",
        ("test_check_words.py::test_words_of_a_shared_tail_that_are_nothing",),
    ),
    Mutant(
        "audit-boot-tail-other-refcount",
        "audit/check_shared_tails.py::_check_words",
        "left = values == 1",
        "left = values != 0",
        "a stray reference to a shared tail would hide behind the known defect",
        ("test_check_words.py::test_another_count_than_boot_left",),
    ),
    Mutant(
        "audit-shared-tail-flags",
        "audit/check_shared_tails.py::_expected_flags",
        "mask = (1 << count) - 1",
        "mask = (1 << count - 1) - 1",
        "the highest page flag of a shared tail would not be checked",
        ("test_check_words.py::test_all_page_flags_of_a_shared_tail",),
    ),
    Mutant(
        "audit-shared-tail-zone",
        "audit/check_shared_tails.py::_expected_flags",
        "mask |= layout.zone_mask << layout.zone_shift",
        "",
        "a shared tail of another zone would not be noticed",
        (
            notices(
                "tail-zone",
            ),
        ),
    ),
    Mutant(
        "audit-shared-tail-hwpoison",
        "audit/check_shared_tails.py::_wrong_own_page",
        "if hwpoison is not None and flags >> hwpoison & 1:",
        "if False:",
        "a shared tail page in memory that failed would not be reported",
        ("test_check_words.py::test_a_shared_tail_in_memory_that_failed",),
    ),
    Mutant(
        "audit-shared-tail-free-frame",
        "audit/check_shared_tails.py::_wrong_own_page",
        "(tail.frame_refcount or 0) < 1",
        "(tail.frame_refcount or 0) < 0",
        "a shared tail page that was freed would not be reported",
        ("test_check_words.py::test_a_shared_tail_that_was_freed",),
    ),
    Mutant(
        "audit-shared-tail-zeros",
        "audit/check_shared_tails.py::_check_content",
        "if not rows.data.any():",
        "if False:",
        "what an ELF core leaves out would be corruption",
        ("test_check_words.py::test_a_shared_tail_of_zeros_is_not_there",),
    ),
    Mutant(
        "audit-two-slots-the-right-one",
        "audit/check_shared_tails.py::_check_unique",
        "or named[:1]",
        "and named[-1:]",
        "of two slots on one frame the right one would be accused",
        (
            notices(
                "two-slots",
            ),
        ),
    ),
    Mutant(
        "audit-overwritten-is-one-finding",
        "audit/check_shared_tails.py::_is_overwritten",
        "return bool(own.all())",
        "return False",
        "one known defect would be six findings without a name",
        (notices("boot-tail-overwritten", "seed-v5"),),
    ),
    Mutant(
        "audit-alignment",
        "audit/check_shared_tails.py",
        "if base % required:",
        "if base % (required >> 12):",
        "masks of the largest huge pages would lead to wrong heads unnoticed",
        (
            notices(
                "vmemmap-misaligned",
            ),
        ),
    ),
    Mutant(
        "audit-tail-frames",
        "audit/check_tail_frames.py::_TailFrames.check_tails",
        "right = (slices.pfn == expected) & (",
        "right = (slices.pfn >= 0) & (",
        "a slice that maps somebody else's frame would not be noticed",
        (
            notices(
                "pte-foreign-frame",
            ),
        ),
    ),
    Mutant(
        "audit-tails-by-large-pages",
        "audit/check_tail_frames.py::_TailFrames.check_tails",
        "loose |= slices.writable",
        "pass",
        "a writable shared tail would not be noticed",
        (
            notices(
                "pte-writable",
            ),
        ),
    ),
    Mutant(
        "audit-holes",
        "audit/check_tail_frames.py::_TailFrames.check_holes",
        "self._folios.mapped + (self._folios.head_frame < 0) < self._folios.slices",
        "self._folios.mapped + 1 < self._folios.slices",
        "one page of vmemmap that is not mapped would not be noticed",
        (
            notices(
                "pte-none",
            ),
        ),
    ),
    Mutant(
        "audit-read-only-head",
        "audit/check_head_frames.py::_HeadFrameCheck.check_heads",
        "~mapped | ~writable | (others > 0)",
        "~mapped | (others > 0)",
        "the kernel's next write to such a head ends in an oops",
        (
            notices(
                "head-read-only",
            ),
        ),
    ),
    Mutant(
        "audit-flag-and-mapping",
        "audit/check_mappings.py::_Flags.check_flag",
        "wrong = (flag != mapping) & self._readable",
        "wrong = (flag & ~mapping) & self._readable",
        "a folio that HVO remapped without its flag is never restored",
        (
            notices(
                "remapping-without-flag",
            ),
        ),
    ),
    Mutant(
        "audit-folio-unoptimized",
        "audit/check_mappings.py::_Flags.check_unoptimized",
        "plain[slices.folio] & ~slices.writable",
        "plain[slices.folio] & slices.writable & ~slices.writable",
        "read-only struct pages of a huge page without HVO end in an oops",
        ("test_check_words.py::test_read_only_struct_pages_of_a_plain_huge_page",),
    ),
    Mutant(
        "audit-stray-shared-tails",
        "audit/check_stray_tails.py::_Strays.check",
        "if int(slices.count[rightful].sum()) == tail.mapped_by:",
        "if int(slices.count[rightful].sum()) <= tail.mapped_by:",
        "order-0 pages with the struct pages of tails would not be noticed",
        (
            notices(
                "stray-shared-tail",
            ),
        ),
    ),
    Mutant(
        "audit-entry-bits-of-tables",
        "audit/check_entry_bits.py::_add",
        "e.level == odd.level",
        "e.level == 0",
        "a wrong entry that leads to a table would be sought among its mappings",
        ("test_entry_bits.py::test_each_bit_at_each_level",),
    ),
    Mutant(
        "audit-slot-behind-a-table",
        "audit/check_shared_tails.py::_tables_above",
        "return () if entry is None else (subjects.TableEntry(entry.address),)",
        "return ()",
        "a slot would be blamed for a table of vmemmap that is not there",
        ("test_causes_real.py::test_an_entry_above_the_lowest_level[1-1-debian-7.2]",),
    ),
    Mutant(
        "layout-head-that-allows-no-writes",
        "memmap/layout.py::_begin_with_heads",
        "return is_in(pfns, frames[heads & read.present])",
        "return is_in(pfns, frames[:0])",
        "with a table of vmemmap that allows no writes, nothing could be audited",
        ("test_causes_real.py::test_an_entry_above_the_lowest_level[2-2-debian-6.1]",),
    ),
    Mutant(
        "audit-second-private-page",
        "audit/check_head_frames.py::_HeadFrameCheck.check_second_slices",
        "for i in np.flatnonzero(mapped & (moved | ~writable)).tolist():",
        "for i in np.flatnonzero(mapped & moved).tolist():",
        "a read-only second page of v5.14 to v5.17 would pass",
        ("test_two_private.py::test_the_second_slice_is_read_only",),
    ),
    Mutant(
        "audit-booting-tails",
        "audit/check_tail_frames.py::_TailFrames._is_not_yet_protected",
        "if not self._context.held_by_nobody[i] or self._context.is_booting is False:",
        "if self._context.is_booting is False:",
        "while booting, stray writes to tails of finished huge pages would pass",
        ("test_booting.py::test_a_huge_page_on_a_list_is_made[True]",),
    ),
    Mutant(
        "audit-booting-is-over",
        "audit/check_tail_frames.py::_TailFrames._is_not_yet_protected",
        "if not self._context.held_by_nobody[i] or self._context.is_booting is False:",
        "if not self._context.held_by_nobody[i]:",
        "a writable slice of a huge page that nobody holds would pass",
        (
            "test_booting.py::test_slices_that_are_not_yet_protected"
            "[False-rules2-findings]",
        ),
    ),
    Mutant(
        "audit-booting-shared-tails",
        "audit/check_shared_tails.py::_is_not_yet_made",
        "return bool((rows.infos != np.uint64(rows.word)).any())",
        "return False",
        "a shared tail page that is not yet made would be damaged",
        ("test_booting.py::test_a_shared_tail_page_that_is_not_yet_made[True]",),
    ),
    Mutant(
        "audit-remapping-excuses-own-frames",
        "audit/check_tail_frames.py::_TailFrames._add_wrong_frame",
        "if self._mappings.are_own[pair] and self._mappings.is_excused(i):",
        "if self._mappings.is_excused(i):",
        "a wrong frame of a huge page that is being restored would not be noticed",
        (
            "test_folio_instants.py::test_damage_of_a_huge_page_that_nobody_holds"
            "[frame-1-shared-7.3]",
        ),
    ),
)
