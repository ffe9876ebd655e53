# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Checks
------

What decides the rules of :mod:`drgn_hvo.audit.rules`. Each check reads what the layers
below already have and adds to an :class:`~drgn_hvo.audit.findings.Audit`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Optional, Union

from drgn_hvo.audit.check_compound_heads import CompoundHeads
from drgn_hvo.audit.check_entry_bits import check_entry_bits
from drgn_hvo.audit.check_folios import FolioTailInfos, check_folios
from drgn_hvo.audit.check_hstates import check_identities, check_reserves
from drgn_hvo.audit.check_identity import check_folio_nodes
from drgn_hvo.audit.check_mappings import check_mappings
from drgn_hvo.audit.check_pools import check_pools
from drgn_hvo.audit.check_private_tails import check_private_tails
from drgn_hvo.audit.check_sections import check_sections
from drgn_hvo.audit.check_shared_tails import (
    BootTail,
    TailFaults,
    check_alignment,
    check_tails,
)
from drgn_hvo.audit.check_stray_heads import StrayHeads
from drgn_hvo.audit.confirm import confirmed
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Audit
from drgn_hvo.audit.rules import RULES, Check, Rule, RuleId
from drgn_hvo.audit.scan import scan
from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.arrays import BoolArray
from drgn_hvo.kernel.unread import Need, Unread
from drgn_hvo.memmap.hvo import Hvo

__all__ = (
    "NOT_ASKED",
    "applicable_checks",
    "confirmed_audit",
    "run_audit",
    "run_checks",
)

#: Why a rule was skipped that is not among those to check.
NOT_ASKED = "not asked for"


class _Answers:
    """
    What checks tell other checks. Whoever needs an answer asks for it by its name, and
    the check that gives it runs then, unless it has run already. If it cannot run,
    because there are no page tables, nothing is known to be wrong.
    """

    def __init__(self, context: Context, possible: Collection[Check]) -> None:
        self.context = context
        self._possible = possible

    @cached_property
    def tail_faults(self) -> TailFaults:
        """What "shared-tails" tells of slots and of the pages that they name."""
        if "shared-tails" not in self._possible:
            return TailFaults()
        return check_tails(self.context)

    @cached_property
    def readable(self) -> BoolArray:
        """The folios whose own first struct pages can be read, by "mappings"."""
        if "mappings" not in self._possible:
            return self.context.hugetlb.folios.present
        # A wrong slot is one finding, and not one of each of its folios.
        return check_mappings(self.context, self.tail_faults.slots)

    @property
    def boot_tails(self) -> tuple[BootTail, ...]:
        """Shared tail pages whose reference counts folios may have, as "shared-tails"
        tells."""
        return self.tail_faults.boot_tails


# Checks that read what they want by themselves, in the order in which they run, and
# which answers of others they need.
_CHECKS: dict[Check, Callable[[_Answers], object]] = {
    "alignment": lambda a: check_alignment(a.context),
    "hstate-identities": lambda a: check_identities(a.context),
    "sections": lambda a: check_sections(a.context),
    "shared-tails": lambda a: a.tail_faults,
    "entry-bits": lambda a: check_entry_bits(a.context),
    "mappings": lambda a: a.readable,
    "private-tails": lambda a: check_private_tails(a.context, a.readable, a.boot_tails),
    "folio-heads": lambda a: check_folios(a.context, a.readable),
    "folio-nodes": lambda a: check_folio_nodes(a.context, a.readable),
    "pools": lambda a: check_pools(a.context, a.readable, a.boot_tails),
    "reserves": lambda a: check_reserves(a.context),
}

# Checks that look at struct pages, behind all others, in one pass over vmemmap.
_SCANS: dict[
    Check, Callable[[_Answers], Union[FolioTailInfos, StrayHeads, CompoundHeads]]
] = {
    "folio-tails": lambda a: FolioTailInfos(a.context, a.readable),
    "stray-heads": lambda a: StrayHeads(a.context, a.boot_tails),
    "compound-heads": lambda a: CompoundHeads(a.context),
}


def run_checks(context: Context, checks: Collection[Check]) -> None:
    """Run some checks, and those whose answers they need."""
    possible = {c for r in RULES if _is_possible(context.hvo, r) for c in r.decide}
    answers = _Answers(context, possible)
    wanted = possible.intersection(checks)
    for name, check in _CHECKS.items():
        if name in wanted:
            check(answers)
    scans = [start(answers) for name, start in _SCANS.items() if name in wanted]
    if scans:
        scan(context, scans)
    for scanned in scans:
        scanned.report()
    context.audit.transitional |= context.transitions.found


def applicable_checks(hvo: Hvo) -> set[Check]:
    """The checks that mean something for a kernel and can be run, but not deep ones."""
    return {
        check
        for rule in RULES
        if not rule.deep
        and rule.applies(hvo.layout) is None
        and _is_possible(hvo, rule)
        for check in rule.decide
    }


# What cannot be decided without page tables.
_BY_PAGE_TABLES = {Need.PAGE_TABLES, Need.ALL_STRUCT_PAGES}


def _is_possible(hvo: Hvo, rule: Rule) -> bool:
    """Whether the page tables that a rule needs are known at all."""
    return hvo.vmemmap.has_mappings or not _BY_PAGE_TABLES.intersection(rule.needs)


def confirmed_audit(
    hvo: Hvo, *, deep: bool = False, rules: Optional[Collection[RuleId]] = None
) -> Audit:
    """
    As :func:`run_audit()`; of a running kernel, what
    :func:`~drgn_hvo.audit.confirm.confirmed()` keeps of several.
    """
    return confirmed(hvo, lambda reading: run_audit(reading, deep=deep, rules=rules))


def run_audit(
    hvo: Hvo, *, deep: bool = False, rules: Optional[Collection[RuleId]] = None
) -> Audit:
    """
    Check rules.

    :param deep: Whether to check those that read all of vmemmap, too.
    :param rules: Those to check; all if ``None``. Only what they need is read. What is
        found on the way about other rules is left out; a finding that is a consequence
        of such a cause stays, with its own severity.
    :raises UnavailableError: if this kernel cannot be audited at all.
    """
    if not hvo.kernel.has_types:
        raise UnavailableError(
            f"an audit needs types: {hvo.kernel.no_types_reason}; debuginfo, given "
            "with -s, would do"
        )
    audit = Audit()
    for rule in RULES:
        reason: Optional[str] = rule.applies(hvo.layout)
        if reason is None and rule.deep and not deep:
            reason = "only with --deep"
        if rules is not None and rule.id not in rules:
            reason = NOT_ASKED
        if reason is not None:
            audit.skipped[rule.id] = reason
    active = [rule for rule in RULES if rule.id not in audit.skipped]
    decided = [rule for rule in active if _is_possible(hvo, rule)]
    run_checks(
        Context(hvo, audit), {check for rule in decided for check in rule.decide}
    )
    if len(decided) < len(active) and not hvo.vmemmap.has_mappings:
        audit.checked["folios"] = len(hvo.hugetlb.folios)
        why = hvo.vmemmap.no_mappings_reason or ""
        audit.unread(Unread(Need.ALL_STRUCT_PAGES, "all struct pages", why))
    if any(Need.PAGE_TABLES in rule.needs for rule in active):
        for table in hvo.vmemmap.walk.missing:
            unread = Unread(Need.PAGE_TABLES, "page tables of vmemmap", table.reason)
            audit.unread(unread)
    for unread in hvo.unread:
        audit.unread(unread)
    audit.leave_out(audit.skipped)
    return audit
