# SPDX-License-Identifier: LGPL-2.1-or-later

"""
drgn's own compound_head()
--------------------------

drgn's helper takes a tail for one that holds a mask if ``struct zone`` has
``vmemmap_tails``, and else for one that holds a pointer. Kernels with other pieces of
that work, such as its earlier versions, make it answer with nonsense, silently. Who
starts a session is told once.
"""

from __future__ import annotations

import logging
import re
from typing import Optional

from drgn import Program, Type

__all__ = ("may_hold_masks", "warn_by_types", "warn_once")

_logger = logging.getLogger("drgn")

_CACHE_KEY = "drgn_hvo.kernel.drgn_heads"

_WARNING = (
    "drgn's own compound_head() and what rests on it give wrong heads for this kernel: "
    "its tails hold {real}, which drgn takes for {taken}. Use drgn_hvo.compound_head() "
    "or %hvo page"
)

_MAY_BE = (
    "drgn's own compound_head() and what rests on it may give wrong heads for this "
    "kernel: it has vmemmap_tails in struct pglist_data, as kernels whose tails hold "
    "masks had, which drgn takes for pointers. Use drgn_hvo.compound_head() or "
    "%hvo page"
)

# Stable kernels since 6.18 may have masks under the old name.
_RELEASE = re.compile(r"OSRELEASE=(\d+)\.(\d+)")
_FIRST_WITH_MASKS = (6, 18)


def warn_once(prog: Program, *, has_mask: bool) -> None:
    """Warn, if nobody was warned before, that drgn takes tails for something else."""
    real, taken = ("masks", "pointers") if has_mask else ("pointers", "masks")
    _warn(prog, _WARNING.format(real=real, taken=taken))


def _warn(prog: Program, text: str) -> None:
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = True
        _logger.warning(text)


def may_hold_masks(vmcoreinfo: str) -> bool:
    """Whether tails of a kernel may hold masks, by its VMCOREINFO."""
    if "OFFSET(page.compound_info)" in vmcoreinfo:
        return True
    release = _RELEASE.search(vmcoreinfo)
    if release is None:
        return False
    return (int(release[1]), int(release[2])) >= _FIRST_WITH_MASKS


def warn_by_types(prog: Program, zone: Optional[Type], pgdat: Optional[Type]) -> None:
    """
    Warn if the types show an earlier version of shared tails: what its tails hold,
    types do not tell, and drgn takes them for pointers.
    """
    has_array = [t is not None and t.has_member("vmemmap_tails") for t in (zone, pgdat)]
    if has_array == [False, True]:
        _warn(prog, _MAY_BE)
