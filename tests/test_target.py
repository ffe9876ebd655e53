# SPDX-License-Identifier: LGPL-2.1-or-later

"""What cannot be opened is said in one line that a person can act on."""

from contextlib import contextmanager, suppress
import errno
import json
import os
from pathlib import Path
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from drgn_hvo.errors import TargetError
from drgn_hvo.kernel import qmp, target
from drgn_hvo.kernel.target import open_target


def _error(name):
    with pytest.raises(TargetError) as raised:
        open_target(name)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(name)
    return message


class _Live:
    """A program whose running kernel cannot be opened."""

    def __init__(self, error):
        self._error = error

    def __call__(self, **kwargs):
        return self

    def set_kernel(self):
        raise self._error


@pytest.fixture
def live(monkeypatch, tmp_path):
    """Make opening the running kernel fail, as a machine of the given kind would."""

    def make(number, *, uid=0, lockdown=None, kcore=True):
        error = OSError(number, os.strerror(number), "/proc/kcore")
        monkeypatch.setattr(target, "Program", _Live(error))
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        file = tmp_path / "lockdown"
        if lockdown is not None:
            file.write_text(lockdown)
        monkeypatch.setattr(target, "_LOCKDOWN", file)
        monkeypatch.setattr(
            target, "_KCORE", Path(__file__) if kcore else tmp_path / "kcore"
        )
        return _error("live")

    return make


def test_live_needs_root(live):
    assert "needs root" in live(errno.EACCES, uid=1000)


def test_live_locked_down(live):
    message = live(errno.EPERM, lockdown="none integrity [confidentiality]\n")
    assert "locked down" in message
    assert "root" in message


def test_live_lockdown_that_permits_reading_is_not_blamed(live):
    message = live(errno.EPERM, lockdown="none [integrity] confidentiality\n")
    assert "locked down" not in message
    assert "though you are root" in message


def test_live_in_a_container(live):
    assert "CAP_SYS_RAWIO" in live(errno.EPERM)


def test_live_without_kcore(live):
    assert "CONFIG_PROC_KCORE" in live(errno.ENOENT, kcore=False)


@contextmanager
def _behaving(path, behave):
    """A socket, each client of which is given to a function."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(4)

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                behave(client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Closing alone does not wake a thread in accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _listening(path, *lines):
    """A socket whose every client is told *lines*, one for each that it says."""

    def behave(client):
        with client.makefile("rb") as said:
            for line in lines:
                client.sendall(line)
                said.readline()

    return _behaving(path, behave)


def test_no_such_socket(tmp_path):
    message = _error(f"qemu:{tmp_path / 'none'}")
    assert "No such file" in message
    assert "-qmp" in message


def test_no_address():
    assert "no address" in _error("qemu:")


def test_not_a_socket(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "not a socket" in _error(f"qemu:{file}")


def test_socket_without_listener(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert "nobody listens" in _error(f"qemu:{path}")


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH\n", b"{}\n", b"[]\n", b"\xff\xfe\n", b"\n"]
)
def test_socket_of_something_else(tmp_path, greeting):
    path = tmp_path / "socket"
    with _listening(path, greeting):
        assert "not a QMP socket" in _error(f"qemu:{path}")


_GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'


def _silent(client):
    client.recv(1)


def _trickle(client):
    for byte in b'{"QMP": {' + b" " * 100:
        client.sendall(bytes([byte]))
        time.sleep(0.05)


def _endless_line(client):
    while True:
        client.sendall(b"x" * 65536)


def _endless_lines(client):
    client.sendall(_GREETING)
    while True:
        client.sendall(b'{"event": "RESUME"}\n' * 4096)


def _deep(client):
    client.sendall(b"[" * 1_000_000 + b"\n")
    client.recv(1)


def _garbage(client):
    client.sendall(bytes(range(256)) + b"\n")
    client.recv(1)


def _no_answer(client):
    client.sendall(_GREETING)
    client.recv(1 << 16)
    client.recv(1)


def _refusal(client):
    client.sendall(_GREETING + b'{"error": "no"}\n')
    client.recv(1 << 16)


def _hangs_up(client):
    client.sendall(_GREETING)


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (_silent, "no greeting"),
        (_trickle, "no greeting"),
        (_endless_line, "does not end"),
        (_endless_lines, "no answer"),
        (_deep, "not a QMP socket"),
        (_garbage, "not a QMP socket"),
        (_no_answer, "no answer"),
        (_refusal, "qmp_capabilities: no"),
        (_hangs_up, "QEMU closed its monitor"),
    ],
)
def test_hostile_socket(tmp_path, monkeypatch, behave, said):
    """One line in time, whatever listens."""
    monkeypatch.setattr(qmp, "TIMEOUT", 1)
    path = tmp_path / "socket"
    start = time.monotonic()
    with _behaving(path, behave):
        assert said in _error(f"qemu:{path}")
    assert time.monotonic() - start < 4


def test_a_timeout_of_python_3_9(monkeypatch):
    """There, socket.timeout is another OSError than TimeoutError."""

    class OldTimeoutError(OSError):
        pass

    monkeypatch.setattr(socket, "timeout", OldTimeoutError)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(qmp, "_connected", lambda address, timeout: _Old(ours))
        with pytest.raises(TargetError, match="no greeting"):
            qmp.Qmp("anywhere")


class _Old:
    """A socket that times out as sockets of Python 3.9 do."""

    def __init__(self, real):
        self._real = real

    def settimeout(self, seconds):
        pass

    def recv(self, count):
        raise socket.timeout("timed out")

    def close(self):
        self._real.close()


# A monitor in a process of its own: while drgn waits, no thread of this one runs. It
# answers the first client, and every question of drgn until the last.
_ENDLESS = """
import socket, sys, time
path, what, last = sys.argv[1:]
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\\n'
ANSWERS = {
    b"query-target": b'{"return": {"arch": "x86_64"}}\\n',
    b"qmp_capabilities": b'{"return": {}}\\n',
}
DATA = {
    "bytes": (b" ", 0.1), "line": (b"x" * 4096, 0.01),
    "events": (b'{"event": "STOP"}\\n' * 100, 0.01),
}
def answer(client, last):
    client.sendall(GREETING)
    while True:
        asked = client.recv(1 << 16)
        if not asked:
            return
        said = next((said for word, said in ANSWERS.items() if word in asked), None)
        if said is None or last in asked:
            break
        client.sendall(said)
    data, pause = DATA[what]
    while True:
        client.sendall(data)
        time.sleep(pause)
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
    server.bind(path)
    server.listen(4)
    print("listens", flush=True)
    for wrong in (b"nothing", last.encode()):
        client, _ = server.accept()
        with client:
            try:
                answer(client, wrong)
            except OSError:
                pass
