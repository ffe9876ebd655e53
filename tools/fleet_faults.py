# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Fleets with targets that break their readers
--------------------------------------------

``python -m tools.fleet_faults`` audits 500 targets of which five each kill the process
that opens them, make it hang, take all of its memory, or are no cores; on this machine,
and on a Dask cluster of two workers of which one is killed. It compares the other 480
results with those of single runs, and looks for processes that are left, also after
SIGTERM, SIGHUP and SIGKILL of the command in the middle of the run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Optional
import uuid

__all__ = ("FAULTS", "Fleet", "check_cluster", "check_end", "check_here", "main")

_ROOT = Path(__file__).resolve().parents[1]

#: Bad targets by the beginning of their names, and what is said of them.
FAULTS = {
    "killed": "the process that read this target was killed (SIGKILL",
    "hang": "not done after",
    "memory": "not enough memory for this target",
    "garbage": "not an ELF core file",
}

# Every process of a run imports this, and does what the name of a file says that it
# opens: so do those that a cluster starts.
_SITE = """
import builtins, os, signal, time
_opened = builtins.open

def open(file, *args, **options):
    name = os.path.basename(file) if isinstance(file, str) else ""
    if name.startswith("killed-"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hang-"):
        time.sleep(3600)
    if name.startswith("memory-"):
        hog = [bytearray(1 << 24) for _ in range(1 << 10)]
    return _opened(file, *args, **options)

builtins.open = open
"""

_CLUSTER = """
import os, sys
from distributed import Client, LocalCluster

options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
with LocalCluster(**options) as cluster, Client(cluster) as client:
    pids = list(client.run(os.getpid).values())
    print(cluster.scheduler_address, pids[0], flush=True)
    sys.stdin.read()
"""

# Names a run in the environment of its processes.
_MARK = "DRGN_HVO_FLEET_FAULTS"

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)

# How long processes may take to end after the one that they belong to.
_GRACE = 10  # seconds

_Document = dict[str, Any]


@dataclass(frozen=True)
class Fleet:
    """
    Targets, good and bad ones mixed.

    :param cores: The core behind each good target.
    """

    directory: Path
    targets: tuple[Path, ...]
    cores: dict[Path, Path]

    @classmethod
    def make(cls, directory: Path, good: int, each: int) -> Fleet:
        """
        Write targets.

        :param good: How many good ones there are.
        :param each: How many there are of each bad kind.
        """
        samples = sorted((_ROOT / "sample_vmcores").glob("*.kdump"))
        cores = {}
        for i in range(good):
            path = directory / f"good-{i}"
            path.symlink_to(samples[i % len(samples)])
            cores[path] = samples[i % len(samples)]
        bad = [directory / f"{kind}-{i}" for kind in FAULTS for i in range(each)]
        for path in bad:
            path.write_bytes(b"\0" * 4096)
        targets = [*cores, *bad]
        random.Random(1).shuffle(targets)
        (directory / "site").mkdir()
        (directory / "site" / "sitecustomize.py").write_text(_SITE)
        (directory / "list").write_text("".join(f"{path}\n" for path in targets))
        return cls(directory, tuple(targets), cores)

    def command(self, *options: object) -> list[str]:
        """The command that audits all of it."""
        words = ("check", "--json", "--targets-from", self.directory / "list", *options)
        return [sys.executable, "-m", "drgn_hvo", *map(str, words)]

    def environment(self, mark: str) -> dict[str, str]:
        """Of all processes of one run."""
        path = f"{self.directory / 'site'}:{_ROOT}"
        return {**os.environ, "PYTHONPATH": path, _MARK: mark}


def _without_time(document: _Document, target: Path) -> _Document:
    return {**document, "target": str(target), "duration_s": None}


def _alone(core: Path) -> _Document:
    command = [sys.executable, "-m", "drgn_hvo", "check", "--json", str(core)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, cwd=_ROOT)
    document: _Document = json.loads(done.stdout)
    return document


def _wrong(fleet: Fleet, documents: Sequence[_Document]) -> Iterator[str]:
    """What is not as it should be in the results of a fleet."""
    found = [document["target"] for document in documents]
    if found != list(map(str, fleet.targets)):
        yield f"{len(found)} results, not one of each target in order"
    expected = {core: _alone(core) for core in set(fleet.cores.values())}
    for document in documents:
        target = Path(document["target"])
        if target in fleet.cores:
            right = _without_time(expected[fleet.cores[target]], target)
            if _without_time(document, target) != right:
                yield f"{target.name}: not what a run of it alone says"
            continue
        words = FAULTS[target.name.partition("-")[0]]
        if document["status"] != "error" or words not in document["error"]:
            yield f"{target.name}: {document.get('error')!r}, not {words!r}"


