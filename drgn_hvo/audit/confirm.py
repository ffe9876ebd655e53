# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Believing a running kernel
--------------------------

Memory changes while it is read, so one reading of a running kernel accuses nobody: only
what every one of several readings shows, in the same words of memory, is a finding.
:func:`confirmed()` is that policy, for whole audits and for those of one subject.
"""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import TypeVar

from drgn import ProgramFlags

from drgn_hvo.audit.findings import Audit
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("confirmed",)

AnyAudit = TypeVar("AnyAudit", bound=Audit)

# Seconds after which what looks wrong is read again: HVO remaps a folio in
# milliseconds.
_PAUSE = 0.1

# Readings that must agree if the pools did not change between them.
_QUIET_READINGS = 3

# Where pools change all the time, one reading mixes what was before with what came
# after, and it takes more readings until none but real findings are left.
_MOST_READINGS = 12


def confirmed(hvo: Hvo, look: Callable[[Hvo], AnyAudit]) -> AnyAudit:
    """
    Audit a kernel: a core once; a running kernel again, as long as something looks
    wrong and a bounded number of times, keeping what all readings find.

    :param look: Makes one audit of one reading of the kernel.
    :return: The last audit, with only those findings, and only those undecided rules,
        that all readings had.
    :raises HvoError: what *look* raises, at any reading.
    """
    audit = look(hvo)
    if not hvo.kernel.prog.flags & ProgramFlags.IS_LIVE:
        return audit
    quiet = 1
    for reading in range(1, _MOST_READINGS):
        doubtful = audit.undecided and reading < _QUIET_READINGS
        if quiet == _QUIET_READINGS or not (audit.accuses or doubtful):
            break
        time.sleep(_PAUSE)
        again = Hvo(hvo.kernel, hvo)
        fresh = look(again)
        fresh.keep_common(audit)
        audit = fresh
        quiet = quiet + 1 if _pools(again) == _pools(hvo) else 1
        hvo = again
    return audit


def _pools(hvo: Hvo) -> tuple[object, ...]:
    """What changes whenever a huge page does."""
    return hvo.hugetlb.hstates, hvo.hugetlb.lists
