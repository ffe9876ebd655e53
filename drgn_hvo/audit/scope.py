# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Scopes of audits
----------------

What an audit looks at: everything in a kernel, which is what
:class:`~drgn_hvo.memmap.hvo.Hvo` gives, or the one folio or the shared tail pages that
somebody asks about.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from drgn_hvo.kernel.arrays import Int64Array
from drgn_hvo.memmap.folios import Folios, Hugetlb
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.shared_tails import SharedTail

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ("PartScope", "Scope", "TailScope")

_T = TypeVar("_T", bound="DataclassInstance")


class Scope(Protocol):
    """
    What an audit looks at. Each part is asked for only by checks that look at it, so
    that it may be read as late as that.
    """

    @property
    def hugetlb(self) -> Hugetlb:
        """Pools, lists and folios."""

    @property
    def folio_nids(self) -> Int64Array:
        """The node of each folio, -1 if it is not known."""

    @property
    def folio_zones(self) -> Int64Array:
        """The zone index of each folio, -1 if it is not known."""

    @property
    def shared_tails(self) -> Sequence[SharedTail]:
        """Shared tail pages."""


@dataclass(frozen=True)
class PartScope:
    """A part of the folios of a kernel, with what they have to do with."""

    hugetlb: Hugetlb
    folio_nids: Int64Array
    folio_zones: Int64Array
    shared_tails: Sequence[SharedTail]

    @classmethod
    def of_folio(cls, hvo: Hvo, i: int) -> PartScope:
        """
        One folio, the lists that it is on, and the shared tail pages as it uses them.
        No pools are in it, because their counters are about all folios.

        :param i: Its index in ``Hugetlb.folios``.
        """
        whole = hvo.hugetlb
        pfn = int(whole.folios.head_pfn[i])
        folios = _only(whole.folios, i)
        slices = folios.tail_slices
        hugetlb = Hugetlb(
            hstates=(),
            lists=tuple(
                replace(a_list, heads=array("q", [pfn] * (pfn in a_list.heads)))
                for a_list in whole.lists
            ),
            folios=folios,
            hpg_flags=whole.hpg_flags,
            # Whether tails are writable by design is a property of all folios together.
            may_be_writable=whole.tails_are_writable,
        )
        # As if the folio alone used them, so that strays of others are not held against
        # it.
        tails = [
            replace(tail, mapped_by=int(slices.count[slices.pfn == tail.pfn].sum()))
            for tail in hvo.shared_tails
        ]
        this = slice(i, i + 1)
        return cls(hugetlb, hvo.folio_nids[this], hvo.folio_zones[this], tails)


@dataclass(frozen=True)
class TailScope:
    """Some shared tail pages, and all folios, which say which of them are right."""

    hvo: Hvo
    shared_tails: Sequence[SharedTail]

    @property
    def hugetlb(self) -> Hugetlb:
        """Pools, lists and folios."""
        return self.hvo.hugetlb

    @property
    def folio_nids(self) -> Int64Array:
        """The node of each folio, -1 if it is not known."""
        return self.hvo.folio_nids

    @property
    def folio_zones(self) -> Int64Array:
        """The zone index of each folio, -1 if it is not known."""
        return self.hvo.folio_zones


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
