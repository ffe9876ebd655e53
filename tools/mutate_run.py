# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One command on an input that is wrong
-------------------------------------

Runs it in this process, for a limited time, and says what it did that no command must
do; for :mod:`tools.mutate_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import io
import logging
import re
import resource
import signal
import time
from types import FrameType
from typing import Any, Optional, Union

from drgn import Program

from drgn_hvo import cli
from drgn_hvo.commands import check_targets
from drgn_hvo.errors import TargetError
from drgn_hvo.kernel import target
from drgn_hvo.kernel.finders import install

__all__ = ("judge", "limits", "opened_as", "silence")

_SECONDS = 10
_MEMORY = 1 << 30
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _TooLong(BaseException):
    """A command that does not end."""


@contextlib.contextmanager
def silence() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def judge(argv: Sequence[str]) -> Optional[str]:
    """Run a command; what it did that it must not do."""
    start = time.monotonic()
    # A process never gives back its peak: what counts is how a command raises it.
    before = _peak()
    signal.alarm(_SECONDS)
    try:
        with silence() as (out, err):
            status = cli.main(list(argv))
    except _TooLong:
        return f"takes more than {_SECONDS} s"
    except BaseException as e:
        return f"{type(e).__name__}: {e}"
    finally:
        signal.alarm(0)
    if status == 70:
        return err.getvalue().strip()[:300]
    for text in (out.getvalue(), err.getvalue()):
        found = _CONTROL.search(text)
        if found is not None:
            return f"prints {found[0]!r}"
    if time.monotonic() - start > _SECONDS:
        return "took too long"
    grown = _peak() - before
    return f"{grown >> 20} MiB more" if grown > _MEMORY else None


def _peak() -> int:
    """The most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextlib.contextmanager
def opened_as(make: Callable[[], Program]) -> Iterator[None]:
    """Let commands take any target for a program."""
    # Who took the function by its name has to be told, too.
    users: tuple[Any, ...] = (target, check_targets)
    before = target.open_target

    def opened(*_args: Any, **_options: Any) -> Program:
        try:
            prog = make()
        except Exception as e:
            # As open_target() has it.
            raise TargetError(" ".join(str(e).split())) from None
        install(prog)
        return prog

    for user in users:
        user.open_target = opened
    try:
        yield
    finally:
        for user in users:
            user.open_target = before


def _alarm(_number: int, _frame: Optional[FrameType]) -> None:
    raise _TooLong


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Let a command that takes too long end."""
    before: Union[Callable[..., Any], int, None] = signal.signal(signal.SIGALRM, _alarm)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        signal.signal(signal.SIGALRM, before)
