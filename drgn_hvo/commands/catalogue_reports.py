# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports without a target, typed
-------------------------------

What ``synth`` and the catalogues print as JSON, as :mod:`drgn_hvo.commands.reports` has
the documents of the other commands.
"""

from __future__ import annotations

from typing import Optional, TypedDict

from drgn_hvo.audit.rules import RuleId
from drgn_hvo.commands.reports import AnyReport, Hex

__all__ = (
    "AppliedFaultEntry",
    "ChangeEntry",
    "DefectEntry",
    "DefectsReport",
    "FaultsReport",
    "KnownFaultEntry",
    "RuleEntry",
    "RulesReport",
    "SynthReport",
)


class ChangeEntry(TypedDict):
    """Bytes that a fault changed, in hex without ``0x``."""

    physical_address: Hex
    old: str
    new: str
    what: str


class _FaultAlways(TypedDict):
    what: str
    rule: Optional[str]
    consequences: list[str]


class AppliedFaultEntry(_FaultAlways):
    """A fault that a core was made with."""

    fault: str
    changes: list[ChangeEntry]


class SynthReport(AnyReport):
    """``synth --fault``; *target* is the core that was written."""

    target: str
    faults: list[AppliedFaultEntry]


class KnownFaultEntry(_FaultAlways):
    """A fault that a core can be made with."""

    name: str
    generations: list[str]


class FaultsReport(AnyReport):
    """``faults``."""

    faults: list[KnownFaultEntry]


class RuleEntry(TypedDict):
    """What ``check`` checks."""

    id: RuleId
    holds: str
    source: str
    severity: str
    deep: bool


class RulesReport(AnyReport):
    """``rules``."""

    rules: list[RuleEntry]


class DefectEntry(TypedDict):
    """A known defect of kernels."""

    name: str
    rules: list[str]
    state: str
    kernels: str
    confirm: str
    leads_to: str


class DefectsReport(AnyReport):
    """``defects``."""

    defects: list[DefectEntry]
