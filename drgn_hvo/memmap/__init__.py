# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Struct pages and HVO
--------------------

What one kernel holds: vmemmap and how it is mapped, zones, shared tail pages, pools,
folios, and the head of any page.
"""

__all__ = ()
