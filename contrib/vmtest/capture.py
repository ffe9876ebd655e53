# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Capturing cores
---------------

Both kinds: QEMU's dump of a running guest, and a kdump, for which the guest's kernel
crashes and a second kernel copies what the first one left.
"""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path

from contrib.vmtest.errors import GuestError
from contrib.vmtest.guest import BOOT_TIMEOUT, Guest
from contrib.vmtest.scenario import inspect

__all__ = ("capture_dump", "capture_kdump")

_DUMP_TIMEOUT = 300  # seconds


def capture_dump(guest: Guest, path: Path) -> str:
    """
    Capture an ELF core with ``dump-guest-memory``; the guest stands still meanwhile.

    :return: What ``check`` says of it.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        guest.qmp.execute(
            "dump-guest-memory",
            timeout=_DUMP_TIMEOUT,
            paging=False,
            protocol=f"file:{partial.resolve()}",
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return inspect(str(path)).verdict


def capture_kdump(guest: Guest, path: Path, log: Callable[[str], None]) -> str:
    """
    Crash the guest and copy ``/proc/vmcore`` from its crash kernel.

    :return: What ``check`` says of it.
    """
    guest.run(
        "kexec -s -p /crash/vmlinuz --initrd=/crash/initrd --append="
        '"console=ttyS0 panic=-1 irqpoll nr_cpus=1 reset_devices"',
        timeout=60,
    )
    if guest.run("cat /sys/kernel/kexec_crash_loaded").strip() != "1":
        raise GuestError("the crash kernel is not loaded")
    guest.send("echo c >/proc/sysrq-trigger")
    guest.wait_ready(BOOT_TIMEOUT)
    log("the crash kernel is up")
    size = int(guest.run("stat -c %s /proc/vmcore"))
    guest.run("dd if=/proc/vmcore of=/dev/vport0p1 bs=1M 2>&1", timeout=_DUMP_TIMEOUT)
    guest.run("sync")
    if guest.stream.stat().st_size != size:
        raise GuestError(
            f"of {size} bytes of /proc/vmcore, {guest.stream.stat().st_size} arrived"
        )
    os.replace(guest.stream, path)
    return inspect(str(path)).verdict
