# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``check``
---------

The integrity audit, for people (text), scripts (JSON) and test harnesses (KTAP).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import hashlib
from typing import TYPE_CHECKING, Literal, Optional

from drgn.helpers.common.format import print_table

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.audit.findings import Audit, Finding
from drgn_hvo.audit.properties import kernel_properties
from drgn_hvo.audit.rules import RULE_BY_ID, RULES, RuleId
from drgn_hvo.audit.run import NOT_ASKED, confirmed_audit
from drgn_hvo.commands.conclusions import check_conclusions, check_evidence
from drgn_hvo.commands.document import (
    dump_problems,
    kernel_document,
    print_document,
)
from drgn_hvo.errors import UsageError
from drgn_hvo.kernel.dump import dump_of
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.hwpoison import are_hwpoisoned

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import (
        AuditReport,
        CheckedEntry,
        CheckReport,
        ErrorReport,
        FindingEntry,
        PropertyEntry,
        RuleResultEntry,
        UndecidedEntry,
    )

__all__ = (
    "EXIT_CLEAN",
    "EXIT_FINDINGS",
    "EXIT_INCOMPLETE",
    "CheckScope",
    "check_document",
    "error_document",
    "exit_status",
    "parse_rules",
    "print_result",
    "restrictions",
    "summary",
    "undecided_rules",
)

EXIT_CLEAN = 0
EXIT_FINDINGS = 1
EXIT_INCOMPLETE = 3


def parse_rules(lists: Sequence[str]) -> frozenset[RuleId]:
    """
    Understand lists of rules, ``ID,…`` each: all that any of them names.

    :raises UsageError: if a rule does not exist, or a list is empty.
    """
    known: dict[str, RuleId] = {rule.id: rule.id for rule in RULES}
    found: set[RuleId] = set()
    for text in lists:
        names = sorted({name for name in text.split(",") if name})
        if not names:
            raise UsageError("an empty list of rules")
        for name in names:
            if name not in known:
                raise UsageError(
                    f"there is no rule {name!r}; 'drgn-hvo rules' lists them"
                )
            found.add(known[name])
    return frozenset(found)


@dataclass(frozen=True)
class CheckScope:
    """
    What an audit is asked for.

    :param deep: Read all of vmemmap.
    :param only: The rules to check; all if ``None``.
    :param ignore: Rules to leave out.
    :param strict: Warnings count as errors.
    :raises UsageError: if that leaves no rule.
    """

    deep: bool = False
    only: Optional[Collection[RuleId]] = None
    ignore: Collection[RuleId] = ()
    strict: bool = False

    def __post_init__(self) -> None:
        if not self.rules:
            raise UsageError("--rules and --ignore leave no rule to check")

    @property
    def rules(self) -> frozenset[RuleId]:
        """The rules that are left."""
        asked = RULE_BY_ID if self.only is None else self.only
        return frozenset(asked) - frozenset(self.ignore)


def check_document(hvo: Hvo, target: str, scope: CheckScope) -> AuditReport:
    """
    Audit a kernel: what ``check --format json`` prints, but for how long it took, which
    whoever opened it knows.
    """
    audit = confirmed_audit(hvo, deep=scope.deep, rules=scope.rules)
    for rule in scope.ignore:
        if scope.only is None or rule in scope.only:
            audit.skipped[rule] = "ignored"
    undecided = [*_not_run(audit, scope), *_undecided(audit)]
    complete = audit.complete and _is_whole(hvo) and not undecided
    ordered = audit.ordered()
    checked: AuditReport = {
        **kernel_document(target, hvo.kernel.release),
        "conclusions": [],
        "hvo_built": hvo.is_built,
        "hvo_enabled": hvo.is_enabled,
        "status": _status(audit, complete=complete),
        "complete": complete,
        "assumed": hvo.kernel.assumed,
        "ignored": sorted(scope.ignore),
        "checked": _checked(audit.checked),
        "not_in_dump": [
            {"what": what, "count": count} for what, count in audit.not_in_dump.items()
        ],
        "undecided": undecided,
        "in_transition": audit.in_transition,
        "excused": [
            {"rule": rule, "count": count} for rule, count in audit.excused.items()
        ],
        "hwpoisoned": _hwpoisoned(hvo, audit),
        "properties": _properties(hvo, scope),
        "rules": [_rule_result(audit, rule.id) for rule in RULES],
        "findings": [_finding(hvo, finding, cause) for finding, cause in ordered],
        "signature": _signature(ordered),
        "duration_s": None,
    }
    checked["conclusions"] = check_conclusions(checked)
    return checked


# Hexadecimal digits: 48 bits tell a million different ones apart.
_SIGNATURE_DIGITS = 12


def _signature(ordered: Sequence[tuple[Finding, Optional[int]]]) -> str:
    """
    Equal for the same story on any machine: which rules were broken for which orders,
    by what defect, as a consequence of what. Nothing of where, or how often.
    """
    told = {
        (
            finding.rule,
            finding.severity,
            finding.defect or "",
            -1 if finding.place.order is None else finding.place.order,
            "" if cause is None else ordered[cause][0].rule,
        )
        for finding, cause in ordered
    }
    text = "\n".join(" ".join(map(str, one)) for one in sorted(told))
    return hashlib.sha256(text.encode()).hexdigest()[:_SIGNATURE_DIGITS]


