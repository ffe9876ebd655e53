# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``check`` on a Dask cluster
---------------------------

Hands targets to the workers of a cluster (extra ``fleet``). A worker reads each in a
process of its own, which may be lost; if the worker is lost itself, Dask gives what it
had to another one. That process ends with the worker, whatever ended that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib import import_module
import json
import logging
import os
from runpy import run_module
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Optional, Union

from drgn_hvo.commands.workers import Limits, Lost, die_with, how_it_ended
from drgn_hvo.errors import UsageError
from drgn_hvo.progress import say

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import CheckReport

__all__ = ("LOCAL", "results_of_cluster")

#: In place of an address: a cluster on this machine, for as long as it is needed.
LOCAL = "local"

# How long to look for a scheduler.
_CONNECT = 10  # seconds

# After which to ask whether there is any worker to wait for.
_PATIENCE = 10  # seconds

# How many workers may be lost while they read one target, before it is the target.
_FAILURES = 3

# On top of the time for a target, for the process to say that it took too long.
_GRACE = 30  # seconds


async def _reach(distributed: Any, scheduler: str) -> None:
    """
    Connect to a scheduler, and no more: a client of Dask's that cannot connect takes
    long to give up, and says so in a traceback.
    """
    comm = await distributed.comm.connect(
        scheduler,
        timeout=_CONNECT,
        **distributed.Security().get_connection_args("client"),
    )
    comm.abort()


def _check_scheduler(distributed: Any, scheduler: str) -> None:
    """
    Find out quickly whether a scheduler answers: its client waits much longer.

    :raises UsageError: if there is no scheduler, or none that can be talked to.
    """
    import asyncio

    try:
        # Who takes the connection and is silent would be waited for.
        asyncio.run(asyncio.wait_for(_reach(distributed, scheduler), _CONNECT + 1))
    except Exception as e:
        # Whatever Dask makes of an address, or of who listens there.
        why = str(e) or "no answer"
        raise UsageError(f"no Dask scheduler at {scheduler}: {why}") from None


def _be_quiet() -> None:
    """Silence what Dask logs about workers that come and go: results tell enough."""
    for name in (*logging.root.manager.loggerDict, "asyncio"):
        if name.partition(".")[0] in ("distributed", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _client(scheduler: str, jobs: int) -> Iterator[Any]:
    """
    A client of the cluster, for as long as it is used.

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
    _be_quiet()
    dask.config.set({"distributed.scheduler.allowed-failures": _FAILURES})
    if scheduler != LOCAL:
        _check_scheduler(distributed, scheduler)
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


_Read = Callable[[Sequence[str], str, str, Optional[float]], tuple[Optional[int], str]]


def _reader() -> _Read:
    """
    What a worker does. Being made here, it goes there by its code: one that is found by
    its module's name ends a worker that lacks drgn-hvo, and the scheduler's trust.
    """
    module = __name__

    def read(
        argv: Sequence[str], directory: str, target: str, timeout: Optional[float]
    ) -> tuple[Optional[int], str]:
        # A target in a process: its status and document; no status if it took too
        # long. Relative paths begin in the directory, if there is one of that name.
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *argv, "--", target],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                cwd=directory if os.path.isdir(directory) else None,
            )
        except subprocess.TimeoutExpired:
            return None, "not done in time"
        return done.returncode, done.stdout or done.stderr

    return read


def _document(
    target: str, status: Optional[int], text: str
) -> Union[tuple[int, CheckReport], Lost[str]]:
    if status is None:
        return Lost(target, text, timeout=True)
    try:
        document: CheckReport = json.loads(text)
        return status, document
    except ValueError:
        how, crashed = how_it_ended(status)
        if status < 0:
            said = f"the process that read this target {how}"
            return Lost(target, said, crashed=crashed)
        why = " ".join(text.split())[-200:] or how
        return Lost(target, f"the process that read this target: {why}")


class _Waiter:
    """Waits for results, and says so if there is nobody to wait for."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._distributed: Any = import_module("distributed")
        self._has_said = False

    def result(
        self, target: str, future: Any
    ) -> Union[tuple[int, CheckReport], Lost[str]]:
        try:
            return _document(target, *self._waited(future))
        except self._distributed.KilledWorker:
            return Lost(target, f"{_FAILURES} workers that read it were lost")
        except CancelledError:
            return Lost(target, "the scheduler of the cluster was lost")
        except Exception as e:
            # Nothing of this target: a worker, or the scheduler, that lacks something.
            why = " ".join(str(e).split())
            return Lost(
                target, f"the cluster cannot read it: {type(e).__name__}: {why}"
            )

    def _waited(self, future: Any) -> tuple[Optional[int], str]:
        while True:
            try:
                found: tuple[Optional[int], str] = future.result(timeout=_PATIENCE)
                return found
            except self._distributed.TimeoutError:
                if future.done():
                    raise
                self._say_if_nobody_works()

    def _say_if_nobody_works(self) -> None:
        if not self._has_said and not self._client.nthreads():
            self._has_said = True
            say("drgn-hvo: warning: this cluster has no worker; waiting for one")


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
    with _client(scheduler, min(limits.jobs, len(targets))) as client:
        waiter, read = _Waiter(client), _reader()
        futures = [
            client.submit(read, list(argv), os.getcwd(), target, timeout, pure=False)
            for target in targets
        ]
        for i, target in enumerate(targets):
            yield waiter.result(target, futures[i])
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
