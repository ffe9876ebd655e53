# SPDX-License-Identifier: LGPL-2.1-or-later

"""
QEMU's monitor
--------------

A client of the QEMU Machine Protocol (QMP), with limits on everything that the other
end can do: whatever listens on a socket may be silent, slow, endless or no QEMU at all.
drgn's own client waits forever and does not say what QEMU lacks, so :func:`connect()`
asks what drgn will ask before drgn gets a connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import json
import os
from pathlib import Path
import re
import socket
import stat
import struct
import time
from types import TracebackType
from typing import Any, Optional, Union

from drgn_hvo.errors import TargetError

__all__ = (
    "DRGN_TIMEOUT",
    "TIMEOUT",
    "Qmp",
    "connect",
    "has_vmcoreinfo_device",
    "is_tcp",
)

#: QEMU greets at once, and answers what we ask at once.
TIMEOUT = 5.0  # seconds

# QEMU's longest answers, to query-qmp-schema, have less than 1 MiB.
_LONGEST_LINE = 4 << 20

#: How long QEMU may take for one answer to drgn, which may be a dump of one page.
DRGN_TIMEOUT = 10  # seconds

# Where devices of the command line hang in QEMU's object tree: with an ID or without.
_PERIPHERALS = ("/machine/peripheral", "/machine/peripheral-anon")

_HINTS = {
    errno.ENOENT: "; is QEMU running, with -qmp unix:PATH,server=on,wait=off?",
    errno.ECONNREFUSED: ": nobody listens on it; has QEMU ended?",
}


def is_tcp(address: str) -> bool:
    """Whether drgn takes an address for ``host:port``."""
    _, colon, port = address.rpartition(":")
    if not colon or address[0] in "/." or not re.fullmatch("[0-9]{1,5}", port):
        return False
    return 1 <= int(port) <= 65535


class Qmp:
    """
    A connection to QEMU's monitor that takes commands; a context manager.

    :param address: Path of a Unix socket, or ``host:port``.
    :raises TargetError: if it is not QEMU's monitor; the text says what it is instead.
    """

    def __init__(self, address: Union[str, Path]) -> None:
        self._received = b""
        try:
            with _explained():
                self._socket = _connected(str(address), TIMEOUT)
        except TimeoutError:
            raise TargetError("nobody takes the connection in time") from None
        try:
            self._greeted()
            self.execute("qmp_capabilities", timeout=TIMEOUT)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the monitor."""
        self._socket.close()

    def _greeted(self) -> None:
        try:
            greeting = self._message(time.monotonic() + TIMEOUT)
        except TimeoutError:
            raise TargetError(
                "no greeting: not a QMP socket, or somebody else is connected to it "
                "(QEMU talks to one at a time; give it a second -qmp)"
            ) from None
        if "QMP" not in greeting:
            raise TargetError("not a QMP socket: QEMU does not answer there")

    def execute(self, command: str, timeout: float = 30, **arguments: object) -> Any:
        """
        Run a command.

        :param timeout: Seconds until the answer must be there, events before it
            included.
        :return: What QEMU returns for it.
        :raises TargetError: if QEMU says no, or nothing that makes sense in time.
        """
        deadline = time.monotonic() + timeout
        request = json.dumps({"execute": command, "arguments": arguments}) + "\n"
        try:
            with _explained():
                self._socket.settimeout(timeout)
                self._socket.sendall(request.encode())
            while True:
                message = self._message(deadline)
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise TargetError(f"QEMU: {command}: {_description(message)}")
                # Events may come in between.
                if "event" not in message:
                    raise TargetError(f"QEMU's monitor does not answer {command}")
        except TimeoutError:
            raise TargetError(f"QEMU: {command}: no answer") from None

    def _message(self, deadline: float) -> dict[str, Any]:
        """
        The next line as an object; empty if it is none.

        :raises TimeoutError: if it is not there at the deadline.
        """
        try:
            message: Any = json.loads(self._line(deadline))
        except (ValueError, RecursionError):
            message = None
        return message if isinstance(message, dict) else {}

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            with _explained():
                self._socket.settimeout(left)
                received = self._socket.recv(1 << 16)
            if not received:
                raise TargetError("QEMU closed its monitor")
            self._received += received
            if len(self._received) > _LONGEST_LINE:
                raise TargetError("not a QMP socket: a line of it does not end")
        line, _, self._received = self._received.partition(b"\n")
        return line


def _description(message: dict[str, Any]) -> str:
    error = message["error"]
    return str(error.get("desc", error) if isinstance(error, dict) else error)


@contextmanager
def _explained() -> Iterator[None]:
    """
    Turn errors of a socket into ours.

    :raises TimeoutError: for what Python 3.9 calls :exc:`socket.timeout`.
    :raises TargetError: for any other error of a socket.
    """
    try:
        yield
    except (TimeoutError, socket.timeout):
        raise TimeoutError from None
    except (BrokenPipeError, ConnectionResetError):
        raise TargetError("QEMU closed its monitor") from None
    except OSError as e:
        hint = _HINTS.get(e.errno or 0, "")
        raise TargetError(f"{e.strerror or e}{hint}") from None


def _connected(address: str, timeout: float) -> socket.socket:
    if is_tcp(address):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host or "localhost", int(port)), timeout)
    if not stat.S_ISSOCK(os.stat(address).st_mode):
        raise TargetError("not a socket")
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout)
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def connect(address: str) -> int:
    """
    Connect to QEMU for drgn.

    :param address: Path of a Unix socket, or ``host:port``.
    :return: A file descriptor that :meth:`drgn.Program.set_qemu_qmp()` takes over,
        reading from which ends with ``EAGAIN`` where QEMU stops answering.
    :raises TargetError: if it is not QEMU's monitor; the text says what it is instead.
    """
    with Qmp(address) as monitor:
        monitor.execute("query-target", timeout=TIMEOUT)
    try:
        with _explained():
            client = _connected(address, TIMEOUT)
            client.settimeout(None)
            client.setsockopt(
                socket.SOL_SOCKET,
                socket.SO_RCVTIMEO,
                struct.pack("ll", DRGN_TIMEOUT, 0),
            )
            return client.detach()
    except TimeoutError:
        raise TargetError("QEMU's monitor takes no second connection") from None


def has_vmcoreinfo_device(address: str) -> bool:
    """
    Whether QEMU was started with ``-device vmcoreinfo``.

    :raises TargetError: if QEMU does not say.
    """
    with Qmp(address) as monitor:
        for path in _PERIPHERALS:
            children = monitor.execute("qom-list", timeout=TIMEOUT, path=path)
            if not isinstance(children, list):
                raise TargetError("QEMU's monitor does not answer qom-list")
            for child in children:
                if isinstance(child, dict) and child.get("type") == "child<vmcoreinfo>":
                    return True
    return False
