# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Whether the kernel was still booting
------------------------------------

Huge pages of memblock memory have their vmemmap remapped before anything else of them
is made, and what they share stays writable until hugetlb_init() is nearly done.
"""

from __future__ import annotations

from typing import Optional

from drgn import FaultError

from drgn_hvo.kernel.bound import Kernel

__all__ = ("BOOTING", "is_booting")

#: Why a rule is not decided.
BOOTING = "the kernel was, or may have been, still booting"


def is_booting(kernel: Kernel) -> Optional[bool]:
    """
    Whether system_state (:linux:`init/main.c`) is not yet SYSTEM_RUNNING: it becomes
    that behind all initcalls, hugetlb_init() among them.

    :return: ``None`` if that was not read.
    """
    running = kernel.constant("SYSTEM_RUNNING")
    try:
        state = kernel.known_words.value(kernel.prog["system_state"])
    except LookupError:
        return False  # Extracts of earlier releases do not have it.
    except FaultError:
        return None
    return running is not None and 0 <= state < running
