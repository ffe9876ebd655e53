# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Benchmarks
----------

``python -m benchmarks --core VMCORE``: measure every row of ``docs/benchmarks.md``
against its peer in the same run, print a table, and write JSON with ``-o``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
import json
from pathlib import Path
import platform
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Optional

from benchmarks import machines
from benchmarks.measure import (
    Result,
    Usage,
    best,
    best_of,
    hvo,
    peak_of_all,
    run,
    together,
)

# Loading DWARF is what drgn does before its first answer.
_LOAD = """
import sys, drgn
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info(sys.argv[2:])
prog.type("struct page")
"""

# A machine with boot-time findings is a machine all the same.
_AUDITED = (0, 1, 3)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--core", type=Path, help="a real core, for rows that need one")
    parser.add_argument(
        "--debuginfo",
        nargs=2,
        metavar=("CORE", "VMLINUX"),
        help="a core and the debuginfo of its kernel, to load into drgn and crash",
    )
    parser.add_argument("--gib", type=int, default=1024, help="the large machine")
    parser.add_argument("--plain-gib", type=int, default=64, help="one without HVO")
    parser.add_argument(
        "--half-gib",
        type=int,
        default=128,
        help="one with half its memory in huge pages that are not optimized",
    )
    parser.add_argument(
        "--times-4",
        action="store_true",
        help="measure growth from --gib to four times that, not from a quarter",
    )
    parser.add_argument("--directory", type=Path, help="for the cores (16 GiB free)")
    parser.add_argument("-o", "--output", type=Path, help="write JSON here")
    return parser.parse_args()


