# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports, typed
--------------

The documents that the commands print as JSON, key by key. What the keys mean is said in
the schemas in ``schema/``, which scripts rely on; ``tests/test_schemas.py`` holds both
to be the same. A key that is ``None`` is not known. PFNs, counts, orders and sizes (in
bytes) are numbers, addresses and words are :data:`Hex`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Optional, TypedDict, Union

from drgn_hvo.audit.rules import RuleId

__all__ = (
    "AnyReport",
    "AuditReport",
    "CgroupLimitEntry",
    "CheckReport",
    "CheckedEntry",
    "DumpEntry",
    "EncodingEntry",
    "ErrorReport",
    "ExtractReport",
    "FindingEntry",
    "FolioEntry",
    "HeadsReport",
    "Hex",
    "HstateEntry",
    "HstateNodeEntry",
    "IdentityEntry",
    "KeptEntry",
    "KernelReport",
    "LeftOutEntry",
    "MissingEntry",
    "PoolsEntry",
    "ProgressReport",
    "PropertyEntry",
    "RuleResultEntry",
    "SavedByEntry",
    "SavedEntry",
    "SharedTailEntry",
    "ShowReport",
    "SplitEntry",
    "StructPageEntry",
    "SubpoolEntry",
    "TailLayoutEntry",
    "TargetReport",
    "ToolEntry",
    "TruncatedEntry",
    "UndecidedEntry",
    "UnreadPagesEntry",
    "VmemmapEntry",
)

#: An address or a word.
Hex = Annotated[str, "^0x[0-9a-f]+$"]

# For entries with a key "list", in which that name is no type.
_Numbers = list[int]
_Strings = list[str]


class ToolEntry(TypedDict):
    """Who made a document."""

    name: Literal["drgn-hvo"]
    version: str


class AnyReport(TypedDict):
    """How every document begins."""

    schema: Literal[1]
    tool: ToolEntry


class ProgressReport(AnyReport):
    """A line of ``--progress json``, on stderr; ``elapsed_s`` in seconds."""

    done: int
    total: int
    unit: str
    elapsed_s: float


class TargetReport(AnyReport):
    """How a document about a target begins."""

    target: str
    release: Optional[str]


class TruncatedEntry(TypedDict):
    """Sizes of a file that is shorter than it says: bytes."""

    expected: int
    actual: int


class SplitEntry(TypedDict):
    """Which pages are in a piece of a dump; the end is exclusive."""

    start_pfn: int
    end_pfn: int


class DumpEntry(TypedDict):
    """What a dump says of itself; ``mtime`` in seconds since 1970."""

    format: str
    size: int
    mtime: float
    incomplete_flag: Optional[bool]
    truncated: Optional[TruncatedEntry]
    split: Optional[SplitEntry]
    filtered: Optional[int]
    unwritten_pages: Optional[int]
    problems: list[str]


class IdentityEntry(TypedDict):
    """Which machine a kernel ran on; ``crash_time`` in seconds since 1970."""

    nodename: Optional[str]
    release: Optional[str]
    version: Optional[str]
    crash_time: Optional[int]
    panic: Optional[str]


class KernelReport(TargetReport, total=False):
    """
    How a document about all of a kernel begins; ``dump`` and ``identity`` are added
    where results are printed, if the target could be opened.
    """

    dump: Optional[DumpEntry]
    identity: Optional[IdentityEntry]


class PropertyEntry(TypedDict):
    """A property of the kernel that would be damage elsewhere."""

    name: str
    text: str


# show


class StructPageEntry(TypedDict):
    """``struct page``: its size, and the member that makes a tail."""

    size: int
    member: str
    offset: int


class EncodingEntry(TypedDict):
    """How a tail names its head."""

    kind: str
    evidence: list[str]


class TailLayoutEntry(TypedDict):
    """What HVO maps behind the first page of struct pages of a folio."""

    kind: Optional[str]
    where: Optional[str]
    element: Optional[str]
    min_order: Optional[int]
    slots: Optional[int]
    evidence: list[str]


