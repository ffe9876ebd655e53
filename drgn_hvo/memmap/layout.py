# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Layout by detection
-------------------

Which encoding a kernel uses for tails and where HVO keeps the tails of optimized
folios are two separate properties. Neither the version nor the name of a field
decides one: distributions mix the pieces. Each property is asked of the types
and of the data, and each answer comes with its evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from drgn_hvo.errors import DetectionError
from drgn_hvo.formats.tail_words import (
    ALL_ONES,
    are_masks,
    are_pointers,
    compound_info_has_mask,
)
from drgn_hvo.kernel.arrays import BoolArray, Int64Array, U64Array, distinct, is_in
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.memmap.tail_arrays import TailArray, tail_array
from drgn_hvo.memmap.vmemmap import StructPages, Vmemmap

__all__ = ("Encoding", "Layout", "TailLayout", "detect_layout")

# Pages of vmemmap to look at for tails, evenly spread: first few, then many.
_SAMPLES = (256, 8192)

# Votes that settle a question. A damaged kernel has some wrong words, never this
# many; one that truly mixes encodings does not exist.
_MAJORITY = 0.9
_ENOUGH_VOTES = 16


@dataclass(frozen=True)
class Encoding:
    """How the word of a tail names the head: ``"pointer"`` or ``"mask"``."""

    kind: str
    evidence: tuple[str, ...]

    @property
    def has_mask(self) -> bool:
        """Mirror of ``compound_info_has_mask()``."""
        return self.kind == "mask"


@dataclass(frozen=True)
class TailLayout:
    """
    What HVO maps behind the first page of struct pages of a folio.

    :param kind: ``"plain"`` (HVO not built), ``"first-tail"`` (the folio's own second
        page), ``"fake-head"`` (its own first page), ``"shared"`` (a page that folios
        share); ``None`` if nothing tells.
    :param array: What names shared pages; ``None`` if the types do not have it.
    :param array_fault: Why it is not known how the types have it, if they do.
    """

    kind: Optional[str]
    array: Optional[TailArray]
    evidence: tuple[str, ...]
    array_fault: Optional[str] = None

    @property
    def has_fake_heads(self) -> bool:
        """Whether copies of a head can stand where a tail belongs."""
        return self.kind == "fake-head"

    @property
    def private_slices(self) -> int:
        """
        How many pages of struct pages an optimized folio keeps: RESERVE_VMEMMAP_NR of
        :linux:`mm/hugetlb_vmemmap.c`. Since Linux kernel commit e7d324850bfc ("mm:
        hugetlb: free the 2nd vmemmap page associated with each HugeTLB page") (in
        v5.18) one; before, the second one was what all tails behind it showed.
        """
        return 2 if self.kind == "first-tail" else 1

    @property
    def max_order(self) -> Optional[int]:
        """``MAX_FOLIO_ORDER``, from the length of the array."""
        return None if self.array is None else self.array.max_order


@dataclass(frozen=True)
class Layout:
    """How tails name their heads, what HVO maps, and notes about both for users."""

    encoding: Encoding
    tails: TailLayout
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Votes:
    """Tail words in a sample, by what they can be."""

    masks: int
    pointers: int
    pages: int

    @property
    def verdict(self) -> Optional[str]:
        total = self.masks + self.pointers
        if total and self.masks >= _MAJORITY * total:
            return "mask"
        if total and self.pointers >= _MAJORITY * total:
            return "pointer"
        return None

    def __str__(self) -> str:
        return (
            f"data: of {self.pages} struct pages sampled, {self.masks} hold a mask "
            f"and {self.pointers} a pointer into vmemmap"
        )


def _votes(vmemmap: Vmemmap, infos: U64Array) -> _Votes:
    """Count what the tail words of struct pages can be."""
    geometry, base = vmemmap.kernel.geometry, vmemmap.base
    masks = are_masks(geometry, infos, geometry.largest_order)
    # MAX_PHYSMEM_BITS sets it, which may allow more struct pages than the address
    # space has room for.
    end = base + vmemmap.kernel.max_pfn_limit * geometry.struct_page_size
    pointers = are_pointers(geometry, infos, base, min(end, ALL_ONES + 1))
    return _Votes(int(masks.sum()), int((pointers & ~masks).sum()), len(infos))


