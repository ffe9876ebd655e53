# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One subject of many
-------------------

What an audit looks at, cut down to the one folio that somebody asks about.
"""

from __future__ import annotations

from array import array
from copy import copy
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from drgn_hvo.memmap.folios import Folios, Hugetlb
from drgn_hvo.memmap.hvo import Hvo

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ("with_one_folio",)

_T = TypeVar("_T", bound="DataclassInstance")


def _select(table: _T, which: npt.NDArray[np.generic]) -> _T:
    """Some elements of a dataclass of arrays."""
    columns = {field.name: getattr(table, field.name) for field in fields(table)}
    return replace(
        table,
        **{
            name: values[which]
            for name, values in columns.items()
            if isinstance(values, np.ndarray)
        },
    )


def _only(folios: Folios, i: int) -> Folios:
    slices = _select(folios.tail_slices, folios.tail_slices.folio == i)
    return replace(
        _select(folios, np.array([i], dtype=np.int64)),
        tail_slices=replace(slices, folio=np.zeros_like(slices.folio)),
    )


def with_one_folio(bound: Hvo, i: int) -> Hvo:
    """The same kernel with a single folio, on the lists that it is on."""
    whole = bound.hugetlb
    pfn = int(whole.folios.head_pfn[i])
    only = _only(whole.folios, i)
    slices = only.tail_slices
    one = copy(bound)
    # What cached_property has kept of all folios.
    for name in ("hugetlb", "_folio_places"):
        vars(one).pop(name, None)
    vars(one)["hugetlb"] = Hugetlb(
        hstates=(),
        lists=tuple(
            replace(a_list, heads=array("q", [pfn] * (pfn in a_list.heads)))
            for a_list in whole.lists
        ),
        folios=only,
        hpg_flags=whole.hpg_flags,
    )
    # As if it alone used them: that others do is not its fault.
    vars(one)["shared_tails"] = [
        replace(tail, mapped_by=int(slices.count[slices.pfn == tail.pfn].sum()))
        for tail in bound.shared_tails
    ]
    return one