def _heads(core: Path) -> Iterator[Result]:
    command = [sys.executable, "-m", "benchmarks.heads", str(core)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    name = f"heads of {figures['pages']} struct pages"
    faster = figures["drgn"] / figures["bulk"]
    yield Result(name, faster, "times faster", 300, "loop of drgn's compound_head()")
    ratio = figures["bulk"] / figures["read"]
    yield Result(name, ratio, "times the time", 2, "Program.read() in 1 MiB chunks")


def _start(core: Path, debuginfo: Optional[list[str]]) -> Iterator[Result]:
    for name, target in (("check", 1.0), ("show", 0.9)):
        usage = best(hvo(name, core), 5, _AUDITED)
        yield Result(f"{name} of a real core", usage.seconds, "s", target, "", usage)
    if debuginfo is None:
        return
    check, load = best_of(
        [
            lambda: run(hvo("check", debuginfo[0]), _AUDITED),
            lambda: run([sys.executable, "-c", _LOAD, *debuginfo]),
        ],
        7,
    )
    ratio = check.seconds / load.seconds
    yield Result(
        "check of a real core", ratio, "times the time", 1, "drgn loads DWARF",
        check, load,
    )  # fmt: skip
    if shutil.which("crash"):
        yield _crash(debuginfo, check)


def _crash(debuginfo: list[str], check: Usage) -> Result:
    with tempfile.NamedTemporaryFile("w", suffix=".crash") as commands:
        commands.write("quit\n")
        commands.flush()
        command = ["crash", "-s", "-i", commands.name, debuginfo[1], debuginfo[0]]
        try:
            crash = best(command, 3)
        except RuntimeError as e:
            failed = "check of a real core", 0, "(peer failed)", None, str(e), check
            return Result(*failed)
    ratio = check.seconds / crash.seconds
    return Result(
        "check of a real core", ratio, "times the time", None, "crash starts",
        check, crash,
    )  # fmt: skip


def _parallel(core: Path) -> Iterator[Result]:
    cores, half = [core] * 20, [core] * 10
    one, two, shells = best_of(
        [
            lambda: run(hvo("check", *cores), _AUDITED),
            lambda: run(hvo("check", "-j", 2, *cores), _AUDITED),
            lambda: together([hvo("check", *half)] * 2, _AUDITED),
        ],
        5,
    )
    name = "check -j 2 of 20 cores"
    faster = one.seconds / two.seconds
    yield Result(name, faster, "times faster", 1.7, "one by one", two, one)
    # What two processes can do here at all.
    yield Result(
        name, two.seconds / shells.seconds, "times the time", None,
        "10 cores in each of two commands", two, shells,
    )  # fmt: skip


def _audit(name: str, core: Path, target: float, *options: str) -> Iterator[Result]:
    """Time and memory of one audit."""
    usage = best(hvo("check", *options, core), 2)
    yield Result(name, usage.seconds, "s", target, "", usage)
    yield Result(name, usage.peak_mib, "MiB", 512, "", usage)


def _one_page(core: Path, what: str) -> Iterator[Result]:
    """
    What one page costs, and an overview, against the heads of one chunk: processor
    time on the same core, in turns.
    """
    pfn = machines.FIRST_PFN
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "heads.npy"
        heads = hvo("heads", core, "--pfns", f"{pfn}-{pfn + (1 << 17) - 1}", "-o", out)
        ways = [
            [*heads, "--force"],
            hvo("page", core, pfn + 100),
            hvo("map", core, pfn + 100),
            hvo("show", core),
        ]
        turns = [[run(way).cpu_seconds for way in ways] for _ in range(7)]
    peer, *others = (min(seconds) for seconds in zip(*turns))
    for (name, target), seconds in zip(_ONE_PAGE.items(), others):
        ratio = seconds / peer
        peer_name = "heads of one chunk of it"
        yield Result(f"{name} of {what}", ratio, "times the time", target, peer_name)


# Commands, and how many times the time of heads of one chunk they may take.
_ONE_PAGE = {"page": 1.3, "map": 1.3, "show": 3.0}


def _large(options: argparse.Namespace, directory: Path) -> Iterator[Result]:
    gib = options.gib
    large = machines.write(machines.folios(gib, 9), directory / "large.elf")
    name = f"check of {gib} GiB of 2 MiB pages"
    rows = list(_audit(name, large, 10))
    yield from rows
    yield from _one_page(large, f"{gib} GiB, ELF")
    other_gib = 4 * gib if options.times_4 else gib // 4
    other = machines.write(machines.folios(other_gib, 9), directory / "other.elf")
    ways = [partial(run, hvo("check", core)) for core in (large, other)]
    # Of processor time: the page cache decides the rest.
    seconds = [usage.cpu_seconds for usage in best_of(ways, 3)]
    yield Result(
        f"check of {max(gib, other_gib)} GiB of 2 MiB pages",
        max(seconds) / min(seconds),
        "times the time",
        4.4,
        f"{min(gib, other_gib)} GiB",
    )
    other.unlink()
    large.unlink()
    packed = machines.write(machines.folios(gib, 9), directory / "large.kdump", "kdump")
    yield from _audit(f"{name}, kdump-compressed", packed, 30)
    yield from _shared(f"{gib} GiB of 2 MiB pages, kdump-compressed", packed)
    yield from _one_page(packed, f"{gib} GiB, kdump-compressed")
    packed.unlink()


def _shared(what: str, core: Path) -> Iterator[Result]:
    """What two processes are worth for one core."""
    ways = [hvo("check", "-j", jobs, core) for jobs in (1, 2)]
    one, two, both = best_of(
        [
            *(partial(run, way) for way in ways),
            lambda: together([hvo("check", core)] * 2),
        ],
        5,
    )
    name = f"check -j 2 of {what}"
    faster = one.seconds / two.seconds
    yield Result(name, faster, "times faster", 1.6, "-j 1", two, one)
    # What two processes can do here at all.
    faster = 2 * one.seconds / both.seconds
    yield Result(name, faster, "times faster", None, "limit: two such checks at once")
    ratio = peak_of_all(ways[1]) / peak_of_all(ways[0])
    yield Result(name, ratio, "times the memory", 1.5, "-j 1")


def _gigantic(options: argparse.Namespace, directory: Path) -> Iterator[Result]:
    empty = machines.write(machines.empty(), directory / "empty.elf")
    large = machines.write(machines.folios(options.gib, 18), directory / "gigantic.elf")
    without, usage = best(hvo("check", empty), 3), best(hvo("check", large), 3)
    yield Result(
        f"check of {options.gib} GiB of 1 GiB pages",
        usage.seconds - without.seconds,
        "s more",
        1,
        "an empty machine",
        usage,
        without,
    )
    empty.unlink()
    large.unlink()


def _plain(options: argparse.Namespace, directory: Path) -> Iterator[Result]:
    core = directory / "plain.elf"
    gib = options.half_gib
    machines.write(machines.folios(gib // 2, 9, optimized=False), core)
    name = f"check of {gib} GiB, half in 2 MiB pages without HVO"
    yield from _audit(name, core, 30 * gib / 1024)
    core.unlink()
    gib = options.plain_gib
    machines.write(machines.without_hvo(gib), core)
    name = f"check --deep of {gib} GiB without HVO"
    yield from _audit(name, core, 10 * gib / 64, "--deep")
    core.unlink()


def _rows(options: argparse.Namespace, directory: Path) -> Iterator[Result]:
    if options.core is not None:
        yield from _heads(options.core)
        yield from _start(options.core, options.debuginfo)
        yield from _parallel(options.core)
    yield from _gigantic(options, directory)
    yield from _plain(options, directory)
    yield from _large(options, directory)


def _machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(": ")[2]
        for line in (cpuinfo.read_text() if cpuinfo.exists() else "").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "processors": len(models),
        "python": platform.python_version(),
    }


def _print(result: Result) -> None:
    target = "" if result.target is None else f"{result.target:g}"
    met = {True: "yes", False: "NO", None: ""}[result.met]
    peak = "" if result.usage is None else f"{result.usage.peak_mib:.0f}"
    measured = f"{result.value:.2f} {result.unit}"
    cells = (result.name, result.peer, measured, target, met, peak)
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Run all rows."""
    options = _options()
    results = []
    print("| work | against | measured | target | met | peak MiB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for result in _rows(options, Path(directory)):
            _print(result)
            results.append(result)
    if options.output is not None:
        document = {
            "machine": _machine(),
            "results": [result.as_json() for result in results],
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