class VmemmapEntry(TypedDict):
    """Where the struct pages are."""

    base: Hex
    aligned: Optional[bool]
    required_alignment: Optional[int]


class SharedTailEntry(TypedDict):
    """A slot of ``vmemmap_tails[]``."""

    nid: int
    zone: Optional[str]
    index: int
    order: int
    pfn: Optional[int]
    frame_nid: Optional[int]
    frame_refcount: Optional[int]
    boot: Optional[bool]
    mapped_by: Optional[int]
    slot: Hex
    value: Hex


class HstateNodeEntry(TypedDict):
    """The huge pages of a pool on one node."""

    nid: int
    total: Optional[int]
    free: Optional[int]
    surplus: Optional[int]
    folios: Optional[int]
    optimized: Optional[int]


class HstateEntry(TypedDict):
    """A pool."""

    order: int
    page_bytes: int
    total: Optional[int]
    free: Optional[int]
    surplus: Optional[int]
    reserved: Optional[int]
    available: Optional[int]
    asked: Optional[int]
    overcommit: Optional[int]
    surplus_left: Optional[int]
    nodes: list[HstateNodeEntry]


class SavedByEntry(TypedDict):
    """The pages of vmemmap that folios of one order on one node gave back."""

    nid: Optional[int]
    order: int
    pages: int


class SavedEntry(TypedDict):
    """What HVO saved."""

    pages: Optional[int]
    shared_tail_pages: Optional[int]
    net_pages: Optional[int]
    net_bytes: Optional[int]
    by_node_order: Optional[list[SavedByEntry]]


class DeviceEntry(TypedDict):
    """
    Memory of devices of one node: how many pages of vmemmap it has, on how many frames.
    """

    nid: int
    first_pfn: int
    last_pfn: int
    slices: int
    frames: int
    saved_pages: int


class FolioEntry(TypedDict):
    """
    A hugetlb folio of ``show --folios``: ``list`` is ``None`` if it is on none, and if
    that is not known; then ``in_transition`` is not known, either.
    """

    head_pfn: int
    order: int
    nid: Optional[int]
    zone: Optional[str]
    list: Optional[str]
    refcount: Optional[int]
    flags: Optional[_Strings]
    optimized_flag: Optional[bool]
    optimized_mapping: Optional[bool]
    head_frame: Optional[int]
    tail_frames: _Numbers
    private_frames: int
    shared_ptes: int
    writable_shared_ptes: int
    in_transition: Optional[bool]
    hwpoison: Optional[bool]


class _PoolsEntryAlways(TypedDict):
    shared_tails: Optional[list[SharedTailEntry]]
    hstates: Optional[list[HstateEntry]]
    saved: Optional[SavedEntry]


class PoolsEntry(_PoolsEntryAlways, total=False):
    """What is known of pools: ``folios`` if they were asked for."""

    folios: Optional[list[FolioEntry]]


class HwpoisonedEntry(TypedDict):
    """A huge page in which memory failed; see :class:`HwpoisonEntry`."""

    head_pfn: int
    order: int
    raw_pages: Optional[_Numbers]
    unknown: Optional[str]


class NotOptimizedEntry(TypedDict):
    """Huge pages that are not optimized for one reason."""

    nid: Optional[int]
    order: int
    reason: str
    count: int


class SubpoolEntry(TypedDict):
    """The share of a mount of hugetlbfs, in huge pages."""

    device: str
    order: int
    limit: Optional[int]
    used: int
    minimum: Optional[int]
    reserved: int


class CgroupLimitEntry(TypedDict):
    """A limit of a cgroup, in huge pages."""

    path: str
    order: int
    of_reservations: bool
    limit: int
    used: int