def _sample_slices(vmemmap: Vmemmap, most: int) -> Int64Array:
    if not vmemmap.has_mappings:
        slices = vmemmap.end_pfn * vmemmap.size // vmemmap.page_size
        return distinct(np.linspace(0, max(0, slices - 1), most, dtype=np.int64))
    runs = vmemmap.runs
    total = int(runs.count.sum())
    if not total:
        return np.zeros(0, dtype=np.int64)
    positions = distinct(np.linspace(0, total - 1, most, dtype=np.int64))
    ends = np.cumsum(runs.count)
    run = np.searchsorted(ends, positions, side="right")
    first = (runs.va - np.uint64(vmemmap.base)) // np.uint64(vmemmap.page_size)
    return first[run].astype(np.int64) + positions - (ends[run] - runs.count[run])


def _sample(vmemmap: Vmemmap) -> _Votes:
    """Look at tail words all over vmemmap."""
    votes = _Votes(0, 0, 0)
    for most in _SAMPLES:
        slices = _sample_slices(vmemmap, most)
        pages = vmemmap.read_pages(
            slices * vmemmap.page_size // vmemmap.size,
            vmemmap.kernel.geometry.pages_per_slice,
        )
        rows = pages.data[pages.present].reshape(-1, vmemmap.size)
        infos = vmemmap.tail_words(StructPages(rows, np.ones(len(rows), np.bool_)))
        votes = _votes(vmemmap, infos)
        if votes.masks + votes.pointers >= _ENOUGH_VOTES:
            break
    return votes


def _encoding_from_types(
    kernel: Kernel, array: Optional[TailArray], fault: Optional[str]
) -> tuple[Optional[str], str]:
    """What the types say by themselves, and in words."""
    if not kernel.has_types:
        return None, "types: none"
    if fault is not None:
        return None, f"types: {fault}"
    if not kernel.geometry.power_of_2:
        return "pointer", (
            f"types: sizeof(struct page) is {kernel.geometry.struct_page_size}, no "
            "power of two, so a mask cannot work"
        )
    if array is not None and array.implies_masks:
        has_mask = compound_info_has_mask(kernel.geometry, hvo_built=True)
        return "mask" if has_mask else "pointer", (
            f"types: struct {array.where} has vmemmap_tails and sizeof(struct page) is "
            "a power of two, so compound_info_has_mask()"
        )
    if array is not None:
        return None, (
            f"types: struct {array.where} has vmemmap_tails, which kernels with either "
            "encoding had"
        )
    return None, (
        f"types: no vmemmap_tails; the name {kernel.struct_page.member} does not tell"
    )


def _detect_encoding(
    kernel: Kernel,
    vmemmap: Vmemmap,
    array: Optional[TailArray],
    fault: Optional[str],
) -> Encoding:
    from_types, words = _encoding_from_types(kernel, array, fault)
    votes = _sample(vmemmap)
    evidence = (words, str(votes))
    assumed = kernel.assume.get("encoding")
    if assumed is not None:
        return Encoding(str(assumed), (*evidence, f"--assume encoding={assumed}"))
    from_data = votes.verdict
    if from_data is None and votes.masks + votes.pointers:
        if from_types is None:
            raise DetectionError(
                f"tails with masks or with pointers? {'; '.join(evidence)}; use "
                "--assume encoding=pointer or encoding=mask"
            )
        return Encoding(from_types, (*evidence, "data: mixed, so the types decide"))
    if None not in (from_types, from_data) and from_types != from_data:
        raise DetectionError(
            f"types and data disagree about how tails are encoded: "
            f"{'; '.join(evidence)}; use --assume encoding=pointer or encoding=mask"
        )
    kind = from_data or from_types
    if kind is None:
        unread = vmemmap.no_mappings_reason
        why = f" ({unread})" if unread is not None else ""
        raise DetectionError(
            "this core does not show how tails are encoded: no tail in the sample"
            f"{why}; use --assume encoding=pointer or encoding=mask"
        )
    return Encoding(kind, evidence)


