# SPDX-License-Identifier: LGPL-2.1-or-later

"""
check on a Dask cluster: the same results, whichever worker is lost.
"""

import json
import os
from pathlib import Path
import signal
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
