# SPDX-License-Identifier: LGPL-2.1-or-later

"""
QEMU's gdbstub
--------------

A client of GDB's remote protocol, as much of it as stops a guest at an instruction:
breakpoints, single steps, registers. The names of packets are those of GDB's manual,
"Remote Serial Protocol". Every answer has a time limit.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
import re
import socket
import time
from typing import Optional

from contrib.vmtest.errors import GuestError

__all__ = ("Gdb", "Register")

# QEMU answers at once; the host may be busy.
_TIMEOUT = 30.0  # seconds

_LONGEST_PACKET = 1 << 16

_STOP = re.compile(rb"T[0-9a-f]{2}(?:.*;)?thread:([0-9a-f.p]+);|[SWX][0-9a-f]{2}")


class Register(IntEnum):
    """Numbers of registers in QEMU's ``i386-64bit.xml``."""

    RAX = 0
    RSI = 4
    RSP = 7
    RIP = 16


class Gdb:
    """
    A connection to a gdbstub of x86-64; the guest stops when it is made.

    :param path: Of its Unix socket.
    :raises GuestError: if nobody answers as a gdbstub does.
    """

    def __init__(self, path: Path) -> None:
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.connect(str(path))
            # Whether QEMU says by itself that the guest stopped depends on what it did.
            self._send("Hg0")
            while (answer := self._answer("Hg0")) != b"OK":
                if _STOP.match(answer) is None:
                    raise GuestError(f"{path.name}: not a gdbstub")
            # QEMU gives single registers only to who has asked which there are.
            self._ask("qXfer:features:read:target.xml:0,800")
        except OSError as e:
            self.close()
            raise GuestError(f"{path.name}: {e.strerror or 'no answer'}") from None
        except GuestError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the guest; it stays as it is."""
        self._socket.close()

    def resume(self) -> None:
        """Let all processors run."""
        self._send("vCont;c")

    def run(self, timeout: float) -> Optional[str]:
        """
        Let all processors run until one stops.

        :param timeout: Seconds, after which they are stopped.
        :return: The thread that came to a breakpoint; ``None`` if none did in time.
        """
        self.resume()
        return self.stop(timeout)

    def stop(self, timeout: float = 0) -> Optional[str]:
        """As :meth:`run()`, of processors that run."""
        thread = self._stopped(timeout)
        if thread is None:
            self._socket.sendall(b"\x03")
            # It may come to a breakpoint just now; which of both cannot be told.
            if self._stopped(_TIMEOUT) is None:
                raise GuestError("the gdbstub does not stop the guest")
        return thread

    def step(self, thread: str) -> None:
        """
        Run one instruction of one processor, without interrupts; the others stand
        still.
        """
        self._send(f"vCont;s:{thread}")
        if self._stopped(_TIMEOUT) is None:
            raise GuestError("the gdbstub does not step")

    def insert_breakpoint(self, address: int) -> None:
        """Stop at a virtual address: QEMU compares addresses, no memory is changed."""
        self._ok(f"Z1,{address:x},1")

    def remove_breakpoint(self, address: int) -> None:
        """Take a breakpoint back."""
        self._ok(f"z1,{address:x},1")

    def select(self, thread: str) -> None:
        """Choose the processor whose registers and memory are meant."""
        self._ok(f"Hg{thread}")

    def register(self, register: Register) -> int:
        """Read a register."""
        return int.from_bytes(self._bytes(f"p{register:x}"), "little")

    def set_register(self, register: Register, value: int) -> None:
        """Write a register."""
        self._ok(f"P{register:x}={value.to_bytes(8, 'little').hex()}")

    def word(self, address: int) -> int:
        """Read 8 bytes at a virtual address."""
        return int.from_bytes(self._bytes(f"m{address:x},8"), "little")

    def return_from_function(self, value: int) -> None:
        """At its first instruction: return to the caller with a value."""
        stack = self.register(Register.RSP)
        self.set_register(Register.RIP, self.word(stack))
        self.set_register(Register.RSP, stack + 8)
        self.set_register(Register.RAX, value)

    def _ok(self, packet: str) -> None:
        answer = self._ask(packet)
        if answer != b"OK":
            raise GuestError(f"the gdbstub answers {answer[:20]!r} to {packet}")

    def _bytes(self, packet: str) -> bytes:
        answer = self._ask(packet)
        try:
            data = bytes.fromhex(answer.decode("ascii"))
        except ValueError:
            data = b""
        if len(data) != 8:
            raise GuestError(f"the gdbstub answers {answer[:20]!r} to {packet}")
        return data

    def _ask(self, packet: str) -> bytes:
        self._send(packet)
        return self._answer(packet)

    def _answer(self, packet: str) -> bytes:
        answer = self._packet(time.monotonic() + _TIMEOUT)
        if answer is None:
            raise GuestError(f"the gdbstub does not answer {packet}")
        return answer

    def _send(self, packet: str) -> None:
        data = packet.encode()
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        except OSError as e:
            raise GuestError(f"the gdbstub: {e.strerror or 'takes nothing'}") from None

    def _stopped(self, timeout: float) -> Optional[str]:
        """The thread of the next stop; ``None`` if there is none in time."""
        deadline = time.monotonic() + timeout
        while True:
            answer = self._packet(deadline)
            if answer is None:
                return None
            stop = _STOP.match(answer)
            if stop is None:
                raise GuestError(f"the gdbstub answers {answer[:20]!r}, no stop")
            if stop[1] is None:
                raise GuestError("the guest ended")
            return stop[1].decode()

    def _packet(self, deadline: float) -> Optional[bytes]:
        """The next packet, acknowledged; ``None`` if it is not there in time."""
        while True:
            found = re.search(rb"\$([^#$]*)#([0-9a-f]{2})", self._received)
            if found is not None:
                self._received = self._received[found.end() :]
                if sum(found[1]) & 0xFF != int(found[2], 16):
                    raise GuestError("the gdbstub sent a packet with a wrong checksum")
                self._socket.sendall(b"+")
                return found[1]
            if len(self._received) > _LONGEST_PACKET:
                raise GuestError("a packet of the gdbstub does not end")
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                received = self._socket.recv(1 << 16)
            except (TimeoutError, socket.timeout):
                return None
            except OSError as e:
                raise GuestError(f"the gdbstub: {e.strerror}") from None
            if not received:
                raise GuestError("QEMU closed its gdbstub")
            self._received += received
