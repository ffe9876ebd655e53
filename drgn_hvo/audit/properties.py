# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Properties of a kernel
----------------------

Facts that are by design in one kernel and would be damage in another: the output
mentions each once, never as a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

from drgn_hvo.memmap.hvo import Hvo

__all__ = ("Property", "kernel_properties")


@dataclass(frozen=True)
class Property:
    """
    A property.

    :param name: Of the entry in :data:`~drgn_hvo.audit.defects.DEFECTS`.
    :param text: One line.
    """

    name: str
    text: str


def kernel_properties(hvo: Hvo, *, tails_are_writable: bool) -> list[Property]:
    """
    The properties of a kernel.

    :param tails_are_writable: Whether those of its huge pages are, by design.
    """
    if not tails_are_writable:
        return []
    return [
        Property(
            "tails-writable-by-design",
            f"shared tails are mapped writable on {hvo.kernel.arch}, by design: stray "
            "writes to them are not caught",
        )
    ]
