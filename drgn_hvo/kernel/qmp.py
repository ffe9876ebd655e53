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
from contextlib import contextmanager, suppress
import errno
import json
import os
from pathlib import Path
import re
import select
import socket
import stat
import struct
import time
from types import TracebackType
from typing import Any, NoReturn, Optional, Union

from drgn_hvo.errors import TargetError

__all__ = (
    "DRGN_TIMEOUT",
    "TIMEOUT",
    "Qmp",
    "connect",
    "has_vmcoreinfo_device",
    "in_time",
    "is_tcp",
)

#: QEMU greets at once, and answers what we ask at once.
TIMEOUT = 5.0  # seconds

# QEMU's longest answers, to query-qmp-schema, have less than 1 MiB.
_LONGEST_LINE = 4 << 20

#: How long QEMU may be silent while drgn waits, which may be for a dump of one page;
#: and nearly how long all may take that drgn asks before it reads memory.
DRGN_TIMEOUT = 10  # seconds

_TOO_LATE = "QEMU's monitor answers too slowly, or without an end"

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


@contextmanager
def in_time(client: int) -> Iterator[None]:
    """
    End what drgn says first to QEMU if it is not over in time: a monitor that sends
    events, or one byte a second, or a line without an end, is never silent, which is
    all that the time of :func:`connect()` is for.

    drgn keeps Python's lock meanwhile, so that no thread can look at a clock. Another
    process has the connection as well, and shuts it down.

    :param client: What :func:`connect()` gave.
    :raises TargetError: if it was not over.
    """
    watch = _Watch(client)
    try:
        yield
    except Exception:
        if watch.was_late():
            raise TargetError(_TOO_LATE) from None
        raise
    finally:
        watch.was_late()
    if watch.was_late():
        raise TargetError(_TOO_LATE)


class _Watch:
    """A process that shuts a socket down after some time."""

    def __init__(self, client: int) -> None:
        waits_for, self._done = os.pipe()
        self._process: Optional[int] = os.fork()
        if self._process == 0:
            os.close(self._done)
            _shut_down_unless(waits_for, client)
        os.close(waits_for)
        self._was_late = False

    def was_late(self) -> bool:
        """End the process, and say whether it has done it."""
        if self._process is not None:
            # Closing would not do: other processes may have been forked meanwhile.
            with suppress(BrokenPipeError):
                os.write(self._done, b".")
            os.close(self._done)
            self._was_late = os.waitpid(self._process, 0)[1] != 0
            self._process = None
        return self._was_late


def _shut_down_unless(done: int, client: int) -> NoReturn:
    """Wait for a byte, or that who would send it is gone; or shut a socket down."""
    is_late = 1
    try:
        # A monitor that is silent has an end, and a text, of its own by then.
        if select.select([done], [], [], DRGN_TIMEOUT + 1)[0]:
            is_late = 0
        else:
            with socket.socket(fileno=os.dup(client)) as same:
                same.shutdown(socket.SHUT_RDWR)
    finally:
        # Nothing of the process that this one is a copy of may be done here.
        os._exit(is_late)


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
