# SPDX-License-Identifier: LGPL-2.1-or-later

"""
makedumpfile on a file system that is too small: whatever it leaves there, a healthy
kernel is never called broken, and what is missing is never called clean.
"""

from contextlib import contextmanager
import json
import os
import shutil
import subprocess

import pytest

from tests.command_support import run
from tests.cores import core_path

SHARES = (30, 60, 80, 95, 99)


@contextmanager
def small_disk(path, size):
    """A file system of *size* bytes."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def copy(how, core, target):
    command = ["makedumpfile", how, "-d", "31", str(core), str(target)]
    # It keeps a bitmap in a file, which must not be on the full disk.
    return subprocess.run(command, capture_output=True).returncode


@pytest.fixture(scope="module")
def core():
    if os.geteuid() != 0 or not shutil.which("makedumpfile"):
        pytest.skip("needs root, to mount a small file system, and makedumpfile")
    return core_path("7.2-2node")


@pytest.mark.parametrize("how", ["-c", "-E"])
def test_a_full_disk(how, core, tmp_path):
    whole = tmp_path / "whole"
    assert copy(how, core, whole) == 0
    assert run("check", whole).returncode == 0
    size = whole.stat().st_size
    for share in SHARES:
        with small_disk(tmp_path / str(share), size * share // 100) as disk:
            assert copy(how, core, disk / "v") != 0
            left = shutil.copy(disk / "v", tmp_path / f"{share}.left")
        result = run("check", left, "--json")
        found = json.loads(result.stdout)
        if result.returncode == 2:
            assert "incomplete" in found["error"] or "cut off" in found["error"]
            continue
        assert (result.returncode, found["status"]) == (3, "incomplete")
        assert found["findings"] == []
        assert found["dump"]["problems"]