def _marked(mark: str) -> list[int]:
    """The processes of a run that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{_MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _left(mark: str) -> Iterator[str]:
    deadline = time.monotonic() + _GRACE
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in _marked(mark):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        yield f"left: {pid} {words.decode(errors='replace')[:120]}"
        os.kill(pid, signal.SIGKILL)


def check_here(fleet: Fleet, seconds: float) -> Iterator[str]:
    """
    Audit a fleet on this machine.

    :param seconds: After which a target is given up.
    :return: What went wrong.
    """
    mark = uuid.uuid4().hex
    command = fleet.command("-j", 2, "--timeout", seconds, "--memory", 1)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
        env=fleet.environment(mark), cwd=_ROOT,
    )  # fmt: skip
    yield from _wrong(fleet, list(map(json.loads, done.stdout.splitlines())))
    yield from _left(mark)


@contextmanager
def _cluster(environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """A Dask cluster: the address of its scheduler, and the PID of a worker."""
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=environment, cwd=_ROOT, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        address, pid = process.stdout.readline().split()
        yield address, int(pid)
        process.stdin.close()


def check_cluster(fleet: Fleet, seconds: float) -> Iterator[str]:
    """As :func:`check_here()`, on two Dask workers of which one is killed meanwhile."""
    mark = uuid.uuid4().hex
    environment = fleet.environment(mark)
    documents = []
    with _cluster(environment) as (address, pid):
        command = fleet.command(
            "--scheduler", address, "--timeout", seconds, "--memory", 1
        )
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=_ROOT,
            env=environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                documents.append(json.loads(line))
                if len(documents) == len(fleet.targets) // 3:
                    os.kill(pid, signal.SIGKILL)
    yield from _wrong(fleet, documents)
    yield from _left(mark)


def check_end(fleet: Fleet, end: signal.Signals, *options: object) -> Iterator[str]:
    """
    End a command that audits a fleet by a signal.

    :return: The processes that are left, and what else went wrong.
    """
    mark = uuid.uuid4().hex
    wanted = len(fleet.targets) // 10 + 1
    with subprocess.Popen(
        fleet.command("-j", 2, "--memory", 1, "--timeout", 5, *options),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=fleet.environment(mark), cwd=_ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for _ in range(wanted):
            process.stdout.readline()
        running = len(_marked(mark))
        process.send_signal(end)
        # It may still write what it has.
        rest = threading.Thread(target=process.stdout.read, daemon=True)
        rest.start()
        process.wait(timeout=60)
        if running < 2:
            yield f"only {running} processes were there"
    yield from _left(mark)


def _checks(
    fleet: Fleet, seconds: float, which: Sequence[str]
) -> Iterator[tuple[str, Iterator[str]]]:
    if "here" in which:
        yield "-j 2", check_here(fleet, seconds)
    if "cluster" in which:
        yield "Dask, a worker killed", check_cluster(fleet, seconds)
    for place, options in (("here", ()), ("cluster", ("--scheduler", "local"))):
        ends = partial(check_end, fleet)
        for end in _SIGNALS if place in which and "ends" in which else ():
            yield f"{place}, {end.name}", ends(end, *options)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """
    Try fleets and print what went wrong.

    :return: 0 if nothing did, else 1.
    """
    parser = argparse.ArgumentParser(prog="tools.fleet_faults", description=__doc__)
    parser.add_argument("--good", type=int, default=480, help="targets that are cores")
    parser.add_argument("--each", type=int, default=5, help="of each bad kind")
    parser.add_argument("--timeout", type=float, default=20, metavar="SECONDS")
    kinds = ("here", "cluster", "ends")
    parser.add_argument("--which", nargs="+", choices=kinds, default=kinds)
    args = parser.parse_args(argv)
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        fleet = Fleet.make(Path(directory), args.good, args.each)
        print(f"{args.good} good targets, {args.each} of each of {', '.join(FAULTS)}")
        for name, check in _checks(fleet, args.timeout, args.which):
            start = time.monotonic()
            wrong = list(check)
            failed |= bool(wrong)
            took = time.monotonic() - start
            print(f"{name}: {'FAILED' if wrong else 'as it should be'} ({took:.0f} s)")
            for one in wrong:
                print(f"  {one}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
