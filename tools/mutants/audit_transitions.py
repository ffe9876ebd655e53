# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in what tells transitions, and checks of loose heads
-------------------------------------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant
from tools.mutants.named_tests import notices

__all__ = ("AUDIT_TRANSITIONS",)

AUDIT_TRANSITIONS = (
    Mutant(
        "audit-in-transition-is-frozen",
        "audit/folio_transitions.py::held_by_nobody",
        "return flying & frozen & aligned",
        "return flying & aligned",
        "damage to a huge page in use would pass as being in transition",
        ("test_check_words.py::test_huge_pages_in_transition_are_held_by_nobody",),
    ),
    Mutant(
        "audit-in-transition-at-boot",
        "audit/in_transition.py::Transitions._limit",
        "if self._is_mapped_at_boot(pfn):",
        "if False:",
        "a kernel that makes the tails of a huge page from boot would be accused",
        ("test_booting.py::test_a_huge_page_whose_tails_are_made",),
    ),
    Mutant(
        "audit-compound-heads-at-boot",
        "audit/check_compound_heads.py::CompoundHeads._check_tails",
        "if context.is_booting is not False and wrong.any():",
        "if False:",
        "struct pages that nobody has made yet would be accused",
        ("test_booting.py::test_struct_pages_that_nobody_has_made",),
    ),
    Mutant(
        "audit-in-transition-is-on-no-list",
        "audit/folio_transitions.py::held_by_nobody",
        "& (folios.on_list == NO_LIST)",
        "",
        "damage to free huge pages would pass as being in transition",
        (notices("remapping-without-flag"),),
    ),
    Mutant(
        "audit-in-transition-needs-whole-lists",
        "audit/folio_transitions.py::held_by_nobody",
        "if any(a_list.is_damaged for a_list in context.hugetlb.lists):",
        "if False:",
        "behind a broken list every huge page would be in transition",
        (
            "test_check_words.py::test_huge_pages_behind_a_broken_list_are_not_in_transition",
        ),
    ),
    Mutant(
        "audit-remapping-from-first",
        "audit/folio_transitions.py::_are_half_remapped",
        "fits |= shared.end <= own.first",
        "fits |= shared.end > 0",
        "a slice in the middle with a frame of its own would be in transition",
        (
            "test_folio_instants.py::test_slices_that_no_code_leaves_so"
            "[own0-vmemmap-tail-frame-shared-7.3]",
        ),
    ),
    Mutant(
        "audit-remapping-to-last",
        "audit/folio_transitions.py::_are_half_remapped",
        "fits |= own.end <= shared.first",
        "fits |= own.end < 0",
        "a huge page that is being restored would be called damaged",
        (
            "test_folio_instants.py::test_no_instant_of_restoring_is_damage"
            "[fake-head-6.12]",
        ),
    ),
    Mutant(
        "audit-remapping-references",
        "audit/folio_transitions.py::held_by_nobody",
        "most = 1 if context.hvo.fields.is_type_behind_head else 0",
        "most = 0",
        "6.1 would be called damaged while it restores a huge page",
        (
            "test_folio_instants.py::test_no_instant_of_restoring_is_damage"
            "[fake-head-6.1]",
        ),
    ),
    Mutant(
        "audit-demotion-tails",
        "audit/check_compound_heads.py::CompoundHeads._are_left_of_larger",
        "inside = (rest.first <= pfns) & (pfns < rest.end)",
        "inside = pfns < 0",
        "a huge page that is being demoted would be called damaged",
        (
            "test_folio_instants.py::test_no_instant_of_demoting_is_damage"
            "[1-shared-7.3]",
        ),
    ),
    Mutant(
        "audit-demotion-damage",
        "audit/check_compound_heads.py::CompoundHeads._are_left_of_larger",
        "inside = (rest.first <= pfns) & (pfns < rest.end)",
        "inside = pfns >= 0",
        "a wrong tail in a piece of a huge page that is being demoted would pass",
        ("test_folio_instants.py::test_damage_is_no_demotion[shared-7.3]",),
    ),
    Mutant(
        "audit-demotion-pieces",
        "audit/in_transition.py::Transitions._look",
        "return self.splits.may_be_piece(tails.follows, pfn, pfn + tails.end)",
        "return False",
        "a piece of a huge page that is being demoted would be called damaged",
        (
            "test_folio_instants.py::test_no_instant_of_demoting_is_damage"
            "[1-shared-7.3]",
        ),
    ),
    Mutant(
        "audit-transition-typed",
        "audit/in_transition.py::Transitions._look",
        "if not head.is_head or head.is_typed or pfn % 2:",
        "if not head.is_head or pfn % 2:",
        "a damaged head with a type would be in transition",
        ("test_in_transition.py::test_damage_is_no_transition[typed-shared-7.3]",),
    ),
    Mutant(
        "audit-transition-refcount",
        "audit/in_transition.py::Transitions._look",
        "if not 0 <= head.refcount <= most:",
        "if head.refcount < 0:",
        "a damaged head that is in use would be in transition",
        ("test_in_transition.py::test_damage_is_no_transition[counted-shared-7.3]",),
    ),
    Mutant(
        "audit-transition-strangers",
        "audit/in_transition.py::Transitions._look",
        "if not fits or tails.follows is None:",
        "if True:",
        "a head with tails of another behind it would be in transition",
        (
            "test_in_transition.py::test_damage_is_no_transition"
            "[with_a_tail_of_another-shared-7.3]",
        ),
    ),
    Mutant(
        "audit-transition-suffix",
        "audit/in_transition.py::Transitions._fits",
        "whole = end & (end - 1) == 0 and pfn % end == 0",
        "whole = False",
        "a page that is being freed would be called damaged",
        (
            "test_in_transition.py::test_no_instant_is_damage"
            "[free_pages_prepare-3-shared-7.3]",
        ),
    ),
    Mutant(
        "audit-stray-heads-alignment",
        "audit/check_stray_heads.py::_own_heads",
        "& own & aligned",
        "& own",
        "a head that is not aligned to its order would be a good one",
        ("test_check_words.py::test_a_head_that_is_not_aligned",),
    ),
    Mutant(
        "audit-stray-heads-own-tail",
        "audit/check_stray_heads.py::_own_heads",
        "& own & aligned",
        "& aligned",
        "copies of heads that restoring left would not be noticed",
        ("test_check_words.py::test_a_head_whose_tail_is_of_another",),
    ),
    Mutant(
        "audit-compound-heads-cover",
        "audit/check_compound_heads.py::CompoundHeads._check_tails",
        "| (pfns >= head_pfns + covers)",
        "",
        "a tail behind the end of its folio would not be noticed",
        ("test_check_words.py::test_a_tail_behind_the_end_of_its_folio",),
    ),
    Mutant(
        "audit-compound-heads-poison",
        "audit/check_compound_heads.py::CompoundHeads.look",
        "tails &= (infos != np.uint64(ALL_ONES)) & present[:, None]",
        "tails &= present[:, None]",
        "struct pages that nobody initialised would be corruption",
        ("test_check_faults.py::test_nothing_in_a_healthy_machine[shared-7.3-True]",),
    ),
    Mutant(
        "audit-compound-heads-not-read",
        "audit/check_compound_heads.py::CompoundHeads._read_covers",
        "return np.where(unseen, _ANY_ORDER, covers)",
        "return covers",
        "tails of heads that the dump lacks would be corruption",
        ("test_check_faults.py::test_tails_whose_head_is_missing_are_not_corruption",),
    ),
)
