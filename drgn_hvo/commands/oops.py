# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``page --oops`` and ``oops``
----------------------------

The reports of a log, explained by a core, or by the text alone: which page each is
about, what the kernel found wrong with it, how its page of vmemmap is mapped, and which
known defect prints this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Optional

import numpy as np

from drgn_hvo.audit.log_pages import (
    LoggedPointer,
    compare_words,
    member_names,
    not_this_boot,
    pointers_of,
)
from drgn_hvo.audit.page_faults import Facts, PlaceInFolio, Printed, Verdict, verdict_of
from drgn_hvo.audit.page_reports import page_report, page_verdict_of
from drgn_hvo.commands.document import document
from drgn_hvo.commands.page import page_document
from drgn_hvo.formats.crash_text import Crash
from drgn_hvo.formats.fault_text import PF_INSTR, PF_USER, PF_WRITE, FailedAccess
from drgn_hvo.formats.oops_log import Log, LoggedReport, find_reports
from drgn_hvo.formats.page_checks import check_of
from drgn_hvo.formats.printed_page import PrintedPage
from drgn_hvo.formats.tail_words import Geometry
from drgn_hvo.formats.telling_words import telling_address
from drgn_hvo.kernel.arrays import column
from drgn_hvo.kernel.pagetables import Entry, find_entry
from drgn_hvo.kernel.printk import kernel_log
from drgn_hvo.memmap.heads import read_head
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec
from drgn_hvo.memmap.shared_tails import SharedTail

if TYPE_CHECKING:
    from drgn_hvo.commands.log_reports import (
        FaultEntry,
        FaultTailEntry,
        LogFindings,
        LogReportEntry,
        LogReportStart,
        OopsReport,
        PageTableEntry,
        PointerEntry,
        PrintedPageEntry,
        StoryEntry,
    )

__all__ = ("log_of_core", "oops_document")

# Verdicts whose defect is one of several reasons.
_SUSPICIONS = ("refcount-write-refused",)

# At most this many functions of a call trace are shown, without those that print it.
_CALLS = 8
_PRINTERS = {
    "bad_page",
    "dump_backtrace",
    "dump_stack",
    "dump_stack_lvl",
    "print_bad_page_map",
    "print_bad_pte",
    "show_stack",
}


def log_of_core(hvo: Hvo) -> Log:
    """
    The reports in the log that a kernel has in memory; a healthy one has none.

    :raises NotInDumpError: if the dump lacks the log.
    """
    printed = kernel_log(hvo.kernel)
    log = find_reports(printed.lines())
    if not printed.missing:
        return log
    missing = f"{printed.missing} records of the log could not be read"
    return replace(log, not_understood=(*log.not_understood, missing))


def _printed(
    hvo: Hvo, fault: FailedAccess, in_dump: Optional[Entry]
) -> Optional[Printed]:
    page_table = hvo.kernel.page_table_format
    if not fault.entries or page_table is None:
        return None
    # dump_pagetable() prints a folded level, too: P4D is PGD then.
    top = len(page_table.levels) - 1
    level_of = {"PTE": 0, "PMD": 1, "PUD": 2, "P4D": 3, "PGD": top}
    name, value = min(fault.entries, key=lambda entry: level_of[entry[0]])
    level = level_of[name]
    decoded = page_table.decode(value, level)
    is_mapping = decoded.present and decoded.is_mapping
    frame = decoded.address >> page_table.page_shift if is_mapping else None
    if frame is not None:
        offset = fault.address >> page_table.page_shift
        frame |= offset & (page_table.pages(level) - 1)
    same = None
    if in_dump is not None:
        # The processor sets these at any time.
        volatile = page_table.accessed | page_table.dirty
        same = in_dump.level == level and not (in_dump.value ^ value) & ~volatile
    return Printed(
        name=name,
        value=value,
        is_mapping=is_mapping,
        writable=decoded.writable,
        frame=frame,
        in_dump=None if in_dump is None else in_dump.value,
        same=same,
    )


