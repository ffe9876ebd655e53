# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in how audits run and what is made of them
---------------------------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant
from tools.mutants.named_tests import notices

__all__ = ("AUDIT",)

AUDIT = (
    Mutant(
        "audit-index-of-what-is-folded",
        "audit/findings.py::Audit.has_rest",
        ">= _MAX_PER_RULE",
        "> _MAX_PER_RULE",
        "a finding beyond those that check lists would be none of check's",
        ("test_page_faults.py::test_what_is_found_beyond_those_that_are_listed",),
    ),
    Mutant(
        "audit-section-majority",
        "audit/check_sections.py::_Sections.check_memory",
        "expected[members] = order",
        "pass",
        "every healthy machine with gigantic pages from boot would be accused",
        ("test_sections.py::test_orders_are_those_of_the_description[booted]",),
    ),
    Mutant(
        "audit-section-without-sharing",
        "audit/check_sections.py::_Sections.check_devices",
        "if not recorded and not self._shares(i):",
        "if not recorded:",
        "a section of device DAX that lost its order would not be noticed",
        ("test_sections.py::test_a_section_of_a_device[5-0]",),
    ),
    Mutant(
        "audit-cause-first",
        "audit/findings.py::Audit.ordered",
        "order = roots + [f for f in ranked if self._causes(f, subjects)]",
        "order = ranked",
        "the first finding would be a consequence, not the wrong word",
        (
            notices("head-frame-shared"),
            notices("slot-wrong-frame"),
            notices("head-frame-shared", "fake-head-6.12"),
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
        "audit/scope.py::PartScope.of_folio",
        "[pfn] * (pfn in a_list.heads)",
        "[pfn]",
        "a validator would find every folio on every list",
        ("test_validators.py::test_validators_pass_on_a_healthy_machine",),
    ),
    Mutant(
        "audit-one-folio-writable-by-design",
        "audit/scope.py::PartScope.of_folio",
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
