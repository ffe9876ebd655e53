# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Descriptions
------------

What a machine is made from: its description, the TOML form of it, and generations.
"""

__all__ = ()
