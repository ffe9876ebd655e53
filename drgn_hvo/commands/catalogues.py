# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Catalogues
----------

``rules`` and ``defects``: the tables that the audit uses, as text and
JSON.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from drgn_hvo.audit.defects import DEFECTS, Defect
from drgn_hvo.audit.rules import RULES
from drgn_hvo.commands.document import envelope

if TYPE_CHECKING:
    from drgn_hvo.commands.catalogue_reports import (
        DefectEntry,
        DefectsReport,
        RulesReport,
    )

__all__ = (
    "defects_document",
    "print_defects",
    "print_rules",
    "rules_document",
)


def rules_document() -> RulesReport:
    """What ``rules --json`` prints."""
    return {
        **envelope(),
        "rules": [
            {
                "id": rule.id,
                "holds": rule.holds,
                "source": rule.source,
                "severity": rule.severity,
                "deep": rule.deep,
            }
            for rule in RULES
        ],
    }


def defects_document() -> DefectsReport:
    """What ``defects --json`` prints."""
    return {
        **envelope(),
        "defects": [_defect(defect) for defect in DEFECTS.values()],
    }


def _defect(defect: Defect) -> DefectEntry:
    return {
        "name": defect.name,
        "rules": list(defect.rules),
        "state": defect.state,
        "kernels": defect.kernels,
        "confirm": defect.confirm,
        "leads_to": defect.leads_to,
    }


def _print_entry(title: str, **parts: str) -> None:
    print(title)
    width = max(len(name) for name in parts) + 4
    for name, text in parts.items():
        indent = " " * width
        print(
            textwrap.fill(
                text,
                width=88,
                initial_indent=f"  {name}".ljust(width),
                subsequent_indent=indent,
            )
        )


def print_rules() -> None:
    """Print all rules for people."""
    for rule in RULES:
        deep = ", only with --deep" if rule.deep else ""
        _print_entry(
            f"{rule.id} ({rule.severity}{deep})", holds=rule.holds, source=rule.source
        )


def print_defects() -> None:
    """Print all known defects for people."""
    for defect in DEFECTS.values():
        _print_entry(
            defect.name,
            rules=", ".join(defect.rules),
            state=defect.state,
            kernels=defect.kernels,
            confirm=defect.confirm,
            leads_to=defect.leads_to,
        )
