# SPDX-License-Identifier: LGPL-2.1-or-later

"""
HugeTLB Folios and HVO
----------------------

The ``drgn_hvo.helpers.hugetlb`` module provides helpers for the folios of hugetlb and
for what HVO did to their struct pages: pools and their counters are in
``drgn.helpers.linux.hugetlb``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Optional

from drgn import FaultError, Object, Program
from drgn.helpers.common.prog import takes_program_or_default
import numpy as np

from drgn_hvo.audit.check_folios import FolioTailInfos, check_folios
from drgn_hvo.audit.check_identity import check_folio_nodes
from drgn_hvo.audit.check_mappings import check_mappings
from drgn_hvo.audit.check_pools import check_pools
from drgn_hvo.audit.check_private_tails import check_private_tails
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Finding
from drgn_hvo.audit.rules import RULE_BY_ID, rules_on
from drgn_hvo.audit.scan import scan
from drgn_hvo.audit.scope import PartScope
from drgn_hvo.audit.subjects import FolioLists
from drgn_hvo.errors import HvoError, UnavailableError
from drgn_hvo.helpers._arguments import folio_type, pointer_value, require_hugetlb
from drgn_hvo.helpers._struct_page import StructPage, page_pfn, read_folio, struct_page
from drgn_hvo.helpers._validation import SubjectAudit, validate
from drgn_hvo.kernel.arrays import BoolArray, Int64Array
from drgn_hvo.kernel.unread import READS_AS_ZEROS
from drgn_hvo.memmap.holders import holders_of
from drgn_hvo.memmap.hvo import Hvo, hvo_of, saved_by_node_order
from drgn_hvo.memmap.overview import unread_sharers
from drgn_hvo.memmap.pools import hpg_flags

__all__ = (
    "HugetlbFolioHolders",
    "HugetlbFolioMapping",
    "VmemmapFrames",
    "folio_vmemmap_frames",
    "for_each_hugetlb_folio",
    "hugetlb_folio_holders",
    "hugetlb_vmemmap_optimized",
    "validate_hugetlb_folio",
    "vmemmap_saved",
)

_CACHE_KEY = "drgn_hvo.hpg_flags"


@takes_program_or_default
def for_each_hugetlb_folio(
    prog: Program, hstate: Optional[Object] = None
) -> Iterator[Object]:
    """
    Iterate over all hugetlb folios: those on the free and active lists of the pools,
    and those on no list that HVO has optimized, which only the page tables of vmemmap
    know. A folio that is on no list and not optimized, for instance while it is being
    migrated, is not found.

    All are read at the first step. Lists are followed as far as they make sense, so
    that a damaged or changing one ends the iteration and never hangs it.

    >>> sum(1 for _ in for_each_hugetlb_folio())
    64
    >>> free = [f for f in for_each_hugetlb_folio(hstate) if not f._refcount.counter]

    :param hstate: ``struct hstate *`` of the pool; all pools if omitted.
    :return: Iterator of ``struct folio *`` objects, by ascending PFN.
    :raises HvoError: if the kernel has no ``struct folio``, or pools and page tables
        cannot be read.
    """
    hvo = hvo_of(prog)
    require_hugetlb(hvo)
    pointer = folio_type(prog)
    folios = hvo.hugetlb.folios
    pfns = folios.head_pfn
    if hstate is not None:
        pfns = pfns[folios.order == _pool_order(hvo, hstate)]
    for pfn in pfns.tolist():
        yield Object(prog, pointer, hvo.vmemmap.page_address(pfn))


def _pool_order(hvo: Hvo, hstate: Object) -> int:
    """
    The order of a pool.

    :raises TypeError: if it is no ``struct hstate *``.
    :raises FaultError: if none of the pools is at that address.
    """
    _, address = pointer_value(hstate, "hstate")
    for pool in hvo.hugetlb.hstates:
        if pool.address == address:
            return pool.order
    raise FaultError("not the address of a struct hstate", address)


def _head(folio: Object) -> StructPage:
    """
    Read the head of the folio that a helper was given.

    :raises HvoError: if it is a tail, or was never initialised.
    """
    read = read_folio(folio)
    if read.is_poisoned or read.head_address() != read.address:
        raise HvoError(f"{read.address:#x} is not the head of a folio")
    return read


def hugetlb_vmemmap_optimized(folio: Object) -> bool:
    """
    Return whether the kernel has marked a hugetlb folio as optimized.

    This mirrors ``folio_test_hugetlb_vmemmap_optimized()``
    (:linux:`include/linux/hugetlb.h`, before Linux 6.1 ``HPageVmemmapOptimized()``):
    the flag ``HPG_vmemmap_optimized``. The page tables may say otherwise: HVO sets the
    flag before it remaps anything and clears it after everything is restored, and
    damage can be in either. :func:`folio_vmemmap_frames()` tells what is mapped, and
    :func:`validate_hugetlb_folio()` whether both agree.

    :param folio: ``struct folio *``, or ``struct page *`` of its head.
    :raises FaultError: if the head cannot be read.
    :raises HvoError: if *folio* is no hugetlb folio, or nothing says which bit the
        flag is.
    """
    head = _head(folio)
    kernel, cache = head.hvo.kernel, folio.prog_.cache
    if _CACHE_KEY not in cache:
        cache[_CACHE_KEY] = hpg_flags(kernel)
    bit = cache[_CACHE_KEY].get("vmemmap_optimized")
    if bit is None:
        raise UnavailableError("nothing says which bit HPG_vmemmap_optimized is")
    if not head.is_hugetlb():
        raise HvoError(f"{head.address:#x} is not a hugetlb folio")
    private = head.word(kernel.struct_page.require("private"))
    return bool(private >> bit & 1)


class VmemmapFrames(NamedTuple):
    """
    How the struct pages of a folio are mapped, one element a page of vmemmap; see
    :func:`folio_vmemmap_frames()`.
    """

    pfn: Int64Array
    """PFN of the page frame (``int64``); -1 if the page of vmemmap is not mapped."""

    writable: BoolArray
    """Whether the page table entry allows writing."""

    users: Int64Array
    """How many pages in all of vmemmap map this frame: 1 if it is private."""


def folio_vmemmap_frames(folio: Object) -> VmemmapFrames:
    """
    Get the page frames that hold the struct pages of a folio, from the page tables of
    vmemmap. An optimized folio has few different ones.

    This is what ``vmemmap_remap_range()`` (:linux:`mm/hugetlb_vmemmap.c`) left behind.

    >>> frames = folio_vmemmap_frames(folio)
    >>> frames.pfn
    array([6375, 6331, 6331, 6331, 6331, 6331, 6331, 6331])
    >>> frames.users
    array([  1, 224, 224, 224, 224, 224, 224, 224])

    :param folio: ``struct folio *``, or ``struct page *`` of its head; any folio, not
        only one of hugetlb.
    :return: Arrays as long as the struct pages of the folio have pages: 8 for 2 MiB,
        4096 for 1 GiB, with 4 KiB pages and 64 bytes a struct page.
    :raises FaultError: if the head, or a page table on the way, cannot be read.
    :raises HvoError: if *folio* is no folio, or page tables cannot be walked.
    """
    head = _head(folio)
    hvo = head.hvo
    vmemmap = hvo.vmemmap
    if not vmemmap.has_mappings:
        require_hugetlb(hvo)
    pfn, order = head.pfn, head.order()
    if order > hvo.kernel.geometry.largest_order:
        raise HvoError(f"{head.address:#x} is not the head of a folio")
    first, last = (
        page * vmemmap.size // vmemmap.page_size
        for page in (pfn, pfn + (1 << order) - 1)
    )
    _require_tables(hvo, first, last)
    slices = np.arange(first, last + 1, dtype=np.int64)
    frames, mapped = vmemmap.frames(slices)
    index, _ = vmemmap.slices_to_runs(slices)
    writable = mapped & vmemmap.runs.writable[index]
    users = np.where(mapped, vmemmap.users_of(frames), 0)
    return VmemmapFrames(np.where(mapped, frames, -1), writable, users)


def _require_tables(hvo: Hvo, first: int, last: int) -> None:
    """
    Make sure that all page tables for a range of slices were read.

    :param last: The last slice (inclusive).
    :raises FaultError: if one is not in the dump.
    """
    vmemmap = hvo.vmemmap
    start = vmemmap.base + first * vmemmap.page_size
    end = vmemmap.base + (last + 1) * vmemmap.page_size
    for table in vmemmap.walk.missing:
        if table.start < end and start < table.end:
            raise FaultError(f"page table {table.reason}", table.address)


@takes_program_or_default
def vmemmap_saved(prog: Program) -> dict[tuple[Optional[int], int], int]:
    """
    Get how much memory HVO saves now: the pages of vmemmap that hugetlb folios do not
    have to themselves, as the page tables say.

    Shared tail pages, which all folios of a zone and order need together, are not
    subtracted: :func:`~drgn_hvo.helpers.vmemmap.for_each_vmemmap_tail()` counts them.

    >>> vmemmap_saved()
    {(0, 9): 224, (1, 9): 224}

    :return: Number of pages (in ``PAGE_SIZE`` units) by node ID (``None`` if it is not
        known) and order; nodes and orders that save nothing are not in it.
    :raises FaultError: if a page table is not in the dump, or what leads to folios.
    :raises HvoError: if pools and page tables cannot be read.
    """
    hvo = hvo_of(prog)
    require_hugetlb(hvo)
    for table in hvo.vmemmap.walk.missing:
        raise FaultError(f"page table {table.reason}", table.address)
    unread = unread_sharers(hvo)
    if unread is not None:
        raise FaultError(f"there may be more folios: {unread}", 0)
    return saved_by_node_order(hvo)


class HugetlbFolioMapping(NamedTuple):
    """Where a process maps a hugetlb folio; see :func:`hugetlb_folio_holders()`."""

    task: Object
    """``struct task_struct *`` of the process."""

    start: int
    """The first address."""

    end: int
    """The end of the range (exclusive)."""

    writable: bool
    """Whether the process may write there."""


class HugetlbFolioHolders(NamedTuple):
    """Who has a hugetlb folio; see :func:`hugetlb_folio_holders()`."""

    file: Optional[Object]
    """``struct address_space *`` of the file that has it in its page cache."""

    mappings: list[HugetlbFolioMapping]
    """Where processes map it."""

    pincount: Optional[int]
    """How many pins the kernel counts, ``None`` if it does not count them."""

    left_over: Optional[int]
    """References that neither the file nor mappings account for; ``None``: unknown."""

    unread: list[str]
    """What could not be looked at: with this, there may be more."""


def hugetlb_folio_holders(folio: Object) -> HugetlbFolioHolders:
    """
    Find all who have a hugetlb folio: the file, the processes by their page tables, and
    what references are left over, which are pins (``pin_user_pages()``), somebody who
    uses it at this moment, or references that were never given back.

    >>> holders = hugetlb_folio_holders(folio)
    >>> holders.file.host.i_ino
    (unsigned long)442
    >>> [(m.task.pid.value_(), hex(m.start)) for m in holders.mappings]
    [(193, '0x7fe767200000')]
    >>> holders.left_over
    0

    :param folio: ``struct folio *``, or ``struct page *`` of its head.
    :return: What was found, and what could not be looked at.
    :raises FaultError: if the head cannot be read.
    :raises HvoError: if *folio* is no hugetlb folio, or huge pages cannot be read.
    """
    head = _head(folio)
    require_hugetlb(head.hvo)
    if not head.is_hugetlb():
        raise HvoError(f"{head.address:#x} is not a hugetlb folio")
    prog = folio.prog_
    found = holders_of(head.hvo, head.pfn, head.order())
    file = found.file
    return HugetlbFolioHolders(
        None if file is None else Object(prog, "struct address_space *", file.address),
        [
            HugetlbFolioMapping(
                Object(prog, "struct task_struct *", one.task),
                one.start,
                one.end,
                one.writable,
            )
            for one in found.mappings
        ],
        found.pincount,
        found.left_over,
        list(found.unread),
    )


def validate_hugetlb_folio(folio: Object) -> None:
    """
    Validate a hugetlb folio: its head, its tails, how its part of vmemmap is mapped,
    whether the flag that HVO sets agrees with that, and the list that it is on.

    These are the rules of ``drgn-hvo check`` whose names begin with ``folio-`` and
    ``vmemmap-``, for one folio (without ``vmemmap-alignment``), and that it is on one
    list only. A folio that HVO is remapping at this moment (reference count 0, on no
    list) may have its pages of vmemmap in either state. On a live kernel, what is
    wrong is read again, and reported only if every reading shows it.

    >>> for folio in for_each_hugetlb_folio():
    ...     validate_hugetlb_folio(folio)

    :param folio: ``struct folio *``, or ``struct page *`` of its head.
    :raises ValidationError: if a rule does not hold. The message begins with its name.
    :raises FaultError: if none is broken, but not everything could be read.
    :raises HvoError: if nothing leads to the folio, so that it cannot be checked, or
        the kernel cannot be audited.
    """
    prog, address = pointer_value(folio, "folio", "page")
    validate(prog, lambda hvo: _audit_folio(hvo, address), rules_on("folio"), address)


def _audit_folio(hvo: Hvo, address: int) -> SubjectAudit:
    pfn = page_pfn(hvo, address)
    require_hugetlb(hvo)
    found = hvo.hugetlb.folios
    index = int(np.searchsorted(found.head_pfn, pfn))
    if index == len(found) or found.head_pfn[index] != pfn:
        if struct_page(hvo, address).is_hugetlb():
            for reason in hvo.unread_lists:
                raise FaultError(f"on no list that was read: {reason}", address)
            raise HvoError(
                f"the hugetlb folio at {address:#x} is on no list and shares no page "
                "of vmemmap: nothing says what it should be"
            )
        if hvo.kernel.known_words.is_blank(address):
            raise FaultError(f"the head {READS_AS_ZEROS}", address)
        return SubjectAudit(no_subject=f"{address:#x} is not a hugetlb folio")
    head_pfn = int(found.head_pfn[index])
    audit = SubjectAudit()
    context = Context(hvo, audit, scope=PartScope.of_folio(hvo, index))
    # Shared tail pages are not validated here: what they may explain is not known.
    readable = check_mappings(context, wrong_slots=frozenset())
    check_folios(context, readable)
    check_folio_nodes(context, readable)
    check_pools(context, readable, boot_tails=())
    check_private_tails(context, readable, boot_tails=())
    tails = FolioTailInfos(context, readable)
    scan(context, [tails])
    tails.report()
    audit.findings = [f for f in audit.findings if _is_about(f, head_pfn)]
    if not audit.findings:
        first = head_pfn * hvo.vmemmap.size // hvo.vmemmap.page_size
        _require_tables(hvo, first, first + int(found.slices[index]) - 1)
    return audit


def _is_about(finding: Finding, head_pfn: int) -> bool:
    is_of_folio = RULE_BY_ID[finding.rule].subject == "folio"
    return is_of_folio or finding.about == FolioLists(head_pfn)
