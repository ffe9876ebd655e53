# SPDX-License-Identifier: LGPL-2.1-or-later

"""What cannot be opened is said in one line that a person can act on."""

from contextlib import contextmanager, suppress
import errno
import json
import os
from pathlib import Path
import socket
import threading
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
def _listening(path, *lines):
    """A socket whose every client is told *lines*, one for each that it says."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(4)

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as said, suppress(OSError):
                for line in lines:
                    client.sendall(line)
                    said.readline()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Closing alone does not wake a thread in accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


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


def test_silent_socket(tmp_path, monkeypatch):
    """As of a QEMU that already talks to another client."""
    monkeypatch.setattr(qmp, "_TIMEOUT", 0.2)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen(1)
        assert "no greeting" in _error(f"qemu:{path}")


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
