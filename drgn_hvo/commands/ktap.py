# SPDX-License-Identifier: LGPL-2.1-or-later

"""
KTAP
----

Results of ``check`` for test harnesses (:linux:`Documentation/dev-tools/ktap.rst`): a
test for each target, with one for each rule in it, printed as results come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drgn_hvo.commands.check import restrictions
from drgn_hvo.commands.document import dump_problems, printable_document

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import (
        AuditReport,
        CheckReport,
        FindingEntry,
        RuleResultEntry,
    )

__all__ = ("print_ktap_document", "print_ktap_plan")


def print_ktap_plan(targets: int) -> None:
    """Print what comes in front of all results."""
    print("KTAP version 1")
    print(f"1..{targets}")


def print_ktap_document(number: int, doc: CheckReport, *, strict: bool) -> None:
    """
    Print the result of one target.

    :param number: Of the target, from 1 on.
    :param strict: Whether warnings are failures.
    """
    doc = printable_document(doc)
    name = _description(doc["target"])
    if doc["status"] == "error":
        print(f"# {doc['error']}")
        # ktap.rst knows TIMEOUT and ERROR as directives; both are failures.
        directive = "TIMEOUT" if doc["timeout"] else "ERROR"
        print(f"not ok {number} {name} # {directive}")
        return
    for problem in dump_problems(doc):
        print(f"# the dump is {problem}")
    restricted = restrictions(doc)
    if restricted:
        print(f"#{restricted}")
    rules = doc["rules"]
    print("  KTAP version 1")
    print(f"  1..{len(rules)}")
    failed = [_print_rule(i, rule, doc, strict) for i, rule in enumerate(rules, 1)]
    # What was not decided was not shown to be right.
    good = doc["complete"] and not any(failed)
    if not doc["complete"]:
        print("# incomplete: not every rule could be decided")
    print(f"{'ok' if good else 'not ok'} {number} {name}")


def _description(text: str) -> str:
    """A description must not contain what begins a directive."""
    return text.replace("#", "_")


def _print_rule(
    number: int, rule: RuleResultEntry, doc: AuditReport, strict: bool
) -> bool:
    """Print the result of one rule; say whether it is a failure."""
    findings = [f for f in doc["findings"] if f["rule"] == rule["id"]]
    for finding in findings:
        print(f"  # {finding['severity']}: {finding['message']}")
        where = _where(finding)
        if where:
            print(f"  #   {where}")
    failed = any(strict or finding["severity"] == "error" for finding in findings)
    skip = f" # SKIP {rule['reason']}" if rule["result"] == "skip" else ""
    print(f"  {'not ok' if failed else 'ok'} {number} {rule['id']}{skip}")
    return failed


_PLACES = ("nid", "zone", "order", "pfn", "head_pfn", "physical_address", "defect")


def _where(finding: FindingEntry) -> str:
    """Node, zone, PFN and so on of a finding, as far as they are known."""
    values: dict[str, object] = dict(finding)
    known = ((name, values[name]) for name in _PLACES if values[name] is not None)
    return " ".join(f"{name}={value}" for name, value in known)
