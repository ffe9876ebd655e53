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

from drgn_hvo.formats.fault_text import (
    PF_INSTR,
    PF_RSVD,
    PF_USER,
    PF_WRITE,
    FailedAccess,
)
from drgn_hvo.formats.tail_words import Geometry
from drgn_hvo.formats.telling_words import telling_address
from drgn_hvo.memmap.mapping import SliceMapping
from drgn_hvo.memmap.shared_tails import SharedTail

__all__ = (
    "TELLING_TEXTS",
    "VERDICTS",
    "Facts",
    "PlaceInFolio",
    "Printed",
    "Verdict",
    "verdict_of",
)

#: What it means that such a word was used as an address, see
#: :class:`~drgn_hvo.formats.telling_words.TellingWord`.
TELLING_TEXTS = {
    "mask": (
        "the mask of a tail was taken for a pointer to its head. Kernels since 7.1, "
        "and stable ones that took that change, have masks there; who made this access "
        "was not built for this kernel: a module that was not rebuilt, or a tool"
    ),
    "tail-mapping": (
        "the mapping of a tail, which is poison, was used as an address: code that "
        "wants the address_space of a page did not ask for the head of its folio"
    ),
    "list-poison": (
        "an entry of a list was used after it had been taken off: not about tails"
    ),
}


@dataclass(frozen=True)
class PlaceInFolio:
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

    :param geometry: Of the kernel, if it is at hand.
    :param not_this_boot: Why the oops cannot be of the boot of this core, if so.
    :param in_vmemmap: Whether the address is in vmemmap; ``None`` if there is no dump.
    :param mapped: Whether the dump maps the address; ``None`` if it lacks the table.
    :param mapping: How.
    :param printed: The entry in the text of the oops.
    :param registers: What the registers held.
    :param tail: The shared tail page that the faulting page of vmemmap maps.
    :param place: Its place in a folio, if it maps a shared tail or a copy of a head.
    """

    fault: FailedAccess
    not_this_boot: Optional[str]
    in_vmemmap: Optional[bool]
    mapped: Optional[bool] = None
    mapping: Optional[SliceMapping] = None
    printed: Optional[Printed] = None
    tail: Optional[SharedTail] = None
    place: Optional[PlaceInFolio] = None
    geometry: Optional[Geometry] = None
    registers: frozenset[int] = frozenset()

    def code(self, bit: int) -> bool:
        """Whether the error code has a bit."""
        return bool((self.fault.attempt or 0) & bit)

    @property
    def was_mapped(self) -> Optional[bool]:
        """Whether there was a page, so that the access was refused."""
        if self.fault.is_mapped is not None or self.printed is None:
            return self.fault.is_mapped
        return self.printed.is_mapping

    def used(self, name: str) -> bool:
        """Whether the address is a word of this kind."""
        geometry = self.geometry or Geometry(4096, 64)
        word = telling_address(geometry, self.fault.address)
        return word is not None and word.name == name

    @property
    def is_refused_write_by_text(self) -> bool:
        """Whether the kernel wrote to what is read-only, and nobody knows where."""
        if self.in_vmemmap is not None or not self.was_mapped:
            return False
        return self.code(PF_WRITE) and not self.code(PF_USER | PF_RSVD | PF_INSTR)

    @property
    def is_refcount_by_text(self) -> bool:
        """
        Whether a register points to the struct page whose reference count this is, if
        it is one: _refcount is at byte 52 of 64 in all kernels so far.
        """
        start = self.fault.address - 52
        return start % 64 == 0 and start in self.registers

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
    :param defect: A known defect of the kernel that can be the reason.
    """

    name: str
    holds: Callable[[Facts], bool]
    signature: Optional[bool]
    text: str
    defect: Optional[str] = None


def _used(name: str) -> Callable[[Facts], bool]:
    return lambda facts: facts.used(name)


#: The first that holds is the verdict.
VERDICTS = (
    Verdict(
        "garbled",
        lambda f: f.fault.is_garbled,
        None,
        "the words and the error code of this report contradict each other: the log "
        "is damaged, nothing is concluded",
    ),
    *(
        Verdict(
            f"{name}-used",
            _used(name),
            False,
            text,
        )
        for name, text in TELLING_TEXTS.items()
    ),
    Verdict(
        "other-boot",
        lambda f: f.not_this_boot is not None,
        None,
        "not of the boot that this core is of: its addresses mean nothing here",
    ),
    Verdict(
        "not-vmemmap",
        lambda f: f.in_vmemmap is False,
        None,
        "the address is not in this core's vmemmap: the oops is not of this boot, or "
        "the fault is not about a struct page",
    ),
    Verdict(
        "refcount-write-refused",
        lambda f: f.is_refused_write_by_text and f.is_refcount_by_text,
        None,
        "the kernel wrote to a page that is there and read-only: to byte 52 of what a "
        "register points to, which is the reference count if that is a struct page. "
        "Then this is an illegal write to tails, for only HVO makes pages of vmemmap "
        "read-only: a core of the same boot tells. Code that takes a reference only "
        "if there is one already fails so on tails whose reference count is not 0",
        "boot-tail-refcount",
    ),
    Verdict(
        "write-refused",
        lambda f: f.is_refused_write_by_text,
        None,
        "the kernel wrote to a page that is there and read-only. If the address is in "
        "vmemmap, this is an illegal write to tails, for only HVO makes pages of "
        "vmemmap read-only: a core of the same boot tells",
    ),
    Verdict(
        "no-core",
        lambda f: f.in_vmemmap is None and f.fault.attempt is not None,
        None,
        "by the text alone it cannot be told whether this is about a struct page; it "
        "is no refused write, though, and so none to the tails of a huge page",
    ),
    Verdict(
        "no-error-code",
        lambda f: f.fault.attempt is None,
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
        lambda f: not f.was_mapped and f.mapped is False,
        False,
        "there is no struct page here: a wrong PFN or pointer led to it, its memory "
        "was removed, or the oops is of another boot",
    ),
    Verdict(
        "mapped-since",
        lambda f: f.was_mapped is False and f.mapped is True,
        False,
        "nothing was mapped here, and this dump has a mapping: memory was added since, "
        "or the oops is of another boot",
    ),
    Verdict(
        "table-not-in-dump",
        lambda f: f.was_mapped is False and f.in_vmemmap is True,
        False,
        "nothing was mapped here; the dump lacks the page table that would say whether "
        "there should be",
    ),
    Verdict(
        "mapping-not-told",
        lambda f: f.was_mapped is None,
        None,
        "the text does not say whether anything was mapped here at the time",
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
        lambda _f: True,
        None,
        "the dump lacks the page table that maps the address",
    ),
)


def verdict_of(facts: Facts) -> Verdict:
    """The verdict on a fault."""
    return next(verdict for verdict in VERDICTS if verdict.holds(facts))
