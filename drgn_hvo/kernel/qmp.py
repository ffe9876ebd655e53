# SPDX-License-Identifier: LGPL-2.1-or-later

"""
QEMU's monitor
--------------

Enough of the QEMU Machine Protocol (QMP) to tell why a guest cannot be debugged. drgn
itself waits for a greeting forever, and does not say what QEMU lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import json
import os
import socket
import stat
from typing import Any

from drgn_hvo.errors import TargetError

__all__ = ("check_qmp", "has_vmcoreinfo_device", "is_tcp")

# QEMU greets at once.
_TIMEOUT = 5.0  # seconds

_LONGEST_LINE = 1 << 20

# Where devices of the command line hang in QEMU's object tree: with an ID or without.
_PERIPHERALS = ("/machine/peripheral", "/machine/peripheral-anon")

_HINTS = {
    errno.ENOENT: "; is QEMU running, with -qmp unix:PATH,server=on,wait=off?",
    errno.ECONNREFUSED: ": nobody listens on it; has QEMU ended?",
}


def is_tcp(address: str) -> bool:
    """Whether drgn takes an address for ``host:port``."""
    _, colon, port = address.rpartition(":")
    return bool(colon) and port.isascii() and port.isdigit() and address[0] not in "/."


def check_qmp(address: str) -> None:
    """
    Make sure that a Unix socket is QEMU's monitor.

    :raises TargetError: if it is not; the text says what it is instead.
    """
    with _connected(address):
        pass


def has_vmcoreinfo_device(address: str) -> bool:
    """
    Whether QEMU was started with ``-device vmcoreinfo``.

    :raises TargetError: if QEMU does not say.
    """
    with _connected(address) as monitor:
        _execute(monitor, "qmp_capabilities")
        return any(
            child.get("type") == "child<vmcoreinfo>"
            for path in _PERIPHERALS
            for child in _execute(monitor, "qom-list", path=path)
        )


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """A file of the monitor, behind its greeting."""
    try:
        if not stat.S_ISSOCK(os.stat(address).st_mode):
            raise TargetError("not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_TIMEOUT)
            client.connect(address)
            with client.makefile("rw", encoding="utf-8", errors="replace") as monitor:
                if "QMP" not in _message(monitor):
                    raise TargetError("not a QMP socket: QEMU does not answer there")
                yield monitor
    except socket.timeout:
        raise TargetError(
            "no greeting: not a QMP socket, or somebody else is connected to it (QEMU "
            "talks to one at a time; give it a second -qmp)"
        ) from None
    except OSError as e:
        hint = _HINTS.get(e.errno or 0, "")
        raise TargetError(f"{e.strerror or e}{hint}") from None


def _message(monitor: Any) -> dict[str, Any]:
    try:
        message: Any = json.loads(monitor.readline(_LONGEST_LINE))
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {}


def _execute(monitor: Any, command: str, **arguments: str) -> list[dict[str, Any]]:
    monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    monitor.flush()
    while True:
        message = _message(monitor)
        if isinstance(message.get("return"), (dict, list)):
            return list(message["return"])
        # Events may come in between; anything else is no answer to a simple question.
        if "event" not in message:
            raise TargetError(f"QEMU's monitor does not answer {command}")
