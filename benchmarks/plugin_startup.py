#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What the plugin adds to the start of a drgn session
---------------------------------------------------

Starts drgn in turn with and without the plugin, on a process and on the given cores,
and prints medians. Inside each session the plugin's share is also measured by itself:
importing it and running its hook, as drgn does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# Where drgn's own commands are loaded already, as by its built-in plugin.
_SHARE = """
import os, time
os.environ["DRGN_DISABLE_PLUGINS"] = "hvo"
import drgn, drgn.commands.linux
prog = drgn.Program()
{target}
start = time.perf_counter()
import drgn_hvo.plugin
drgn_hvo.plugin.drgn_prog_set(prog)
print((time.perf_counter() - start) * 1e3)
"""


def _share(target: str) -> float:
    """Milliseconds of import and hook in a new process."""
    code = _SHARE.format(target=target)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _session(options: list[str], *, plugin: bool) -> float:
    """Milliseconds of a whole drgn session that does nothing."""
    environment = {**os.environ, "DRGN_DISABLE_PLUGINS": "" if plugin else "hvo"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "drgn", *options, "-e", "pass"],
        env=environment,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return (time.perf_counter() - start) * 1e3


def _measure(
    name: str, options: list[str], target: str, runs: int
) -> dict[str, object]:
    shares, with_plugin, without = [], [], []
    for _ in range(runs):
        shares.append(_share(target))
        with_plugin.append(_session(options, plugin=True))
        without.append(_session(options, plugin=False))
    return {
        "target": name,
        "runs": runs,
        "import_and_hook_ms": round(statistics.median(shares), 2),
        "session_with_ms": round(statistics.median(with_plugin), 1),
        "session_without_ms": round(statistics.median(without), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[-1])
    parser.add_argument("core", nargs="*", help="a core")
    parser.add_argument("-s", "--symbols", help="debuginfo of the cores' kernel")
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    pid = os.getpid()
    rows = [_measure("process", ["-p", str(pid)], f"prog.set_pid({pid})", args.runs)]
    for core in args.core:
        options = ["-c", core]
        target = f"prog.set_core_dump({core!r})"
        name = os.path.basename(core)
        if args.symbols:
            options += ["-s", args.symbols, "--no-default-symbols"]
            target += f"; prog.load_debug_info([{args.symbols!r}])"
            name += " with DWARF"
        rows.append(_measure(name, options, target, args.runs))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
