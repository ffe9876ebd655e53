# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports in kernel logs
----------------------

What a kernel prints when something is wrong with a page, found in the text of a log:
one entry of :data:`FORMS` for each way in which such a report begins. What stands in
front of a line differs from log to log (time, log level, caller, host name, quoting),
so that lines are searched, not matched from their beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
import re
import sys
from typing import BinaryIO, Optional

from drgn_hvo.errors import FormatError, UsageError
from drgn_hvo.formats.crash_text import Crash, CrashReading
from drgn_hvo.formats.fault_text import FAULT_TEXTS, FailedAccess, FaultReading
from drgn_hvo.formats.page_dump import PageDump, PageDumpReading

__all__ = (
    "FORMS",
    "MESSAGES",
    "Form",
    "Log",
    "LoggedReport",
    "Message",
    "find_reports",
    "parse_log",
    "read_log",
)

# No line of a report is longer; a log without line ends must not fill memory.
_MAX_LINE = 8192

# No report has more lines: a dump, registers, a call trace or two.
_MAX_BODY = 300

# At most this many reports are kept; print_bad_pte() and bad_page() print 60 a minute.
_MAX_REPORTS = 10_000

# Of the first line, for people.
_MAX_TITLE = 200


@dataclass(frozen=True)
class LoggedReport:
    """
    One report. ``None`` is what its text does not say.

    :param form: The name of an entry of :data:`FORMS`.
    :param line: Number of its first line in the log, from 1 on.
    :param title: That line, without what stands in front of the report.
    :param reason: Which check failed, in the kernel's words.
    :param pfn: The page that it is about.
    :param address: For a general protection fault, what was accessed.
    :param entry: For a bad page map, the page table entry, and its level.
    """

    form: str
    line: int
    title: str
    crash: Crash
    fault: Optional[FailedAccess] = None
    dump: Optional[PageDump] = None
    reason: Optional[str] = None
    pfn: Optional[int] = None
    address: Optional[int] = None
    entry: Optional[tuple[str, int]] = None


@dataclass(frozen=True)
class Log:
    """
    The reports of a log, in order.

    :param suppressed: How many more the kernel says that it did not print.
    :param not_understood: What looks like a report and cannot be read, one line each.
    """

    reports: tuple[LoggedReport, ...]
    suppressed: int
    not_understood: tuple[str, ...]


@dataclass
class _Reading:
    """A report as far as it was read."""

    form: str
    line: int
    title: str
    reason: Optional[str] = None
    pfn: Optional[int] = None
    address: Optional[int] = None
    entry: Optional[tuple[str, int]] = None
    comm: Optional[str] = None
    fault: Optional[FaultReading] = None
    is_open: bool = True
    length: int = 0
    crash: CrashReading = field(default_factory=CrashReading)
    dump: PageDumpReading = field(default_factory=PageDumpReading)

    def take(self, text: str) -> None:
        """Take what a line of the report says."""
        self.length += 1
        self.is_open = self.length < _MAX_BODY
        if self.fault is not None:
            self.fault.take(text)
        self.crash.take(text)
        self.dump.take(text)

    def finish(self) -> LoggedReport:
        """What was read."""
        dump = self.dump.finish() if self.dump.is_begun else None
        form, reason, pfn = self.form, self.reason, self.pfn
        if dump is not None:
            reason = dump.because if reason is None else reason
            pfn = dump.pfn if pfn is None else pfn
            if form == "page-dump" and reason and _VM_CHECK.match(reason):
                form = "vm-bug-on"
        if self.crash.comm is None:
            self.crash.comm = self.comm
        return LoggedReport(
            form=form,
            line=self.line,
            title=self.title[:_MAX_TITLE],
            crash=self.crash.finish(),
            fault=None if self.fault is None else self.fault.finish(),
            dump=dump,
            reason=reason,
            pfn=pfn,
            address=self.address,
            entry=self.entry,
        )


@dataclass(frozen=True)
class Form:
    """
    A way in which a report begins.

    :param begin: Its first line.
    :param take: Takes what that line says.
    :param has_body: Whether the lines behind it belong to it.
    :param source: Where the kernel prints it.
    """

    name: str
    begin: re.Pattern[str]
    take: Callable[[_Reading, re.Match[str]], None]
    has_body: bool
    source: str


class _UnknownError(Exception):
    """The first line of a report is not as it should be; the text says why."""


