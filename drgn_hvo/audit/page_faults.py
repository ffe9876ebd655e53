# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Verdicts on page faults
-----------------------

What a fault in vmemmap means, as a table: the first entry of :data:`VERDICTS` that
holds for what is known of the fault, its :class:`Facts`.

An illegal write to the tails of an optimized huge page is a write of the kernel to a
present page that is read-only, at a page of vmemmap behind the first of a folio: HVO
maps those with ``PAGE_KERNEL_RO``, see ``vmemmap_remap_pte()``, and nothing else in
vmemmap is read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from drgn_hvo.formats.oops_log import (
    PF_INSTR,
    PF_PROT,
    PF_RSVD,
    PF_USER,
    PF_WRITE,
    Oops,
)
from drgn_hvo.memmap.mapping import SliceMapping
from drgn_hvo.memmap.shared_tails import SharedTail

__all__ = ("VERDICTS", "Facts", "Place", "Printed", "Verdict", "verdict_of")


@dataclass(frozen=True)
class Place:
    """Where a page of vmemmap lies in a folio."""

    head_pfn: int
    order: int
    index: int


@dataclass(frozen=True)
class Printed:
    """The last page table entry that the kernel printed, and that of the dump."""

    name: str
    value: int
    is_mapping: bool
    writable: bool
    frame: Optional[int]
    in_dump: Optional[int]
    same: Optional[bool]


@dataclass(frozen=True)
class Facts:
    """
    What a verdict rests on.

    :param not_this_boot: Why the oops cannot be of the boot of this core, if so.
    :param mapped: Whether the dump maps the address; ``None`` if it lacks the table.
    :param mapping: How.
    :param printed: The entry in the text of the oops.
    :param tail: The shared tail page that the faulting page of vmemmap maps.
    :param place: Its place in a folio, if it maps a shared tail or a copy of a head.
    """

    oops: Oops
    not_this_boot: Optional[str]
    in_vmemmap: bool
    mapped: Optional[bool] = None
    mapping: Optional[SliceMapping] = None
    printed: Optional[Printed] = None
    tail: Optional[SharedTail] = None
    place: Optional[Place] = None

    def code(self, bit: int) -> bool:
        """Whether the error code has a bit."""
        return bool((self.oops.error_code or 0) & bit)

    @property
    def writable(self) -> Optional[bool]:
        """Whether the page was writable, or else is in the dump."""
        if self.printed is not None and self.printed.is_mapping:
            return self.printed.writable
        return None if self.mapping is None else self.mapping.writable

    @property
    def remapped(self) -> bool:
        """Whether the oops names another frame than the dump."""
        if self.printed is None or self.mapping is None:
            return False
        return self.printed.frame not in (None, self.mapping.pfn)

    @property
    def behind_first(self) -> bool:
        """Whether this is a page of tails that HVO put there."""
        return self.place is not None and self.place.index >= 1


@dataclass(frozen=True)
class Verdict:
    """
    What a fault means.

    :param signature: Whether it is that of an illegal write to tails; ``None`` if that
        cannot be told.
    """

    name: str
    holds: Callable[[Facts], bool]
    signature: Optional[bool]
    text: str


#: The first that holds is the verdict.
VERDICTS = (
    Verdict(
        "garbled",
        lambda f: f.oops.is_garbled,
        None,
        "the words and the error code of this report contradict each other: the log "
        "is damaged, nothing is concluded",
    ),
    Verdict(
        "other-boot",
        lambda f: f.not_this_boot is not None,
        None,
        "not of the boot that this core is of: its addresses mean nothing here",
    ),
    Verdict(
        "not-vmemmap",
        lambda f: not f.in_vmemmap,
        None,
        "the address is not in this core's vmemmap: the oops is not of this boot, or "
        "the fault is not about a struct page",
    ),
    Verdict(
        "no-error-code",
        lambda f: f.oops.error_code is None,
        None,
        "the text has no error code: what was attempted is not known",
    ),
    Verdict(
        "user-access",
        lambda f: f.code(PF_USER),
        False,
        "an access with the rights of user space, which the kernel's memory refuses "
        "always",
    ),
    Verdict(
        "reserved-bit",
        lambda f: f.code(PF_RSVD),
        False,
        "a page table entry on the way had a reserved bit set: the page tables are "
        "damaged",
    ),
    Verdict(
        "instruction-fetch",
        lambda f: f.code(PF_INSTR),
        False,
        "a jump into the array of struct pages, which is never executable: a damaged "
        "function pointer or return address, not a wrong use of a page",
    ),
    Verdict(
        "no-struct-page",
        lambda f: not f.code(PF_PROT) and f.mapped is False,
        False,
        "there is no struct page here: a wrong PFN or pointer led to it, its memory "
        "was removed, or the oops is of another boot",
    ),
    Verdict(
        "mapped-since",
        lambda f: not f.code(PF_PROT) and f.mapped is True,
        False,
        "nothing was mapped here, and this dump has a mapping: memory was added since, "
        "or the oops is of another boot",
    ),
    Verdict(
        "table-not-in-dump",
        lambda f: not f.code(PF_PROT),
        False,
        "nothing was mapped here; the dump lacks the page table that would say whether "
        "there should be",
    ),
    Verdict(
        "read-refused",
        lambda f: not f.code(PF_WRITE),
        False,
        "a read of a page that is there was refused: HVO only takes the right to "
        "write, so that this is something else",
    ),
    Verdict(
        "shared-tail-write",
        lambda f: f.behind_first and f.tail is not None and f.writable is False,
        True,
        "an illegal write to a shared tail page: all folios that share it have the "
        "same struct pages there, and nobody may write to a tail (get_page(), flags, "
        "list heads); whoever wrote took it for a page of its own",
    ),
    Verdict(
        "head-copy-write",
        lambda f: f.behind_first and f.tail is None and f.writable is False,
        True,
        "an illegal write to a copy of the head, which HVO maps where the tails of "
        "this folio were: nobody may write to a tail (get_page(), flags, list heads)",
    ),
    # spurious_kernel_fault() lets a write through that only a stale TLB entry refuses.
    Verdict(
        "writable-now",
        lambda f: f.mapping is not None and f.mapping.writable,
        None,
        "the page is writable in this dump. It was not when the kernel looked (it lets "
        "a write pass that only a stale TLB entry refused): the huge page was restored "
        "since, the entry is damaged, or the oops is of another boot",
    ),
    Verdict(
        "unmapped-since",
        lambda f: f.mapped is False,
        None,
        "a page was mapped here, and none is in this dump: its memory was removed "
        "since, or the oops is of another boot",
    ),
    Verdict(
        "entry-changed",
        lambda f: f.remapped,
        None,
        "the oops printed another frame than this dump maps, and no known one of HVO: "
        "the page was remapped since, or the oops is of another boot",
    ),
    Verdict(
        "read-only",
        lambda f: f.mapping is not None,
        None,
        "the page is read-only, as only HVO makes pages of vmemmap, but what it maps "
        "is not known as tails of an optimized folio: 'check' says what is wrong, if "
        "there are types",
    ),
    Verdict(
        "unknown",
        lambda f: True,
        None,
        "the dump lacks the page table that maps the address",
    ),
)


def verdict_of(facts: Facts) -> Verdict:
    """The verdict on a fault."""
    return next(verdict for verdict in VERDICTS if verdict.holds(facts))
