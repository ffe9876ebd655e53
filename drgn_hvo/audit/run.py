# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Checks
------

What decides the rules of :mod:`drgn_hvo.audit.rules`. Each check reads what the layers
below already have and adds to an :class:`~drgn_hvo.audit.findings.Audit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional, Union

from drgn_hvo.audit.check_compound_heads import CompoundHeads
from drgn_hvo.audit.check_folios import FolioTails, check_folios
from drgn_hvo.audit.check_mappings import check_mapping
from drgn_hvo.audit.check_pools import check_pools
from drgn_hvo.audit.check_shared_tails import check_tails
from drgn_hvo.audit.check_stray_heads import StrayHeads
from drgn_hvo.audit.confirm import confirmed
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Audit
from drgn_hvo.audit.rules import RULES
from drgn_hvo.audit.scan import scan
from drgn_hvo.errors import UnavailableError
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("confirmed_audit", "run_audit")


def check_pages(context: Context) -> None:
    """
    Decide ``folio-tail-info``, ``stray-head`` and ``compound-heads``, which look at all
    struct pages of a page of vmemmap: in one pass, so that each is read once.
    """
    rules: list[Union[FolioTails, StrayHeads, CompoundHeads]] = [FolioTails(context)]
    if "stray-head" not in context.audit.skipped:
        rules.append(StrayHeads(context))
    if "compound-heads" not in context.audit.skipped:
        rules.append(CompoundHeads(context))
    scan(context, rules)
    for rule in rules:
        rule.report()


_CHECKS: tuple[Callable[[Context], None], ...] = (
    check_tails,
    check_mapping,
    check_folios,
    check_pools,
    check_pages,
)


def confirmed_audit(hvo: Hvo, *, deep: bool = False) -> Audit:
    """
    As :func:`run_audit()`; of a running kernel, what
    :func:`~drgn_hvo.audit.confirm.confirmed()` keeps of several.
    """
    return confirmed(hvo, lambda reading: run_audit(reading, deep=deep))


def run_audit(hvo: Hvo, *, deep: bool = False) -> Audit:
    """
    Check all rules.

    :param deep: Whether to check those that read all of vmemmap, too.
    :raises UnavailableError: if this kernel cannot be audited at all.
    """
    if not hvo.kernel.has_types:
        raise UnavailableError(
            f"an audit needs types: {hvo.kernel.no_types_reason}; debuginfo, given "
            "with -s, would do"
        )
    if not hvo.vmemmap.has_mappings:
        raise UnavailableError(
            f"an audit needs page tables, and those of {hvo.kernel.arch} cannot be "
            "walked"
        )
    audit = Audit()
    for rule in RULES:
        reason: Optional[str] = rule.applies(hvo.layout)
        if reason is None and rule.deep and not deep:
            reason = "only with --deep"
        if reason is not None:
            audit.skipped[rule.id] = reason
    context = Context(hvo, audit)
    for check in _CHECKS:
        check(context)
    for table in hvo.vmemmap.walk.missing:
        audit.missing(f"page tables of vmemmap ({table.reason})", 1, *_NEED_TABLES)
    audit.findings = [f for f in audit.findings if f.rule not in audit.skipped]
    return audit


# What cannot be decided where a page table of vmemmap is missing.
_NEED_TABLES = (
    "vmemmap-tail-frame",
    "vmemmap-tail-writable",
    "vmemmap-head-frame",
    "folio-head",
    "stray-shared-tail",
    "stray-head",
)
