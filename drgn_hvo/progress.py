# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Progress
--------

A bar with a rate and the remaining time for whatever takes more than two seconds;
nothing where nobody watches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import sys
from typing import Protocol

__all__ = ("Bar", "progress")

# Nobody wants a bar for what is done at once.
_DELAY = 2  # seconds


class Bar(Protocol):
    """What is told how much was done."""

    def update(self, n: int = 1) -> object:
        """So many more are done."""


class _NoBar:
    def update(self, n: int = 1) -> None:
        """Nobody watches."""


class _State:
    """Whether a bar is shown: what is done inside of it has none of its own."""

    busy = False


@contextmanager
def progress(total: int, unit: str) -> Iterator[Bar]:
    """
    Show how far a long task is.

    :param total: How many there are to do.
    :param unit: What they are, in the singular.
    """
    if _State.busy or not sys.stderr.isatty():
        yield _NoBar()
        return
    from tqdm import tqdm

    _State.busy = True
    try:
        with tqdm(
            total=total, unit=f" {unit}", unit_scale=True, delay=_DELAY, leave=False
        ) as bar:
            yield bar
    finally:
        _State.busy = False
