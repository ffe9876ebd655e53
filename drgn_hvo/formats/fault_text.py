# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page faults in a log
--------------------

What a kernel prints of the access when it dies of a page fault, as one entry of
:data:`FAULT_TEXTS` for each way to begin: ``show_fault_oops()`` and
``dump_pagetable()`` in :linux:`arch/x86/mm/fault.c`, ``die_kernel_fault()``,
``mem_abort_decode()`` and ``show_pte()`` in :linux:`arch/arm64/mm/fault.c`,
``die_kernel_fault()`` in :linux:`arch/riscv/mm/fault.c`, ``bad_page_fault()`` in
:linux:`arch/powerpc/mm/fault.c`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import re
from typing import Optional

__all__ = (
    "FAULT_TEXTS",
    "PF_INSTR",
    "PF_PROT",
    "PF_RSVD",
    "PF_USER",
    "PF_WRITE",
    "FailedAccess",
    "FaultReading",
    "FaultText",
)

# enum x86_pf_error_code, arch/x86/include/asm/trap_pf.h: what was attempted. The words
# of other architectures are translated to these bits.
PF_PROT = 1 << 0
PF_WRITE = 1 << 1
PF_USER = 1 << 2
PF_RSVD = 1 << 3
PF_INSTR = 1 << 4


@dataclass(frozen=True)
class FaultText:
    """
    How a report of a page fault begins.

    :param begin: Its first line; the last group is all that stands behind the words.
    :param address: The address, at the beginning of that.
    """

    begin: re.Pattern[str]
    address: re.Pattern[str]


_ADDRESS = re.compile(r"([0-9a-f]{16})(?![0-9a-f])")

#: The first that fits is taken.
FAULT_TEXTS = (
    # Since Linux kernel commit f28b11a2abd9 ("x86/fault: Reword initial BUG message for
    # unhandled page faults") (in v5.2); HVO is younger.
    FaultText(
        re.compile(
            r"BUG: (?:unable to handle page fault for address"
            r"|kernel NULL pointer dereference, address): (.*)"
        ),
        _ADDRESS,
    ),
    # arm64, riscv64 and LoongArch; x86-64 before v5.2 had "at 0x…" or "at …" instead.
    FaultText(
        re.compile(
            r"Unable to handle kernel [\w ,/()-]{1,60}? at virtual address (.*)"
        ),
        _ADDRESS,
    ),
    # ppc64.
    FaultText(
        re.compile(
            r"BUG: (?:Unable to handle kernel [a-z ]{1,40}|Kernel NULL pointer "
            r"dereference)(?: on (?:read|write))? at (0x.*)"
        ),
        re.compile(r"0x([0-9a-f]{8,16})(?![0-9a-f])"),
    ),
)

_ACCESS = re.compile(
    r"#PF: (user|supervisor) (instruction fetch|write access|read access) in"
)
_CODE = re.compile(r"#PF: error_code\(0x([0-9a-f]{4,16})\)")
_DIE = re.compile(r"Oops: (?:Oops: )?([0-9a-f]{4}) \[#\d+\]")
_ENTRY = re.compile(r"(?<![\w.])(PGD|P4D|PUD|PMD|PTE) ([0-9a-f]{1,16})(?![\w.])")
_ENTRY_ELSEWHERE = re.compile(r"\b(pgd|p4d|pud|pmd|pte)=([0-9a-f]{16})(?![0-9a-f])")
_ACCESS_BITS = {"instruction fetch": PF_INSTR, "write access": PF_WRITE}

_ESR = re.compile(r"(?:\bESR = 0x|Internal error: Oops: )([0-9a-f]{8,16})(?![0-9a-f])")
# arch/arm64/include/asm/esr.h.
_ESR_FETCHES = {0x20: PF_INSTR | PF_USER, 0x21: PF_INSTR}
_ESR_DATA_ABORTS = {0x24: PF_USER, 0x25: 0}
_ESR_WNR = 1 << 6
_ESR_TYPE_PRESENT = {0x04: False, 0x08: True, 0x0C: True}

