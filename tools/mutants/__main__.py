# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``python -m tools.mutants``
---------------------------

Runs the tests that must notice each mistake, in copies of the tree.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import os
from pathlib import Path
from queue import SimpleQueue
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Optional

from tools.mutants import MUTANTS
from tools.mutants.mutant import Mutant, StaleError, missing_tests, mutated

# pytest's own exit statuses.
_ALL_PASSED = 0
_SOME_FAILED = 1

# Seconds, and bytes of address space: no test that a mutant names takes more than a few
# seconds, but a mistake can make it go on for ever.
_TIMEOUT = 120
_MEMORY = 4 << 30

_ROOT = Path(__file__).resolve().parents[2]

# What tests read of the tree.
_COPIED = (
    "benchmarks",
    "contrib",
    "docs",
    "drgn_hvo",
    "sample_vmcores",
    "tests",
    "tools",
    "CHANGELOG.md",
    "README.md",
    "pyproject.toml",
)


@dataclass(frozen=True)
class _Tested:
    """How a mutant fared; *why* is what to look at if it was not killed."""

    mutant: Mutant
    outcome: str
    why: str = ""


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


class _Tree:
    """A copy of the tree, with neighbours as the original has them."""

    def __init__(self, directory: Path, source: Path) -> None:
        self.root = directory / "tree"
        self.root.mkdir(parents=True)
        for name in _COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, self.root / name, symlinks=True)
            elif (source / name).exists():
                shutil.copy2(source / name, self.root / name)
        shared = _ROOT.parent / "shared"
        if shared.exists():
            (directory / "shared").symlink_to(shared)

    def run(self, tests: Iterable[str], *, limited: bool) -> tuple[int, str]:
        """
        Run tests up to the first that fails: pytest's exit status and output.

        :param limited: Whether there is a mistake in the tree.
        """
        environment = dict(os.environ)
        if limited:
            # Bytecode of a mistake must not outlive it.
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["--hypothesis-profile=first-failure"]
        command += [f"tests/{test}" for test in tests]
        try:
            done = subprocess.run(
                command,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=_TIMEOUT if limited else None,
                preexec_fn=_limit_memory if limited else None,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return -1, f"no end after {_TIMEOUT} seconds"
        return done.returncode, done.stdout

    def test(self, mutant: Mutant) -> _Tested:
        """Make the mistake, run the tests, and take it back."""
        file = self.root / mutant.path
        before = file.stat()
        original = file.read_bytes()
        try:
            file.write_text(mutated(mutant, self.root), encoding="utf-8")
            status, output = self.run(mutant.tests, limited=True)
        finally:
            file.write_bytes(original)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        if status == _ALL_PASSED:
            return _Tested(mutant, "SURVIVED", f"passed: {' '.join(mutant.tests)}")
        if status != _SOME_FAILED:
            return _Tested(mutant, "NOT RUN", output[-2000:])
        return _Tested(mutant, "killed")


def _stale(mutants: Sequence[Mutant]) -> list[str]:
    """Why mutants cannot be tried at all."""
    reasons = []
    for mutant in mutants:
        try:
            mutated(mutant, _ROOT)
        except StaleError as e:
            reasons.append(f"{mutant.id}: {e}")
        reasons += [
            f"{mutant.id}: there is no tests/{test}"
            for test in missing_tests(mutant, _ROOT)
        ]
    return reasons


def _check_tests(tree: _Tree, mutants: Sequence[Mutant]) -> Optional[str]:
    """
    Run all named tests on the code as it is.

    :return: What to say if they do not all pass; a test that is skipped kills nothing.
    """
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    status, output = tree.run(tests, limited=False)
    if status != _ALL_PASSED:
        return f"tests fail without any mistake:\n{output[-4000:]}"
    last = output.rstrip().rpartition("\n")[2]
    if re.search(r"\d+ skipped", last):
        return f"tests that mutants name are skipped here: {last}"
    return None


def _run(mutants: Sequence[Mutant], jobs: int) -> list[_Tested]:
    with tempfile.TemporaryDirectory(prefix="drgn-hvo-mutants.") as directory:
        first = _Tree(Path(directory, "0"), _ROOT)
        problem = _check_tests(first, mutants)
        if problem is not None:
            raise SystemExit(problem)
        # With the bytecode that the tests have made.
        trees: SimpleQueue[_Tree] = SimpleQueue()
        trees.put(first)
        for i in range(1, jobs):
            trees.put(_Tree(Path(directory, str(i)), first.root))

        def test(mutant: Mutant) -> _Tested:
            tree = trees.get()
            try:
                return tree.test(mutant)
            finally:
                trees.put(tree)

        results = []
        with ThreadPoolExecutor(jobs) as pool:
            for result in pool.map(test, mutants):
                print(f"{result.outcome:<8}  {result.mutant.id}", flush=True)
                if result.why:
                    print(f"  {result.mutant.place}: {result.mutant.why}")
                    print("  " + result.why.replace("\n", "\n  "), flush=True)
                results.append(result)
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants", description=__doc__.splitlines()[4]
    )
    parser.add_argument(
        "--only", metavar="ID", action="append", help="one mutant, or all of a prefix"
    )
    parser.add_argument("--list", action="store_true", help="list them, run nothing")
    parser.add_argument(
        "-j",
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="how many at a time (default: as many as there are processors)",
    )
    return parser.parse_args()


def main() -> int:
    """
    Run the command.

    :return: 0 if all mutants were killed, else 1.
    """
    arguments = _arguments()
    prefixes = tuple(arguments.only or ("",))
    mutants = [mutant for mutant in MUTANTS if mutant.id.startswith(prefixes)]
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.id:<36} {mutant.place}\n    {mutant.why}")
        return 0
    if not mutants:
        print(f"there is no mutant {', '.join(prefixes)}", file=sys.stderr)
        return 1
    stale = _stale(mutants)
    for reason in stale:
        print(f"stale: {reason}")
    if stale:
        return 1
    start = time.monotonic()
    results = _run(mutants, max(1, arguments.jobs))
    alive = [result for result in results if result.outcome != "killed"]
    seconds = time.monotonic() - start
    killed = len(results) - len(alive)
    print(f"{killed} of {len(results)} mutants killed in {seconds:.0f} seconds")
    for result in alive:
        print(f"{result.outcome}: {result.mutant.id}")
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main())
