# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The page on rules and defects
-----------------------------

Makes ``docs/rules.md`` from the tables that the audit uses.
"""

from __future__ import annotations

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.audit.rules import RULES

__all__ = ("rules_page",)


def rules_page() -> str:
    """The page of the documentation on rules and defects, in Markdown."""
    lines = [
        "# Rules of `drgn-hvo check`",
        "",
        "Made from `drgn_hvo/audit/rules.py` and `drgn_hvo/audit/defects.py` by",
        "`python -m tools.rules_page > docs/rules.md`.",
        "",
        "| rule | severity | holds when | kernel source |",
        "|---|---|---|---|",
    ]
    for rule in RULES:
        deep = " (`--deep`)" if rule.deep else ""
        lines.append(
            f"| `{rule.id}` | {rule.severity}{deep} | {rule.holds} | {rule.source} |"
        )
    lines += ["", "## What is no damage", ""]
    lines += [
        "A kernel stops between two stores. What it leaves half done is counted",
        "(`in_transition`, `excused`), and not held against it:",
        "",
    ]
    for rule in RULES:
        if rule.in_transition:
            lines.append(f"- `{rule.id}`, in transition: {rule.in_transition}")
        if rule.locked is not None:
            lines.append(
                f"- `{rule.id}`, while `hugetlb_lock` is held: {rule.locked.what}"
            )
    lines += [
        "",
        "Where nothing tells whether the lock was held, such a rule is not decided.",
    ]
    lines += ["", "## Known kernel defects", ""]
    for defect in DEFECTS.values():
        lines += [
            f"### `{defect.name}`",
            "",
            f"- breaks: {', '.join(f'`{rule}`' for rule in defect.rules)}",
            f"- state: {defect.state}",
            f"- kernels: {defect.kernels}",
            f"- confirm: {defect.confirm}",
            f"- leads to: {defect.leads_to}",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(rules_page(), end="")
