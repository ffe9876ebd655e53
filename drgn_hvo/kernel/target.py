# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Targets
-------

Opening what the user names, and saying in one line why it cannot be opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import errno
import os
from pathlib import Path
import stat
from typing import BinaryIO, Optional

from drgn import (
    BadDataError,
    FaultError,
    MissingDebugInfoError,
    Platform,
    Program,
    ProgramFlags,
)

from drgn_hvo.errors import FormatError, TargetError
from drgn_hvo.formats.dump_health import DumpHealth, elf_health, kdump_health
from drgn_hvo.formats.elf_segments import ElfFrame, read_elf_frame
from drgn_hvo.formats.kdump import read_kdump_frame
from drgn_hvo.formats.unreadable import explain_unreadable
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.core_sources import has_debuginfo
from drgn_hvo.kernel.dump import remember_dump
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.kdump_program import (
    kdump_platform,
    libkdumpfile_fault,
    program_of_kdump,
)

__all__ = ("load_symbols", "open_target")

_QEMU = "qemu:"

_KCORE = Path("/proc/kcore")
_LOCKDOWN = Path("/sys/kernel/security/lockdown")

_DRGN_ERRORS = (BadDataError, FaultError, NotImplementedError)

# What drgn's words mean to a user.
_EXPLANATIONS = {
    # An empty utsname, see "KDUMP_ATTR_ARCH_NAME: Key has no value".
    "ARCH_NAME": "this kdump file does not name its architecture",
    "kdump_vmcoreinfo_raw": "this kdump file has no VMCOREINFO; give --vmcoreinfo",
}


def open_target(
    target: str,
    symbols: Sequence[str] = (),
    vmcoreinfo: Optional[str] = None,
) -> Program:
    """
    Open a target.

    :param target: Path of a core, ``live``, or ``qemu:ADDRESS``.
    :param symbols: Files with the kernel's debuginfo.
    :param vmcoreinfo: File with VMCOREINFO, for a core that has none.
    :raises TargetError: if it is not a Linux kernel that can be debugged, or
        *vmcoreinfo* is of another one.
    """
    note = _read_vmcoreinfo(vmcoreinfo)
    try:
        _check_boot(target, note)
        prog = _program(target, note)
    except (FormatError, TargetError) as e:
        raise TargetError(f"{target}: {e}") from None
    except OSError as e:
        if target == "live":
            raise TargetError(_why_not_live(e)) from None
        if e.errno == errno.EAGAIN and target.startswith(_QEMU):
            raise TargetError(f"{target}: QEMU's monitor stopped answering") from None
        where = "" if e.filename in (None, target) else f"{e.filename}: "
        raise TargetError(f"{target}: {where}{e.strerror or e}") from None
    except (ArithmeticError, ValueError, LookupError, *_DRGN_ERRORS) as e:
        raise TargetError(f"{target}: {_explain(str(e))}") from None
    except Exception as e:
        # libkdumpfile's and QEMU's errors reach us as plain Exception.
        if type(e) is not Exception:
            raise
        raise TargetError(f"{target}: {_explain(str(e))}") from None
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        if target.startswith(_QEMU):
            # QEMU talks to one client at a time, and the next question is ours.
            del prog
            raise TargetError(f"{target}: {_why_no_note(target[len(_QEMU) :])}")
        raise TargetError(
            f"{target}: not a Linux kernel core (no VMCOREINFO note; if it is one, "
            "give --vmcoreinfo)"
        )
    load_symbols(prog, symbols)
    install(prog)
    return prog


def _read_vmcoreinfo(path: Optional[str]) -> Optional[bytes]:
    if path is None:
        return None
    try:
        with open(path, "rb") as f:
            # As much as no VMCOREINFO needs; a wrong file must not fill memory.
            return f.read(1 << 20)
    except OSError as e:
        raise TargetError(f"{path}: {e.strerror}") from None


