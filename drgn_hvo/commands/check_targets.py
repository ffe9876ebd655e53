# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``check`` over several targets
------------------------------

Each target is audited by itself: one that cannot be opened, or a bug of ours, never
stops the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
import logging
import signal
import sys
from typing import TYPE_CHECKING, Optional

from drgn_hvo.commands.check import (
    CheckScope,
    check_document,
    error_document,
    exit_status,
    print_ktap,
    print_result,
)
from drgn_hvo.commands.document import with_dump
from drgn_hvo.commands.failures import EXIT_BUG, EXIT_USAGE, bug, failure
from drgn_hvo.commands.reports import CheckReport
from drgn_hvo.kernel.dump import with_complaint
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo
from drgn_hvo.progress import progress

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    from drgn import Program

__all__ = ("CheckOptions", "check_targets")

# The status of several targets is the first of these that occurred.
_PRECEDENCE = (1, EXIT_BUG, EXIT_USAGE, 3, 0)


@dataclass(frozen=True)
class CheckOptions:
    """What to do with every target."""

    scope: CheckScope
    symbols: tuple[str, ...] = ()
    vmcoreinfo: Optional[str] = None
    assume: tuple[tuple[str, str], ...] = ()
    debug: bool = False


_Result = tuple[int, CheckReport]


def _check(target: str, options: CheckOptions) -> _Result:
    """Audit one target: exit status and document, whatever happens."""
    prog: Optional[Program] = None
    try:
        prog = open_target(target, options.symbols, options.vmcoreinfo)
        found = hvo(prog, dict(options.assume))
        document = with_dump(check_document(found, target, options.scope), prog)
    except Exception as e:
        known = failure(e)
        if known is not None:
            error = error_document(target, with_complaint(known, prog))
            return EXIT_USAGE, error if prog is None else with_dump(error, prog)
        if options.debug:
            raise
        return EXIT_BUG, error_document(target, bug(e))
    return exit_status(document, strict=options.scope.strict), document


def _begin_worker(log_level: int) -> None:
    """Set up a process of ours: it logs as its parent, which Ctrl-C is for."""
    logging.getLogger("drgn").setLevel(log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _preload() -> None:
    """Import once, here, what each worker would import for its first target."""
    import drgn_hvo.formats.kallsyms
    import drgn_hvo.kernel.btf_types
    import drgn_hvo.kernel.variables  # noqa: F401


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    from concurrent.futures import ProcessPoolExecutor

    _preload()
    log_level = logging.getLogger("drgn").level
    pool = ProcessPoolExecutor(jobs, initializer=_begin_worker, initargs=(log_level,))
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):  # noqa: SLF001 (ends what shutdown() would wait for)
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(target: str, future: Future[_Result]) -> _Result:
    from concurrent.futures.process import BrokenProcessPool

    try:
        return future.result()
    except BrokenProcessPool:
        message = "internal error: the process that read this target died"
        return EXIT_BUG, error_document(target, message)


def _results(
    targets: Sequence[str], options: CheckOptions, jobs: int
) -> Iterator[_Result]:
    """Results in the order of the targets, as soon as they are there."""
    if jobs == 1 or len(targets) == 1:
        yield from (_check(target, options) for target in targets)
        return
    with _workers(min(jobs, len(targets))) as pool:
        futures = [pool.submit(_check, target, options) for target in targets]
        for target, future in zip(targets, futures):
            yield _result(target, future)


def _print_next(document: CheckReport, output_format: str, first: bool) -> None:
    if output_format == "text" and not first:
        print()
    print_result(document, output_format)


def _report_error(document: CheckReport) -> None:
    if document["status"] == "error":
        target, error = document["target"], document["error"]
        named = error if error.startswith(target) else f"{target}: {error}"
        print(f"drgn-hvo: error: {named}", file=sys.stderr)


def check_targets(
    targets: Sequence[str], options: CheckOptions, output_format: str, jobs: int
) -> int:
    """
    Audit targets and print the results.

    :param output_format: ``"text"``, ``"json"`` or ``"ktap"``.
    :param jobs: How many processes to use.
    :return: The exit status.
    :raises KeyboardInterrupt: with a text that says how far it got.
    """
    statuses: list[int] = []
    documents: list[CheckReport] = []
    # A single target shows how far it is itself.
    show = nullcontext(None) if len(targets) == 1 else progress(len(targets), "target")
    try:
        with show as bar:
            for status, document in _results(targets, options, jobs):
                statuses.append(status)
                if output_format == "ktap":
                    # Begins with the number of its tests.
                    documents.append(document)
                else:
                    _print_next(document, output_format, len(statuses) == 1)
                _report_error(document)
                sys.stdout.flush()
                if bar is not None:
                    bar.update()
    except KeyboardInterrupt:
        done = f"{len(statuses)} of {len(targets)} targets were done"
        raise KeyboardInterrupt(done) from None
    if output_format == "ktap":
        print_ktap(documents, strict=options.scope.strict)
    return next(status for status in _PRECEDENCE if status in statuses)
