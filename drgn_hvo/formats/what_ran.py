# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What was run
------------

The one table of what is claimed of architectures: ``--help``, README and the
documentation say this. What is not in it was only made up by ``synth``.
"""

from __future__ import annotations

__all__ = ("WHAT_RAN", "what_ran")

#: For each of :data:`~drgn_hvo.formats.architectures.ARCHITECTURES`, how people call it
#: and of which running kernels there were captures that all commands were right about.
WHAT_RAN = {
    "x86_64": ("x86-64", "6.1 to 7.3"),
    "riscv64": ("riscv64", "6.12, 7.2: Sv39, Sv57"),
    "loongarch64": ("LoongArch", "7.2, without KFENCE"),
    "aarch64": ("arm64", "7.2 (no HVO)"),
    "s390x": ("s390x", "7.2 (no HVO)"),
    "ppc64": ("ppc64", "7.2, radix (no HVO)"),
}


def what_ran() -> str:
    """The table in one sentence."""
    each = "; ".join(f"{name} {kernels}" for name, kernels in WHAT_RAN.values())
    return f"Was run on captures of Linux on {each}."
