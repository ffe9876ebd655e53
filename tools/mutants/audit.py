# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in ``drgn_hvo/audit/``
-------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant

__all__ = ("AUDIT",)


def _notices(fault: str, generation: str = "shared-7.3") -> str:
    """The test that a fault in a generation is noticed by its rule."""
    test = "test_check_faults.py::test_the_rule_that_the_table_names"
    return f"{test}[{fault}-{generation}]"


def _healthy(generation: str = "shared-7.3") -> str:
    """The test that a machine of a generation without faults has no finding."""
    test = "test_check_faults.py::test_nothing_in_a_healthy_machine"
    return f"{test}[{generation}-False]"


AUDIT = (
    Mutant(
        "audit-shared-tail-mapping",
        "audit/check_shared_tails.py::_expectations",
        "tail_mapping(context.kernel.illegal_pointer_value),",
        "tail_mapping(0),",
        "every healthy shared tail would be accused",
        (_healthy(),),
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
            _notices(
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
            _notices(
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
        (_notices("boot-tail-overwritten", "seed-v5"),),
    ),
    Mutant(
        "audit-alignment",
        "audit/check_shared_tails.py",
        "if base % required:",
        "if base % (required >> 12):",
        "masks of the largest huge pages would lead to wrong heads unnoticed",
        (
            _notices(
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
            _notices(
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
            _notices(
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
            _notices(
                "pte-none",
            ),
        ),
    ),
    Mutant(
        "audit-read-only-head",
        "audit/check_head_frames.py::_HeadFrames.check_heads",
        "~mapped | ~writable | (others > 0)",
        "~mapped | (others > 0)",
        "the kernel's next write to such a head ends in an oops",
        (
            _notices(
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
            _notices(
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
            _notices(
                "stray-shared-tail",
            ),
        ),
    ),
    Mutant(
        "audit-missing-tables-excuse",
        "audit/context.py::Context.is_missing",
        "return any(t.start <= address < t.end for t in self.vmemmap.walk.missing)",
        "return False",
        "a page table that the dump lacks would be corruption",
        ("test_check_words.py::test_a_page_table_that_is_not_there_accuses_nobody",),
    ),
    Mutant(
        "audit-in-transition-is-frozen",
        "audit/folio_transitions.py::held_by_nobody",
        "return flying & frozen & aligned",
        "return flying & aligned",
        "damage to a huge page in use would pass as being in transition",
        ("test_check_words.py::test_huge_pages_in_transition_are_held_by_nobody",),
    ),
    Mutant(
        "audit-in-transition-is-on-no-list",
        "audit/folio_transitions.py::held_by_nobody",
        "& (folios.on_list == NO_LIST)",
        "",
        "damage to free huge pages would pass as being in transition",
        (_notices("remapping-without-flag"),),
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
        "audit-head-is-not-PG_head",
        "audit/check_folios.py::_Heads.check",
        "for i in self._where(present & ~folios.PG_head):",
        "for i in ():",
        "a head that lost PG_head would not be noticed",
        (
            _notices(
                "head-without-PG_head",
            ),
        ),
    ),
    Mutant(
        "audit-head-order",
        "audit/check_folios.py::_Heads.check",
        "folios.own_order != folios.order",
        "folios.own_order > folios.order",
        "a folio of a wrong order gives back memory that is not its own",
        (_notices("folio-wrong-order"),),
    ),
    Mutant(
        "audit-first-tail",
        "audit/check_folios.py::_Heads.check",
        "present & (folios.next_info != self._words)",
        "present & (folios.next_info < self._words)",
        "a damaged word of the second struct page would not be noticed",
        ("test_check_words.py::test_the_first_tail",),
    ),
    Mutant(
        "audit-own-tails",
        "audit/check_folios.py::FolioTails.look",
        "wrong = infos != self._words[owner][:, None]",
        "wrong = infos == 0",
        "a tail that leads to another head would not be noticed",
        (
            _notices(
                "private-tail",
            ),
        ),
    ),
    Mutant(
        "audit-own-tails-of-plain-folios",
        "audit/check_folios.py::FolioTails.__init__",
        "(context.geometry.power_of_2 and folios.shared_ptes == 0)",
        "0",
        "only the first page of struct pages of plain folios would be checked",
        ("test_check_words.py::test_every_tail_of_a_plain_huge_page",),
    ),
    Mutant(
        "audit-private-tail-of-a-free-folio",
        "audit/check_private_tails.py::_PrivateTails.check",
        "is_free, folios.idle, folios.regular",
        "is_free, folios.regular, folios.regular",
        "what a free huge page holds of its last user would not be noticed",
        ("test_private_tails.py::test_each_field_of_a_free_folio",),
    ),
    Mutant(
        "audit-private-tail-in-transition",
        "audit/check_private_tails.py::_PrivateTails._add_all",
        "if self._context.in_transition[i]:",
        "if False:",
        "a huge page on its way between states would be accused",
        ("test_private_tails.py::test_a_folio_on_its_way_is_counted",),
    ),
    Mutant(
        "audit-private-tail-last",
        "audit/check_private_tails.py::_PrivateTails._compare",
        "end = count if field.index == last else",
        "end = count - 57 if field.index == last else",
        "only the first private tails would be looked at",
        ("test_private_tails.py::test_each_field_of_a_free_folio",),
    ),
    Mutant(
        "audit-folio-node-zone",
        "audit/check_identity.py::check_folio_nodes",
        "inside & (nids == zone.nid) & (zones == zone.index)",
        "inside & (nids == zone.nid)",
        "a head that names another zone would not be noticed",
        (_notices("head-zone"),),
    ),
    Mutant(
        "audit-cma-unread",
        "audit/check_identity.py::check_cma",
        "except (FaultError, UnavailableError):",
        "except UnavailableError:",
        "areas that are not in the dump would end the audit",
        ("test_identity.py::test_cma_areas_that_were_not_read",),
    ),
    Mutant(
        "audit-reserve-held",
        "audit/check_hstates.py::_check_reserve",
        'if may_be_excused and context.is_excused_by_lock("hstate-reserve"):',
        "if False:",
        "a kernel that is about to count a reserved huge page would be accused",
        ("test_identity.py::test_reserved_while_pools_change",),
    ),
    Mutant(
        "audit-reserve-above-free",
        "audit/check_hstates.py::_check_reserve",
        "0 <= reserved <= max(free, 0)",
        "0 <= reserved",
        "promises of more huge pages than there are would not be noticed",
        ("test_identity.py::test_reserved_huge_pages",),
    ),
    Mutant(
        "audit-folios-without-a-pool",
        "audit/check_hstates.py::_check_orders",
        "if context.hugetlb.unread_pools:",
        "if True:",
        "huge pages whose pool is gone would bother no rule",
        ("test_identity.py::test_a_pool_that_is_gone",),
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
        "audit-folio-node-unread",
        "audit/check_identity.py::check_folio_nodes",
        "if not mmzone.knows_all_zones:",
        "if False:",
        "a zone that was not read would leave folios in the wrong place",
        ("test_identity.py::test_zones_that_were_not_read",),
    ),
    Mutant(
        "audit-free-folio-node",
        "audit/check_pools.py::_wrong_member",
        "if nid >= 0 and nid != a_list.nid:",
        "if False:",
        "a free huge page on another node's list would not be noticed",
        ("test_check_words.py::test_a_free_huge_page_on_the_list_of_another_node",),
    ),
    Mutant(
        "audit-free-folio-flag",
        "audit/check_pools.py::_may_be_wrong",
        "suspect |= freed[index] != is_free",
        "pass",
        "a free huge page without HPG_freed would not be noticed",
        ("test_check_words.py::test_a_list_and_the_flag_of_what_is_on_it",),
    ),
    Mutant(
        "audit-free-folio-refcount",
        "audit/check_pools.py::_may_be_wrong",
        "suspect |= folios.refcount[index] != 0",
        "",
        "a free huge page that somebody uses would not be noticed",
        ("test_check_words.py::test_a_free_huge_page_that_is_used",),
    ),
    Mutant(
        "audit-counters-need-whole-lists",
        "audit/check_pools.py::_check_counters",
        "if any(a_list.is_damaged for a_list in lists):",
        "if False:",
        "behind a broken list every counter would be wrong",
        ("test_check_words.py::test_counters_beside_a_broken_list_are_not_decided",),
    ),
    Mutant(
        "audit-counter-of-free",
        "audit/check_pools.py::_check_counters",
        "free != len(a_list.heads):",
        "free < len(a_list.heads):",
        "a pool that counts huge pages that it has not would not be noticed",
        ("test_check_words.py::test_free_huge_pages_are_those_on_the_list",),
    ),
    Mutant(
        "audit-counters-while-locked",
        "audit/check_pools.py::_add_counter",
        'severity="warning" if held else ""',
        'severity=""',
        "a counter that somebody was just changing would be an error",
        ("test_check_words.py::test_counters_that_somebody_is_changing",),
    ),
    Mutant(
        "audit-lock-not-held",
        "audit/check_pools.py::_add_counter",
        'held = context.lock.state == "held"',
        "held = True",
        "a wrong counter would never be an error",
        ("test_check_words.py::test_counters_that_somebody_is_changing",),
    ),
    Mutant(
        "audit-lock-queued",
        "audit/lock.py::_is_set",
        "return word != 0",
        "return word > 1",
        "a lock that is held and that nobody waits for would be free",
        ("test_check_words.py::test_counters_that_somebody_is_changing[True]",),
    ),
    Mutant(
        "audit-lock-one-at-a-time",
        "audit/context.py::Context.is_excused_by_lock",
        "if excuse.most and self.audit.excused.get(rule, 0) >= excuse.most:",
        "if False:",
        "while the lock is held, any number of damaged huge pages would pass",
        ("test_lock.py::test_only_one_thing_at_a_time",),
    ),
    Mutant(
        "audit-lock-free-excuses-nothing",
        "audit/context.py::Context.is_excused_by_lock",
        'if excuse is None or self.lock.state == "free":',
        "if excuse is None:",
        "broken lists would be excused though nobody holds the lock",
        ("test_lock.py::test_half_done_without_the_lock[remove]",),
    ),
    Mutant(
        "audit-lock-free-huge-page",
        "audit/check_pools.py::_is_free_one_on_its_way",
        "return abs(length - of_nodes) == 1 and hstate.free in (length, of_nodes)",
        "return False",
        "counters of a huge page that was just taken off a free list would be wrong",
        ("test_lock.py::test_no_instant_is_damage[dequeue-debian-7.2]",),
    ),
    Mutant(
        "audit-lock-rt-waiters",
        "audit/lock.py::_has_owner",
        "return word & ~1 != 0",
        "return word != 0",
        "a lock of PREEMPT_RT that somebody only waits for would be held",
        ("test_lock.py::test_every_form_of_lock",),
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
        "audit/check_head_frames.py::_HeadFrames.check_second_slices",
        "for i in np.flatnonzero(mapped & (moved | ~writable)).tolist():",
        "for i in np.flatnonzero(mapped & moved).tolist():",
        "a read-only second page of v5.14 to v5.17 would pass",
        ("test_two_private.py::test_the_second_slice_is_read_only",),
    ),
    Mutant(
        "audit-second-private-page-words",
        "audit/check_folios.py::FolioTails.__init__",
        "counts = np.where(readable, np.maximum(own, private), 0)",
        "counts = np.where(readable, np.maximum(own, 1), 0)",
        "a wrong tail word that all slices behind the second show would pass",
        ("test_two_private.py::test_one_bit_of_the_second_page",),
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
    Mutant(
        "audit-typed-last",
        "audit/check_folios.py::_Heads.check",
        "if fields.is_typed_last and context.in_transition[i]:",
        "if False:",
        "6.1 would be called damaged while it optimizes a huge page",
        (
            "test_folio_instants.py::test_no_instant_of_optimizing_is_damage"
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
        ("test_check_faults.py::test_a_page_that_is_missing_is_not_corruption",),
    ),
    Mutant(
        "audit-cause-first",
        "audit/findings.py::Audit.ordered",
        "order = roots + [f for f in ranked if self._causes(f, subjects)]",
        "order = ranked",
        "the first finding would be a consequence, not the wrong word",
        (
            _notices("head-frame-shared"),
            _notices("slot-wrong-frame"),
            _notices("head-frame-shared", "fake-head-6.12"),
        ),
    ),
    Mutant(
        "audit-errors-before-warnings",
        "audit/findings.py::Audit.ordered",
        '(f.severity != "error", _RANK[f.rule])',
        "_RANK[f.rule]",
        "a warning would stand in front of errors",
        ("test_check_words.py::test_errors_come_before_warnings",),
    ),
    Mutant(
        "audit-unread-is-undecided",
        "audit/findings.py::Audit.unread",
        "if unread.need in rule.needs:",
        "if unread.need in rule.needs and not rule.needs:",
        "what was not read would be a pass",
        ("test_check_faults.py::test_a_page_that_is_missing_is_not_corruption",),
    ),
    Mutant(
        "audit-undecided-is-incomplete",
        "audit/findings.py::Audit.complete",
        "return not self.undecided",
        "return not self.not_in_dump and not self.skipped",
        "the exit status of an incomplete audit would be that of a clean one",
        ("test_check_faults.py::test_nothing_in_a_healthy_machine",),
    ),
    Mutant(
        "audit-live-keeps-common-findings",
        "audit/findings.py::Audit.keep_common",
        "if _evidence(f) in seen]",
        "if True]",
        "one reading of a running kernel would accuse it",
        ("test_check_live.py",),
    ),
    Mutant(
        "audit-live-reads-again",
        "audit/confirm.py::confirmed",
        "for reading in range(1, _MOST_READINGS):",
        "for reading in range(1, 2):",
        "what changes between two readings would be damage",
        ("test_check_live.py",),
    ),
    Mutant(
        "audit-one-folio-on-its-own-lists",
        "audit/scope.py::FolioScope.of",
        "[pfn] * (pfn in a_list.heads)",
        "[pfn]",
        "a validator would find every folio on every list",
        ("test_helpers.py::test_validators_pass_on_a_healthy_machine",),
    ),
    Mutant(
        "audit-one-folio-writable-by-design",
        "audit/scope.py::FolioScope.of",
        "may_be_writable=whole.tails_are_writable,",
        "may_be_writable=False,",
        "validators would accuse every optimized huge page of riscv64 and LoongArch",
        ("test_synth_arch.py::test_validators_pass_on_a_healthy_machine",),
    ),
    Mutant(
        "audit-wrong-slots-are-told",
        "audit/run.py::_Answers.readable",
        "check_mappings(self.context, self.tail_faults.slots)",
        "check_mappings(self.context, frozenset())",
        "a wrong slot would be a finding of each of its folios",
        ("test_check_causes.py::test_a_slot_that_is_off_by_one_frame",),
    ),
    Mutant(
        "audit-boot-tails-are-told",
        "audit/run.py::_Answers.boot_tails",
        "return self.tail_faults.boot_tails",
        "return ()",
        "free huge pages with reference counts from boot would be unexplained damage",
        (
            "test_check_causes.py::test_reference_counts_of_a_part_follow_from_those_of_the_whole",
        ),
    ),
    Mutant(
        "audit-page-fault-garbled",
        "audit/page_faults.py::VERDICTS",
        "lambda f: f.fault.is_garbled,",
        "lambda f: False,",
        "a damaged log would get a verdict",
        ("test_oops_page.py::test_garbled",),
    ),
    Mutant(
        "audit-page-fault-other-boot",
        "audit/page_faults.py::VERDICTS",
        "lambda f: f.not_this_boot is not None,",
        "lambda f: False,",
        "an oops of another boot would be explained with this core",
        ("test_oops_page.py::test_other_boot",),
    ),
    Mutant(
        "audit-page-fault-reads",
        "audit/page_faults.py::VERDICTS",
        "lambda f: not f.code(PF_WRITE),",
        "lambda f: False,",
        "a read that was refused would count as an illegal write",
        ("test_oops_page.py::test_other_faults",),
    ),
)
