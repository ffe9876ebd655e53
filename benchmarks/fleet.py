# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a fleet costs
------------------

``python -m benchmarks.fleet CORE…`` makes a small extract of each core, and checks them
with ``-j 2``, each as often as it takes to have 200 targets: the figures of
``docs/fleet.md``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
import subprocess
import sys
import tempfile

from benchmarks.measure import hvo, run

_TARGETS = 200

# What is wrong with some of them is no matter here.
_STATUSES = (0, 1, 2, 3)


def _extracts(cores: list[Path], directory: Path) -> list[Path]:
    """The extracts of the cores that have one."""
    found = []
    for i, core in enumerate(cores):
        path = directory / f"{i}.kdump"
        command = hvo("extract", core, "-o", path, "--small")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{core.name}: {done.stderr.strip()}", file=sys.stderr)
        else:
            found.append(path)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.fleet", description=__doc__)
    parser.add_argument("cores", type=Path, nargs="+", metavar="CORE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        extracts = _extracts(args.cores, directory)
        targets = [directory / f"core{i}" for i in range(_TARGETS)]
        for i, target in enumerate(targets):
            target.symlink_to(extracts[i % len(extracts)])
        (directory / "list").write_text("".join(f"{target}\n" for target in targets))
        command = hvo("check", "--json", "--targets-from", directory / "list", "-j", 2)
        results = subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout
        usage = run(command, _STATUSES)
        documents = [json.loads(line) for line in results.splitlines()]
        seconds = [document["duration_s"] for document in documents]
        size = sum(path.stat().st_size for path in extracts) / len(extracts)
        print(
            f"{len(documents)} extracts of {len(extracts)} cores, {size / 1e6:.1f} MB "
            f"each: {usage.cpu_seconds:.1f} s of processor time, "
            f"{len(documents) / usage.cpu_seconds:.1f} a second and processor, "
            f"{usage.seconds:.1f} s in all; median {median(seconds):.2f} s, largest "
            f"process {usage.peak_mib:.0f} MiB"
        )
        unread = sum(document["status"] == "error" for document in documents)
        print(f"{unread} of them could not be read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