@dataclass(frozen=True)
class _Remapped:
    """
    Ranges of slices that share one frame, by what that frame is.

    :param own: The slice in front maps it too, and it begins with ``PG_head``.
    :param first_tail: The slice in front maps it too, and it holds tails only.
    :param foreign: The slice in front maps another frame.
    :param read_only: Whether only those count that are read-only.
    """

    own: int
    first_tail: int
    foreign: int
    read_only: bool = True

    def __str__(self) -> str:
        total = self.own + self.first_tail + self.foreign
        if not self.read_only:
            return (
                f"data: of {total} ranges of vmemmap on one frame, {self.own} begin "
                f"with a head and {self.foreign} do not (tails are writable here)"
            )
        and_tails = ""
        if self.first_tail:
            and_tails = f", and {self.first_tail} that of a slice of tails"
        return (
            f"data: of {total} read-only ranges of vmemmap on one frame, {self.own} "
            f"repeat the frame of the slice in front of them and "
            f"{self.foreign} another{and_tails}"
        )


def _remapped_writable(vmemmap: Vmemmap) -> _Remapped:
    """
    As :func:`_remapped()`, where tails are mapped like heads: then a range begins with
    the slice of the head if it has the head's frame.
    """
    runs = vmemmap.runs
    shared = runs.pfn[(runs.step == 0) & (runs.count > 1)][: _SAMPLES[0]]
    own = int(_begin_with_heads(vmemmap, shared).sum())
    return _Remapped(own, 0, len(shared) - own, read_only=False)


def _begin_with_heads(vmemmap: Vmemmap, pfns: Int64Array) -> BoolArray:
    """Which frames begin with a head; only the first ones are looked at."""
    frames = distinct(pfns)[: _SAMPLES[0]]
    read = vmemmap.kernel.reader.read(frames)
    first = StructPages(read.data[:, : vmemmap.size], read.present)
    heads = (vmemmap.flags(first) & np.uint64(vmemmap.kernel.PG_head_mask)) != 0
    heads &= (vmemmap.tail_words(first) & np.uint64(1)) == 0
    return is_in(pfns, frames[heads & read.present])


def _remapped(vmemmap: Vmemmap) -> _Remapped:
    if vmemmap.kernel.tails_are_writable:
        return _remapped_writable(vmemmap)
    runs = vmemmap.runs
    shared = np.flatnonzero(~runs.writable & (runs.step == 0) & (runs.count > 1))
    shared = shared[shared > 0]
    page = np.uint64(vmemmap.page_size)
    front = shared - 1
    adjacent = (
        runs.va[front] + runs.count[front].astype(np.uint64) * page == runs.va[shared]
    )
    last = runs.pfn[front] + runs.step[front] * (runs.count[front] - 1)
    repeats = adjacent & (last == runs.pfn[shared])
    candidates = distinct(runs.pfn[shared[repeats]])[: _SAMPLES[0]]
    frames = vmemmap.kernel.reader.read(candidates)
    first = StructPages(frames.data[:, : vmemmap.size], frames.present)
    heads = vmemmap.flags(first) & np.uint64(vmemmap.kernel.PG_head_mask)
    tails = vmemmap.tail_words(first) & np.uint64(1)
    first_tail = int(((heads == 0) & (tails != 0) & frames.present).sum())
    if 2 * first_tail > len(candidates):
        # The ones that were not sampled are as most of those that were.
        first_tail += int(repeats.sum()) - len(candidates)
    # Where a table allows no writes, or half of a folio is restored, the slice in front
    # is another one.
    heads_inside = int(_begin_with_heads(vmemmap, runs.pfn[shared[~repeats]]).sum())
    return _Remapped(
        own=int(repeats.sum()) - first_tail + heads_inside,
        first_tail=first_tail,
        foreign=len(shared) - int(repeats.sum()) - heads_inside,
    )


# The static key of the generations with fake heads. Renamed by Linux kernel commit
# f10f1442c309 ("mm: hugetlb_vmemmap: use kstrtobool for hugetlb_vmemmap param
# parsing") (in v5.19) and removed by da3e2d1ca43d (in v7.1).
_FAKE_HEAD_KEYS = ("hugetlb_optimize_vmemmap_key", "hugetlb_free_vmemmap_enabled_key")
# What early_hugetlb_free_vmemmap_param() sets from v5.14 on. Linux kernel commit
# a6b40850c442 ("mm: hugetlb: replace hugetlb_free_vmemmap_enabled with a static_key")
# (in v5.18) came right behind the fake heads; a tree may have taken only these.
_FIRST_TAIL_SWITCH = "hugetlb_free_vmemmap_enabled"


