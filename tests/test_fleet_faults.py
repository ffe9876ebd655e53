# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A few targets of which some break their readers; ``python -m tools.fleet_faults`` tries
500.
"""

import importlib.util
import signal

import pytest

from tools.fleet_faults import FAULTS, Fleet, check_cluster, check_end, check_here

# On a slow machine, a core that is none of theirs must not take as long.
SECONDS = 20

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="no Dask"
)


@pytest.fixture
def fleet(tmp_path):
    return Fleet.make(tmp_path, good=8, each=1)


def test_here(fleet):
    assert len(fleet.targets) == 8 + len(FAULTS)
    assert list(check_here(fleet, SECONDS)) == []


@needs_dask
def test_a_cluster_that_loses_a_worker(fleet):
    assert list(check_cluster(fleet, SECONDS)) == []


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize(
    "options", [(), pytest.param(("--scheduler", "local"), marks=needs_dask)]
)
def test_nothing_is_left(fleet, end, options):
    assert list(check_end(fleet, end, *options)) == []