def _check_boot(target: str, note: Optional[bytes]) -> None:
    """
    Check that VMCOREINFO which a user gives can be of the boot that a core is of.

    :raises TargetError: if the core has another one itself.
    """
    if note is None or not os.path.isfile(target):
        return
    try:
        own = Vmcoreinfo(_program_of_core(target, None)["VMCOREINFO"].string_())
    except Exception:
        # The core has none that can be used; what libkdumpfile raises has no type.
        return
    why = Vmcoreinfo(note).other_boot(own)
    if why is not None:
        raise TargetError(
            "--vmcoreinfo is of another kernel, or of another boot, than this core, "
            f"which has VMCOREINFO itself: {why}"
        )


def _program(target: str, note: Optional[bytes]) -> Program:
    if target == "live":
        prog = Program(vmcoreinfo=note)
        prog.set_kernel()
        return prog
    if target.startswith(_QEMU):
        prog = Program(vmcoreinfo=note)
        from drgn_hvo.kernel.qmp import in_time

        client = _connect_qmp(target[len(_QEMU) :])
        with in_time(client):
            prog.set_qemu_qmp(client)
        return prog
    return _program_of_core(target, note)


def _program_of_core(target: str, note: Optional[bytes]) -> Program:
    core = _look_at(target)
    if core.fault is not None:
        prog = program_of_kdump(target, note)
        if prog is None:
            raise FormatError(
                f"this kdump file is {core.fault}, and does not say of what kernel; "
                "copy it again"
            )
    else:
        if note is None and core.elf is not None and not core.has_note:
            note = _vmcoreinfo_in(target, core.elf)
        prog = _program_of_drgn(target, core.platform, note)
    if core.health is not None:
        remember_dump(prog, target, core.health)
    return prog


def _program_of_drgn(
    target: str, platform: Optional[Platform], note: Optional[bytes]
) -> Program:
    prog = Program(platform, vmcoreinfo=note)
    try:
        prog.set_core_dump(target)
    except Exception as e:
        # libkdumpfile's errors reach us as plain Exception.
        without = program_of_kdump(target, note) if type(e) is Exception else None
        if without is None:
            raise
        return without
    return prog


@dataclass(frozen=True)
class _Core:
    """
    What a look at a file says of how to open it.

    :param platform: Where drgn cannot tell it.
    :param elf: Of an ELF core of a machine.
    :param has_note: Whether drgn will find VMCOREINFO.
    :param fault: Why it is a kdump file at which libkdumpfile would end this process.
    :param health: What it says of itself.
    """

    platform: Optional[Platform] = None
    elf: Optional[ElfFrame] = None
    has_note: bool = True
    fault: Optional[str] = None
    health: Optional[DumpHealth] = None


def _has_unmappable_holes(f: BinaryIO) -> bool:
    """
    Whether a file has holes where there is no room left to fill them: reading one
    through a mapping of a tmpfs takes a page, and without one ends the process. So
    ends makedumpfile that filled the disk it wrote to.
    """
    status = os.fstat(f.fileno())
    is_sparse = status.st_blocks * 512 < status.st_size
    return is_sparse and not os.fstatvfs(f.fileno()).f_bavail


def _look_at(target: str) -> _Core:
    """
    Look at the headers of a file, before drgn opens it.

    :raises FormatError: if it is no core that can be opened; the text says what it is.
    """
    mode = os.stat(target).st_mode
    if stat.S_ISDIR(mode):
        # Why a directory of cores is not read says more.
        with os.scandir(target):
            pass
        raise FormatError("a directory, no core")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise FormatError("no regular file: a core is read here and there, not once")
    with open(target, "rb") as f:
        kdump = read_kdump_frame(f)
        if kdump is not None:
            kdump.check()
            fault = libkdumpfile_fault(kdump)
            if fault is None and _has_unmappable_holes(f):
                fault = "cut off"
            return _Core(
                None if kdump.has_utsname else kdump_platform(kdump),
                fault=fault,
                health=kdump_health(kdump),
            )
        elf = read_elf_frame(f)
        if elf is None:
            reason = explain_unreadable(f, target)
            if reason is not None:
                raise FormatError(reason)
            return _Core()
        if not elf.is_core:
            raise FormatError("an ELF file, but no core; debuginfo is given with -s")
        return _Core(
            elf=elf, has_note=elf.has_note(f, b"VMCOREINFO"), health=elf_health(elf)
        )


