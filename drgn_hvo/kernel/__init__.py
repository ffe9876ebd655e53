# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One kernel
----------

A :class:`drgn.Program` bound to its layout: targets, types, symbols and variables, page
frames in bulk, page tables.
"""

__all__ = ()
