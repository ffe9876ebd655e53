# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What an audit finds
-------------------

Collects findings, what could not be decided and why, and brings them into the order
in which a person wants to read them: causes first, each consequence behind them and
pointing at its cause, equal ones folded into a count.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Optional

from drgn_hvo.audit.rules import RULES, rule_by_id

__all__ = ("Audit", "Finding", "Subject")

#: What a finding is about, such as ``("folio", 512)``. A finding that depends on a
#: subject is a consequence of the findings about it.
Subject = tuple[Hashable, ...]

# One rule broken in a thousand places is one story: so many are told.
_MAX_PER_RULE = 16

_RANK = {rule.id: i for i, rule in enumerate(RULES)}


@dataclass(frozen=True)
class Finding:
    """
    Something that breaks a rule.

    :param about: What it is about.
    :param because: Subjects whose own findings would explain this one.
    :param affected: How many huge pages it touches.
    :param folded: How many more equal ones there are.
    :param address: Virtual address of what is wrong.
    :param expected: What should be there, a word or (for counters) a number.
    """

    rule: str
    message: str
    about: Subject
    because: tuple[Subject, ...] = ()
    severity: str = ""
    defect: Optional[str] = None
    affected: int = 1
    folded: int = 0
    nid: Optional[int] = None
    zone: Optional[str] = None
    order: Optional[int] = None
    pfn: Optional[int] = None
    head_pfn: Optional[int] = None
    address: Optional[int] = None
    physical_address: Optional[int] = None
    expected: Optional[int] = None
    actual: Optional[int] = None


def _evidence(finding: Finding) -> Finding:
    """A finding without how often it was made, and how bad that is."""
    return replace(finding, affected=0, folded=0, severity="")


@dataclass
class Audit:
    """Collects what the checks find; they only ever add to it."""

    findings: list[Finding] = field(default_factory=list)
    #: What the dump does not have, and how many of it.
    not_in_dump: dict[str, int] = field(default_factory=dict)
    #: Rules that could not be decided everywhere, and why.
    undecided: dict[str, str] = field(default_factory=dict)
    #: Rules that mean nothing here, and why.
    skipped: dict[str, str] = field(default_factory=dict)
    in_transition: int = 0
    checked: dict[str, int] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Add a finding, or fold it into one that is equal."""
        rule = rule_by_id(finding.rule)
        assert rule is not None, finding.rule
        finding = replace(finding, severity=finding.severity or rule.severity)
        same_rule = [i for i, f in enumerate(self.findings) if f.rule == finding.rule]
        for i in same_rule:
            if self.findings[i].about == finding.about:
                self._fold(i, finding, new_subject=False)
                return
        if len(same_rule) >= _MAX_PER_RULE:
            self._fold(same_rule[-1], finding, new_subject=True)
            return
        self.findings.append(finding)

    def again(self, rule: str, about: Subject) -> bool:
        """
        Count one more finding if there is an equal one already: half a million need
        not be made to be folded.
        """
        for i, finding in enumerate(self.findings):
            if (finding.rule, finding.about) == (rule, about):
                self.findings[i] = replace(finding, folded=finding.folded + 1)
                return True
        return False

    def _fold(self, i: int, finding: Finding, *, new_subject: bool) -> None:
        first = self.findings[i]
        affected = first.affected + (finding.affected if new_subject else 0)
        folded = first.folded + finding.folded + 1
        self.findings[i] = replace(first, folded=folded, affected=affected)

    def missing(self, what: str, count: int, *rules: str) -> None:
        """
        Note what is not in the dump.

        :param rules: The rules that cannot be decided without it.
        """
        if count:
            self.not_in_dump[what] = self.not_in_dump.get(what, 0) + count
            for rule in rules:
                self.undecided.setdefault(rule, f"{what} not in this dump")

    def count(self, what: str, count: int) -> None:
        """Note that so many more were looked at."""
        self.checked[what] = self.checked.get(what, 0) + count

    def keep_common(self, earlier: Audit) -> None:
        """Forget what an earlier audit of the same kernel did not find as well."""
        seen = {_evidence(finding) for finding in earlier.findings}
        self.findings = [f for f in self.findings if _evidence(f) in seen]
        common = self.undecided.keys() & earlier.undecided.keys()
        self.undecided = {rule: self.undecided[rule] for rule in common}

    @property
    def accuses(self) -> bool:
        """Whether anything is wrong with what was looked at."""
        return bool(self.findings)

    def failed(self, rule: str) -> bool:
        """Whether anything broke a rule."""
        return any(finding.rule == rule for finding in self.findings)

    def about(self, subject: Subject) -> bool:
        """Whether there is a finding about a subject."""
        return any(finding.about == subject for finding in self.findings)

    @property
    def complete(self) -> bool:
        """Whether everything that had to be checked could be."""
        return not self.undecided

    def ordered(self) -> list[tuple[Finding, Optional[int]]]:
        """
        The findings in reading order, each with the index of its cause.

        Causes come first, errors before warnings, by rule; consequences follow, in
        the same order.
        """
        ranked = sorted(
            self.findings, key=lambda f: (f.severity != "error", _RANK[f.rule])
        )
        subjects = {finding.about for finding in ranked}
        roots = [f for f in ranked if not self._causes(f, subjects)]
        order = roots + [f for f in ranked if self._causes(f, subjects)]
        places: dict[Subject, int] = {}
        for i, finding in enumerate(order):
            places.setdefault(finding.about, i)
        return [(finding, self._place(finding, subjects, places)) for finding in order]

    def _causes(self, finding: Finding, subjects: set[Subject]) -> list[Subject]:
        return [s for s in finding.because if s in subjects and s != finding.about]

    def _place(
        self, finding: Finding, subjects: set[Subject], places: dict[Subject, int]
    ) -> Optional[int]:
        causes = [places[s] for s in self._causes(finding, subjects)]
        return min(causes) if causes else None
