# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Containers
----------

The formats in which a made-up machine is written.
"""

__all__ = ()
