# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damage
------

Faults by name, and where in a machine each strikes.
"""

__all__ = ()