def _tails_from_types(
    kernel: Kernel, array: Optional[TailArray], fault: Optional[str]
) -> tuple[Optional[str], str]:
    if fault is not None:
        return None, f"types: {fault}"
    if array is not None:
        kind = "shared" if array.slots else "plain"
        how = "" if not array.is_allocated else ", allocated with the first tail"
        return kind, (
            f"types: {array.slots} elements of type {array.element} in "
            f"vmemmap_tails of struct {array.where}{how}"
        )
    for key in _FAKE_HEAD_KEYS:
        if kernel.has_variable(key):
            return "fake-head", f"symbols: {key}, and no vmemmap_tails"
    if kernel.has_variable(_FIRST_TAIL_SWITCH):
        return "first-tail", f"symbols: {_FIRST_TAIL_SWITCH}, and no key of fake heads"
    if not kernel.has_types or kernel.symbols_from == "vmcoreinfo":
        return None, "types and symbols: none"
    return "plain", "types and symbols: neither vmemmap_tails nor the key of fake heads"


def _detect_tails(
    kernel: Kernel,
    vmemmap: Vmemmap,
    array: Optional[TailArray],
    fault: Optional[str],
) -> TailLayout:
    from_types, words = _tails_from_types(kernel, array, fault)
    evidence = [words]
    if array is not None and array.caveat is not None:
        evidence.append(array.caveat)
    if not vmemmap.has_mappings:
        return TailLayout(
            from_types if fault else from_types or "plain",
            array,
            tuple(evidence),
            fault,
        )
    remapped = _remapped(vmemmap)
    evidence.append(str(remapped))
    assumed = kernel.assume.get("tail_layout")
    if assumed is not None:
        evidence.append(f"--assume tail_layout={assumed}")
        return TailLayout(str(assumed), array, tuple(evidence), fault)
    from_data = _tails_from_data(remapped)
    if not remapped.read_only and from_types is not None and not remapped.own:
        # Device DAX shares frames in the same way.
        from_data = None
    if from_types == "first-tail" and from_data == "fake-head":
        # e7d324850bfc without the static key that followed it.
        from_types = None
    if None not in (from_types, from_data) and from_types != from_data:
        raise DetectionError(
            f"types and data disagree about the tails of optimized folios: "
            f"{'; '.join(evidence)}; use --assume tail_layout=KIND"
        )
    kind = from_types or from_data
    return TailLayout(kind, array, tuple(evidence), fault)


def _tails_from_data(remapped: _Remapped) -> Optional[str]:
    total = remapped.own + remapped.first_tail + remapped.foreign
    if not total:
        return None
    if remapped.first_tail >= _MAJORITY * total:
        return "first-tail"
    if remapped.own >= _MAJORITY * total:
        return "fake-head"
    if remapped.foreign >= _MAJORITY * total:
        return "shared"
    return None


def _notes(kernel: Kernel, encoding: Encoding, array: Optional[TailArray]) -> list[str]:
    notes = []
    # _compound_info_has_mask() in drgn's helpers/linux/mm.py.
    by_drgn = array is not None and array.where == "zone"
    by_drgn &= kernel.struct_page.member == "compound_info"
    by_drgn &= kernel.geometry.power_of_2
    if encoding.has_mask != by_drgn:
        taken = "masks of this kernel for pointers"
        if by_drgn:
            taken = "pointers of this kernel for masks"
        notes.append(
            f"drgn's own compound_head() takes the {taken} and answers wrongly; use "
            "drgn-hvo's"
        )
    if not kernel.has_types:
        notes.append(
            f"no types ({kernel.no_types_reason}): pools, folios and shared tail pages "
            "cannot be read; debuginfo, given with -s, would do"
        )
    return notes


def detect_layout(kernel: Kernel, vmemmap: Vmemmap) -> Layout:
    """
    Find out how a kernel encodes tails and where HVO keeps them.

    :raises DetectionError: if types and data disagree, or nothing tells.
    """
    array, fault = None, None
    try:
        array = tail_array(kernel)
    except DetectionError as e:
        # What struct pages hold can still tell.
        fault = str(e)
    encoding = _detect_encoding(kernel, vmemmap, array, fault)
    tails = _detect_tails(kernel, vmemmap, array, fault)
    return Layout(encoding, tails, tuple(_notes(kernel, encoding, array)))