def _take_fault(address: re.Pattern[str]) -> Callable[[_Reading, re.Match[str]], None]:
    def take(report: _Reading, begin: re.Match[str]) -> None:
        found = address.match(begin[1])
        if found is None:
            raise _UnknownError("the address is not one of 16 hexadecimal digits")
        report.fault = FaultReading(int(found[1], 16))
        report.fault.take(begin.string)

    return take


def _take_protection_fault(report: _Reading, begin: re.Match[str]) -> None:
    report.address = None if begin[1] is None else int(begin[1], 16)


def _take_bad_state(report: _Reading, begin: re.Match[str]) -> None:
    report.comm, report.pfn = begin[1], int(begin[2], 16)


def _take_bad_map(report: _Reading, begin: re.Match[str]) -> None:
    report.comm, report.entry = begin[1], (begin[2].upper(), int(begin[3], 16))


def _take_poisoned(report: _Reading, begin: re.Match[str]) -> None:
    report.pfn, report.reason = int(begin[1], 16), begin[2].strip(" :.") or None


def _take_place(report: _Reading, begin: re.Match[str]) -> None:
    report.reason = f"{begin[1]}:{begin[2]}"


# The files whose checks are about pages.
_FILES = (
    r"((?:\./)?(?:mm/[\w/-]+|fs/hugetlbfs/inode|include/linux/(?:mm|page[\w-]*"
    r"|hugetlb\w*|mmzone))\.[ch])"
)

#: Forms of a report. The first whose line fits is taken.
FORMS = (
    *(
        Form(
            "page-fault",
            fault.begin,
            _take_fault(fault.address),
            True,
            "show_fault_oops(), die_kernel_fault(), bad_page_fault()",
        )
        for fault in FAULT_TEXTS
    ),
    Form(
        "general-protection-fault",
        re.compile(
            r"general protection fault(?:, [\w -]{1,60} 0x([0-9a-f]{1,16}))?: "
            r"[0-9a-f]{4} \[#\d+\]"
        ),
        _take_protection_fault,
        True,
        "exc_general_protection() in arch/x86/kernel/traps.c",
    ),
    Form(
        "bad-page-state",
        re.compile(
            r"BUG: Bad page state in process (.{0,64}?) {1,4}pfn:([0-9a-f]{5,16})\b"
        ),
        _take_bad_state,
        True,
        "bad_page() in mm/page_alloc.c",
    ),
    Form(
        "bad-page-map",
        re.compile(
            r"BUG: Bad page map in process (.{0,64}?) {1,4}(pgd|p4d|pud|pmd|pte):"
            r"([0-9a-f]{8,16})(?![0-9a-f])"
        ),
        _take_bad_map,
        True,
        "print_bad_pte() in mm/memory.c",
    ),
    Form(
        "memory-failure",
        re.compile(
            r"(?:Memory failure|Injecting memory failure|[Ss]oft[ _]offlin(?:e"
            r"|ing pfn)|Unpoison)\b[:\w -]{0,80}?(?<!\w)0x([0-9a-f]{1,16})"
            r"(?![0-9a-f])(.*)"
        ),
        _take_poisoned,
        False,
        "mm/memory-failure.c",
    ),
    Form(
        "kernel-bug",
        re.compile(rf"kernel BUG at {_FILES}:(\d{{1,6}})!"),
        _take_place,
        True,
        "report_bug() in lib/bug.c",
    ),
    Form(
        "kernel-warning",
        re.compile(
            rf"WARNING: (?:CPU: \d+ PID: \d+ at )?{_FILES}:(\d{{1,6}})(?= at | |$)"
        ),
        _take_place,
        True,
        "__warn() in kernel/panic.c",
    ),
)


@dataclass(frozen=True)
class Message:
    """
    One line about huge pages or vmemmap that says all itself.

    :param pattern: A group named ``pfn`` is a decimal PFN.
    :param source: The function that prints it.
    :param text: What it means.
    """

    name: str
    pattern: re.Pattern[str]
    source: str
    text: str