def _undecided(audit: Audit) -> list[UndecidedEntry]:
    return [
        {"rule": rule, "why": why, "count": count}
        for rule, reasons in audit.undecided.items()
        for why, count in reasons.items()
    ]


def _not_run(audit: Audit, scope: CheckScope) -> list[UndecidedEntry]:
    """Rules that were asked for by name, and could not run on this kernel at all."""
    if scope.only is None:
        return []
    return [
        {"rule": rule, "why": audit.skipped[rule], "count": 1}
        for rule in sorted(scope.rules & audit.skipped.keys())
    ]


def _is_whole(hvo: Hvo) -> bool:
    """
    Whether the dump claims to be all that it was meant to be. One that was cut off, not
    finished, or a piece of one is never called clean, whatever is in it: some of what
    is lost may be what would have been looked at next.
    """
    dump = dump_of(hvo.kernel.prog)
    return dump is None or dump.health.is_whole


def _hwpoisoned(hvo: Hvo, audit: Audit) -> Optional[int]:
    """How many huge pages are hardware-poisoned, if it was looked at huge pages."""
    which = are_hwpoisoned(hvo) if audit.checked.get("folios") else None
    return None if which is None else int(which.sum())


def _properties(hvo: Hvo, scope: CheckScope) -> list[PropertyEntry]:
    """Properties that bear on a rule that was asked for; it takes folios to know."""
    if "vmemmap-tail-writable" not in scope.rules:
        return []
    found = kernel_properties(hvo, tails_are_writable=hvo.hugetlb.tails_are_writable)
    return [{"name": one.name, "text": one.text} for one in found]


def _checked(counts: Mapping[str, int]) -> CheckedEntry:
    return {
        "folios": counts.get("folios", 0),
        "optimized_folios": counts.get("optimized_folios", 0),
        "shared_tail_pages": counts.get("shared_tail_pages", 0),
        "vmemmap_ptes": counts.get("vmemmap_ptes", 0),
        "struct_pages": counts.get("struct_pages", 0),
    }


def error_document(target: str, message: str, *, timeout: bool = False) -> ErrorReport:
    """
    What ``check --format json`` prints for a target that cannot be audited.

    :param timeout: Whether that is because it took too long.
    """
    return {
        **kernel_document(target, None),
        "status": "error",
        "error": message,
        "timeout": timeout,
        "complete": False,
        "duration_s": None,
    }


def _status(
    audit: Audit, *, complete: bool
) -> Literal["clean", "findings", "incomplete"]:
    if any(finding.severity == "error" for finding in audit.findings):
        return "findings"
    if not complete:
        return "incomplete"
    return "findings" if audit.findings else "clean"


def _rule_result(audit: Audit, rule: RuleId) -> RuleResultEntry:
    if rule in audit.skipped:
        return {"id": rule, "result": "skip", "reason": audit.skipped[rule]}
    if audit.failed(rule):
        return {"id": rule, "result": "fail", "reason": None}
    if rule in audit.undecided:
        reason = next(iter(audit.undecided[rule]))
        return {"id": rule, "result": "skip", "reason": reason}
    return {"id": rule, "result": "pass", "reason": None}


def _hex(value: Optional[int]) -> Optional[str]:
    return None if value is None else f"{value & (1 << 64) - 1:#x}"


def _finding(hvo: Hvo, finding: Finding, cause: Optional[int]) -> FindingEntry:
    from drgn_hvo.audit.difference import difference_of

    difference = difference_of(hvo, finding)
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "message": finding.message,
        "defect": finding.defect,
        "affected": finding.affected,
        "folded": finding.folded,
        "caused_by": cause,
        "nid": finding.place.nid,
        "zone": finding.place.zone,
        "order": finding.place.order,
        "pfn": finding.place.pfn,
        "head_pfn": finding.place.head_pfn,
        "address": _hex(finding.place.address),
        "physical_address": _hex(finding.place.physical_address),
        "expected": _hex(finding.expected),
        "actual": _hex(finding.actual),
        "difference": None if difference is None else difference.text,
        "suspect": None if difference is None else difference.suspect,
    }


def exit_status(doc: AuditReport, *, strict: bool) -> int:
    """
    The exit status for one target.

    :param strict: Whether warnings count.
    """
    severities = {finding["severity"] for finding in doc["findings"]}
    if "error" in severities or (strict and severities):
        return EXIT_FINDINGS
    return EXIT_CLEAN if doc["complete"] else EXIT_INCOMPLETE


def print_result(
    doc: CheckReport, output_format: str, *, evidence: bool = False
) -> None:
    """
    Print a document of :func:`check_document()`, as ``"text"`` or ``"json"``.

    :param evidence: Whether text says how things were decided, too.
    """
    print_text = partial(_print_check, evidence=evidence)
    print_document(doc, print_text, as_json=output_format == "json")


