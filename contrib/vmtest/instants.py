# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Instants
--------

A guest is stopped inside of a function of its kernel and audited between single
instructions: a kernel that is healthy must be found so wherever a dump stops it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
import re
import tempfile
import time
from typing import Optional

from contrib.vmtest.errors import GuestError
from contrib.vmtest.frozen import FrozenGuest, vmcoreinfo_of
from contrib.vmtest.gdb import Gdb, Register
from contrib.vmtest.guest import BOOT_TIMEOUT, Guest, Machine
from contrib.vmtest.initramfs import base_files
from contrib.vmtest.kernels import Kernel
from contrib.vmtest.stops import AT_BOOT, FAILURES, GIGANTIC, POOLS, Stop
from drgn_hvo.errors import HvoError

__all__ = ("Instants", "Run", "Tally", "run_instants")

_HERE = Path(__file__).resolve().parent

_BOOT = "nokaslr hugetlb_free_vmemmap=on "
_BOOT_2M = f"{_BOOT} hugepagesz=2M hugepages=0:8,1:8"
# Node 1 has the only piece of 1 GiB that is aligned.
_BOOT_1G = f"{_BOOT} hugepagesz=1G hugepages=1:1 hugepagesz=2M hugepages=0:4"
_SMALL = (448, 384)
_LARGE = (512, 1792)

_DEMOTE = "echo 1 >/sys/kernel/mm/hugepages/hugepages-1048576kB/demote"

# How long a guest may take to come to a function, in seconds.
_ARRIVAL = 25.0

# One of this many instants is audited with all of vmemmap.
_DEEP = 6

# What a compiler adds to the name of a function that it made another one of.
_SUFFIX = r"(\.(constprop|isra|part|cold)[.0-9]*)*"


@dataclass
class Tally:
    """
    What audits of one function say.

    :param function: As this kernel calls it; empty if it was never called.
    """

    stop: Stop
    function: str = ""
    instants: int = 0
    in_transition: int = 0
    known: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    not_audited: Counter[str] = field(default_factory=Counter)

    def line(self, kernel: str) -> str:
        """One line of the table."""
        if not self.instants:
            return f"{kernel}: {self.stop.name}: not in this kernel, or never called"
        parts = [
            f"{kernel}: {self.function}: {self.instants} instants, "
            f"{self.in_transition} in transition, "
            f"{sum(self.errors.values())} errors"
        ]
        for name, found in (
            ("ERRORS", self.errors),
            ("warnings", self.warnings),
            ("known defects", self.known),
            ("not audited", self.not_audited),
        ):
            if found:
                told = ", ".join(f"{n} x {what}" for what, n in found.items())
                parts.append(f"{name}: {told}")
        return "; ".join(parts)


