# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``check`` over several targets
------------------------------

Each target is audited by itself, in a process that may be lost: one that cannot be
opened, hangs or kills its process, or a bug of ours, never stops the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
import os
import sys
import time
from typing import TYPE_CHECKING, Optional, Union

from drgn_hvo.commands.check import (
    CheckScope,
    check_document,
    error_document,
    exit_status,
    print_result,
)
from drgn_hvo.commands.document import clipped, printable, with_dump
from drgn_hvo.commands.failures import EXIT_BUG, EXIT_USAGE, bug, failure
from drgn_hvo.commands.ktap import print_ktap_document, print_ktap_plan
from drgn_hvo.commands.shards import CoreShards, shards_of
from drgn_hvo.commands.workers import Limits, Lost, results
from drgn_hvo.kernel.dump import with_complaint
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.progress import progress, say

if TYPE_CHECKING:
    from drgn import Program

    from drgn_hvo.commands.reports import CheckReport

    _Result = tuple[int, CheckReport]

__all__ = ("CheckOptions", "check_targets")

# The status of several targets is the first of these that occurred.
_PRECEDENCE = (1, EXIT_BUG, EXIT_USAGE, 3, 0)


# A target that one process reads, this one.
_ALONE = Limits()


@dataclass(frozen=True)
class CheckOptions:
    """
    What to do with every target.

    :param within: Processes that read one target.
    """

    scope: CheckScope
    symbols: tuple[str, ...] = ()
    vmcoreinfo: Optional[str] = None
    assume: tuple[tuple[str, str], ...] = ()
    debug: bool = False
    evidence: bool = False
    within: Limits = _ALONE

    def argv(self, limits: Limits) -> list[str]:
        """The same as options of the command, for a process elsewhere."""
        scope = self.scope
        words = [word for path in self.symbols for word in ("-s", path)]
        if self.vmcoreinfo is not None:
            words += ["--vmcoreinfo", self.vmcoreinfo]
        words += [w for k, v in self.assume for w in ("--assume", f"{k}={v}")]
        if scope.only is not None:
            words += ["--rules", ",".join(sorted(scope.only))]
        if scope.ignore:
            words += ["--ignore", ",".join(sorted(scope.ignore))]
        words += ["--deep"] * scope.deep + ["--strict"] * scope.strict
        if limits.seconds is not None:
            words += ["--timeout", str(limits.seconds)]
        if limits.memory is not None:
            words += ["--memory", str(limits.memory / (1 << 30))]
        return words


def _check(options: CheckOptions, target: str) -> _Result:
    """Audit one target: exit status and document, whatever happens."""
    start = time.monotonic()
    with shards_of(target, options.vmcoreinfo, options.within) as shards:
        status, document = _audited(options, target, shards)
    # All that it cost, opening included.
    document["duration_s"] = round(time.monotonic() - start, 3)
    return status, document


def _audited(
    options: CheckOptions, target: str, shards: Optional[CoreShards]
) -> _Result:
    before = _state(target)
    prog: Optional[Program] = None
    try:
        prog = open_target(target, options.symbols, options.vmcoreinfo)
        found = hvo_of(prog, dict(options.assume))
        found.kernel.reader.shards = shards
        document = check_document(found, target, options.scope)
        document = with_dump(document, prog, found.kernel)
    except Exception as e:
        known = failure(e)
        if known is not None:
            error = error_document(target, with_complaint(known, prog))
            return EXIT_USAGE, error if prog is None else with_dump(error, prog)
        if options.debug:
            raise
        if isinstance(e, OSError):
            # A file, disk or share that breaks while it is read.
            why = f"cannot be read: {e.strerror or e}"
            return EXIT_USAGE, error_document(target, why)
        return EXIT_BUG, error_document(target, bug(e))
    if _state(target) != before:
        return EXIT_USAGE, error_document(target, "changed while it was read")
    return exit_status(document, strict=options.scope.strict), document


