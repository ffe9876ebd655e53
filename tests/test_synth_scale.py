# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A terabyte
----------

The core of a machine with a terabyte of huge pages is written in seconds, in little
memory, as a sparse file.
"""

import os
import shutil
import subprocess
import sys

import pytest

# Two nodes; the second has room for the frames of heads.
TERABYTE = """
generation = "shared-7.3"
[[node]]
id = 0
ranges = [[0x0, 0xc0000], [0x100000, 0x10100000]]
[node.zones]
DMA = [0x1, 0x1000]
DMA32 = [0x1000, 0x100000]
Normal = [0x100000, 0x10100000]
[[node]]
id = 1
ranges = [[0x10100000, 0x10400000]]
zones = {{Normal = [0x10100000, 0x10400000]}}
[[huge_pages]]
node = 0
zone = "Normal"
first_pfn = 0x100000
order = {order}
count = {count}
"""

SCRIPT = r"""
import re, sys, time
from drgn_hvo.cli import main
start = time.monotonic()
assert main(["synth", *sys.argv[1:]]) == 0
elapsed = time.monotonic() - start
# A child's ru_maxrss begins with that of its parent.
with open("/proc/self/status") as status:
    print(elapsed, re.search(r"VmHWM:\s+(\d+) kB", status.read())[1])
"""


@pytest.mark.parametrize(
    ("order", "count", "seconds", "disk"),
    [(18, 1024, 10, 1 << 30), (9, 524288, 60, 4 << 30)],
    ids=["1GiB", "2MiB"],
)
def test_a_terabyte(order, count, seconds, disk, tmp_path):
    if shutil.disk_usage(tmp_path).free < 2 * disk:
        pytest.skip("not enough room for temporary files")
    description, core = tmp_path / "machine.toml", tmp_path / "core"
    description.write_text(TERABYTE.format(order=order, count=count))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(description), "-o", str(core)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    elapsed, kib = map(float, result.stdout.split())
    status = os.stat(core)
    core.unlink()
    assert elapsed < seconds
    assert kib < 1 << 20
    assert status.st_size > 1 << 40
    assert 512 * status.st_blocks < disk
