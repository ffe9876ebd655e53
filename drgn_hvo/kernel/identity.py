# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Which machine, and why it died
------------------------------

What tells one dump from ten thousand others: names and version of the kernel that ran
(``struct new_utsname``), when it crashed, and the words of its panic. Nothing of this
is needed to read the dump, so whatever is missing or damaged is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from drgn import FaultError

from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.printk import logged_record

__all__ = ("Identity", "identity_of")

# __NEW_UTS_LEN + 1: the size of each string of struct new_utsname.
_UTS_LEN = 65
_NODENAME, _RELEASE, _VERSION = 1, 2, 3

# panic() prints it as one of the last things.
_PANIC = b"Kernel panic - not syncing: "
_LAST_RECORDS = 1024
_MAX_PANIC = 256  # panic() itself keeps no more than 1024


@dataclass(frozen=True)
class Identity:
    """
    A kernel that ran somewhere; ``None`` is what is not known.

    :param crash_time: Seconds since 1970.
    :param panic: What ``panic()`` was told; ``None`` also if nothing panicked.
    """

    nodename: Optional[str]
    release: Optional[str]
    version: Optional[str]
    crash_time: Optional[int]
    panic: Optional[str]


def identity_of(kernel: Kernel) -> Identity:
    """What is known of the machine and the end of a kernel."""
    names = _utsname(kernel)
    return Identity(
        nodename=names.get(_NODENAME),
        release=kernel.release or names.get(_RELEASE),
        version=names.get(_VERSION),
        crash_time=_crash_time(kernel),
        panic=_panic(kernel),
    )


def _utsname(kernel: Kernel) -> dict[int, str]:
    """Strings of ``init_uts_ns.name`` by number; those that are not empty."""
    try:
        namespace = kernel.vmcoreinfo.address("init_uts_ns")
        offset = kernel.vmcoreinfo.offset("uts_namespace.name")
        if namespace is None or offset is None:
            return {}
        data = kernel.prog.read(namespace + offset, _UTS_LEN * (_VERSION + 1))
    except (FaultError, HvoError, OverflowError, ValueError):
        return {}
    texts = {
        number: data[number * _UTS_LEN :][:_UTS_LEN].split(b"\0")[0]
        for number in range(_VERSION + 1)
    }
    return {n: text.decode("utf-8", "replace") for n, text in texts.items() if text}


def _crash_time(kernel: Kernel) -> Optional[int]:
    """``CRASHTIME``, which ``crash_save_vmcoreinfo()`` adds."""
    try:
        return kernel.vmcoreinfo.integer("CRASHTIME")
    except HvoError:
        return None


def _panic(kernel: Kernel) -> Optional[str]:
    try:
        record = logged_record(kernel, _PANIC, _LAST_RECORDS)
    except (FaultError, HvoError, LookupError, OverflowError, ValueError):
        return None
    if record is None:
        return None
    text = record.text.partition(_PANIC)[2]
    return text.split(b"\n")[0][:_MAX_PANIC].decode("utf-8", "replace")
