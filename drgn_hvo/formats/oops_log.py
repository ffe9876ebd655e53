# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page fault reports
------------------

What an x86-64 kernel prints when it dies of a page fault, found in the text of a
log. The lines are those of ``show_fault_oops()`` and ``dump_pagetable()`` in
:linux:`arch/x86/mm/fault.c`, of ``__die_header()`` and ``show_ip()`` in
:linux:`arch/x86/kernel/dumpstack.c`, of ``dump_stack_print_info()`` in
:linux:`lib/dump_stack.c` and of ``dump_kernel_offset()`` in
:linux:`arch/x86/kernel/setup.c`.

What stands in front of them differs from log to log (time, log level, caller, host
name), so that lines are searched, not matched from their beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
import re
import sys
from typing import BinaryIO, Optional

from drgn_hvo.errors import FormatError, UsageError

__all__ = (
    "PF_INSTR",
    "PF_PROT",
    "PF_RSVD",
    "PF_USER",
    "PF_WRITE",
    "Log",
    "Oops",
    "parse_log",
    "read_log",
)

# enum x86_pf_error_code, arch/x86/include/asm/trap_pf.h.
PF_PROT = 1 << 0
PF_WRITE = 1 << 1
PF_USER = 1 << 2
PF_RSVD = 1 << 3
PF_INSTR = 1 << 4

# No line of an oops is longer; a log without line ends must not fill memory.
_MAX_LINE = 8192

_ADDRESS = r"([0-9a-f]{16})(?![0-9a-f])"

# Since Linux kernel commit f28b11a2abd9 ("x86/fault: Reword initial BUG message for
# unhandled page faults") (in v5.2); HVO is younger.
_BEGIN = re.compile(
    r"BUG: (?:unable to handle page fault for address"
    r"|kernel NULL pointer dereference, address): (.*)"
)
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
_BOOT = re.compile(r"Linux version \d")

# Logs are long: outside of a report, other lines are not looked at any further.
_INTERESTING = re.compile(r"BUG: |nable to handle|Linux version|Kernel Offset")

# What other architectures print: die_kernel_fault() of arm64 and riscv, and what
# x86 itself printed before v5.2.
_FOREIGN = re.compile(r"Unable to handle kernel|unable to handle kernel")

_ACCESS = re.compile(
    r"#PF: (user|supervisor) (instruction fetch|write access|read access) in"
)
_CODE = re.compile(r"#PF: error_code\(0x([0-9a-f]{4,16})\)")
_DIE = re.compile(r"Oops: (?:Oops: )?([0-9a-f]{4}) \[#\d+\]")
_ENTRY = re.compile(r"(?<![\w.])(PGD|P4D|PUD|PMD|PTE) ([0-9a-f]{1,16})(?![\w.])")
_IP = re.compile(r"RIP: [0-9a-f]{4}:(\S+(?: \[\w+\])?)")
_TASK = re.compile(r"PID: (\d+) Comm: (.*?) (?:Kdump: loaded |Not tainted|Tainted:)")
# The version that follows the release begins with the number of the build.
_RELEASE = re.compile(r"PID: \d+ Comm: .* (\S+) #\d+")
_OFFSET = re.compile(r"Kernel Offset: (?:0x([0-9a-f]{1,16}) from|disabled)")

# Colours, line ends, and what a terminal should not get from a log.
_UNPRINTABLE = re.compile(r"[^ -~]")

_ACCESS_BITS = {"instruction fetch": PF_INSTR, "write access": PF_WRITE}


@dataclass(frozen=True)
class Oops:
    """
    One report. ``None`` is what its text does not say.

    :param line: Number of its first line in the log, from 1 on.
    :param error_code: What the processor said: ``PF_`` bits.
    :param access: ``error_code``, but only the bits that the words beside it spell
        out: who, and write or instruction fetch.
    :param entries: Page table entries by level, ``PGD`` to ``PTE``, as far as the
        kernel got.
    :param ip: Where the instruction is, as a symbol with an offset.
    :param kernel_offset: What KASLR added to the addresses of the kernel image.
    """

    line: int
    address: int
    error_code: Optional[int] = None
    access: Optional[int] = None
    entries: tuple[tuple[str, int], ...] = ()
    ip: Optional[str] = None
    pid: Optional[int] = None
    comm: Optional[str] = None
    release: Optional[str] = None
    kernel_offset: Optional[int] = None

    @property
    def is_garbled(self) -> bool:
        """Whether the words and the number beside them contradict each other."""
        spelled = PF_USER | PF_WRITE | PF_INSTR
        if self.error_code is None or self.access is None:
            return False
        said = self.error_code & spelled
        if said & PF_INSTR:
            # show_fault_oops() has one word for the access, and looks at this first.
            said &= ~PF_WRITE
        return said != self.access


