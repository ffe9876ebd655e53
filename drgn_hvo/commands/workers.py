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

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING, Any, Generic, Optional, TypeVar, Union

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pebble import ProcessPool

__all__ = (
    "PATIENCE",
    "Limits",
    "Lost",
    "begin_process",
    "die_with",
    "end_pools",
    "how_it_ended",
    "one_process",
    "results",
)

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Seconds after which to ask whether there are still processes to wait for.
PATIENCE = 1

# How many processes may be lost before they have taken a task, until it is given up:
# else there would be no end where no process can live.
_ATTEMPTS = 3

_NO_PROCESS = "the process to read this target was lost"

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1

# By which a process ends that does what it must not: a bug somewhere. All others are
# sent by somebody, but for SIGBUS: the file that it had mapped was cut, or its disk
# broke.
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
_SIGBUS = "the file was cut, or its disk failed, while it was read"


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
    # pebble raises SystemExit in the task, takes that for its result, and waits for
    # three seconds until it kills the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # What the parent has not yet written is not to be written twice.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    logging.getLogger("drgn").setLevel(log_level)
    if memory is not None:
        # Not the address space, which has the whole of a core that is mapped.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def one_process(
    initializer: Callable[..., None], arguments: tuple[Any, ...]
) -> ProcessPool:
    """
    A pool of one process, which is a child of this one and ends with it: since Python
    3.14 it would be that of a server that forks.

    Each process has a pool to itself. Those of one pool share a pipe and its locks: if
    one is killed while it holds these, pebble lets the others wait for a minute, or
    takes them for lost as well.
    """
    from multiprocessing import get_context

    from pebble import ProcessPool

    return ProcessPool(
        1,
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
    if name == "SIGBUS":
        return f"ended by {name}: {_SIGBUS}", False
    return f"ended by {name}", name in _CRASHES


def end_pools(pools: Collection[ProcessPool]) -> None:
    """End the processes of pools, whatever they do."""
    for pool in pools:
        pool.stop()  # type: ignore[no-untyped-call] # pebble annotates no returns
    for pool in pools:
        pool.join()


def _result(
    task: _T, future: Future[Any], seconds: Optional[float]
) -> Union[_R, Lost[_T]]:
    from concurrent.futures import TimeoutError as NotInTime
    from concurrent.futures.process import BrokenProcessPool

    from pebble import ProcessExpired

    try:
        # One that is not done has a pool that does nothing more.
        return future.result(timeout=None if future.done() else 0)
    except BrokenProcessPool:
        return Lost(task, _NO_PROCESS)
    except NotInTime:
        if not future.done():
            return Lost(task, _NO_PROCESS)
        return Lost(task, f"not done after {seconds:g} seconds", timeout=True)
    except ProcessExpired as e:
        how, crashed = how_it_ended(e.exitcode)
        return Lost(task, f"the process that read this target {how}", crashed=crashed)


class _Place(Generic[_T]):
    """
    Where one process does one task after the other, or its successor does if it is
    lost.
    """

    def __init__(self, work: Callable[[_T], Any], limits: Limits) -> None:
        self._work = work
        self._limits = limits
        self._pool: Optional[ProcessPool] = None
        self._attempts = 0

    def begin(self, number: int, task: _T) -> None:
        """
        Begin a task.

        :param number: Which one it is.
        """
        self.number = number
        self._task = task
        self._attempts = 0
        self._begin()

    def _begin(self) -> None:
        from concurrent.futures import Future

        self._attempts += 1
        try:
            self.future = self._scheduled()
        except RuntimeError as e:
            # The process was lost just now, or there could be none.
            self.future = Future()
            self.future.set_exception(e)

    def _scheduled(self) -> Future[Any]:
        # Looking at a pool starts its process.
        if self._pool is None or not self._pool.active:
            self.end()
            level = logging.getLogger("drgn").level
            arguments = os.getpid(), level, self._limits.memory
            self._pool = one_process(begin_process, arguments)
        future: Future[Any] = self._pool.schedule(
            self._work, args=(self._task,), timeout=self._limits.seconds
        )
        return future

    def is_done(self) -> bool:
        """
        Whether there is a result, or why there is none. A task that no process has
        taken is begun again, by another one.
        """
        from concurrent.futures.process import BrokenProcessPool

        assert self._pool is not None, "begin() comes first"
        if not self.future.done():
            if self._pool.active:
                return False
        elif not isinstance(self.future.exception(), BrokenProcessPool):
            return True
        if self._attempts == _ATTEMPTS:
            return True
        self.end()
        self._begin()
        return False

    def result(self) -> Any:
        """
        What :meth:`is_done()` says is there.

        :raises Exception: what the work raised.
        """
        result: Any = _result(self._task, self.future, self._limits.seconds)
        if isinstance(result, Lost):
            # Its process may have had the locks of its pool.
            self.end()
        return result

    def end(self) -> None:
        """End the process."""
        if self._pool is not None:
            end_pools((self._pool,))
            self._pool = None


def results(
    work: Callable[[_T], _R], tasks: Sequence[_T], limits: Limits
) -> Iterator[Union[_R, Lost[_T]]]:
    """
    Do work on each task.

    :param work: A function of a module. What it raises is raised here.
    :return: Results in the order of the tasks, each as soon as it is there.
    """
    idle = [_Place(work, limits) for _ in range(min(limits.jobs, len(tasks)))]
    places = tuple(idle)
    left = deque(enumerate(tasks))
    found: dict[int, Any] = {}
    wanted = 0
    try:
        while wanted < len(tasks):
            while idle and left:
                idle.pop().begin(*left.popleft())
            for place in _done(places, idle):
                found[place.number] = place.result()
                idle.append(place)
                if left:
                    idle.pop().begin(*left.popleft())
            while wanted in found:
                yield found.pop(wanted)
                wanted += 1
    finally:
        for place in places:
            place.end()


def _done(places: Sequence[_Place[_T]], idle: Sequence[_Place[_T]]) -> list[_Place[_T]]:
    """Wait until a place is done, or for some time."""
    from concurrent.futures import FIRST_COMPLETED, wait

    busy = [place for place in places if place not in idle]
    wait([place.future for place in busy], PATIENCE, FIRST_COMPLETED)
    return [place for place in busy if place.is_done()]
