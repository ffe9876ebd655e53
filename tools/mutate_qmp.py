# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A monitor that is wrong
-----------------------

Stands for QEMU at the other end of a QMP socket: silent, slow, endless, or full of
nonsense; for :mod:`tools.mutate_inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import os
from pathlib import Path
import random
import socket
import threading
import time

from drgn_hvo.kernel import qmp

__all__ = ("answers", "monitor")

_GREETING = b'{"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": []}}\r\n'
_EMPTY = b'{"return": {}}\r\n'
_TARGET = b'{"return": {"arch": "x86_64"}}\r\n'

# What stands in place of an answer.
_WRONG = (
    *(b"", b"\n", b"null\n", b"[]\n", b"{}\n", b"{\n", b"\xff\xfe\n", b"0" * 70000),
    *(b"[" * 100_000 + b"\n", b'{"a":' * 50_000 + b"\n", b"x" * (5 << 20)),
    b'{"error": {"desc": "\\u001b[31mred\\u0007\\n2"}}\n',
    *(b'{"error": 7}\n', b'{"error": null}\n', b'{"return": 1}\n'),
    *(b'{"event": "STOP"}\n' * 20_000, b'{"return": [[[]]]}\n', b'{"QMP": 5}\n'),
    *(
        b'{"return": {"arch": "\\u001b]0;x"}}\n',
        b'{"return": "' + b"9" * 90_000 + b'"}\n',
    ),
)

# How long we and drgn wait here, in seconds; as long as it takes in earnest shows
# nothing else.
_PATIENCE = 0.2

#: What is sent for each thing that is received, the connection itself included, and
#: whether byte by byte.
Answers = Sequence[tuple[bytes, bool]]


def answers(noise: random.Random) -> Answers:
    """What a monitor says in one case: that of QEMU, with something wrong."""
    said = [(one, False) for one in (_GREETING, _EMPTY, _TARGET, _GREETING, _EMPTY)]
    for _ in range(noise.choice((1, 1, 2))):
        at = noise.randrange(len(said))
        wrong = noise.choice((*_WRONG, bytes(noise.choices(range(256), k=40))))
        said[at] = wrong, noise.random() < 0.2
    return said[: noise.choice((1, 2, 3, len(said), len(said)))]


def _serve(server: socket.socket, said: Answers, stop: threading.Event) -> None:
    left = iter(said)
    while not stop.is_set():
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client, contextlib.suppress(OSError):
            client.settimeout(2 * _PATIENCE)
            for answer, is_slow in left:
                _send(client, answer, is_slow)
                if not client.recv(1 << 16):
                    break


def _send(client: socket.socket, answer: bytes, is_slow: bool) -> None:
    if not is_slow:
        client.sendall(answer)
        return
    for byte in answer[:8]:
        client.sendall(bytes([byte]))
        time.sleep(_PATIENCE / 4)


@contextlib.contextmanager
def monitor(path: Path, said: Answers) -> Iterator[None]:
    """Let something listen on a Unix socket, and everybody be impatient."""
    before = qmp.TIMEOUT, qmp.DRGN_TIMEOUT
    qmp.TIMEOUT, qmp.DRGN_TIMEOUT = _PATIENCE, 1
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stop = threading.Event()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server.bind(str(path))
    server.listen(4)
    server.settimeout(4 * _PATIENCE)
    thread = threading.Thread(target=_serve, args=(server, said, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # Closing alone does not wake who waits in accept().
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)
        os.unlink(path)
        qmp.TIMEOUT, qmp.DRGN_TIMEOUT = before
