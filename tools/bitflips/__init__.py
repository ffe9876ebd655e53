# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Flipped bits
------------

``python -m tools.bitflips CORE…`` turns every bit of the words of HVO's structures the
other way round, one at a time, and audits what is left: which bits are noticed, by
which rule, and which are not. What the kernel leaves free is in
:mod:`tools.bitflips.exemptions`, with the reason; any other bit has to be noticed.
"""

from __future__ import annotations

from tools.bitflips.exemptions import EXEMPTIONS, Exemption, exempt_bits
from tools.bitflips.flips import Flip, Machine
from tools.bitflips.words import Word, words_of

__all__ = (
    "EXEMPTIONS",
    "Exemption",
    "Flip",
    "Machine",
    "Word",
    "exempt_bits",
    "words_of",
)
