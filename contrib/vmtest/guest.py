# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A guest in QEMU
---------------

Boots a kernel, gives it commands, asks QEMU about it, and never leaves it behind:
everything has a time limit, and the guest ends with the ``with`` statement, with
this process, or on a signal.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import time
from types import TracebackType
from typing import Any, Optional

from contrib.vmtest.errors import GuestError, MissingError
from contrib.vmtest.kernels import Kernel
from drgn_hvo.errors import TargetError
from drgn_hvo.kernel.qmp import Qmp

__all__ = ("Guest", "Machine", "Monitor")

_QEMU = "qemu-system-x86_64"
_PR_SET_PDEATHSIG = 1

BOOT_TIMEOUT = 240  # seconds; emulated on a busy machine

# How often a command is sent that arrives in part.
_SENDINGS = 5


# QEMU 7.2 emulates AVX2 wrongly: np.argsort() in the guest then sorts wrongly.
_CPU = "max,-avx2,-avx512f"


@dataclass(frozen=True)
class Machine:
    """
    The guest's hardware.

    :param node_mib: Memory of each NUMA node; one CPU each.
    :param cpu: QEMU's model; 1 GiB pages need ``pdpe1gb``.
    :param memory: A directory for files with the memory of each node.
    :param has_gdbstub: Whether to listen for a debugger, and to wait for it with the
        first instruction.
    """

    node_mib: tuple[int, ...] = (2048, 2048)
    cpu: str = _CPU
    memory: Optional[Path] = None
    has_gdbstub: bool = False

    def memory_files(self) -> list[Path]:
        """Where the memory of each node is, if it is in files."""
        if self.memory is None:
            return []
        return [self.memory / f"node{nid}" for nid in range(len(self.node_mib))]

    def backend(self, nid: int) -> str:
        """QEMU's object for the memory of a node."""
        size = f"id=mem{nid},size={self.node_mib[nid]}M"
        if self.memory is None:
            return f"memory-backend-ram,{size}"
        path = self.memory_files()[nid]
        return f"memory-backend-file,{size},mem-path={path},share=on"


class Monitor(Qmp):
    """QEMU's monitor, whose errors are the guest's."""

    def execute(self, command: str, timeout: float = 30, **arguments: object) -> Any:
        """
        Run a command.

        :raises GuestError: if QEMU says no.
        """
        try:
            return super().execute(command, timeout, **arguments)
        except TargetError as e:
            raise GuestError(str(e)) from None


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(20)
        try:
            client.connect(str(path))
            return client
        except OSError as e:
            client.close()
            if time.monotonic() > deadline:
                raise GuestError(f"{path.name}: {e.strerror}") from None
            time.sleep(0.05)


