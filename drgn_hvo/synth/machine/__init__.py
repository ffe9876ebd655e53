# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The machine
-----------

Memory of a made-up machine: plan, structures, struct pages, page tables, kernel image.
"""

__all__ = ()
