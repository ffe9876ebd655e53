# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Processes that share one core
-----------------------------

What ``check -j N`` of a single core uses: each process opens the core itself, and all
of them, this one included, take pieces of the work as they are done with what they
had. They may be lost as any other; then there is no result, and not one of a part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import logging
import os
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from drgn import Program

from drgn_hvo.commands.workers import (
    PATIENCE,
    Limits,
    begin_process,
    how_it_ended,
    process_pool,
)
from drgn_hvo.errors import TargetError
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.target import open_target

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool

__all__ = ("CoreShards", "shards_of")

_P = TypeVar("_P")
_R = TypeVar("_R")

# A core of that many bytes on disk may keep others busy: those have it open by then.
_LARGE = 32 << 20

# The unit of st_blocks.
_BLOCK = 512

# How many pieces wait for each of the other processes, so that none has to wait.
_AHEAD = 3

# Of a process that was lost between two pieces, which tells nobody how.
_LOST = "a process that read a part of this target was lost"


class _Opened:
    """The core that a process has open for as long as it lives."""

    prog: Optional[Program] = None
    readers: dict[int, FrameReader] = {}  # noqa: RUF012
    #: Why it cannot be opened, which who asks for work is told.
    error: Optional[Exception] = None


def _begin(
    parent: int, log_level: int, limits: Limits, target: str, vmcoreinfo: Optional[str]
) -> None:
    begin_process(parent, log_level, limits.memory)
    try:
        _Opened.prog = open_target(target, (), vmcoreinfo)
    except Exception as e:
        _Opened.error = e


def _work(work: Callable[[FrameReader, _P], _R], piece: _P, page_size: int) -> _R:
    if _Opened.error is not None:
        raise _Opened.error
    assert _Opened.prog is not None, "a process begins with that"
    if page_size not in _Opened.readers:
        _Opened.readers[page_size] = FrameReader(_Opened.prog, page_size)
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
        self._pool: Optional[ProcessPool] = None

    def start(self) -> ProcessPool:
        """Let the processes begin to open the core, unless they have already."""
        if self._pool is None:
            level = logging.getLogger("drgn").level
            arguments = os.getpid(), level, self._limits, self._target, self._vmcoreinfo
            self._pool = process_pool(self._limits.jobs - 1, _begin, arguments)
        # Looking starts them.
        if not self._pool.active:
            raise TargetError(_LOST)
        return self._pool

    def map(
        self,
        work: Callable[[FrameReader, _P], _R],
        pieces: Sequence[_P],
        reader: FrameReader,
    ) -> Iterator[tuple[int, _R]]:
        """See :meth:`drgn_hvo.kernel.shards.Shards.map()`."""
        from concurrent.futures import FIRST_COMPLETED, wait

        pool = self.start()
        most = _AHEAD * (self._limits.jobs - 1)
        left = deque(enumerate(pieces))
        begun: dict[ProcessFuture[Any], int] = {}
        while left or begun:
            while left and len(begun) < most:
                number, piece = left.popleft()
                arguments = (work, piece, reader.page_size)
                begun[pool.schedule(_work, args=arguments)] = number
            if left:
                number, piece = left.popleft()
                yield number, work(reader, piece)
            elif not wait(begun, PATIENCE, FIRST_COMPLETED).done and not pool.active:
                raise TargetError(_LOST)
            for future in [one for one in begun if one.done()]:
                yield begun.pop(future), _result(future)

    def stop(self) -> None:
        """End the other processes, whatever they do."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call] # as in workers
            self._pool.join()


def _result(future: ProcessFuture[Any]) -> Any:
    """
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
    shards = CoreShards(target, vmcoreinfo, limits)
    if os.stat(target).st_blocks * _BLOCK >= _LARGE:
        shards.start()
    try:
        yield shards
    finally:
        shards.stop()
