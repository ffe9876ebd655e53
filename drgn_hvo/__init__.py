# SPDX-License-Identifier: LGPL-2.1-or-later

"""
HugeTLB Vmemmap Optimization for drgn
-------------------------------------

``drgn_hvo`` explains what HugeTLB Vmemmap Optimization (HVO) did to the struct
page array of a kernel: on a live system, or in the vmcore of one that died,
with or without debuginfo.
"""

__version__ = "0.1.0"
