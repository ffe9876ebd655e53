# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where a kernel was when it complained
-------------------------------------

Task, instruction, registers, stack and call trace, as they follow a report in a log:
``dump_stack_print_info()`` in :linux:`lib/dump_stack.c`, and ``show_regs()`` of each
architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import re
from typing import Optional

__all__ = ("Crash", "CrashReading")

_TASK = re.compile(
    r"PID: (\d{1,10}) Comm: (.{0,64}?) (?:Kdump: loaded |Not tainted|Tainted:)"
)
# The version that follows the release begins with the number of the build.
_RELEASE = re.compile(r"PID: \d{1,10} Comm: .{0,200} (\S{1,64}) #\d")

# __USER_CS and __USER32_CS say that what follows is of user space.
_RIP = r"RIP: (?!00[23]3:)[0-9a-f]{4}:"

# show_ip() of x86-64, __show_regs() of arm64 and riscv; the second line of the latter
# repeats it as a number.
_IP = re.compile(
    rf"(?:{_RIP}|\bpc : |\bepc : )"
    r"([^\s+]{1,512}\+0x[0-9a-f]{1,8}/0x[0-9a-f]{1,8}(?: \[\w{1,64}\])?)"
    rf"|{_RIP}(\S{{1,512}})"
)

_ANY_RIP = re.compile(r"RIP: [0-9a-f]{4}:")
_KERNEL_RIP = re.compile(_RIP)
_X86_REGISTER = re.compile(r"\b(R(?:[ABCD]X|[SD]I|BP|\d\d)): ([0-9a-f]{16})\b")
_OTHER_REGISTER = re.compile(
    r"(?<![\w.])(x\d{1,2}|ra|gp|tp|t\d|s\d{1,2}|a\d) *: ([0-9a-f]{16})\b"
)

_STACK = re.compile(r"\bStack ?:(.*)")
_STACK_WORDS = re.compile(r"(?:(?<![\w:])[0-9a-f]{16}(?: |$)){2,}")
_TRACE = re.compile(r"Call [Tt]race:")
# What stands behind "? " was found on the stack, and need not have been called.
_CALL = re.compile(r"(?<![\w.])(?<!\? )([A-Za-z_][\w.]{0,511})\+0x[0-9a-f]{1,8}/0x")

# No report prints more; a log of nothing but such lines must not fill memory.
_MAX_CALLS = 64
_MAX_STACK = 64


@dataclass(frozen=True)
class Crash:
    """
    Where it happened. ``None`` is what the text does not say.

    :param ip: Where the instruction is, as a symbol with an offset.
    :param kernel_offset: What KASLR added to the addresses of the kernel image.
    :param registers: The kernel's, by name.
    :param stack: Words of the stack, where a kernel prints them.
    :param calls: Functions of the call trace, innermost first.
    """

    ip: Optional[str] = None
    pid: Optional[int] = None
    comm: Optional[str] = None
    release: Optional[str] = None
    kernel_offset: Optional[int] = None
    registers: tuple[tuple[str, int], ...] = ()
    stack: tuple[int, ...] = ()
    calls: tuple[str, ...] = ()


@dataclass
class CrashReading:
    """A crash as far as it was read; what is there first stays."""

    ip: Optional[str] = None
    pid: Optional[int] = None
    comm: Optional[str] = None
    release: Optional[str] = None
    kernel_offset: Optional[int] = None
    registers: dict[str, int] = field(default_factory=dict)
    stack: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    _is_kernel_mode: bool = False
    _is_stack: bool = False
    _is_trace: bool = False

    def take(self, text: str) -> None:
        """Take what a line says."""
        ip, task, release = (p.search(text) for p in (_IP, _TASK, _RELEASE))
        # Behind the first comes that of the system call, in user space.
        if ip and self.ip is None:
            self.ip = ip[1] or ip[2]
        if task and self.pid is None:
            self.pid, self.comm = int(task[1]), task[2]
        if release and self.release is None:
            self.release = release[1]
        self._take_registers(text)
        self._take_stack(text)

    def _take_registers(self, text: str) -> None:
        if _ANY_RIP.search(text):
            self._is_kernel_mode = bool(_KERNEL_RIP.search(text))
        if self._is_kernel_mode:
            for name, value in _X86_REGISTER.findall(text):
                self.registers.setdefault(name, int(value, 16))
        for name, value in _OTHER_REGISTER.findall(text):
            self.registers.setdefault(name, int(value, 16))

    def _take_stack(self, text: str) -> None:
        if _TRACE.search(text):
            self._is_stack, self._is_trace = False, True
        elif _STACK.search(text):
            self._is_stack = True
        if self._is_stack:
            for row in _STACK_WORDS.findall(text):
                self.stack += (int(word, 16) for word in row.split())
            del self.stack[_MAX_STACK:]
        if self._is_trace and len(self.calls) < _MAX_CALLS:
            self.calls += _CALL.findall(text)

    def finish(self) -> Crash:
        """What was read."""
        return Crash(
            self.ip,
            self.pid,
            self.comm,
            self.release,
            self.kernel_offset,
            tuple(self.registers.items()),
            tuple(self.stack),
            tuple(self.calls[:_MAX_CALLS]),
        )
