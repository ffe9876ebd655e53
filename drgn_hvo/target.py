# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Targets
-------

Opening what the user names, and saying in one line why it cannot be opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from drgn import (
    BadDataError,
    FaultError,
    MissingDebugInfoError,
    Program,
    ProgramFlags,
)

from drgn_hvo.errors import FormatError, TargetError
from drgn_hvo.finders import has_debuginfo, install
from drgn_hvo.kdumpfile import check_kdump_file

__all__ = ("load_symbols", "open_target")

_DRGN_ERRORS = (BadDataError, FaultError, NotImplementedError)

# What drgn's words mean to a user.
_EXPLANATIONS = {
    # An empty utsname, see "KDUMP_ATTR_ARCH_NAME: Key has no value".
    "ARCH_NAME": (
        "this kdump file does not name its architecture, as those that QEMU writes do "
        "not; convert it with 'makedumpfile -c -d 1 FILE NEW', or dump the guest as "
        "ELF (dump-guest-memory without -z, -l or -s)"
    ),
    "kdump_vmcoreinfo_raw": "this kdump file has no VMCOREINFO",
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
    :raises TargetError: if it is not a Linux kernel that can be debugged.
    """
    note = _read_vmcoreinfo(vmcoreinfo)
    try:
        prog = Program(vmcoreinfo=note)
        _set_target(prog, target)
    except FormatError as e:
        raise TargetError(f"{target}: {e}") from None
    except PermissionError as e:
        hint = "; debugging the running kernel needs root" if target == "live" else ""
        raise TargetError(f"{e.filename or target}: {e.strerror}{hint}") from None
    except OSError as e:
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


def _set_target(prog: Program, target: str) -> None:
    if target == "live":
        prog.set_kernel()
    elif target.startswith("qemu:"):
        prog.set_qemu_qmp(target[len("qemu:") :])
    else:
        with open(target, "rb") as f:
            check_kdump_file(f)
        prog.set_core_dump(target)


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