class ShowReport(KernelReport, PoolsEntry):
    """``show``."""

    conclusions: list[str]
    arch: str
    page_size: int
    types_from: Literal["dwarf", "btf", "vmcoreinfo"]
    symbols_from: str
    struct_page: StructPageEntry
    encoding: EncodingEntry
    tail_layout: TailLayoutEntry
    hvo_built: Optional[bool]
    hvo_enabled: Optional[bool]
    vmemmap: VmemmapEntry
    properties: list[PropertyEntry]
    hwpoisoned: Optional[list[HwpoisonedEntry]]
    not_optimized: Optional[list[NotOptimizedEntry]]
    devices: Optional[list[DeviceEntry]]
    subpools: Optional[list[SubpoolEntry]]
    cgroup_limits: Optional[list[CgroupLimitEntry]]
    notes: list[str]


# check


class CheckedEntry(TypedDict):
    """How much was looked at."""

    folios: int
    optimized_folios: int
    shared_tail_pages: int
    vmemmap_ptes: int
    struct_pages: int


class UndecidedEntry(TypedDict):
    """Why a rule could not be decided somewhere, and in how many places."""

    rule: str
    why: str
    count: int


class MissingEntry(TypedDict):
    """What the dump does not have."""

    what: str
    count: int


class RuleResultEntry(TypedDict):
    """What became of a rule."""

    id: RuleId
    result: Literal["pass", "fail", "skip"]
    reason: Optional[str]


class FindingEntry(TypedDict):
    """A finding; ``caused_by`` is the index of another."""

    rule: RuleId
    severity: str
    message: str
    defect: Optional[str]
    affected: int
    folded: int
    caused_by: Optional[int]
    nid: Optional[int]
    zone: Optional[str]
    order: Optional[int]
    pfn: Optional[int]
    head_pfn: Optional[int]
    address: Optional[Hex]
    physical_address: Optional[Hex]
    expected: Optional[Hex]
    actual: Optional[Hex]
    difference: Optional[str]
    suspect: Optional[str]


class ExcusedEntry(TypedDict):
    """What would break a rule, were hugetlb_lock not held."""

    rule: str
    count: int


class AuditReport(KernelReport):
    """``check`` of a target that could be audited."""

    conclusions: list[str]
    hvo_built: Optional[bool]
    hvo_enabled: Optional[bool]
    status: Literal["clean", "findings", "incomplete"]
    complete: bool
    assumed: dict[str, str]
    ignored: list[str]
    checked: CheckedEntry
    not_in_dump: list[MissingEntry]
    undecided: list[UndecidedEntry]
    in_transition: int
    excused: list[ExcusedEntry]
    hwpoisoned: Optional[int]
    properties: list[PropertyEntry]
    rules: list[RuleResultEntry]
    findings: list[FindingEntry]
    signature: str
    duration_s: Optional[float]


class ErrorReport(KernelReport):
    """``check`` of a target that could not be audited."""

    status: Literal["error"]
    error: str
    timeout: bool
    complete: bool
    duration_s: Optional[float]


CheckReport = Union[AuditReport, ErrorReport]


# heads, extract


class UnreadPagesEntry(TypedDict):
    """
    Of the pages without a head, those that may have one: the dump lacks their struct
    pages or the page table that maps them (``not_in_dump``), or these are in a page of
    zeros (``zeros``), which nobody initialised, or the dump left out.
    """

    not_in_dump: int
    zeros: int


class HeadsReport(TargetReport):
    """``heads``."""

    output: str
    first_pfn: int
    pages: int
    unread: UnreadPagesEntry


class KeptEntry(TypedDict):
    """What an extract has, and why."""

    what: str
    why: str
    pages: int
    bytes: int


class LeftOutEntry(TypedDict):
    """What an extract does not have, although somebody wanted it."""

    what: str
    pages: int


class ExtractReport(TargetReport):
    """``extract``."""

    output: str
    output_bytes: int
    pages: int
    kept: list[KeptEntry]
    left_out: list[LeftOutEntry]