def _die_with_parent() -> None:
    """Run in the child: a killed test run must not leave a guest behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Guest:
    """
    A running guest, as a context manager.

    :param append: More for the kernel's command line.
    :param work: A directory for sockets and logs.
    :param vmcoreinfo: Whether to give it the device that takes the note.
    """

    def __init__(
        self,
        kernel: Kernel,
        initrd: Path,
        work: Path,
        *,
        append: str = "",
        machine: Optional[Machine] = None,
        vmcoreinfo: bool = True,
        boot_timeout: float = BOOT_TIMEOUT,
        log: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.kernel = kernel
        self.initrd = initrd
        self.work = work
        self.log = log
        self.console_log = work / "console.log"
        #: Where a guest's stream goes that it writes to :data:`STREAM`.
        self.stream = work / "stream"
        #: For a debugger; the other monitor is ours.
        self.qmp_path = work / "qmp"
        #: Of QEMU's gdbstub, if the machine has one.
        self.gdb_path = work / "gdb"
        self._append = append
        self._machine = machine or Machine()
        self._vmcoreinfo = vmcoreinfo
        self._boot_timeout = boot_timeout
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._agent: Optional[socket.socket] = None
        self._qmp: Optional[Monitor] = None
        self._received = b""

    def __enter__(self) -> Guest:
        if shutil.which(_QEMU) is None:
            raise MissingError(
                f"there is no {_QEMU} on this host; Debian has it in qemu-system-x86"
            )
        errors = (self.work / "qemu.log").open("wb")
        with errors:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                preexec_fn=_die_with_parent,
            )
        try:
            self._agent = _connect(self.work / "agent")
            if not self._machine.has_gdbstub:
                self.wait_ready(self._boot_timeout)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def command(self) -> list[str]:
        """QEMU's command line."""
        machine, work = self._machine, self.work
        command = [
            *(_QEMU, "-nodefaults", "-no-user-config", "-display", "none"),
            # Both work as root and without hardware virtualization.
            *("-machine", "pc", "-accel", "tcg,thread=single", "-cpu", machine.cpu),
            *("-no-reboot", "-m", f"{sum(machine.node_mib)}M"),
            *("-smp", str(len(machine.node_mib))),
            *("-kernel", str(self.kernel.vmlinuz), "-initrd", str(self.initrd)),
            *("-append", f"console=ttyS0 panic=-1 {self._append}"),
            *("-serial", f"file:{self.console_log}"),
            *("-chardev", f"socket,id=agent,path={work / 'agent'},server=on,wait=off"),
            *("-serial", "chardev:agent"),
            *("-qmp", f"unix:{work / 'monitor'},server=on,wait=off"),
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *("-chardev", f"file,id=stream,path={self.stream}"),
            *("-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=stream,name=stream"),
        ]
        for nid in range(len(machine.node_mib)):
            command += [
                *("-object", machine.backend(nid)),
                *("-numa", f"node,nodeid={nid},cpus={nid},memdev=mem{nid}"),
            ]
        if self._vmcoreinfo:
            command += ["-device", "vmcoreinfo"]
        if machine.has_gdbstub:
            socket_ = f"socket,id=gdb,path={self.gdb_path},server=on,wait=off"
            command += ["-chardev", socket_, "-gdb", "chardev:gdb", "-S"]
        return command

    @property
    def memory_files(self) -> list[Path]:
        """The files with the memory of each node, if the machine has such."""
        return self._machine.memory_files()

    @property
    def qmp(self) -> Monitor:
        """Our own connection to the monitor."""
        if self._qmp is None:
            try:
                self._qmp = Monitor(self.work / "monitor")
            except TargetError as e:
                raise GuestError(str(e)) from None
        return self._qmp

    def wait_ready(self, timeout: float) -> None:
        """
        Wait until the guest takes commands.

        :raises GuestError: if it does not; the text ends with what it said last.
        """
        start = time.monotonic()
        record = b""
        while not record.endswith(b"\x1eready"):
            record = self._record("the guest to boot", timeout)
            if record.endswith(b"\x1elost"):
                raise GuestError("the guest never got all of the last command")
        self.log(f"the guest is up after {time.monotonic() - start:.0f} s")

    def run(self, command: str, timeout: float = 60, check: bool = True) -> str:
        """
        Run a shell command in the guest.

        :param check: Whether a status that is not 0 is an error.
        :return: What it printed.
        :raises GuestError: if it fails, or is not done in time.
        """
        output, status = self.status(command, timeout)
        if check and status != 0:
            last = output.strip().splitlines()[-1:] or ["no output"]
            raise GuestError(f"{command}: status {status}: {last[0]}")
        return output

    def status(
        self,
        command: str,
        timeout: float = 60,
        each: Callable[[str], None] = lambda _line: None,
    ) -> tuple[str, int]:
        """
        As :meth:`run()`: output and exit status.

        :param each: Gets each line of the output as soon as it is there.
        """
        if "\n" in command or len(command) > 2000 or not command.isascii():
            raise ValueError("a command is one line")
        for _ in range(_SENDINGS):
            self.send(command)
            output = self._record(command, timeout, each)
            text, _, status = output.rpartition(b"\x1e")
            if status != b"lost":
                return text.decode(errors="replace"), int(status)
        raise GuestError(f"{command}: the guest never got all of it")

    def _record(
        self,
        what: str,
        timeout: float,
        each: Callable[[str], None] = lambda _line: None,
    ) -> bytes:
        """Receive up to the end of a record, with its status."""
        assert self._agent is not None
        deadline = time.monotonic() + timeout
        self._agent.settimeout(1)
        told = 0
        while True:
            *lines, _ = self._received.partition(b"\x1e")[0].split(b"\n")
            for line in lines[told:]:
                each(line.decode(errors="replace"))
            told = max(told, len(lines))
            end = re.search(rb"\x1e\w+\n", self._received)
            if end is not None:
                record = self._received[: end.end() - 1]
                self._received = self._received[end.end() :]
                return record
            with contextlib.suppress(socket.timeout):
                received = self._agent.recv(1 << 16)
                if not received:
                    raise GuestError(f"waiting for {what}: QEMU ended: {self._said()}")
                self._received += received
            if time.monotonic() > deadline:
                raise GuestError(
                    f"waiting for {what}: not done in {timeout:.0f} s: {self._said()}"
                )

    def _said(self) -> str:
        """The last words of the guest, or else of QEMU."""
        for path in (self.console_log, self.work / "qemu.log"):
            if path.is_file():
                lines = path.read_text(errors="replace").strip().splitlines()
                if lines:
                    return lines[-1].strip()
        return "it said nothing"

    def send(self, command: str) -> None:
        """Give a command, as one that ends this kernel."""
        assert self._agent is not None
        self._agent.settimeout(30)
        self._agent.sendall(f"{len(command)} {command}\n".encode())

    def close(self) -> None:
        """End the guest."""
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
