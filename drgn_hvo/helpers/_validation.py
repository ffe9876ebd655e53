# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Validators
----------

How a helper validates one subject of the audit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from drgn import FaultError, Program
from drgn.helpers import ValidationError

from drgn_hvo.audit.confirm import confirmed
from drgn_hvo.audit.findings import Audit
from drgn_hvo.audit.rules import RuleId
from drgn_hvo.errors import UnavailableError
from drgn_hvo.memmap.hvo import Hvo, hvo_of

__all__ = ("SubjectAudit", "validate")


@dataclass
class SubjectAudit(Audit):
    """
    An audit of one subject, such as a folio.

    :param no_subject: Why what was named is no such subject, if it is none.
    """

    no_subject: Optional[str] = None

    @property
    def accuses(self) -> bool:
        """Whether the subject is wrong, or is none."""
        return bool(self.findings) or self.no_subject is not None

    def keep_common(self, earlier: Audit) -> None:
        """Forget what an earlier audit of the same subject did not find as well."""
        super().keep_common(earlier)
        assert isinstance(earlier, SubjectAudit)
        if self.no_subject != earlier.no_subject:
            self.no_subject = None


def validate(
    prog: Program,
    look: Callable[[Hvo], SubjectAudit],
    rules: tuple[RuleId, ...],
    address: int,
) -> None:
    """
    Validate one subject, on a running kernel as often as an audit looks at all.

    :param look: Audits the subject in one reading of the kernel, and keeps the findings
        that count.
    :param rules: Those that have to be decided.
    :param address: Of what is validated.
    :raises ValidationError: if there is a finding, or no such subject.
    :raises FaultError: if there is none, but not everything could be read.
    :raises UnavailableError: if there is none, but a rule could not be decided.
    """
    audit = confirmed(hvo_of(prog), look)
    if audit.no_subject is not None:
        raise ValidationError(audit.no_subject)
    findings = audit.findings
    if findings:
        ordered = Audit(findings=findings).ordered()
        first, _ = ordered[0]
        more = f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else ""
        raise ValidationError(f"{first.rule}: {first.message}{more}")
    reasons = [why for rule in rules for why in audit.undecided.get(rule, ())]
    if reasons and audit.not_in_dump:
        raise FaultError(reasons[0], address)
    if reasons:
        raise UnavailableError(reasons[0])
