# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Formats
-------

Bytes in, values out: what dumps, symbol tables, types, logs and words of ``struct
page`` look like. Nothing here knows drgn.
"""

__all__ = ()
