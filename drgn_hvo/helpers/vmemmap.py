# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Shared Tail Pages
-----------------

The ``drgn_hvo.helpers.vmemmap`` module provides helpers for the pages of tail struct
pages that HVO shares between folios: one for each zone and order that was ever
optimized, named in ``vmemmap_tails[]``. Since Linux kernel commit 622026e87c40
("mm/hugetlb: remove fake head pages") (in v7.1). Earlier versions of that series had
one for each node and order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Optional

from drgn import FaultError, Object, Program
from drgn.helpers.common.prog import takes_program_or_default

from drgn_hvo.audit.check_shared_tails import check_tails
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.rules import rules_on
from drgn_hvo.audit.scope import TailScope
from drgn_hvo.errors import UnavailableError
from drgn_hvo.helpers._arguments import folio_type, pointer_value, require_hugetlb
from drgn_hvo.helpers._struct_page import page_pfn
from drgn_hvo.helpers._validation import SubjectAudit, validate
from drgn_hvo.kernel.unread import Need
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.memmap.shared_tails import SharedTail
from drgn_hvo.memmap.sharers import sharers_of
from drgn_hvo.memmap.tail_arrays import TailArray

__all__ = (
    "VmemmapTail",
    "for_each_folio_on_vmemmap_tail",
    "for_each_vmemmap_tail",
    "validate_shared_tail",
    "vmemmap_tails",
)


def _array(hvo: Hvo) -> TailArray:
    require_hugetlb(hvo)
    array = hvo.layout.tails.array
    if array is None:
        raise UnavailableError(
            "this kernel has no vmemmap_tails[]: it has no shared tail pages"
        )
    return array


def _zone_addresses(hvo: Hvo) -> Iterator[int]:
    """Addresses of the zones of all online nodes."""
    for pgdat in hvo.mmzone.pgdats.values():
        for zone in pgdat.node_zones:
            yield zone.address_of_().value_()


def vmemmap_tails(zone: Object) -> Object:
    """
    Get the array of shared tail pages that serves a zone: ``zone->vmemmap_tails``, or
    ``zone->zone_pgdat->vmemmap_tails`` where nodes have it.

    Index 0 is for the smallest order that HVO can optimize,
    ``VMEMMAP_TAIL_MIN_ORDER`` (:linux:`include/linux/mmzone.h`): 7 with 4 KiB pages
    and 64 bytes a struct page, so that 2 MiB is index 2 and 1 GiB is index 11. A slot
    that was never used holds 0.

    >>> vmemmap_tails(page_zone(page))[2]
    (struct page *)0xff9e5eb5c0062ec0

    :param zone: ``struct zone *``
    :return: ``struct page *[]``; ``unsigned long []`` of PFNs in the fifth version of
        the patch series.
    :raises FaultError: if *zone* is not a zone of an online node.
    :raises HvoError: if the kernel has no such array, or has no types.
    """
    prog, address = pointer_value(zone, "zone")
    hvo = hvo_of(prog)
    array = _array(hvo)
    if address not in _zone_addresses(hvo):
        raise FaultError("not the address of a struct zone", address)
    return array.array_of_zone(zone)


class VmemmapTail(NamedTuple):
    """A used slot of ``vmemmap_tails[]``; see :func:`for_each_vmemmap_tail()`."""

    nid: int
    """ID of the NUMA node that the slot belongs to; the frame may lie elsewhere."""

    zone: Optional[Object]
    """``struct zone *`` that the slot belongs to, ``None`` if it is the node's."""

    order: int
    """The order of the folios that share the page."""

    page: Object
    """``struct page *`` of the page frame that is shared."""


