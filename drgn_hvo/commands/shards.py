# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Processes that share one core
-----------------------------

What ``check -j N`` of a single core uses. Each process opens the core itself; all of
them, this one included, take the next piece of the work when they have finished one. If
a process is lost, the target is an error: there are no results of parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fcntl import fcntl
import logging
import os
import pickle
from threading import Thread
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from drgn import Program

from drgn_hvo.commands.workers import (
    PATIENCE,
    Limits,
    begin_process,
    end_pools,
    how_it_ended,
    one_process,
)
from drgn_hvo.errors import TargetError
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.target import open_target

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool

__all__ = ("CoreShards", "shards_of")

_P = TypeVar("_P")
_R = TypeVar("_R")

# From this size on disk (32 MiB) the other processes are started at once: they open
# the core while this one does.
_LARGE = 32 << 20

# The unit of st_blocks.
_BLOCK = 512

# At most this many processes per processor read one core: more gain nothing, and each
# costs the memory of an open core.
_PER_PROCESSOR = 2

# How many pieces are queued for each of the other processes, so that none is idle.
_AHEAD = 3

# fcntl(F_SETPIPE_SZ), which Python names since 3.10; and the most that
# /proc/sys/fs/pipe-max-size lets anybody have by default.
_F_SETPIPE_SZ = 1031
_PIPE_SIZE = 1 << 20

# Said of a process that was lost between two pieces, when no exit code is known.
_LOST = "a process that read a part of this target was lost"


class _Opened:
    """The core that a process has open for as long as it lives."""

    prog: Optional[Program] = None
    readers: dict[int, FrameReader] = {}  # noqa: RUF012
    #: Why it cannot be opened; raised when a piece of work comes.
    error: Optional[Exception] = None


def _begin(
    parent: int, log_level: int, limits: Limits, target: str, vmcoreinfo: Optional[str]
) -> None:
    begin_process(parent, log_level, limits.memory)
    _widen_pipes()
    try:
        _Opened.prog = open_target(target, (), vmcoreinfo)
    except Exception as e:
        _Opened.error = e


def _widen_pipes() -> None:
    """
    Let whole results fit into the pipes between this process and its parent. It would
    else wait, a tenth of its time, for a parent that is busy with a piece of its own.
    """
    try:
        open_files = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return  # without /proc it waits
    for fd in open_files:
        # The first three are the user's.
        if fd > 2:
            # No pipe, closed since, or more than this user may have.
            with suppress(OSError):
                fcntl(fd, _F_SETPIPE_SZ, _PIPE_SIZE)


def _work(packed: bytes, page_size: int) -> Any:
    """
    Do a piece of work.

    :param packed: The function and its piece, see :func:`_scheduled()`.
    """
    if _Opened.error is not None:
        raise _Opened.error
    assert _Opened.prog is not None, "a process begins with that"
    if page_size not in _Opened.readers:
        _Opened.readers[page_size] = FrameReader(_Opened.prog, page_size)
    work, piece = pickle.loads(packed)
    return work(_Opened.readers[page_size], piece)


class CoreShards:
    """
    Processes that have a core open, from when there is work for them.

    :param limits: How many there are, with this one, and what each may need.
    """

    def __init__(self, target: str, vmcoreinfo: Optional[str], limits: Limits) -> None:
        self._target = target
        self._vmcoreinfo = vmcoreinfo
        self._limits = limits
        self._pools: list[ProcessPool] = []

    def start(self) -> list[ProcessPool]:
        """Let the processes begin to open the core, unless they have already."""
        if not self._pools:
            level = logging.getLogger("drgn").level
            arguments = os.getpid(), level, self._limits, self._target, self._vmcoreinfo
            self._pools = [
                one_process(_begin, arguments) for _ in range(self._limits.jobs - 1)
            ]
        self._look()
        return self._pools

    def _look(self) -> None:
        """
        Look whether all processes are alive.

        :raises TargetError: if a process was lost.
        """
        try:
            # Looking starts them, so it looks at each.
            lost = [pool for pool in self._pools if not pool.active]
        except RuntimeError:
            raise TargetError(_LOST) from None
        if lost:
            raise TargetError(_LOST)

    def map(
        self,
        work: Callable[[FrameReader, _P], _R],
        pieces: Sequence[_P],
        reader: FrameReader,
    ) -> Iterator[tuple[int, _R]]:
        """See :meth:`drgn_hvo.kernel.shards.Shards.map()`."""
        from concurrent.futures import FIRST_COMPLETED, wait

        left = deque(enumerate(pieces))
        begun: dict[ProcessFuture[Any], int] = {}
        free = deque(self.start() * _AHEAD)
        pools: dict[ProcessFuture[Any], ProcessPool] = {}
        while left or begun:
            while left and free:
                number, piece = left.popleft()
                pool = free.popleft()
                future = _scheduled(pool, work, piece, reader.page_size)
                begun[future], pools[future] = number, pool
            if left:
                number, piece = left.popleft()
                yield number, work(reader, piece)
            elif not wait(begun, PATIENCE, FIRST_COMPLETED).done:
                self._look()
            for future in [one for one in begun if one.done()]:
                free.append(pools.pop(future))
                yield begun.pop(future), _result(future)

    def stop(self) -> None:
        """
        Begin to end the other processes, whatever they do. That is not waited for:
        the threads of a pool look at it ten times a second. A process that is not
        ended by then ends with this one.
        """
        if self._pools:
            Thread(target=end_pools, args=(self._pools,), daemon=True).start()


def _scheduled(
    pool: ProcessPool,
    work: Callable[[FrameReader, _P], _R],
    piece: _P,
    page_size: int,
) -> ProcessFuture[Any]:
    """
    Give a piece of work to the process of a pool.

    It is packed here and now. pebble would do that in a thread, while this one works
    with the same objects and adds to them what they compute once and keep.

    :raises TargetError: if the process was lost.
    """
    packed = pickle.dumps((work, piece), pickle.HIGHEST_PROTOCOL)
    try:
        return pool.schedule(_work, args=(packed, page_size))
    except RuntimeError:
        raise TargetError(_LOST) from None


def _result(future: ProcessFuture[Any]) -> Any:
    """
    What a process found out about its piece.

    :raises TargetError: if the process was ended by somebody.
    :raises RuntimeError: if it broke down, which is a bug somewhere.
    """
    from concurrent.futures.process import BrokenProcessPool

    from pebble import ProcessExpired

    try:
        return future.result()
    except ProcessExpired as e:
        how, crashed = how_it_ended(e.exitcode)
        said = f"a process that read a part of this target {how}"
        raise (RuntimeError if crashed else TargetError)(said) from None
    except BrokenProcessPool:
        raise TargetError(_LOST) from None


@contextmanager
def shards_of(
    target: str, vmcoreinfo: Optional[str], limits: Limits
) -> Iterator[Optional[CoreShards]]:
    """
    Processes to read a target with.

    :param limits: How many in all, and how much each may cost.
    :return: ``None`` if it is to be one, or the target is no file.
    """
    if limits.jobs < 2 or not os.path.isfile(target):
        yield None
        return
    most = _PER_PROCESSOR * len(os.sched_getaffinity(0))
    limits = replace(limits, jobs=min(limits.jobs, most))
    shards = CoreShards(target, vmcoreinfo, limits)
    if os.stat(target).st_blocks * _BLOCK >= _LARGE:
        shards.start()
    try:
        yield shards
    finally:
        shards.stop()