_CAUSE = re.compile(r"\bbadaddr: [0-9a-f]{16} cause: ([0-9a-f]{16})(?![0-9a-f])")
# arch/riscv/include/asm/csr.h: EXC_*_PAGE_FAULT and EXC_*_ACCESS.
_CAUSES = {1: PF_INSTR, 5: 0, 7: PF_WRITE, 12: PF_INSTR, 13: 0, 15: PF_WRITE}

_POWERPC = re.compile(r"BUG: .* on (read|write) at 0x")


@dataclass(frozen=True)
class FailedAccess:
    """
    One access that failed. ``None`` is what the text does not say.

    :param error_code: What the processor said, in its own encoding: x86-64's error
        code, arm64's ESR, riscv64's cause.
    :param attempt: What was attempted: ``PF_`` bits, without :data:`PF_PROT`.
    :param spelled: ``attempt``, but only the bits that the words beside the error code
        spell out: who, and write or instruction fetch.
    :param is_mapped: Whether a page was mapped there: the access was refused, then.
    :param entries: Page table entries by level, ``PGD`` to ``PTE``, as far as the
        kernel got.
    """

    address: int
    error_code: Optional[int] = None
    attempt: Optional[int] = None
    spelled: Optional[int] = None
    is_mapped: Optional[bool] = None
    entries: tuple[tuple[str, int], ...] = ()

    @property
    def is_garbled(self) -> bool:
        """Whether the words and the number beside them contradict each other."""
        if self.attempt is None or self.spelled is None:
            return False
        said = self.attempt & (PF_USER | PF_WRITE | PF_INSTR)
        if said & PF_INSTR:
            # show_fault_oops() has one word for the access, and looks at this first.
            said &= ~PF_WRITE
        return said != self.spelled


@dataclass
class FaultReading:
    """A fault as far as it was read; what is there first stays."""

    address: int
    had_die: bool = False
    error_code: Optional[int] = None
    attempt: Optional[int] = None
    spelled: Optional[int] = None
    is_mapped: Optional[bool] = None
    entries: dict[str, int] = field(default_factory=dict)

    def take(self, text: str) -> None:
        """Take what a line says."""
        if not self.had_die:
            self._take_x86(text)
        self._take_arm64(text)
        cause = _CAUSE.search(text)
        if cause and self.error_code is None:
            self.error_code = int(cause[1], 16)
            self.attempt = _CAUSES.get(self.error_code)
        for name, value in _ENTRY_ELSEWHERE.findall(text):
            self.entries.setdefault(name.upper(), int(value, 16))
        powerpc = _POWERPC.search(text)
        if powerpc:
            self.attempt = PF_WRITE if powerpc[1] == "write" else 0

    def _take_x86(self, text: str) -> None:
        access, code, die = (p.search(text) for p in (_ACCESS, _CODE, _DIE))
        if access and self.spelled is None:
            user = PF_USER if access[1] == "user" else 0
            self.spelled = user | _ACCESS_BITS.get(access[2], 0)
        if code:
            self._take_error_code(int(code[1], 16))
        for name, value in _ENTRY.findall(text):
            # pr_cont(): other lines may have come between them.
            self.entries.setdefault(name, int(value, 16))
        if die:
            self.had_die = True
            self._take_error_code(int(die[1], 16))

    def _take_error_code(self, code: int) -> None:
        if self.error_code is None:
            self.error_code = code
            self.attempt = code & ~PF_PROT
            self.is_mapped = bool(code & PF_PROT)

    def _take_arm64(self, text: str) -> None:
        found = _ESR.search(text)
        if found is None or self.error_code is not None:
            return
        esr = self.error_code = int(found[1], 16)
        kind = esr >> 26 & 0x3F
        self.attempt = _ESR_FETCHES.get(kind)
        if kind in _ESR_DATA_ABORTS:
            write = PF_WRITE if esr & _ESR_WNR else 0
            self.attempt = _ESR_DATA_ABORTS[kind] | write
        # ESR_ELx_FSC_TYPE: translation, access flag and permission faults.
        self.is_mapped = _ESR_TYPE_PRESENT.get(esr & 0x3C)

    def finish(self) -> FailedAccess:
        """What was read."""
        return FailedAccess(
            self.address,
            self.error_code,
            self.attempt,
            self.spelled,
            self.is_mapped,
            tuple(self.entries.items()),
        )
