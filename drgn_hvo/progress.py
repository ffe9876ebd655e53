# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Progress
--------

On a terminal a bar, with a rate and the remaining time, for whatever takes more than
two seconds; for a program JSON lines; otherwise nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import os
import sys
import time
from typing import Optional, Protocol, TextIO

__all__ = ("Bar", "discard", "progress", "progress_as_json", "say")

# Nobody wants a bar for what is done at once.
_DELAY = 2  # seconds

# Between two JSON lines, which programs read.
_INTERVAL = 1  # seconds


def discard(stream: TextIO) -> None:
    """
    Let a stream go nowhere from now on: nobody can read what is still buffered, and
    Python would try at exit.
    """
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def say(text: str) -> None:
    """Say something on stderr, if anybody can hear it: results do not depend on it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


class Bar(Protocol):
    """Shows how much was done."""

    def update(self, n: int = 1) -> object:
        """Count *n* more units as done."""


class _NoBar:
    def update(self, n: int = 1) -> None:
        """Nobody watches."""


class _State:
    """What the whole process shows: only the outermost progress() shows anything."""

    busy = False
    #: The keys that each line of JSON begins with; ``None`` without JSON.
    json_keys: Optional[Mapping[str, object]] = None


def progress_as_json(keys: Optional[Mapping[str, object]]) -> None:
    """
    Tell of progress in JSON lines on stderr from now on, whether it is a terminal or
    not.

    :param keys: What each begins with; ``None`` goes back to a bar.
    """
    _State.json_keys = keys


class _JsonLines:
    """Prints a line at the start and the end, and for updates at most one a second."""

    def __init__(self, keys: Mapping[str, object], total: int, unit: str) -> None:
        self._keys = keys
        self._total = total
        self._unit = unit
        self._done = 0
        self._start = self._last = time.monotonic()
        self._print()

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._last >= _INTERVAL or self._done >= self._total:
            self._last = now
            self._print()

    def _print(self) -> None:
        import json

        line = {
            **self._keys,
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "elapsed_s": round(time.monotonic() - self._start, 3),
        }
        say(json.dumps(line))


@contextmanager
def progress(total: int, unit: str) -> Iterator[Bar]:
    """
    Show how far a long task is.

    :param total: How many there are to do.
    :param unit: What they are, in the singular.
    """
    keys = _State.json_keys
    if _State.busy or (keys is None and not sys.stderr.isatty()):
        yield _NoBar()
        return
    _State.busy = True
    try:
        if keys is not None:
            yield _JsonLines(keys, total, unit)
            return
        from tqdm import tqdm

        with tqdm(
            total=total, unit=f" {unit}", unit_scale=True, delay=_DELAY, leave=False
        ) as bar:
            yield bar
    finally:
        _State.busy = False
