# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Synthetic vmcores
-----------------

Machines with HVO are few. This package makes up cores of every generation from a
description: real cores, which drgn opens and which are read through VMCOREINFO,
kallsyms, BTF and page tables like any other. It shares only the pure layer with
the reader, so that each is a test of the other.
"""

from __future__ import annotations

__all__ = ("CONTAINER_NAMES",)

#: Formats in which a core can be written; for the command line, which must not
#: import the writers to know their names.
CONTAINER_NAMES = ("elf", "vmcore", "kdump", "flattened")
