# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Who shares a page of tails
--------------------------

The huge pages whose struct pages lie in one frame: one bad word there harms all of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from drgn_hvo.errors import NotInDumpError, UsageError
from drgn_hvo.kernel.arrays import Int64Array
from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec, resolve_page
from drgn_hvo.memmap.shared_tails import SharedTail

__all__ = ("Sharers", "frame_of_spec", "sharers_of")


@dataclass(frozen=True)
class Sharers:
    """
    The huge pages behind the private slices of which a frame is mapped, by PFN.

    :param folios: Which of ``hvo.hugetlb.folios`` they are.
    :param slices: How many slices of each.
    :param tail: The slot that names the frame, ``None`` if none does.
    :param others: How many slices map it that belong to none of these, nor are the
        private ones of one; ``None`` if not all was read that would tell.
    :param unread: Why more huge pages may share it, a sentence each.
    """

    frame: int
    folios: Int64Array
    slices: Int64Array
    tail: Optional[SharedTail]
    others: Optional[int]
    unread: tuple[str, ...]


# What leads to huge pages and to the frames that they share.
_NEEDS = (Need.NODES, Need.SLOTS, Need.POOLS, Need.LISTS, Need.FOLIO_HEADS)


def _unread(hvo: Hvo) -> tuple[str, ...]:
    tables = hvo.vmemmap.walk.missing
    found = [f"a page table of vmemmap {table.reason}" for table in tables]
    found += (str(one) for one in hvo.unread if one.need in _NEEDS)
    return tuple(dict.fromkeys((*found, *hvo.unread_lists)))


def frame_of_spec(hvo: Hvo, spec: PageSpec) -> tuple[int, Optional[int]]:
    """
    The frame of struct pages that a user means: the page itself, if vmemmap is mapped
    to it, else the one that holds its struct page.

    :return: And the page whose struct page that is, in the second case.
    :raises UsageError: if the page has no struct page.
    :raises NotInDumpError: if the page table that would tell was not read.
    """
    vmemmap = hvo.vmemmap
    pfn = resolve_page(vmemmap, spec)
    is_named = any(tail.pfn == pfn for tail in hvo.shared_tails)
    if spec.kind != "page" and (is_named or vmemmap.mapped_by(pfn)):
        return pfn, None
    slice_ = pfn * vmemmap.size // vmemmap.page_size
    mapping = vmemmap.mapping(slice_)
    if mapping is None:
        table = vmemmap.unread_table(slice_)
        if table is not None:
            raise NotInDumpError(f"{spec.text}: {table}")
        raise UsageError(f"{spec.text}: vmemmap is not mapped there")
    return mapping.pfn, pfn


def sharers_of(hvo: Hvo, frame: int) -> Sharers:
    """The huge pages that share a frame."""
    found, slices = hvo.hugetlb.folios, hvo.hugetlb.folios.tail_slices
    maps = slices.are_on(frame)
    folios, index = np.unique(slices.folio[maps], return_inverse=True)
    counts = np.zeros(len(folios), dtype=np.int64)
    each = np.where(slices.step == 0, slices.count, 1)
    np.add.at(counts, index.reshape(-1), each[maps])
    private = int((found.head_frame[folios] == frame).sum())
    if hvo.layout.tails.private_slices > 1:
        private = int((found.tail_frame[folios] == frame).sum())
    unread = _unread(hvo)
    others = hvo.vmemmap.mapped_by(frame) - int(counts.sum()) - private
    return Sharers(
        frame,
        folios,
        counts,
        next((tail for tail in hvo.shared_tails if tail.pfn == frame), None),
        None if unread else others,
        unread,
    )
