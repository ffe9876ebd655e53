# SPDX-License-Identifier: LGPL-2.1-or-later

"""
When a session starts
---------------------

What somebody at a terminal is told at once. A script that needs nothing of ours is not
made to wait for it: that is told when the types of its kernel are first read, as far as
they show it.
"""

from __future__ import annotations

import sys

from drgn import Architecture, Program

from drgn_hvo.kernel.drgn_heads import may_hold_masks, warn_once

__all__ = ("is_at_terminal", "warn_if_drgn_is_wrong")


def is_at_terminal() -> bool:
    """Whether somebody is typing, and reads what is said."""
    return all(
        stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)
    )


def warn_if_drgn_is_wrong(prog: Program) -> None:
    """
    Compare what drgn takes tails for with what they are, and warn if that differs.
    Never raises: a session has to start, whatever is wrong with its target.
    """
    try:
        # Elsewhere, drgn was seen to crash while it reads a core of riscv64 for us.
        if prog.platform is None or prog.platform.arch != Architecture.X86_64:
            return
        vmcoreinfo = prog["VMCOREINFO"].string_().decode("ascii", "replace")
        if not may_hold_masks(vmcoreinfo):
            return
        from drgn import sizeof

        from drgn_hvo.memmap.hvo import hvo_of

        has_mask = hvo_of(prog).layout.encoding.has_mask
        size = sizeof(prog.type("struct page"))
        # As _compound_info_has_mask() of drgn.helpers.linux.mm decides.
        taken = not size & (size - 1)
        taken = taken and prog.type("struct zone").has_member("vmemmap_tails")
    except Exception:
        return
    if taken != has_mask:
        warn_once(prog, has_mask=has_mask)
