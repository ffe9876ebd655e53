# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Deliberate mistakes, and the tests that must notice them
--------------------------------------------------------

Each :class:`~tools.mutants.mutant.Mutant` is one wrong line in one file of the package,
with the reason why that line matters and the tests that must fail because of it.
``python -m tools.mutants`` makes each mistake in a copy of the tree and runs those
tests; see ``docs/testing.md``.
"""

from __future__ import annotations

from tools.mutants.audit import AUDIT
from tools.mutants.audit_folios import AUDIT_FOLIOS
from tools.mutants.audit_mappings import AUDIT_MAPPINGS
from tools.mutants.audit_transitions import AUDIT_TRANSITIONS
from tools.mutants.commands import COMMANDS
from tools.mutants.extract import EXTRACT
from tools.mutants.formats import FORMATS
from tools.mutants.helpers import HELPERS
from tools.mutants.kernel import KERNEL
from tools.mutants.memmap import MEMMAP
from tools.mutants.mutant import Mutant
from tools.mutants.synth import SYNTH

__all__ = ("MUTANTS",)

#: All of them, by the rooms of ``docs/architecture.md``.
MUTANTS: tuple[Mutant, ...] = (
    *FORMATS,
    *KERNEL,
    *MEMMAP,
    *AUDIT_MAPPINGS,
    *AUDIT_FOLIOS,
    *AUDIT_TRANSITIONS,
    *AUDIT,
    *HELPERS,
    *COMMANDS,
    *EXTRACT,
    *SYNTH,
)
