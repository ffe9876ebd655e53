# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Measuring
---------

Commands in processes of their own: time, processor time and peak memory of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any, Optional

__all__ = (
    "Result",
    "Usage",
    "best",
    "best_of",
    "hvo",
    "peak_of_all",
    "run",
    "together",
)

# Seconds between two looks at the memory of a command.
_SAMPLED_EACH = 0.02


@dataclass(frozen=True)
class Usage:
    """
    What one command took.

    :param seconds: From start to end.
    :param cpu_seconds: Processor time, of its children too.
    :param peak_mib: Largest resident set.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Result:
    """
    One row of the table.

    :param value: What was measured, in *unit*.
    :param target: What it should not exceed (or, for ``"times faster"``, reach).
    :param peer: What it was measured against, in words.
    """

    name: str
    value: float
    unit: str
    target: Optional[float]
    peer: str
    usage: Optional[Usage] = None
    peer_usage: Optional[Usage] = None

    @property
    def met(self) -> Optional[bool]:
        """Whether the target is met; ``None`` where there is none."""
        if self.target is None:
            return None
        if self.unit == "times faster":
            return self.value >= self.target
        return self.value <= self.target

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return {**asdict(self), "met": self.met}


def run(command: Sequence[str], statuses: Sequence[int] = (0,)) -> Usage:
    """
    Run a command.

    :param statuses: Exit statuses that are as they should be.
    :raises RuntimeError: for any other.
    """
    return together([command], statuses)


def together(
    commands: Sequence[Sequence[str]], statuses: Sequence[int] = (0,)
) -> Usage:
    """As :func:`run()`, of commands that run at the same time."""
    start = time.perf_counter()
    processes = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for command in commands
    ]
    cpu_seconds, peak = 0.0, 0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu_seconds += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss)
    seconds = time.perf_counter() - start
    for command, process in zip(commands, processes):
        if process.returncode not in statuses:
            raise RuntimeError(f"{' '.join(command)}: status {process.returncode}")
    return Usage(seconds, cpu_seconds, peak / 1024)


def peak_of_all(command: Sequence[str]) -> float:
    """
    The most memory, in MiB, that a command and the processes that it starts have at
    once. What several share is counted once.
    """
    peak = 0
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        peak = max(peak, sum(_proportional_kib(p) for p in _family(process.pid)))
        time.sleep(_SAMPLED_EACH)
    return peak / 1024


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
    except OSError:
        return  # it has ended


def _proportional_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line[:4] == "Pss:"), 0)


def best(command: Sequence[str], times: int, statuses: Sequence[int] = (0,)) -> Usage:
    """The fastest of several runs: others were disturbed."""
    (usage,) = best_of([lambda: run(command, statuses)], times)
    return usage


def best_of(ways: Sequence[Callable[[], Usage]], times: int) -> list[Usage]:
    """
    As :func:`best()`, of what is to be compared: in turns, so that all meet the same
    neighbours.
    """
    turns = [[way() for way in ways] for _ in range(times)]
    return [min(usages, key=lambda usage: usage.seconds) for usages in zip(*turns)]


def hvo(*arguments: object) -> list[str]:
    """The command line of ``drgn-hvo``, from this very checkout."""
    return [sys.executable, "-m", "drgn_hvo", *map(str, arguments)]
