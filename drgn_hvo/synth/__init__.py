# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Synthetic vmcores
-----------------

Machines with HVO are few. This package makes up cores of every generation from a
description: real cores, which drgn opens and which are read through VMCOREINFO,
kallsyms, BTF and page tables like any other. It shares only the pure layer with
the reader, so that each is a test of the other.
"""
