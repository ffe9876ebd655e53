# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Inputs that are wrong
---------------------

Changes inputs where they have structure: VMCOREINFO, the words of a kernel's memory by
what they are, files of cores, descriptions, logs, arguments. The command ``python -m
tools.mutate_inputs --cases N`` runs commands on each and says where one ended in an
internal error, took too long or too much, printed a control character, or left half a
file behind. Each fault comes with the least changes that make it, as a command to
repeat.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import sys
import tempfile
from typing import Optional

from tools.mutate_classes import CLASSES, Inputs, leftovers
from tools.mutate_run import limits

__all__ = ("Failure", "failures", "main", "try_case")


@dataclass(frozen=True)
class Failure:
    """A case that went wrong, the changes that are needed for it, and how."""

    kind: str
    number: int
    changes: tuple[int, ...]
    argv: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        kept = ",".join(map(str, self.changes))
        return (
            f"{self.kind} {self.number}: {' '.join(self.argv)}: {self.what}\n"
            f"  python -m tools.mutate_inputs --only {self.kind}:{self.number} "
            f"--keep {kept or 'none'}"
        )


def try_case(inputs: Inputs, kind: str, number: int) -> Iterator[Failure]:
    """Try one case; what went wrong, with the least changes that make it."""
    noise = inputs.random(kind, number)
    changes, run, commands = CLASSES[kind](inputs, noise)
    argv = noise.choice(list(commands))
    what = run(changes, argv)
    if what is None:
        return
    kept = list(range(len(changes)))
    for i in list(kept):
        fewer = [k for k in kept if k != i]
        if run([changes[k] for k in fewer], argv) is not None:
            kept = fewer
    yield Failure(kind, number, tuple(kept), argv, what)


def failures(
    directory: Path, kinds: Sequence[str], cases: int, seed: int
) -> Iterator[Failure]:
    """
    Try cases of all kinds in turn.

    :param cases: How many, of all kinds together.
    """
    inputs = Inputs(directory, seed)
    with limits():
        for i in range(cases):
            kind = kinds[i % len(kinds)]
            yield from try_case(inputs, kind, i // len(kinds))
        left = leftovers(directory)
        if left is not None:
            yield Failure("files", 0, (), (), left)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """
    Try cases and print what went wrong.

    :return: 0 if nothing did, else 1.
    """
    parser = argparse.ArgumentParser(prog="tools.mutate_inputs", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--class", nargs="+", choices=CLASSES, dest="kinds")
    parser.add_argument("--only", metavar="CLASS:N", help="one case, with tracebacks")
    parser.add_argument("--keep", metavar="N,…", help="changes of it to make")
    args = parser.parse_args(argv)
    kinds = args.kinds or list(CLASSES)
    os.environ.setdefault("DRGN_DISABLE_PLUGINS", "*")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        if args.only:
            return _repeat(Path(directory), args)
        for failure in failures(Path(directory), kinds, args.cases, args.seed):
            counts[failure.kind] += 1
            print(failure, flush=True)
    for i, kind in enumerate(kinds):
        tried = (args.cases - i + len(kinds) - 1) // len(kinds)
        print(f"{kind:14} {tried:6} cases, {counts[kind]} failures")
    print(f"{args.cases} cases, {sum(counts.values())} failures")
    return int(bool(counts))


def _repeat(directory: Path, args: argparse.Namespace) -> int:
    """Run one case and show where it fails."""
    kind, _, number = args.only.partition(":")
    inputs = Inputs(directory, args.seed)
    noise = inputs.random(kind, int(number))
    changes, run, commands = CLASSES[kind](inputs, noise)
    chosen = (*noise.choice(list(commands)), "--debug")
    kept = list(range(len(changes)))
    if args.keep is not None:
        kept = [int(k) for k in args.keep.split(",") if k.isdigit()]
    for k in kept:
        print(f"{changes[k][0]:#x}: {changes[k][1]!r}")
    with limits():
        what = run([changes[k] for k in kept], chosen)
    print(f"{' '.join(chosen)}: {what}")
    return int(what is not None)


if __name__ == "__main__":
    sys.exit(main())
