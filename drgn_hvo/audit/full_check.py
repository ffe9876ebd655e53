# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Findings of a part in an audit of all
-------------------------------------

An audit of one page finds what an audit of the whole kernel finds there. That one is
made only when something was found, to say which of its findings these are.
"""

from __future__ import annotations

from functools import cached_property
from typing import Optional

from drgn import ProgramFlags

from drgn_hvo.audit.findings import Finding
from drgn_hvo.audit.rules import RuleId
from drgn_hvo.audit.run import run_audit
from drgn_hvo.audit.subjects import Subject
from drgn_hvo.errors import HvoError
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("FullCheck",)


class FullCheck:
    """Where the findings of a part of a kernel stand in an audit of all of it."""

    def __init__(self, hvo: Hvo) -> None:
        self._hvo = hvo

    @cached_property
    def _places(self) -> tuple[dict[tuple[RuleId, Subject], int], dict[RuleId, int]]:
        """By rule and subject; and the finding into which others of a rule went."""
        places: dict[tuple[RuleId, Subject], int] = {}
        rests: dict[RuleId, int] = {}
        if self._hvo.kernel.prog.flags & ProgramFlags.IS_LIVE:
            return places, rests  # the next audit may find others
        try:
            audit = run_audit(self._hvo)
        except HvoError:
            return places, rests
        for i, (finding, _) in enumerate(audit.ordered()):
            places.setdefault((finding.rule, finding.about), i)
            if audit.has_rest(finding.rule):
                rests[finding.rule] = i
        return places, rests

    def index(self, finding: Finding) -> Optional[int]:
        """
        The index of a finding among those of ``check``, in their order; ``None`` if
        that is not known.
        """
        places, rests = self._places
        return places.get((finding.rule, finding.about), rests.get(finding.rule))
