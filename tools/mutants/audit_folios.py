# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in checks of folios and pools
--------------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant
from tools.mutants.named_tests import notices

__all__ = ("AUDIT_FOLIOS",)

AUDIT_FOLIOS = (
    Mutant(
        "audit-missing-tables-excuse",
        "audit/context.py::Context.is_missing",
        "return any(t.start <= address < t.end for t in self.vmemmap.walk.missing)",
        "return False",
        "a page table that the dump lacks would be corruption",
        ("test_check_words.py::test_a_page_table_that_is_not_there_accuses_nobody",),
    ),
    Mutant(
        "audit-head-is-not-PG_head",
        "audit/check_folios.py::_Heads.check",
        "for i in self._where(present & ~folios.PG_head):",
        "for i in ():",
        "a head that lost PG_head would not be noticed",
        (
            notices(
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
        (notices("folio-wrong-order"),),
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
            notices(
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
        (notices("head-zone"),),
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
        "audit-second-private-page-words",
        "audit/check_folios.py::FolioTails.__init__",
        "counts = np.where(readable, np.maximum(own, private), 0)",
        "counts = np.where(readable, np.maximum(own, 1), 0)",
        "a wrong tail word that all slices behind the second show would pass",
        ("test_two_private.py::test_one_bit_of_the_second_page",),
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
)
