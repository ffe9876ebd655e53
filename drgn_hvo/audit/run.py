# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Checks
------

What decides the rules of :mod:`drgn_hvo.audit.rules`. Each check reads what the layers
below already have and adds to an :class:`~drgn_hvo.audit.findings.Audit`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Optional, Union

from drgn_hvo.audit.check_compound_heads import CompoundHeads
from drgn_hvo.audit.check_entry_bits import check_entry_bits
from drgn_hvo.audit.check_folios import FolioTails, check_folios
from drgn_hvo.audit.check_hstates import check_identities, check_reserves
from drgn_hvo.audit.check_identity import check_folio_nodes
from drgn_hvo.audit.check_mappings import check_mapping
from drgn_hvo.audit.check_pools import check_pools
from drgn_hvo.audit.check_private_tails import check_private_tails
from drgn_hvo.audit.check_shared_tails import check_alignment, check_tails
from drgn_hvo.audit.check_stray_heads import StrayHeads
from drgn_hvo.audit.confirm import confirmed
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Audit
from drgn_hvo.audit.rules import RULES, Check, Rule, RuleId
from drgn_hvo.audit.scan import scan
from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.unread import Need, Unread
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("confirmed_audit", "run_audit", "run_checks")


@dataclass(frozen=True)
class _Whole:
    """
    A check that reads what it wants by itself.

    :param after: The checks whose findings, or notes in the context, it looks at.
    """

    run: Callable[[Context], None]
    after: tuple[Check, ...] = ()


@dataclass(frozen=True)
class _Scan:
    """
    A check that looks at struct pages, in one pass over vmemmap with its like.

    :param after: As of :class:`_Whole`.
    """

    start: Callable[[Context], Union[FolioTails, StrayHeads, CompoundHeads]]
    after: tuple[Check, ...] = ()


# In the order in which they run. Who reads struct pages through slice 0 of a folio
# must know whether that maps a foreign frame, which "mappings" notes in the context;
# that one in turn tells a wrong slot, found by "shared-tails", from wrong folios.
_CHECKS: dict[Check, Union[_Whole, _Scan]] = {
    "alignment": _Whole(check_alignment),
    "hstate-identities": _Whole(check_identities),
    "shared-tails": _Whole(check_tails),
    "entry-bits": _Whole(check_entry_bits),
    "mappings": _Whole(check_mapping, after=("shared-tails",)),
    # Reference counts may be copies of those of a shared tail page, too.
    "private-tails": _Whole(check_private_tails, after=("mappings", "shared-tails")),
    "folio-heads": _Whole(check_folios, after=("mappings", "private-tails")),
    "folio-nodes": _Whole(check_folio_nodes, after=("mappings",)),
    # A folio's reference count may be a copy of that of a shared tail page.
    "pools": _Whole(check_pools, after=("mappings", "shared-tails")),
    "reserves": _Whole(check_reserves),
    "folio-tails": _Scan(FolioTails, after=("mappings",)),
    # Former huge pages may have reference counts of a shared tail page.
    "stray-heads": _Scan(StrayHeads, after=("shared-tails",)),
    "compound-heads": _Scan(CompoundHeads),
}


def _with_earlier(checks: Iterable[Check]) -> set[Check]:
    """Checks, and all that have to run before them."""
    wanted: set[Check] = set()
    todo = list(checks)
    while todo:
        check = todo.pop()
        if check not in wanted:
            wanted.add(check)
            todo += _CHECKS[check].after
    return wanted


def run_checks(context: Context, checks: Iterable[Check]) -> None:
    """Run some checks, and those that have to run before them."""
    possible = {r.decide for r in RULES if _is_possible(context.hvo, r)}
    wanted = _with_earlier(checks) & possible
    scans = []
    for name, check in _CHECKS.items():
        if name not in wanted:
            continue
        if isinstance(check, _Whole):
            check.run(context)
        else:
            scans.append(check.start(context))
    if scans:
        scan(context, scans)
    for scanned in scans:
        scanned.report()
    context.audit.transitional |= context.transitions.found


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
            reason = "not asked for"
        if reason is not None:
            audit.skipped[rule.id] = reason
    active = [rule for rule in RULES if rule.id not in audit.skipped]
    decided = [rule for rule in active if _is_possible(hvo, rule)]
    run_checks(Context(hvo, audit), {rule.decide for rule in decided})
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