def _state(target: str) -> Optional[tuple[int, ...]]:
    """
    What changes when somebody still writes a core, or puts another one in its place;
    ``None`` if it is no file.
    """
    try:
        status = os.stat(target)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _preload() -> None:
    """Import once, here, what each process would import for its first target."""
    import drgn_hvo.formats.kallsyms
    import drgn_hvo.kernel.btf_types
    import drgn_hvo.kernel.variables  # noqa: F401


def _result(result: Union[_Result, Lost[str]]) -> _Result:
    if not isinstance(result, Lost):
        return result
    document = error_document(result.task, result.reason, timeout=result.timeout)
    return EXIT_BUG if result.crashed else EXIT_USAGE, document


def _results(
    targets: Sequence[str],
    options: CheckOptions,
    limits: Limits,
    scheduler: Optional[str],
) -> Iterator[_Result]:
    """Results in the order of the targets, as soon as they are there."""
    if scheduler is not None:
        from drgn_hvo.commands.cluster import results_of_cluster

        argv = options.argv(limits)
        yield from map(_result, results_of_cluster(scheduler, argv, targets, limits))
        return
    # Processes that have no target of their own help with those of others.
    jobs = max(1, limits.jobs // max(1, len(targets)))
    within = Limits(jobs, memory=limits.memory)
    check = partial(_check, replace(options, within=within))
    if len(targets) == 1 and limits.seconds is None and limits.memory is None:
        yield check(targets[0])
        return
    _preload()
    for result in results(check, targets, limits):
        yield _result(result)


class _Printer:
    """Prints results as they come."""

    def __init__(self, output_format: str, targets: int, options: CheckOptions) -> None:
        self._format = output_format
        self._strict = options.scope.strict
        self._evidence = options.evidence
        self._number = 0
        if output_format == "ktap":
            print_ktap_plan(targets)

    def print(self, document: CheckReport) -> None:
        self._number += 1
        if self._format == "ktap":
            print_ktap_document(self._number, document, strict=self._strict)
        else:
            if self._format == "text" and self._number > 1:
                print()
            print_result(document, self._format, evidence=self._evidence)
        sys.stdout.flush()
        _report_error(document)

    def interrupted(self) -> None:
        """Say that no more will come, where that is not plain."""
        if self._format == "ktap":
            print("Bail out! interrupted", flush=True)


def _report_error(document: CheckReport) -> None:
    if document["status"] == "error":
        target, error = document["target"], document["error"]
        named = error if error.startswith(target) else f"{target}: {error}"
        say(f"drgn-hvo: error: {clipped(printable(named))}")


def check_targets(
    targets: Sequence[str],
    options: CheckOptions,
    output_format: str,
    limits: Limits,
    scheduler: Optional[str] = None,
    earlier: Collection[int] = (),
) -> int:
    """
    Audit targets and print the results.

    :param output_format: ``"text"``, ``"json"`` or ``"ktap"``.
    :param scheduler: Of the Dask cluster to do it on; ``None`` is this machine.
    :param earlier: Statuses of targets that an earlier run has audited.
    :return: The exit status.
    :raises KeyboardInterrupt: with a text that says how far it got.
    """
    statuses: list[int] = []
    printer = _Printer(output_format, len(targets), options)
    # A single target shows how far it is itself.
    show = nullcontext(None) if len(targets) == 1 else progress(len(targets), "target")
    try:
        with show as bar:
            for status, document in _results(targets, options, limits, scheduler):
                statuses.append(status)
                printer.print(document)
                if bar is not None:
                    bar.update()
    except KeyboardInterrupt:
        printer.interrupted()
        done = f"{len(statuses)} of {len(targets)} targets were done"
        raise KeyboardInterrupt(done) from None
    found = {*statuses, *earlier}
    return next((status for status in _PRECEDENCE if status in found), 0)