def _find_tail(hvo: Hvo, frame: int) -> Optional[SharedTail]:
    if not hvo.has_hugetlb:
        return None
    return next((tail for tail in hvo.shared_tails if tail.pfn == frame), None)


def _place_on_tail(hvo: Hvo, tail: SharedTail, slice_: int) -> PlaceInFolio:
    """A folio is aligned: its order says where it begins, whatever its words hold."""
    slices = hvo.kernel.geometry.slices(tail.order)
    return PlaceInFolio(slice_ // slices << tail.order, tail.order, slice_ % slices)


def _place_on_head(hvo: Hvo, frame: int, slice_: int) -> Optional[PlaceInFolio]:
    """The folio whose own frame stands behind its tails, too."""
    slices = (
        hvo.vmemmap.slices_on(frame) if hvo.layout.tails.has_fake_heads else np.zeros(0)
    )
    if not len(slices):
        return None
    first = int(slices[0])
    geometry = hvo.kernel.geometry
    head_pfn = first * geometry.pages_per_slice
    head = read_head(hvo, head_pfn)
    if head is None or head.order is None or head.order > geometry.largest_order:
        return None
    index = slice_ - first
    if not 0 <= index < geometry.slices(head.order):
        return None
    return PlaceInFolio(head_pfn, head.order, index)


def _facts(
    hvo: Hvo, report: LoggedReport, fault: FailedAccess, *, same_boot: bool
) -> Facts:
    vmemmap, kernel = hvo.vmemmap, hvo.kernel
    other = None if same_boot else not_this_boot(hvo, report.crash)
    offset = fault.address - vmemmap.base
    if not 0 <= offset < kernel.max_pfn_limit * vmemmap.size:
        return Facts(fault, other, False, geometry=kernel.geometry)
    slice_ = offset // vmemmap.page_size
    mapping, mapped, entry = None, None, None
    if vmemmap.has_mappings:
        mapping = vmemmap.mapping(slice_)
        missing = any(t.start <= fault.address < t.end for t in vmemmap.walk.missing)
        mapped = None if mapping is None and missing else mapping is not None
    if kernel.page_table_format is not None:
        entry = find_entry(kernel.reader, kernel.page_table_format, fault.address)
    printed = _printed(hvo, fault, entry)
    frame = None if mapping is None else mapping.pfn
    if printed is not None and printed.frame is not None:
        frame = printed.frame
    tail = None if frame is None else _find_tail(hvo, frame)
    place: Optional[PlaceInFolio] = None
    if tail is not None:
        place = _place_on_tail(hvo, tail, slice_)
    elif frame is not None:
        place = _place_on_head(hvo, frame, slice_)
    return Facts(
        fault=fault,
        not_this_boot=other,
        in_vmemmap=True,
        mapped=mapped,
        mapping=mapping,
        printed=printed,
        tail=tail,
        place=place,
        geometry=kernel.geometry,
    )


def _defect_of(hvo: Hvo, facts: Facts, verdict: Verdict) -> Optional[str]:
    """The known defect that led to a write to a shared tail page."""
    offset = hvo.kernel.struct_page.refcount
    if verdict.name != "shared-tail-write" or facts.tail is None or offset is None:
        return None
    frames = hvo.kernel.reader.read(np.array([facts.tail.pfn], dtype=np.int64))
    if not frames.present[0]:
        return None
    rows = frames.data.reshape(-1, hvo.vmemmap.size)
    refcounts = column(rows, offset, hvo.kernel.reader.i32)
    # get_page_unless_zero() refuses a tail only because its reference count is 0.
    return "boot-tail-refcount" if facts.tail.boot and refcounts.all() else None


def _access(fault: FailedAccess) -> Optional[Literal["read", "write", "fetch"]]:
    if fault.attempt is None:
        return None
    if fault.attempt & PF_INSTR:
        return "fetch"
    return "write" if fault.attempt & PF_WRITE else "read"


def _error_code(fault: FailedAccess) -> Optional[str]:
    code = fault.error_code
    return None if code is None else f"{code:#06x}"


def _explain_fault(
    hvo: Optional[Hvo], report: LoggedReport, fault: FailedAccess, *, same_boot: bool
) -> FaultEntry:
    if hvo is None:
        registers = frozenset(dict(report.crash.registers).values())
        facts = Facts(fault, None, None, registers=registers)
    else:
        facts = _facts(hvo, report, fault, same_boot=same_boot)
    verdict = verdict_of(facts)
    attempt, crash = fault.attempt, report.crash
    result: FaultEntry = {
        "line": report.line,
        "address": f"{fault.address:#x}",
        "access": _access(fault),
        "error_code": _error_code(fault),
        "supervisor": None if attempt is None else not attempt & PF_USER,
        "protection": facts.was_mapped,
        "ip": crash.ip,
        "pid": crash.pid,
        "comm": crash.comm,
        "in_vmemmap": facts.in_vmemmap,
        "not_this_boot": facts.not_this_boot,
        "entry": None,
        "pfn": None,
        "offset": None,
        "words": [],
        "slice": None,
        "head_pfn": None,
        "order": None,
        "tail": None,
        "verdict": verdict.name,
        "signature": verdict.signature,
        "explanation": _with_address(hvo, fault.address, verdict.text),
        "defect": verdict.defect if hvo is None else _defect_of(hvo, facts, verdict),
        "page": None,
    }
    if hvo is not None and facts.in_vmemmap and facts.not_this_boot is None:
        _add_struct_page(hvo, facts, result)
    return result


def _with_address(hvo: Optional[Hvo], address: Optional[int], text: str) -> str:
    """An explanation, and what the address is if that can be told from itself."""
    geometry = Geometry(4096, 64) if hvo is None else hvo.kernel.geometry
    telling = None if address is None else telling_address(geometry, address)
    return text if telling is None else f"{text}. The address is {telling.text}"


def _add_struct_page(hvo: Hvo, facts: Facts, result: FaultEntry) -> None:
    """Say which struct page was accessed, and how it is mapped."""
    vmemmap = hvo.vmemmap
    pfn, offset = divmod(facts.fault.address - vmemmap.base, vmemmap.size)
    address = facts.fault.address & -vmemmap.page_size
    place, mapping, tail = facts.place, facts.mapping, facts.tail
    result["entry"] = _entry(facts.printed)
    result["pfn"], result["offset"] = pfn, offset
    result["words"] = member_names(hvo, offset)
    result["slice"] = {
        "address": f"{address:#x}",
        "index_in_folio": None if place is None else place.index,
        "frame": None if mapping is None else mapping.pfn,
        "writable": None if mapping is None else mapping.writable,
        "mapped": facts.mapped,
    }
    if place is not None:
        result["head_pfn"], result["order"] = place.head_pfn, place.order
    if tail is not None:
        result["tail"] = _tail(hvo, tail)


def _entry(printed: Optional[Printed]) -> Optional[PageTableEntry]:
    if printed is None:
        return None
    in_dump = printed.in_dump
    return {
        "level": printed.name,
        "value": f"{printed.value:#x}",
        "frame": printed.frame,
        "writable": printed.writable if printed.is_mapping else None,
        "in_dump": None if in_dump is None else f"{in_dump:#x}",
        "same": printed.same,
    }


def _tail(hvo: Hvo, tail: SharedTail) -> FaultTailEntry:
    index = tail.zone_index
    assert tail.pfn is not None, "it was found by its frame"
    return {
        "pfn": tail.pfn,
        "order": tail.order,
        "nid": tail.nid,
        "zone": None if index is None else hvo.mmzone.zone_name(tail.nid, index),
    }


def _explain(
    hvo: Optional[Hvo], report: LoggedReport, *, same_boot: bool
) -> LogReportEntry:
    """One report that is no page fault."""
    other = None
    if hvo is not None and not same_boot:
        other = not_this_boot(hvo, report.crash)
    if hvo is None or other is not None:
        known = page_report(report)
    else:
        kind = hvo.layout.tails.kind
        known = page_report(report, hvo.kernel.geometry, kind)
    verdict = page_verdict_of(known)
    compared = None
    if hvo is not None and other is None and known.page is not None:
        compared = compare_words(hvo, known.page)
    check = None if report.reason is None else check_of(report.reason)
    return {
        **_report(report),
        "pfn": report.pfn,
        "address": _address(hvo, report),
        "reason": report.reason,
        "check": None if check is None else check.text,
        "check_in": None if check is None else check.source,
        "entry": None
        if report.entry is None
        else {"level": report.entry[0], "value": f"{report.entry[1]:#x}"},
        "dump": None if known.page is None else _dump(known.page),
        "not_this_boot": other,
        "against_dump": None if compared is None else compared.state,
        "changed": [] if compared is None else list(compared.members),
        "pointers": _pointers(hvo if other is None else None, report.crash),
        "verdict": verdict.name,
        "explanation": _with_address(hvo, report.address, verdict.text),
        "defect": verdict.defect,
        "oops": None,
        "page": None,
    }


def _report(report: LoggedReport) -> LogReportStart:
    crash = report.crash
    return {
        "form": report.form,
        "line": report.line,
        "title": report.title,
        "release": crash.release,
        "pid": crash.pid,
        "comm": crash.comm,
        "ip": crash.ip,
        "calls": _callers(crash),
    }


def _callers(crash: Crash) -> list[str]:
    # Parts of a function have names of their own, as bad_page.cold.
    calls = (name.split(".")[0] for name in crash.calls)
    return [name for name in calls if name not in _PRINTERS][:_CALLS]


def _fault_report(
    hvo: Optional[Hvo], report: LoggedReport, oops: FaultEntry
) -> LogReportEntry:
    """A page fault, as a report among others."""
    other = oops["not_this_boot"]
    return {
        **_report(report),
        "pfn": oops["pfn"],
        "address": oops["address"],
        "reason": None,
        "check": None,
        "check_in": None,
        "entry": None,
        "dump": None,
        "not_this_boot": other,
        "against_dump": None,
        "changed": [],
        "pointers": _pointers(hvo if other is None else None, report.crash),
        "verdict": oops["verdict"],
        "explanation": oops["explanation"],
        "defect": oops["defect"],
        "oops": None,
        "page": None,
    }


def _address(hvo: Optional[Hvo], report: LoggedReport) -> Optional[str]:
    """Of what was accessed, or of the struct page."""
    address = report.address
    if address is None and report.dump is not None:
        address = report.dump.address
    if address is None and hvo is not None and _is_page(hvo, report.pfn):
        address = hvo.vmemmap.page_address(report.pfn or 0)
    return None if address is None else f"{address:#x}"


def _is_page(hvo: Hvo, pfn: Optional[int]) -> bool:
    return pfn is not None and pfn < hvo.vmemmap.end_pfn


def _pointers(hvo: Optional[Hvo], crash: Crash) -> list[PointerEntry]:
    return [_pointer(pointer) for pointer in pointers_of(hvo, crash)]


def _pointer(pointer: LoggedPointer) -> PointerEntry:
    return {
        "where": pointer.where,
        "value": f"{pointer.value:#x}",
        "pfn": pointer.pfn,
        "text": pointer.text,
    }


def _printed_kind(page: PrintedPage) -> Optional[Literal["tail", "head", "page"]]:
    if page.is_tail is None:
        return None
    if page.is_tail:
        return "tail"
    return "head" if page.is_head else "page"


def _dump(page: PrintedPage) -> PrintedPageEntry:
    dump = page.dump
    return {
        "kind": _printed_kind(page),
        "encoding": page.encoding,
        "mask_order": page.mask_order,
        "head_pfn": page.head_pfn,
        "order": page.order,
        "tail_mapping": page.has_tail_mapping,
        "refcount": dump.refcount,
        "mapcount": dump.mapcount,
        "counts": dict(dump.counts),
        "flags": None if dump.flags is None else f"{dump.flags:#x}",
        "flag_names": None if dump.flag_names is None else list(dump.flag_names),
        "positions": dict(dump.positions),
        "page_type": dump.page_type,
        "words": [f"{word:#x}" for word in dump.words],
        "head_words": [f"{word:#x}" for word in dump.head_words],
    }


def _cause(report: LogReportEntry) -> tuple[Optional[str], ...]:
    """What reports that have the same cause agree on."""
    if report["defect"] is not None:
        return (report["defect"],)
    if report["form"] == "page-fault":
        return (report["form"], report["verdict"], report["ip"])
    if report["form"] == "memory-failure":
        # Of one failure there are several, each with its own words.
        return (report["form"], report["verdict"])
    return (report["form"], report["verdict"], report["reason"])


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _stories(reports: list[LogReportEntry]) -> list[StoryEntry]:
    """Reports of one cause together, in the order of the first of each."""
    stories: dict[tuple[Optional[str], ...], StoryEntry] = {}
    for i, report in enumerate(reports):
        story = stories.setdefault(
            _cause(report),
            {
                "count": 0,
                "verdict": report["verdict"],
                "explanation": report["explanation"],
                "defect": report["defect"],
                "is_certain": report["verdict"] not in _SUSPICIONS,
                "forms": {},
                "reasons": {},
                "pfns": [],
                "reports": [],
            },
        )
        story["count"] += 1
        story["reports"].append(i)
        if report["pfn"] is not None and report["pfn"] not in story["pfns"]:
            story["pfns"].append(report["pfn"])
        _count(story["forms"], report["form"])
        if report["reason"] is not None:
            _count(story["reasons"], report["reason"])
    return list(stories.values())


def _page_specs(hvo: Hvo, found: LogFindings) -> list[PageSpec]:
    """The pages to explain: of each page fault, and of the first report of a story."""
    specs: list[PageSpec] = []
    for oops in found["oopses"]:
        if oops["not_this_boot"] is None:
            oops["page"] = _add_spec(hvo, specs, oops["pfn"])
    for story in found["stories"]:
        report = found["reports"][story["reports"][0]]
        if report["not_this_boot"] or report["against_dump"] == "other-page":
            continue
        if report["oops"] is None:
            report["page"] = _add_spec(hvo, specs, report["pfn"])
        else:
            report["page"] = found["oopses"][report["oops"]]["page"]
    return specs


def _add_spec(hvo: Hvo, specs: list[PageSpec], pfn: Optional[int]) -> Optional[int]:
    """Ask for a page; its index, ``None`` beyond the end of vmemmap."""
    if pfn is None or pfn >= hvo.vmemmap.end_pfn:
        return None
    address = hvo.vmemmap.page_address(pfn)
    specs.append(PageSpec(f"page:{address:#x}", "page", address))
    return len(specs) - 1


def _found(hvo: Optional[Hvo], log: Log, *, same_boot: bool) -> LogFindings:
    oopses: list[FaultEntry] = []
    reports: list[LogReportEntry] = []
    for report in log.reports:
        if report.fault is None:
            reports.append(_explain(hvo, report, same_boot=same_boot))
            continue
        oops = _explain_fault(hvo, report, report.fault, same_boot=same_boot)
        reports.append(_fault_report(hvo, report, oops))
        reports[-1]["oops"] = len(oopses)
        oopses.append(oops)
    return {
        "oopses": oopses,
        "reports": reports,
        "stories": _stories(reports),
        "suppressed": log.suppressed,
        "not_understood": list(log.not_understood),
    }


def oops_document(
    hvo: Optional[Hvo], target: str, log: Log, *, same_boot: bool = False
) -> OopsReport:
    """
    What ``page --oops --json`` and ``oops --json`` print: ``reports`` in order,
    ``stories`` of reports that have one cause, ``oopses`` for the page faults among
    them, and ``pages`` as for the pages that they are about.

    :param hvo: ``None`` if there is only the text.
    :param target: The core, or the log.
    :param same_boot: Whether the log is known to be of the boot of this kernel.
    """
    found = _found(hvo, log, same_boot=same_boot)
    if hvo is None:
        releases = {report.crash.release for report in log.reports} - {None}
        release = releases.pop() if len(releases) == 1 else None
        return {**document(target, release), "pages": [], **found}
    return {**page_document(hvo, target, _page_specs(hvo, found)), **found}
