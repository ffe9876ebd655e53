# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damage to sections
------------------

Words of ``struct mem_section``: each function makes the changes of one entry of
:data:`~drgn_hvo.synth.damage.faults.FAULTS`, which says what they are.
"""

from __future__ import annotations

from drgn_hvo.synth.damage.targets import Change, Targets

__all__ = ("section_order",)

Changes = list[Change]


def section_order(t: Targets) -> Changes:
    c_type = t.plan.structures.mem_section
    offset = c_type.offset("compound_page_order")
    address = t.machine.sections[t.section()] + offset
    return [t.flip(address, 1 << 3, "compound_page_order of a section", 4)]