"""


@pytest.mark.parametrize("last", ["qmp_capabilities", "human-monitor-command"])
@pytest.mark.parametrize("what", ["bytes", "line", "events"])
def test_qemu_that_never_ends_what_it_says_to_drgn(tmp_path, monkeypatch, what, last):
    monkeypatch.setattr(qmp, "DRGN_TIMEOUT", 1)
    path = tmp_path / "socket"
    with subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, path, what, last], stdout=subprocess.PIPE
    ) as monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline() == b"listens\n"
        start = time.monotonic()
        assert "too slowly, or without an end" in _error(f"qemu:{path}")
        assert time.monotonic() - start < 8
        # Nobody has the connection any more.
        assert monitor.wait(timeout=10) == 0


def test_qemu_that_stops_answering_drgn(tmp_path, monkeypatch):
    """drgn itself has no time limit: the socket that it is given has."""
    monkeypatch.setattr(qmp, "DRGN_TIMEOUT", 1)
    answers = [b'{"return": {}}\n', b'{"return": {"arch": "x86_64"}}\n']
    clients = []

    def behave(client):
        clients.append(client)
        client.sendall(_GREETING)
        for answer in answers if len(clients) == 1 else ():
            client.recv(1 << 16)
            client.sendall(answer)
        while client.recv(1 << 16):
            pass

    path = tmp_path / "socket"
    with _behaving(path, behave):
        assert "stopped answering" in _error(f"qemu:{path}")


@pytest.mark.parametrize(("kind", "found"), [("vmcoreinfo", True), ("isa-fdc", False)])
def test_vmcoreinfo_device(tmp_path, kind, found):
    path = tmp_path / "socket"
    answers: tuple[dict[str, Any], ...] = (
        {"QMP": {"version": {}, "capabilities": []}},
        {"return": {}},
        {"event": "RESUME"},
        {"return": []},
        {"return": [{"name": "device[0]", "type": f"child<{kind}>"}]},
    )
    lines = [json.dumps(answer).encode() + b"\n" for answer in answers]
    # The event comes unasked, with the answer behind it.
    lines[2:4] = [lines[2] + lines[3]]
    with _listening(path, *lines):
        assert qmp.has_vmcoreinfo_device(str(path)) is found


def test_tcp_as_drgn_understands_it():
    assert qmp.is_tcp("localhost:4444")
    assert qmp.is_tcp(":4444")
    assert not qmp.is_tcp("./socket:4444")
    assert not qmp.is_tcp("/run/socket:4444")
    assert not qmp.is_tcp("socket")