def _vmcoreinfo_in(target: str, elf: ElfFrame) -> Optional[bytes]:
    """
    VMCOREINFO in the memory of a core that has no note of it.

    :return: ``None`` if none is found: drgn then says what it misses.
    :raises FormatError: if several are.
    """
    from drgn_hvo.formats.vmcoreinfo_search import find_vmcoreinfo

    with open(target, "rb") as f:
        found = find_vmcoreinfo(f, elf)
    if len(found) > 1:
        places = " and ".join(f"{text.address:#x}" for text in found[:3])
        raise FormatError(
            f"no VMCOREINFO note, and {len(found)} texts in memory that can be it, at "
            f"physical addresses {places}; give the right one with --vmcoreinfo"
        )
    return found[0].data if found else None


def _why_not_live(e: OSError) -> str:
    """Why the running kernel's memory cannot be read."""
    if e.errno == errno.ENOENT and not _KCORE.exists():
        return (
            "live: there is no /proc/kcore: this kernel was built without "
            "CONFIG_PROC_KCORE, or /proc is not mounted"
        )
    if isinstance(e, PermissionError):
        if os.geteuid() != 0:
            return "live: debugging the running kernel needs root"
        mode = _lockdown_mode()
        if mode == "confidentiality":
            return (
                "live: the kernel is locked down (lockdown=confidentiality), so that "
                "even root cannot read /proc/kcore; only booting without it helps"
            )
        return (
            f"live: {_KCORE}: {e.strerror}, though you are root: a container without "
            "CAP_SYS_RAWIO, or a security module, forbids it"
        )
    return f"live: {e.filename or _KCORE}: {e.strerror or e}"


def _lockdown_mode() -> Optional[str]:
    """The kernel's lockdown mode, ``None`` if nothing says."""
    try:
        # The mode in force is in brackets: "none integrity [confidentiality]".
        return _LOCKDOWN.read_text().partition("[")[2].partition("]")[0] or None
    except OSError:
        return None


def _connect_qmp(address: str) -> int:
    from drgn_hvo.kernel.qmp import connect

    if not address:
        raise ValueError("no address; give the path of a QMP socket")
    return connect(address)


def _why_no_note(address: str) -> str:
    """Why QEMU has no VMCOREINFO of its guest."""
    from drgn_hvo.kernel.qmp import has_vmcoreinfo_device, is_tcp

    if is_tcp(address):
        return (
            "VMCOREINFO comes over a Unix socket only: give QEMU one (-qmp "
            "unix:PATH,server=on,wait=off), or --vmcoreinfo"
        )
    try:
        has_device = has_vmcoreinfo_device(address)
    except TargetError:
        return "QEMU has no VMCOREINFO of this guest, and does not say why"
    if not has_device:
        return "QEMU was started without -device vmcoreinfo"
    return (
        "the guest has not given QEMU its VMCOREINFO: load the module qemu_fw_cfg in "
        "it, or wait until it has booted (or it is no Linux kernel)"
    )


def _explain(message: str) -> str:
    for known, explanation in _EXPLANATIONS.items():
        if known in message:
            return explanation
    return " ".join(message.split())


def load_symbols(prog: Program, symbols: Sequence[str]) -> None:
    """
    Load debuginfo.

    :raises TargetError: if it cannot be read, or is not that of this kernel.
    """
    if not symbols:
        return
    try:
        prog.load_debug_info(symbols)
    except (MissingDebugInfoError, OSError, ValueError) as e:
        raise TargetError(" ".join(str(e).split())) from None
    if not has_debuginfo(prog):
        raise TargetError(f"{symbols[0]}: not the debuginfo of this kernel")