@takes_program_or_default
def for_each_vmemmap_tail(prog: Program) -> Iterator[VmemmapTail]:
    """
    Iterate over all shared tail pages, by node, zone and order.

    They are there since the first folio of their zone and order was optimized, as
    ``vmemmap_get_tail()`` (:linux:`mm/hugetlb_vmemmap.c`) made them, and stay until
    reboot. A slot that holds nonsense is given with that as its page.

    >>> for tail in for_each_vmemmap_tail():
    ...     print(tail.nid, tail.zone.name.string_(), tail.order, tail.page)
    0 b'DMA32' 9 (struct page *)0xff9e5eb5c0062ec0
    1 b'DMA32' 9 (struct page *)0xff9e5eb5c0403e40

    :return: Iterator of :class:`VmemmapTail`.
    :raises FaultError: behind the last one, if there may be more, in slots that could
        not be read.
    :raises HvoError: if the kernel has no such array, or has no types.
    """
    hvo = hvo_of(prog)
    _array(hvo)
    for tail in hvo.shared_tails:
        zone = None
        if tail.zone_index is not None:
            pgdat = hvo.mmzone.pgdat(tail.nid)
            assert pgdat is not None, "its slots were read"
            zone = pgdat.node_zones[tail.zone_index].address_of_()
        page = Object(prog, "struct page *", _page_address(hvo, tail))
        yield VmemmapTail(tail.nid, zone, tail.order, page)
    unread = hvo.unread_of(Need.NODES, Need.SLOTS)
    if unread is not None:
        raise FaultError(f"there may be more shared tail pages: {unread}", 0)


def _page_address(hvo: Hvo, tail: SharedTail) -> int:
    return _array(hvo).page(hvo.vmemmap, tail.value)


def for_each_folio_on_vmemmap_tail(page: Object) -> Iterator[Object]:
    """
    Iterate over the hugetlb folios whose tails lie in a page: all of them are harmed by
    one bad word there.

    This works on kernels with fake heads, too, where the page that holds the head of a
    folio holds its tails, and nobody else's.

    >>> for tail in for_each_vmemmap_tail():
    ...     print(tail.order, sum(1 for _ in for_each_folio_on_vmemmap_tail(tail.page)))
    9 32
    9 32

    :param page: ``struct page *`` of the page frame, as :func:`for_each_vmemmap_tail()`
        gives it.
    :return: Iterator of ``struct folio *`` objects, by ascending PFN.
    :raises FaultError: if *page* is no struct page, and behind the last folio if there
        may be more, since not all could be read.
    :raises HvoError: if the kernel has no ``struct folio``, or pools and page tables
        cannot be read.
    """
    prog, address = pointer_value(page, "page")
    hvo = hvo_of(prog)
    require_hugetlb(hvo)
    pointer = folio_type(prog)
    found = sharers_of(hvo, page_pfn(hvo, address))
    for pfn in hvo.hugetlb.folios.head_pfn[found.folios].tolist():
        yield Object(prog, pointer, hvo.vmemmap.page_address(pfn))
    if found.unread:
        raise FaultError(f"there may be more folios: {found.unread[0]}", 0)


def validate_shared_tail(page: Object, *, strict: bool = False) -> None:
    """
    Validate a shared tail page: the slot that names it, its own struct page, and every
    word of all struct pages in it.

    These are the rules of ``drgn-hvo check`` whose names begin with ``shared-tail-``,
    for one page. On a live kernel, what is wrong is read again, and reported only if
    every reading shows it.

    >>> for tail in for_each_vmemmap_tail():
    ...     validate_shared_tail(tail.page)

    :param page: ``struct page *`` of the page frame that is shared, as
        :func:`for_each_vmemmap_tail()` gives it.
    :param strict: Whether what the rules count as a warning, a reference count that is
        not 0, is an error.
    :raises ValidationError: if a rule does not hold, or no slot names the page. The
        message begins with the name of the rule.
    :raises FaultError: if none is broken, but not everything could be read.
    :raises HvoError: if the kernel has no shared tail pages, or cannot be audited.
    """
    prog, address = pointer_value(page, "page")
    validate(
        prog,
        lambda hvo: _audit_tail(hvo, address, strict=strict),
        rules_on("slot"),
        address,
    )


def _audit_tail(hvo: Hvo, address: int, *, strict: bool) -> SubjectAudit:
    _array(hvo)
    tails = [t for t in hvo.shared_tails if _page_address(hvo, t) == address]
    if not tails:
        page_pfn(hvo, address)
        unread = hvo.unread_of(Need.NODES, Need.SLOTS)
        if unread is not None:
            raise FaultError(f"no slot that could be read names it: {unread}", address)
        return SubjectAudit(
            no_subject=f"no slot of vmemmap_tails[] names the page {address:#x}"
        )
    audit = SubjectAudit()
    check_tails(Context(hvo, audit, scope=TailScope(hvo, tails)))
    audit.findings = [
        finding for finding in audit.findings if strict or finding.severity == "error"
    ]
    return audit