def _print_check(doc: CheckReport, *, evidence: bool) -> None:
    if doc["status"] == "error":
        print(f"{doc['target']}: {summary(doc)}")
        return
    for problem in dump_problems(doc):
        print(f"{doc['target']}: the dump is {problem}")
    print(f"{doc['target']}: {summary(doc)}{restrictions(doc)}")
    for sentence in doc["conclusions"]:
        print(f"  {sentence}")
    if doc["findings"]:
        print()
    _print_checked(doc)
    if doc["findings"]:
        print()
        _print_findings(doc["findings"])
        _print_defects(doc["findings"])
    if evidence and doc["findings"]:
        print("\nHow that was decided")
        for line in check_evidence(doc):
            print(f"  {line}")


def _print_checked(doc: AuditReport) -> None:
    """What was looked at, and what was not."""
    checked = doc["checked"]
    seen = "" if doc["complete"] else "seen to be "
    print(
        f"  {doc['release']}: {checked['folios']} huge pages, "
        f"{checked['optimized_folios']} {seen}optimized; "
        f"{checked['shared_tail_pages']} shared tail pages, "
        f"{checked['vmemmap_ptes']} pages of vmemmap, "
        f"{checked['struct_pages']} struct pages"
    )
    if doc["in_transition"]:
        print(f"  {doc['in_transition']} compound pages are in transition, no damage")
    if doc["excused"]:
        excused = ", ".join(item["rule"] for item in doc["excused"])
        print(f"  hugetlb_lock was held, and what its holder was doing: {excused}")
    if doc["hwpoisoned"]:
        print(
            f"  memory failed in {doc['hwpoisoned']} huge pages, which is no damage of "
            "the kernel's: show lists them"
        )
    for one in doc["properties"]:
        print(f"  {one['text']} ({one['name']})")
    for item in doc["not_in_dump"]:
        print(f"  not in this dump: {item['count']} {item['what']}")
    for why, rules in undecided_rules(doc):
        print(f"  could not be decided: {', '.join(rules)}: {why}")


def restrictions(doc: AuditReport) -> str:
    """
    What a result holds only for, fit to stand behind it: nobody shall take an audit
    with rules left out, or of a layout that was claimed, for one without.
    """
    asked = [rule["id"] for rule in doc["rules"] if rule["reason"] != NOT_ASKED]
    parts = [f"assumed {key}={value}" for key, value in doc["assumed"].items()]
    if len(asked) < len(doc["rules"]):
        parts.append(f"only {', '.join(asked)}")
    if doc["ignored"]:
        parts.append(f"ignored {', '.join(doc['ignored'])}")
    return f" ({'; '.join(parts)})" if parts else ""


def undecided_rules(doc: AuditReport) -> Iterator[tuple[str, list[str]]]:
    """Reasons why rules could not be decided, and which rules each stopped."""
    by_why: dict[str, list[str]] = {}
    for item in doc["undecided"]:
        by_why.setdefault(item["why"], []).append(item["rule"])
    # Many reasons stop the same rules.
    by_rules: dict[tuple[str, ...], list[str]] = {}
    for why, rules in by_why.items():
        by_rules.setdefault(tuple(rules), []).append(why)
    for stopped, reasons in by_rules.items():
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        yield reasons[0] + more, list(stopped)


def summary(doc: CheckReport) -> str:
    """How an audit ended, in a few words."""
    if doc["status"] == "error":
        return f"error: {doc['error']}"
    errors = sum(f["severity"] == "error" for f in doc["findings"])
    warnings = len(doc["findings"]) - errors
    parts = []
    if errors:
        parts.append(f"{errors} error{'s' if errors > 1 else ''}")
    if warnings:
        parts.append(f"{warnings} warning{'s' if warnings > 1 else ''}")
    if doc["complete"]:
        return ", ".join(parts) or "clean"
    return ", ".join([*(parts or ["no error found"]), "incomplete"])


def _print_findings(findings: list[FindingEntry]) -> None:
    rows: list[list[object]] = [
        ["#", "SEVERITY", "RULE", "HUGE PAGES", "CAUSE", "AT", "EXPECTED", "FOUND"]
    ]
    for i, finding in enumerate(findings):
        rows.append(
            [
                i,
                finding["severity"],
                finding["rule"],
                finding["affected"],
                "" if finding["caused_by"] is None else f"#{finding['caused_by']}",
                finding["physical_address"] or "",
                finding["expected"] or "",
                finding["actual"] or "",
            ]
        )
    print_table(rows)
    print()
    for i, finding in enumerate(findings):
        more = f" (and {finding['folded']} more like it)" if finding["folded"] else ""
        print(f"#{i} {finding['message']}{more}")


def _print_defects(findings: list[FindingEntry]) -> None:
    for name in dict.fromkeys(f["defect"] for f in findings if f["defect"]):
        defect = DEFECTS[name]
        print(f"\nKnown kernel defect: {name}")
        print(f"  state     {defect.state}")
        print(f"  kernels   {defect.kernels}")
        print(f"  confirm   {defect.confirm}")
        print(f"  leads to  {defect.leads_to}")