class Instants:
    """
    Stops a guest and audits it.

    :param symbols: Addresses of functions.
    :param only: How many instants of each function there are at most.
    """

    def __init__(
        self,
        gdb: Gdb,
        frozen: FrozenGuest,
        symbols: Mapping[str, int],
        *,
        log: Callable[[str], None],
        only: Optional[int] = None,
        save: Optional[Callable[[str], None]] = None,
    ) -> None:
        self._gdb = gdb
        self._frozen = frozen
        self._symbols = symbols
        self._log = log
        self._only = only
        self._save = save

    def run(self, stop: Stop, hits: int = 1) -> Tally:
        """
        Stop at a function, as often as asked for, and audit what it does.

        :return: Of what was seen; of nothing, if this kernel has no such function, or
            does not come to it.
        """
        wanted = stop.inside or stop.names
        found = [name for name in wanted if name in self._symbols]
        callees = [name for name in stop.names if name in self._symbols]
        if not found or not callees:
            return Tally(stop)
        tally = Tally(stop)
        for _ in range(hits):
            arrived = self._arrive(found, _ARRIVAL, 0 if stop.inside else stop.order)
            if arrived is None:
                break
            thread, function = arrived
            frame = self._frame()
            if stop.inside:
                inner = self._arrive(callees, _ARRIVAL / 4, stop.order)
                if inner is None:
                    continue
                thread, callee = inner
                frame = frame if stop.fails else self._frame()
                function = function if stop.fails else callee
            if stop.fails:
                self._gdb.return_from_function(0)
                function += ", no memory"
            elif stop.order:
                function += f" of order {stop.order} and more"
            tally.function = tally.function or function
            self._step_through(thread, stop, tally, frame)
        self._log(tally.line("  "))
        return tally

    def _arrive(
        self, names: Iterable[str], timeout: float, order: int
    ) -> Optional[tuple[str, str]]:
        """
        Run until one of some functions is called, and choose that processor.

        :return: The thread and the function.
        """
        functions = {self._symbols[name]: name for name in names}
        for address in functions:
            self._gdb.insert_breakpoint(address)
        try:
            thread = self._run_to(order, time.monotonic() + timeout)
        finally:
            for address in functions:
                self._gdb.remove_breakpoint(address)
        if thread is None:
            return None
        return thread, functions[self._gdb.register(Register.RIP)]

    def _run_to(self, order: int, deadline: float) -> Optional[str]:
        """Run to a breakpoint where the second argument is large enough."""
        while time.monotonic() < deadline:
            thread = self._gdb.run(max(0.0, deadline - time.monotonic()))
            if thread is None:
                break
            self._gdb.select(thread)
            if not order or self._gdb.register(Register.RSI) & 0xFFFFFFFF >= order:
                return thread
            self._gdb.step(thread)
        return None

    def _frame(self) -> tuple[int, int]:
        """At a function's first instruction: where it returns to, and its stack."""
        stack = self._gdb.register(Register.RSP)
        return self._gdb.word(stack), stack

    def _step_through(
        self,
        thread: str,
        stop: Stop,
        tally: Tally,
        frame: tuple[int, int],
    ) -> None:
        """Step until a function has returned."""
        back, stack = frame
        most = min(stop.most, self._only or stop.most)
        done = step = 0
        while done < most:
            if step < stop.dense or (step - stop.dense) % stop.stride == 0:
                self._audit(tally, f"{tally.function}-{step}")
                done += 1
            self._gdb.step(thread)
            step += 1
            if (
                self._gdb.register(Register.RIP) == back
                and self._gdb.register(Register.RSP) > stack
            ):
                self._audit(tally, f"{tally.function}-returned")
                break

    def _audit(self, tally: Tally, instant: str) -> None:
        tally.instants += 1
        try:
            audit = self._frozen.audit(deep=tally.instants % _DEEP == 0)
        except HvoError as e:
            tally.not_audited[str(e)] += 1
            return
        tally.in_transition += bool(audit.in_transition)
        unexplained = False
        for finding, cause in audit.ordered():
            if finding.defect is not None:
                tally.known[finding.defect] += 1
            elif finding.severity != "error":
                tally.warnings[finding.rule] += 1
            elif cause is None or audit.ordered()[cause][0].defect is None:
                tally.errors[finding.rule] += 1
                self._log(f"{instant}: {finding.rule}: {finding.message}")
                unexplained = True
        if unexplained and self._save is not None:
            self._save(instant)


def function_addresses(guest: Guest, stops: Iterable[Stop]) -> dict[str, int]:
    """Addresses of functions, which the guest's ``/proc/kallsyms`` has."""
    names = {name for stop in stops for name in (*stop.names, *stop.inside)}
    found: dict[str, int] = {}
    guest.run("grep -i ' t ' /proc/kallsyms >/tmp/functions", timeout=120)
    for some in _batches(sorted(names), 30):
        pattern = f" ({'|'.join(some)}){_SUFFIX}$"
        output, _ = guest.status(f"grep -E '{pattern}' /tmp/functions", timeout=120)
        for match in re.finditer(r"^([0-9a-f]+) [tT] (\S+)$", output, re.MULTILINE):
            name, _, suffix = match[2].partition(".")
            if "cold" not in suffix:
                found.setdefault(name, int(match[1], 16))
    return found


