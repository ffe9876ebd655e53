# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What an audit finds
-------------------

Collects findings, what could not be decided and why, and brings them into the order
in which a person wants to read them: causes first, each consequence behind them and
pointing at its cause, equal ones folded into a count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Optional

from drgn_hvo.audit.rules import RULE_BY_ID, RULES, RuleId
from drgn_hvo.audit.subjects import Subject
from drgn_hvo.kernel.unread import NOT_IN_DUMP, READS_AS_ZEROS, Need, Unread

__all__ = ("NOWHERE", "Audit", "Finding", "Place", "Spot")

# At most this many findings per rule; the rest are folded into the last.
_MAX_PER_RULE = 16

_RANK = {rule.id: i for i, rule in enumerate(RULES)}


@dataclass(frozen=True)
class Spot:
    """
    Where a word is, and what it holds.

    :param address: Its virtual address, ``None`` if that is not known.
    :param physical_address: ``None`` if it is not known.
    :param value: ``None`` if it was not read.
    """

    address: Optional[int]
    physical_address: Optional[int]
    value: Optional[int] = None


@dataclass(frozen=True)
class Place:
    """
    Where something is wrong; what is not known, or does not apply, is ``None``.

    :param nid: ID of the node.
    :param zone: Name of the zone.
    :param order: Order of the folio or of the slot of ``vmemmap_tails[]``.
    :param pfn: The page.
    :param head_pfn: The head of its folio.
    :param address: Virtual address of the wrong word.
    :param physical_address: Physical address of the wrong word.
    """

    nid: Optional[int] = None
    zone: Optional[str] = None
    order: Optional[int] = None
    pfn: Optional[int] = None
    head_pfn: Optional[int] = None
    address: Optional[int] = None
    physical_address: Optional[int] = None

    def at(self, spot: Spot, *, pfn: Optional[int] = None) -> Place:
        """The same place, with the word that is wrong and the page it concerns."""
        return replace(
            self,
            pfn=self.pfn if pfn is None else pfn,
            address=spot.address,
            physical_address=spot.physical_address,
        )


#: The place of what lies nowhere in particular.
NOWHERE = Place()


@dataclass(frozen=True)
class Finding:
    """
    Something that breaks a rule.

    :param about: What it is about.
    :param because: Subjects whose own findings would explain this one.
    :param affected: How many huge pages it touches.
    :param folded: How many more equal ones there are.
    :param place: Where it is.
    :param expected: What should be there, a word or (for counters) a number.
    """

    rule: RuleId
    message: str
    about: Subject
    because: tuple[Subject, ...] = ()
    severity: str = ""
    defect: Optional[str] = None
    affected: int = 1
    folded: int = 0
    place: Place = NOWHERE
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
    #: Rules that could not be decided everywhere: why, and in how many places.
    undecided: dict[RuleId, dict[str, int]] = field(default_factory=dict)
    #: Rules that mean nothing here, and why.
    skipped: dict[RuleId, str] = field(default_factory=dict)
    #: Heads of folios and other compound pages that were looked at while they changed.
    transitional: set[int] = field(default_factory=set)
    #: What was not held against the kernel because hugetlb_lock was held, by rule.
    excused: dict[RuleId, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Add a finding, or fold it into one that is equal."""
        rule = RULE_BY_ID[finding.rule]
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

    def again(self, rule: RuleId, about: Subject, count: int) -> bool:
        """
        Count more findings if there is an equal one already, so that half a million
        need not be made only to be folded.

        :param count: How many more.
        :return: Whether there is an equal one.
        """
        for i, finding in enumerate(self.findings):
            if (finding.rule, finding.about) == (rule, about):
                self.findings[i] = replace(finding, folded=finding.folded + count)
                return True
        return False

    def _fold(self, i: int, finding: Finding, *, new_subject: bool) -> None:
        first = self.findings[i]
        affected = first.affected + (finding.affected if new_subject else 0)
        folded = first.folded + finding.folded + 1
        self.findings[i] = replace(first, folded=folded, affected=affected)

    def missing(self, need: Need, what: str, count: int) -> None:
        """
        Note what is not in the dump: rules that need it cannot be decided everywhere.

        :param what: Names it for people.
        :param count: How many of it; with 0 nothing is noted.
        """
        if count:
            self.unread(Unread(need, what, count=count))

    def blank(self, need: Need, what: str, count: int) -> None:
        """Note what reads as zeros and cannot be that; else as :meth:`missing()`."""
        if count:
            self.unread(Unread(need, what, READS_AS_ZEROS, count))

    def unread(self, unread: Unread) -> None:
        """Note what could not be read: rules that need it are undecided."""
        if unread.need is None:
            return
        what, why = unread.what, unread.why
        name = what if why == NOT_IN_DUMP else f"{what} ({why})"
        self.not_in_dump[name] = self.not_in_dump.get(name, 0) + unread.count
        for rule in RULES:
            if unread.need in rule.needs:
                self.undecide(rule.id, f"{what} {why}", unread.count)

    def undecide(self, rule: RuleId, why: str, count: int = 1) -> None:
        """
        Note that a rule cannot be decided somewhere.

        :param why: Why; equal reasons are counted.
        """
        reasons = self.undecided.setdefault(rule, {})
        reasons[why] = reasons.get(why, 0) + count

    def excuse(self, rule: RuleId) -> None:
        """Count something that would break a rule, were the lock not held."""
        self.excused[rule] = self.excused.get(rule, 0) + 1

    def count(self, what: str, count: int) -> None:
        """Add to the number of things that were looked at."""
        self.checked[what] = self.checked.get(what, 0) + count

    def keep_common(self, earlier: Audit) -> None:
        """Forget what an earlier audit of the same kernel did not find as well."""
        seen = {_evidence(finding) for finding in earlier.findings}
        self.findings = [f for f in self.findings if _evidence(f) in seen]
        common = self.undecided.keys() & earlier.undecided.keys()
        self.undecided = {rule: self.undecided[rule] for rule in common}

    def leave_out(self, rules: Collection[RuleId]) -> None:
        """Forget what was found, or could not be decided, about some rules."""
        self.findings = [f for f in self.findings if f.rule not in rules]
        kept = {rule: why for rule, why in self.undecided.items() if rule not in rules}
        self.undecided = kept
        self.excused = {r: n for r, n in self.excused.items() if r not in rules}

    @property
    def in_transition(self) -> int:
        """How many compound pages are excused because they are in transition."""
        return len(self.transitional)

    @property
    def accuses(self) -> bool:
        """Whether anything is wrong with what was looked at."""
        return bool(self.findings)

    def has_rest(self, rule: RuleId) -> bool:
        """Whether there may be more findings of a rule, folded into its last one."""
        return sum(f.rule == rule for f in self.findings) >= _MAX_PER_RULE

    def failed(self, rule: RuleId) -> bool:
        """Whether anything broke a rule."""
        return any(finding.rule == rule for finding in self.findings)

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
