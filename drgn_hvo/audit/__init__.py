# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The audit
---------

Rules, what decides them, and the findings that come of it.
"""

__all__ = ()