#: What :linux:`mm/hugetlb.c`, :linux:`mm/sparse-vmemmap.c` and :linux:`mm/sparse.c`
#: print.
MESSAGES = (
    Message(
        "unexpected-refcount",
        re.compile(r"HugeTLB: unexpected refcount on PFN (?P<pfn>\d{1,20})"),
        "alloc_buddy_hugetlb_folio() in mm/hugetlb.c",
        "somebody took a reference of a page before it became a huge page, from an "
        "address that used to be another page's; it was given back and tried again",
    ),
    Message(
        "inflated-refcount",
        re.compile(r"HugeTLB \w[\w ]{0,60}inflated (?:folio )?ref count"),
        "mm/hugetlb.c",
        "somebody took a reference of a page before it became a huge page; it cannot "
        "be used as one",
    ),
    Message(
        "reserve-negative",
        re.compile(r"hugetlb: Huge Page Reserved count may go negative"),
        "hugetlb_fix_reserve_counts() in mm/hugetlb.c",
        "the count of reserved huge pages can no longer be trusted",
    ),
    Message(
        "pool-not-filled",
        re.compile(r"HugeTLB: allocating \d+ of page size .{1,20} failed"),
        "hugetlb_hstate_alloc_pages() in mm/hugetlb.c",
        "fewer huge pages were allocated at boot than asked for",
    ),
    Message(
        "cross-zone",
        re.compile(r"HugeTLB: freed \d+ cross-zone hugepages"),
        "hugetlb_bootmem_free_invalid_page() in mm/hugetlb.c",
        "huge pages allocated at boot lay in two zones, and were freed again",
    ),
    Message(
        "vmemmap-allocation",
        re.compile(r"vmemmap alloc failure: order:\d+"),
        "vmemmap_alloc_block() in mm/sparse-vmemmap.c",
        "there was no memory for struct pages: what memory they describe is not used",
    ),
    Message(
        "vmemmap-offnode",
        re.compile(r"\[[0-9a-f]+-[0-9a-f]+\] potential offnode page_structs"),
        "vmemmap_verify() in mm/sparse-vmemmap.c",
        "struct pages of one node lie on another: slower, but not wrong",
    ),
    Message(
        "section-without-memmap",
        re.compile(
            r"sparse_init_nid: node\[\d+\] (?:memory map backing|usemap allocation) "
            r"failed"
        ),
        "sparse_init_nid() in mm/sparse.c",
        "a section of memory has no struct pages and is not used",
    ),
)

_VM_CHECK = re.compile(r"VM_(?:BUG|WARN)_ON\w*\(")

# With CONFIG_PRINTK_CALLER: who printed the line.
_CALLER = re.compile(r"\d\]\[ *([TC]\d{1,10})\]")

_SUPPRESSED = re.compile(r"BUG: Bad page (?:state|map): (\d{1,15}) messages suppressed")
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
_BOOT = re.compile(r"Linux version \d")
_OFFSET = re.compile(r"Kernel Offset: (?:0x([0-9a-f]{1,16}) from|disabled)")

# What x86 itself printed before v5.2.
_FOREIGN = re.compile(r"unable to handle kernel")

# Logs are long: outside of a report, other lines are not looked at any further.
_INTERESTING = re.compile(
    r"BUG|nable to handle|Linux version|Kernel Offset|general protection|page:|page |"
    r"[Mm]emory failure|offlin|Unpoison|WARNING: |[Hh]uge|vmemmap|page_structs|sparse"
)

# Colours would end words; everything else that a terminal should not get from a log.
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_UNPRINTABLE = re.compile(r"[^ -~]")


