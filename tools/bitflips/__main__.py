# SPDX-License-Identifier: LGPL-2.1-or-later

"""The command ``python -m tools.bitflips``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
import logging
import sys
from typing import Optional

from drgn_hvo.kernel.target import open_target
import tools.bitflips
from tools.bitflips.exemptions import exempt_bits
from tools.bitflips.flips import Flip, Machine
from tools.bitflips.words import Word, words_of

_machine: Optional[Machine] = None
_words: list[Word] = []


def _begin(path: str, every: bool) -> None:
    global _machine, _words
    logging.disable(logging.WARNING)
    _machine = Machine(open_target(path))
    _words = words_of(_machine.healthy, every=every)


def _flip(place: int) -> tuple[list[Flip], int]:
    """Flip all bits of a word; which of them are free."""
    assert _machine is not None, "the worker has begun"
    word = _words[place]
    return list(_machine.flip(word)), exempt_bits(_machine.healthy, word)


@dataclass
class _Told:
    """What became of the bits of words of one name."""

    noticed: Counter[str] = field(default_factory=Counter)
    there: int = 0
    free: int = 0
    missed: set[int] = field(default_factory=set)
    misses: int = 0

    def add(self, flip: Flip, free: int) -> None:
        """Count one bit."""
        if flip.rule is not None:
            self.noticed[flip.rule] += 1
            self.there += flip.is_there
        elif free >> flip.bit & 1:
            self.free += 1
        else:
            self.missed.add(flip.bit)
            self.misses += 1


def _print(told: dict[tuple[str, str], _Told]) -> None:
    for (kind, name), one in sorted(told.items()):
        rules = ", ".join(f"{r} {n}" for r, n in one.noticed.most_common())
        line = f"  {kind}: {name}: {rules or 'nothing noticed'}"
        if one.free:
            line += f"; free {one.free}"
        if one.missed:
            line += f"; MISSED {one.misses}: bits {sorted(one.missed)}"
        print(line)


def _try(path: str, jobs: int, step: int, every: bool) -> int:
    """Flip bits of a core; how many were not noticed that should have been."""
    told: dict[tuple[str, str], _Told] = {}
    _begin(path, every)
    places = _chosen(_words, step)
    with ProcessPoolExecutor(jobs, initializer=_begin, initargs=(path, every)) as pool:
        for flips, free in pool.map(_flip, places, chunksize=4):
            for flip in flips:
                key = flip.word.kind, flip.word.name
                told.setdefault(key, _Told()).add(flip, free)
    _print(told)
    noticed = sum(sum(one.noticed.values()) for one in told.values())
    there = sum(one.there for one in told.values())
    free = sum(one.free for one in told.values())
    missed = sum(one.misses for one in told.values())
    print(
        f"{path}: {noticed + free + missed} bits of {len(places)} words: {noticed} "
        f"noticed ({there} of them first at the word), {free} free, {missed} MISSED",
        flush=True,
    )
    return missed


def _chosen(words: Iterable[Word], step: int) -> list[int]:
    """Every *step*-th word of each name, the first one always."""
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for place, word in enumerate(words):
        if seen[word.kind, word.name] % step == 0:
            chosen.append(place)
        seen[word.kind, word.name] += 1
    return chosen


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Flip bits of cores; give 1 if one was not noticed and is not exempt."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bitflips", description=tools.bitflips.__doc__
    )
    parser.add_argument("cores", nargs="+", metavar="CORE")
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument(
        "--step", type=int, default=1, help="of words alike, take every STEPth"
    )
    parser.add_argument(
        "--every", action="store_true", help="all struct pages of a frame, not some"
    )
    options = parser.parse_args(arguments)
    missed = [
        _try(path, options.jobs, options.step, options.every) for path in options.cores
    ]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main())
