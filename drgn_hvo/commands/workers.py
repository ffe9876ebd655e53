# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Processes that may be lost
--------------------------

Work on each of several inputs, in processes of its own: one that is killed, crashes,
hangs or runs out of memory costs the result of one input and no other. pebble keeps
the processes: unlike :mod:`concurrent.futures` it knows which task a process died of,
ends a task that takes too long, and goes on with a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING, Any, Generic, Optional, TypeVar, Union

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool

__all__ = (
    "PATIENCE",
    "Limits",
    "Lost",
    "begin_process",
    "die_with",
    "how_it_ended",
    "process_pool",
    "results",
)

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Seconds after which to ask whether there are still processes to wait for.
PATIENCE = 1

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Limits:
    """
    How much one input may cost.

    :param jobs: How many processes work at the same time.
    :param seconds: For one input; ``None`` is no limit.
    :param memory: Bytes that one process may allocate; ``None`` is no limit.
    """

    jobs: int = 1
    seconds: Optional[float] = None
    memory: Optional[int] = None


@dataclass(frozen=True)
class Lost(Generic[_T]):
    """
    An input whose process was lost.

    :param timeout: It took too long.
    :param crashed: It broke down by itself, which is a bug somewhere; if not, somebody
        ended it, as the kernel does when memory runs out.
    """

    task: _T
    reason: str
    timeout: bool = False
    crashed: bool = False


def die_with(parent: int) -> None:
    """Let the kernel end this process when its parent is gone, whatever ended that."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have gone before the kernel knew.
    if os.getppid() != parent:
        os._exit(1)


def begin_process(parent: int, log_level: int, memory: Optional[int]) -> None:
    """
    Set up a process: it logs as its parent, which Ctrl-C is for, and ends with it.

    :param memory: Bytes that it may allocate; ``None`` is no limit.
    """
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("drgn").setLevel(log_level)
    if memory is not None:
        # Not the address space, which has the whole of a core that is mapped.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def process_pool(
    jobs: int, initializer: Callable[..., None], arguments: tuple[Any, ...]
) -> ProcessPool:
    """
    A pool of processes that are children of this one, which they end with: since
    Python 3.14 they would be those of a server that forks.
    """
    from multiprocessing import get_context

    from pebble import ProcessPool

    return ProcessPool(
        jobs,
        initializer=initializer,
        initargs=arguments,
        context=get_context("fork"),
    )


def how_it_ended(code: int) -> tuple[str, bool]:
    """What to say of an exit code, and whether the process broke down by itself."""
    if code >= 0:
        return f"ended with status {code}", True
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return "was killed (SIGKILL; out of memory?)", False
    return f"ended by {name}", name not in ("SIGTERM", "SIGHUP", "SIGINT")


def _result(
    task: _T, future: ProcessFuture[Any], seconds: Optional[float]
) -> Union[_R, Lost[_T]]:
    from concurrent.futures import TimeoutError as NotInTime

    from pebble import ProcessExpired

    try:
        return future.result()
    except NotInTime:
        return Lost(task, f"not done after {seconds:g} seconds", timeout=True)
    except ProcessExpired as e:
        how, crashed = how_it_ended(e.exitcode)
        return Lost(task, f"the process that read this target {how}", crashed=crashed)


def results(
    work: Callable[[_T], _R], tasks: Sequence[_T], limits: Limits
) -> Iterator[Union[_R, Lost[_T]]]:
    """
    Do work on each task.

    :param work: A function of a module. What it raises is raised here.
    :return: Results in the order of the tasks, each as soon as it is there.
    """
    left = tasks
    while left:
        done = 0
        for result in _results_of_pool(work, left, limits):
            yield result
            done += 1
        if not done:
            # Else there would be no end if no process can live.
            yield Lost(left[0], "the process to read this target was lost")
            done = 1
        left = left[done:]


def _results_of_pool(
    work: Callable[[_T], _R], tasks: Sequence[_T], limits: Limits
) -> Iterator[Union[_R, Lost[_T]]]:
    """
    As :func:`results()`, until a process is lost that had no task: pebble then gives
    up, and what is left is for another pool.
    """
    from concurrent.futures import wait
    from concurrent.futures.process import BrokenProcessPool

    level = logging.getLogger("drgn").level
    arguments = os.getpid(), level, limits.memory
    pool = process_pool(min(limits.jobs, len(tasks)), begin_process, arguments)
    try:
        futures = [
            pool.schedule(work, args=(task,), timeout=limits.seconds) for task in tasks
        ]
        for task, future in zip(tasks, futures):
            while not wait([future], PATIENCE).done:
                if not pool.active:
                    break
            if not future.done() or isinstance(future.exception(), BrokenProcessPool):
                break
            yield _result(task, future, limits.seconds)
    finally:
        pool.stop()  # type: ignore[no-untyped-call] # pebble annotates no returns
        pool.join()