@dataclass(frozen=True)
class Log:
    """
    What a log has of page faults.

    :param not_understood: What looks like a report and cannot be read, one line each.
    """

    oopses: tuple[Oops, ...]
    not_understood: tuple[str, ...]


@dataclass
class _Reading:
    """A report as far as it was read; what is there first stays."""

    line: int
    address: int
    is_open: bool = True
    had_die: bool = False
    error_code: Optional[int] = None
    access: Optional[int] = None
    entries: dict[str, int] = field(default_factory=dict)
    ip: Optional[str] = None
    pid: Optional[int] = None
    comm: Optional[str] = None
    release: Optional[str] = None
    kernel_offset: Optional[int] = None

    def take(self, text: str) -> None:
        """Take what a line of the report says."""
        if _END.search(text):
            self.is_open = False
            return
        self._take_fault(text)
        self._take_place(text)

    def _take_fault(self, text: str) -> None:
        if self.had_die:
            return
        access, code = _ACCESS.search(text), _CODE.search(text)
        if access and self.access is None:
            user = PF_USER if access[1] == "user" else 0
            self.access = user | _ACCESS_BITS.get(access[2], 0)
        if code and self.error_code is None:
            self.error_code = int(code[1], 16)
        for name, value in _ENTRY.findall(text):
            # pr_cont(): other lines may have come between them.
            self.entries.setdefault(name, int(value, 16))
        die = _DIE.search(text)
        if die:
            self.had_die = True
            if self.error_code is None:
                self.error_code = int(die[1], 16)

    def _take_place(self, text: str) -> None:
        ip, task, release = (p.search(text) for p in (_IP, _TASK, _RELEASE))
        # Behind the first comes that of the system call, in user space.
        if ip and self.ip is None:
            self.ip = ip[1]
        if task and self.pid is None:
            self.pid, self.comm = int(task[1]), task[2]
        if release and self.release is None:
            self.release = release[1]

    def finish(self) -> Oops:
        """What was read."""
        return Oops(
            self.line,
            self.address,
            self.error_code,
            self.access,
            tuple(self.entries.items()),
            self.ip,
            self.pid,
            self.comm,
            self.release,
            self.kernel_offset,
        )


class _Parser:
    """Goes through the lines of a log."""

    def __init__(self) -> None:
        self.reports: list[_Reading] = []
        self.not_understood: list[str] = []
        self._boot = 0

    @property
    def is_reading(self) -> bool:
        """Whether the next line can belong to a report."""
        return bool(self.reports) and self.reports[-1].is_open

    def _begin(self, number: int, rest: str) -> None:
        self._close()
        address = re.match(_ADDRESS, rest)
        if address is None:
            self.not_understood.append(
                f"line {number}: the address is not one of 16 hexadecimal digits"
            )
            return
        self.reports.append(_Reading(number, int(address[1], 16)))

    def _close(self) -> None:
        if self.reports:
            self.reports[-1].is_open = False

    def take(self, number: int, text: str) -> None:
        """Take one line."""
        begin = _BEGIN.search(text)
        if begin:
            self._begin(number, begin[1])
        elif _FOREIGN.search(text):
            self._close()
            self.not_understood.append(
                f"line {number}: not as x86-64 prints it since Linux 5.2"
            )
        elif _BOOT.search(text):
            self._close()
            self._boot = len(self.reports)
        elif self.is_reading:
            self.reports[-1].take(text)
        self._take_offset(text)

    def _take_offset(self, text: str) -> None:
        offset = _OFFSET.search(text)
        if offset is None:
            return
        # A panic says it once, behind everything else that this boot printed.
        for report in self.reports[self._boot :]:
            report.kernel_offset = int(offset[1] or "0", 16)
        self._boot = len(self.reports)


def parse_log(lines: Iterable[str]) -> Log:
    """
    Find all reports of page faults in a log.

    :raises FormatError: if there is none that can be read.
    """
    parser = _Parser()
    for number, text in enumerate(lines, 1):
        if not parser.is_reading and not _INTERESTING.search(text):
            continue
        parser.take(number, _UNPRINTABLE.sub("?", text.rstrip("\r\n")))
    if not parser.reports:
        reason = "no 'BUG: unable to handle page fault for address' in it"
        raise FormatError(next(iter(parser.not_understood), reason))
    return Log(
        tuple(report.finish() for report in parser.reports),
        tuple(parser.not_understood),
    )


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
            return parse_log(_lines(sys.stdin.buffer))
        with open(path, "rb") as file:
            return parse_log(_lines(file))
    except OSError as e:
        raise UsageError(f"{name}: {e.strerror or e}") from None
    except FormatError as e:
        raise FormatError(f"{name}: {e}") from None