def _batches(names: list[str], size: int) -> Iterator[list[str]]:
    for at in range(0, len(names), size):
        yield names[at : at + size]


@contextmanager
def _memory() -> Iterator[Path]:
    """A directory for memory: in memory, if this host has one."""
    shm = Path("/dev/shm")
    where = shm if shm.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="vmtest-", dir=where) as directory:
        yield Path(directory)


def _image(kernel: Kernel, work: Path) -> Path:
    image = base_files(kernel, work)
    image.add_host_file(_HERE / "pools.sh", "/scripts/pools.sh")
    path = work / "initrd-instants"
    image.write(path)
    return path


class Run:
    """Both boots of one kernel."""

    def __init__(
        self,
        kernel: Kernel,
        work: Path,
        log: Callable[[str], None],
        only: Optional[int],
    ) -> None:
        self._kernel = kernel
        self._work = work
        self._log = log
        self._only = only
        self._initrd = _image(kernel, work)
        self._symbols: dict[str, int] = {}
        self._note = b""

    @contextmanager
    def _guest(self, append: str, node_mib: tuple[int, ...]) -> Iterator[Guest]:
        with _memory() as memory:
            machine = Machine(node_mib, memory=memory, has_gdbstub=True)
            with Guest(
                self._kernel,
                self._initrd,
                self._work,
                append=append,
                machine=machine,
                log=self._log,
            ) as guest:
                yield guest

    def _instants(self, gdb: Gdb, frozen: FrozenGuest) -> Instants:
        return Instants(gdb, frozen, self._symbols, log=self._log, only=self._only)

    def pools(self) -> list[Tally]:
        """2 MiB pages."""
        with self._guest(_BOOT_2M, _SMALL) as guest:
            guest.qmp.execute("cont")
            guest.wait_ready(BOOT_TIMEOUT)
            stops = (*POOLS, *FAILURES, *GIGANTIC, *AT_BOOT)
            self._symbols = function_addresses(guest, stops)
            note = guest.run("cat /sys/kernel/vmcoreinfo").split()[0]
            guest.run("sh /scripts/pools.sh >/tmp/pools.log 2>&1 &")
            gdb = Gdb(guest.gdb_path)
            try:
                self._note = vmcoreinfo_of(guest.memory_files, int(note, 16))
                frozen = FrozenGuest(guest.memory_files, self._note)
                frozen.settle()
                instants = self._instants(gdb, frozen)
                return [instants.run(stop) for stop in (*POOLS, *FAILURES)]
            finally:
                gdb.close()

    def gigantic(self) -> list[Tally]:
        """A 1 GiB page, from boot on; and its demotion."""
        with self._guest(_BOOT_1G, _LARGE) as guest:
            gdb = Gdb(guest.gdb_path)
            try:
                frozen = FrozenGuest(guest.memory_files, self._note)
                instants = self._instants(gdb, frozen)
                done = [instants.run(stop) for stop in AT_BOOT]
                gdb.resume()
                guest.wait_ready(BOOT_TIMEOUT)
                gdb.stop()
                frozen.settle()
                guest.send(_DEMOTE)
                return done + [instants.run(stop) for stop in GIGANTIC]
            finally:
                gdb.close()


def run_instants(
    kernel: Kernel,
    work: Path,
    log: Callable[[str], None],
    only: Optional[int] = None,
) -> int:
    """
    Audit a kernel at many instants; print a line for each function.

    :return: How many errors no known defect explains.
    """
    run = Run(kernel, work, log, only)
    tallies = run.pools() + run.gigantic()
    for tally in tallies:
        print(tally.line(kernel.name))
    errors = sum(sum(tally.errors.values()) for tally in tallies)
    print(
        f"{kernel.name}: {sum(tally.instants for tally in tallies)} instants in "
        f"{sum(bool(tally.instants) for tally in tallies)} functions, "
        f"{sum(tally.in_transition for tally in tallies)} in transition, "
        f"{errors} errors",
        flush=True,
    )
    if not any(tally.instants for tally in tallies):
        raise GuestError("the guest came to none of the functions")
    return errors