class _LogParser:
    """Goes through the lines of a log."""

    def __init__(self) -> None:
        self.reports: list[_Reading] = []
        self.suppressed = 0
        self.not_understood: list[str] = []
        # The last report of each task or processor, where the log names these.
        self._latest: dict[str, _Reading] = {}
        self._caller = ""
        self._boot = 0

    @property
    def is_reading(self) -> bool:
        """Whether any line can belong to a report."""
        return any(report.is_open for report in self._latest.values())

    @property
    def _last(self) -> Optional[_Reading]:
        """The report that this line can belong to."""
        report = self._latest.get(self._caller)
        return report if report is not None and report.is_open else None

    def take(self, number: int, text: str) -> None:
        """Take one line."""
        caller = _CALLER.search(text)
        self._caller = caller[1] if caller else ""
        suppressed = _SUPPRESSED.search(text)
        if suppressed:
            self.suppressed += int(suppressed[1])
        elif _END.search(text):
            self._close()
        elif _BOOT.search(text):
            self._latest.clear()
            self._boot = len(self.reports)
        elif not (
            _INTERESTING.search(text)
            and (self._begins(number, text) or self._is_message(number, text))
        ):
            self._take_body(number, text)
        self._take_offset(text)

    def _begins(self, number: int, text: str) -> bool:
        for form in FORMS:
            begin = form.begin.search(text)
            if begin is None:
                continue
            report = _Reading(form.name, number, text[begin.start() :])
            report.is_open = form.has_body
            try:
                form.take(report, begin)
            except _UnknownError as e:
                self._close()
                self.not_understood.append(f"line {number}: {e}")
                return True
            self._add(report)
            report.crash.take(text)
            return True
        if _FOREIGN.search(text):
            self._close()
            self.not_understood.append(
                f"line {number}: not as x86-64 prints it since Linux 5.2"
            )
            return True
        return False

    def _add(self, report: _Reading) -> None:
        last = self._last
        # A failed check prints the page first, then where it failed.
        if (
            last is not None
            and last.form == "page-dump"
            and report.form in ("kernel-bug", "kernel-warning")
        ):
            return
        self.reports.append(report)
        # What is one line comes in between, from other processors.
        if report.is_open:
            self._latest[self._caller] = report

    def _is_message(self, number: int, text: str) -> bool:
        for message in MESSAGES:
            found = message.pattern.search(text)
            if found is None:
                continue
            report = _Reading(
                "hugetlb-warning",
                number,
                text[found.start() :],
                reason=message.name,
                is_open=False,
            )
            if "pfn" in message.pattern.groupindex:
                report.pfn = int(found["pfn"])
            self._add(report)
            return True
        return False

    def _take_body(self, number: int, text: str) -> None:
        last = self._last
        if PageDumpReading.begins(text) and (
            last is None or last.dump.is_begun or last.fault is not None
        ):
            last = _Reading("page-dump", number, text[text.index("page:") :])
            self.reports.append(last)
            self._latest[self._caller] = last
        if last is not None:
            last.take(text)

    def _close(self) -> None:
        self._latest.pop(self._caller, None)

    def _take_offset(self, text: str) -> None:
        offset = _OFFSET.search(text)
        if offset is None:
            return
        # A panic says it once, behind everything else that this boot printed.
        for report in self.reports[self._boot :]:
            report.crash.kernel_offset = int(offset[1] or "0", 16)
        self._boot = len(self.reports)


def find_reports(lines: Iterable[str]) -> Log:
    """Find all reports in a log, if there are any."""
    parser = _LogParser()
    for number, text in enumerate(lines, 1):
        if not parser.is_reading and not _INTERESTING.search(text):
            continue
        plain = _COLOUR.sub("", text.rstrip("\r\n"))
        parser.take(number, _UNPRINTABLE.sub("?", plain))
        if len(parser.reports) > _MAX_REPORTS:
            parser.not_understood.append(
                f"line {number}: more than {_MAX_REPORTS} reports, the others are left "
                "out"
            )
            break
    return Log(
        tuple(sorted((r.finish() for r in parser.reports), key=lambda r: r.line)),
        parser.suppressed,
        tuple(parser.not_understood),
    )


def parse_log(lines: Iterable[str]) -> Log:
    """
    Find all reports in a log that should have some.

    :raises FormatError: if there is none that can be read.
    """
    log = find_reports(lines)
    if not log.reports:
        reason = (
            "no 'BUG: unable to handle page fault', 'BUG: Bad page', dump_page(), "
            "'Memory failure' or the like in it"
        )
        raise FormatError(next(iter(log.not_understood), reason))
    return log


def _lines(file: BinaryIO) -> Iterator[str]:
    while True:
        line = file.readline(_MAX_LINE)
        if not line:
            return
        yield line.decode("ascii", "replace")


def read_log(path: str) -> Log:
    """
    Find all reports in a file.

    :param path: ``-`` is standard input.
    :raises UsageError: if it cannot be read.
    :raises FormatError: if there is no report in it that can be read.
    """
    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            # Python's sign of a stdin that was closed before it began.
            if sys.stdin is None:
                raise UsageError(f"{name} is closed")
            return parse_log(_lines(sys.stdin.buffer))
        with open(path, "rb") as file:
            return parse_log(_lines(file))
    except OSError as e:
        raise UsageError(f"{name}: {e.strerror or e}") from None
    except FormatError as e:
        raise FormatError(f"{name}: {e}") from None
