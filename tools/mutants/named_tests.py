# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Tests that many mutants name
----------------------------
"""

from __future__ import annotations

__all__ = ("healthy", "notices")


def notices(fault: str, generation: str = "shared-7.3") -> str:
    """The test that a fault in a generation is noticed by its rule."""
    test = "test_check_faults.py::test_the_rule_that_the_table_names"
    return f"{test}[{fault}-{generation}]"


def healthy(generation: str = "shared-7.3") -> str:
    """The test that a machine of a generation without faults has no finding."""
    test = "test_check_faults.py::test_nothing_in_a_healthy_machine"
    return f"{test}[{generation}-False]"
