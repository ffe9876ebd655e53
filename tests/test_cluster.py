# SPDX-License-Identifier: LGPL-2.1-or-later

"""
check on a Dask cluster: the same results, whichever worker is lost.
"""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.command_support import check_refused, run

distributed = pytest.importorskip("distributed")

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
NAMES = ("debian-7.2", "shared-7.3", "shared-7.3-pte-writable", "fake-head-6.12")


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as found:
        yield found


def documents(*args):
    result = run("check", *args, "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    for document in found:
        document.pop("duration_s")
    return result.returncode, found


def test_results_are_those_of_one_machine(cluster, tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(b"nonsense")
    targets = [*(SAMPLES / f"{name}.kdump" for name in NAMES), bad]
    options = ("--ignore", "folio-list", "--assume", "tail_layout=shared")
    address = ("--scheduler", cluster.scheduler_address)
    assert documents(*targets, *options, *address) == documents(*targets, *options)


def test_a_worker_that_is_killed(cluster):
    targets = [SAMPLES / f"{name}.kdump" for name in NAMES] * 2
    pids = list(distributed.Client(cluster).run(os.getpid).values())

    def kill():
        time.sleep(1)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = documents(*targets, "--scheduler", cluster.scheduler_address)
    killer.join()
    assert found == documents(*targets)


def test_nobody_listens():
    check_refused(
        run("check", SAMPLES / "debian-7.2.kdump", "--scheduler", "tcp://127.0.0.1:1"),
        "no Dask scheduler at tcp://127.0.0.1:1",
    )


@pytest.mark.parametrize(
    "address", ["foo://bar", "tcp://x:notaport", "", "tls://127.0.0.1:1", "ucx://1"]
)
def test_an_address_that_is_none(address):
    """Dask's client needs 20 seconds for that, and ends in a traceback."""
    start = time.monotonic()
    result = run("check", SAMPLES / "debian-7.2.kdump", "--scheduler", address)
    check_refused(result, f"no Dask scheduler at {address}: ")
    assert time.monotonic() - start < 10


def test_somebody_listens_and_is_silent(monkeypatch):
    monkeypatch.setattr("drgn_hvo.commands.cluster._CONNECT", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        check_refused(
            run("check", SAMPLES / "debian-7.2.kdump", "--scheduler", address),
            f"no Dask scheduler at {address}: no answer",
        )
    assert time.monotonic() - start < 10


SCHEDULER = """
import asyncio, distributed
async def main():
    async with distributed.Scheduler(port=0, dashboard=False) as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()
asyncio.run(main())
"""
WORKER = """
import asyncio, sys, distributed
if "poor" in sys.argv:
    # Like a machine on which drgn-hvo was not installed.
    sys.modules["drgn_hvo"] = None
    sys.executable = sys.argv[2]
async def main():
    async with distributed.Worker(sys.argv[1], nthreads=1) as worker:
        await worker.finished()
asyncio.run(main())
"""


@pytest.fixture
def start():
    """Start processes that end with the test."""
    begun: list[subprocess.Popen[str]] = []

    def start_one(*command):
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield start_one
    for process in begun:
        process.kill()
        process.communicate()


def test_the_scheduler_is_lost(start):
    """What was not read is an error each, and nothing is said to be our bug."""
    scheduler = start("-c", SCHEDULER)
    address = scheduler.stdout.readline().strip()
    start("-c", WORKER, address)
    targets = [SAMPLES / "shared-7.3.kdump"] * 40
    check = start("-m", "drgn_hvo", "check", *targets, "--json", "--scheduler", address)
    first = check.stdout.readline()
    scheduler.kill()
    rest, said = check.communicate(timeout=60)
    found = [json.loads(line) for line in (first + rest).splitlines()]
    assert len(found) == len(targets)
    assert found[0]["status"] == "clean"
    assert found[-1]["error"] == "the scheduler of the cluster was lost"
    assert check.returncode == 2
    assert "Traceback" not in said


def test_a_worker_that_lacks_us(start, tmp_path):
    """It says so, and lives."""
    address = start("-c", SCHEDULER).stdout.readline().strip()
    lacking = tmp_path / "python"
    lacking.write_text(f"#!/bin/sh\nshift\nexec {sys.executable} -I -m no_$1\n")
    lacking.chmod(0o755)
    worker = start("-c", WORKER, address, lacking, "poor")
    core = SAMPLES / "shared-7.3.kdump"
    result = run("check", core, core, "--scheduler", address)
    assert result.returncode == 2
    assert result.stderr.count("No module named 'no_drgn_hvo'") == 2
    assert worker.poll() is None


def test_a_cluster_without_workers(start, monkeypatch):
    monkeypatch.setattr("drgn_hvo.commands.cluster._PATIENCE", 1)
    address = start("-c", SCHEDULER).stdout.readline().strip()
    core = SAMPLES / "shared-7.3.kdump"
    begun: list[object] = []
    late = threading.Timer(4, lambda: begun.append(start("-c", WORKER, address)))
    late.start()
    result = run("check", core, "--scheduler", address)
    late.join()
    assert result.returncode == 0
    assert result.stderr.count("this cluster has no worker; waiting for one") == 1
