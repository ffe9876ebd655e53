# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``check`` on a Dask cluster
---------------------------

Hands targets to the workers of a cluster (extra ``fleet``). A worker reads each in a
process of its own, which may be lost; if the worker is lost itself, Dask gives what it
had to another one. That process ends with the worker, whatever ended that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
import json
import logging
import os
from runpy import run_module
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Optional, Union

from drgn_hvo.commands.workers import Limits, Lost, die_with
from drgn_hvo.errors import UsageError

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import CheckReport

__all__ = ("LOCAL", "results_of_cluster")

#: In place of an address: a cluster on this machine, for as long as it is needed.
LOCAL = "local"

# How long to look for a scheduler.
_CONNECT = 10  # seconds

# How many workers may be lost while they read one target, before it is the target.
_FAILURES = 3

# On top of the time for a target, for the process to say that it took too long.
_GRACE = 30  # seconds


@contextmanager
def _client(scheduler: str, jobs: int) -> Iterator[Any]:
    """
    :raises UsageError: if there is no Dask, or no scheduler.
    """
    try:
        # Some of its versions have types, others have not.
        dask: Any = import_module("dask")
        distributed: Any = import_module("distributed")
    except ImportError:
        raise UsageError(
            "--scheduler needs Dask: pip install 'drgn-hvo[fleet]'"
        ) from None
    # What it says of workers that come and go is of no use to who reads results.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    dask.config.set({"distributed.scheduler.allowed-failures": _FAILURES})
    if scheduler != LOCAL:
        try:
            client = distributed.Client(
                scheduler, timeout=_CONNECT, set_as_default=False
            )
        except (OSError, ValueError, TimeoutError) as e:
            raise UsageError(f"no Dask scheduler at {scheduler}: {e}") from None
        with client:
            yield client
        return
    with (
        distributed.LocalCluster(
            n_workers=jobs, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _read(
    argv: Sequence[str], directory: str, target: str, timeout: Optional[float]
) -> tuple[int, str]:
    """
    On a worker: read a target in a process, and give its status and document.

    :param directory: Where relative paths begin, if there is one of that name.
    """
    command = [sys.executable, "-m", __name__, *argv, "--", target]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=directory if os.path.isdir(directory) else None,
        )
    except subprocess.TimeoutExpired:
        return -1, "not done in time"
    return done.returncode, done.stdout or done.stderr


def _document(
    target: str, status: int, text: str
) -> Union[tuple[int, CheckReport], Lost[str]]:
    try:
        document: CheckReport = json.loads(text)
        return status, document
    except ValueError:
        why = " ".join(text.split())[-200:] or f"ended with status {status}"
        return Lost(target, f"the process that read this target: {why}")


def results_of_cluster(
    scheduler: str, argv: Sequence[str], targets: Sequence[str], limits: Limits
) -> Iterator[Union[tuple[int, CheckReport], Lost[str]]]:
    """
    Audit targets on a cluster.

    :param scheduler: Its address, or :data:`LOCAL`.
    :param argv: Options of ``check`` for each target.
    :return: Status and document of each, in the order given, as soon as it is there.
    :raises UsageError: if there is no such cluster.
    """
    timeout = None if limits.seconds is None else limits.seconds + _GRACE
    with _client(scheduler, limits.jobs) as client:
        killed_worker: Any = import_module("distributed").KilledWorker
        futures = [
            client.submit(_read, list(argv), os.getcwd(), target, timeout, pure=False)
            for target in targets
        ]
        for i, target in enumerate(targets):
            try:
                yield _document(target, *futures[i].result())
            except killed_worker:
                yield Lost(target, f"{_FAILURES} workers that read it were lost")
            # A cluster keeps a result for as long as somebody holds it.
            futures[i] = None


def _main() -> None:
    """The process of one target, which must not outlive its worker."""
    die_with(os.getppid())
    sys.argv[1:1] = ["check", "--format", "json"]
    # The command stands above this room: it is run as Python runs it, not imported.
    run_module("drgn_hvo", run_name="__main__")


if __name__ == "__main__":
    _main()
