# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What the program answers
------------------------

Who moves code without changing what it does can show it with this: make cores and
record what all commands answer to them before and after, and compare.

``python -m tools.record make CORES`` makes synthetic cores of all generations with
all faults, ``python -m tools.record run ANSWERS CORE_OR_DIRECTORY...`` records the
answers, one text file a core and command, and ``python -m tools.record compare A B``
prints which of them differ. Only the command line is used, because it stays where it
is when modules move.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
import difflib
from functools import partial
import hashlib
import json
import os
from pathlib import Path
import sys
import tempfile
from typing import Any, Optional

from drgn_hvo.cli import main as drgn_hvo

EXIT_BUG = 70

#: What stands for the core, and for the file that a command writes.
_CORE, _OUTPUT = "{core}", "output"

# A page of the firmware; heads and tails of folios in the machines made here, and
# whatever is there in others.
_PAGES = ("1", "0x1600", "0x1601", "0x17ff", "0x8400", "0x8401", "0xa800")

#: The commands that are recorded, by the name of their answer.
COMMANDS = {
    "show": ("show", "--folios", "--json", _CORE),
    "show-text": ("show", "--folios", _CORE),
    "show-drgn": ("show", "--folios", "--drgn", _CORE),
    "check": ("check", "--format", "json", _CORE),
    "check-text": ("check", _CORE),
    "check-ktap": ("check", "--format", "ktap", _CORE),
    "check-deep": ("check", "--deep", "--format", "json", _CORE),
    "heads": ("heads", "-o", _OUTPUT, _CORE),
    "page": ("page", "--json", _CORE, *_PAGES),
    "page-text": ("page", _CORE, *_PAGES),
    "map": ("map", _CORE, "0x8400"),
    "extract": ("extract", "--small", "--json", "-o", _OUTPUT, _CORE),
}

#: What needs no core.
CATALOGUES = ("rules", "faults", "defects")

#: Files in a directory with other names are no cores.
_SUFFIXES = (".elf", ".flattened", ".kdump", ".raw", ".vmcore")

#: The containers of healthy machines. Damaged ones are in the smallest only.
_CONTAINERS = ("elf", "vmcore", "kdump", "flattened")

# Folios in all states, so that every fault finds something to damage.
_MACHINE = """
[[node]]
id = 0
ranges = [[0x0, 0x9f], [0x100, 0x8000]]
zones = { DMA = [0x1, 0x1000], DMA32 = [0x1000, 0x8000] }

[[node]]
id = 1
ranges = [[0x8000, 0xb000], [0xc000, 0x10000]]
zones = { DMA32 = [0x8000, 0xe000], Movable = [0xe000, 0x10000] }

[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
count = 6

[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
count = 2
list = "active"
surplus = true

[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
count = 2
origin = "restored"

[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
count = 2
origin = "demoted"

[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
list = "none"

[[huge_pages]]
node = 1
zone = "DMA32"
order = 9
count = 4
first_pfn = 0x8400
list = "active"

[[huge_pages]]
node = 1
zone = "Movable"
order = 9
count = 3

[[huge_pages]]
node = 1
zone = "DMA32"
order = 9
count = 2
optimized = false

[[pages]]
node = 0
zone = "DMA32"
kind = "slab"
order = 3
count = 5

[[pages]]
node = 0
zone = "DMA32"
kind = "thp"
order = 9

[[pages]]
node = 0
zone = "DMA32"
kind = "reserved"
count = 3

[[pages]]
node = 1
zone = "DMA32"
kind = "compound"
order = 2
count = 3

[[pages]]
node = 1
zone = "DMA32"
kind = "buddy"
order = 4
count = 3

[[pages]]
node = 1
zone = "DMA32"
kind = "poisoned"
first_pfn = 0xa800
count = 64

[reserved]
9 = 2
"""

_KASLR = """paging_levels = 5
kernel_offset = 0x1ae00000
physical_start = 0x2000000
page_offset_shift = 0x48c0000000
vmemmap_shift = 0x1840000000
"""


class RecordError(Exception):
    """What the user can do something about."""


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    status: object
    stdout: str
    stderr: str
    file: Optional[str]

    def text(self) -> str:
        """
        Everything as lines, for people who read a difference.

        JSON is laid out anew; the hash tells if only its layout differs.
        """
        file = "none" if self.file is None else self.file
        return (
            f"status: {self.status}\nfile: {file}\n"
            f"stdout: {_digest(self.stdout.encode())}\n{_lines(self.stdout)}"
            f"stderr:\n{self.stderr}"
        )


def _digest(data: bytes) -> str:
    return f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"


def _file_sha256(path: Path) -> str:
    # Cores as ELF files are mostly holes, and as large as the memory of the machine.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(partial(file.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _lines(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    except ValueError:
        return text


def _ask(argv: Sequence[str], output: Path) -> Answer:
    """
    Run a command in this process, because starting one takes longer than most answers.

    :param output: The file that it may write.
    """
    with (
        # Real files: the command line wants descriptors when something goes wrong.
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
    ):
        status: object
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = drgn_hvo(list(argv))
            except SystemExit as e:
                status = e.code
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    file = None
    if output.exists():
        file = f"{output.stat().st_size} bytes, sha256 {_file_sha256(output)}"
    return Answer(status, stdout, stderr, file)


def _write(answer: Answer, path: Path) -> list[str]:
    """
    Keep an answer.

    :return: Names of what must not be: one name if this is a bug of the program.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(answer.text(), encoding="utf-8")
    if answer.status != EXIT_BUG:
        return []
    return [f"{path.parent.name} {path.stem}: {answer.stderr.strip()}"]


def _answer_core(out: Path, core: Path) -> list[str]:
    """Record all commands on one core; gives those that ended as a bug."""
    bugs = []
    for name, argv in COMMANDS.items():
        # Answers name the core: by a link next to us it has the same name everywhere.
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            os.symlink(core, core.name)
            named = [core.name if word == _CORE else word for word in argv]
            bugs += _write(_ask(named, Path(_OUTPUT)), out / core.name / f"{name}.txt")
            os.chdir("/")
    return bugs


def _answer_catalogue(out: Path, name: str) -> list[str]:
    answer = _ask([name, "--json"], Path(os.devnull, "none"))
    return _write(answer, out / "catalogues" / f"{name}.txt")


def _inside(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise RecordError(f"there is no {path}")
        if path.is_dir():
            yield from (p for p in sorted(path.iterdir()) if p.suffix in _SUFFIXES)
        else:
            yield path


def _find_cores(paths: Iterable[Path]) -> list[Path]:
    """
    The cores that were named, and those in directories that were.

    :raises RecordError: if there is none, or the answers of two would get one name.
    """
    found: dict[str, Path] = {}
    for core in _inside(paths):
        if core.name in found:
            raise RecordError(f"{core} and {found[core.name]} have the same name")
        found[core.name] = core.resolve()
    if not found:
        raise RecordError("there are no cores")
    return list(found.values())


def _in_parallel(
    work: Callable[[Any], list[str]], items: Iterable[Any], jobs: int
) -> list[str]:
    """All names that the pieces of work gave. They may change directory."""
    with ProcessPoolExecutor(jobs) as pool:
        return [name for names in pool.map(work, items) for name in names]


def _report(done: str, bugs: Sequence[str]) -> int:
    for bug in bugs:
        print(f"BUG: {bug}", file=sys.stderr)
    print(f"{done}, {len(bugs)} ended as a bug")
    return 1 if bugs else 0


def run(args: argparse.Namespace) -> int:
    """Record what all commands answer."""
    out = args.answers.resolve()
    if out.exists() and any(out.iterdir()):
        raise RecordError(f"{args.answers} is not empty")
    cores = _find_cores(args.cores)
    bugs = _in_parallel(partial(_answer_catalogue, out), CATALOGUES, args.jobs)
    bugs += _in_parallel(partial(_answer_core, out), cores, args.jobs)
    count = len(cores) * len(COMMANDS) + len(CATALOGUES)
    return _report(f"{len(cores)} cores, {count} answers", bugs)


@dataclass(frozen=True)
class Synthetic:
    """A core to make."""

    description: str
    fault: Optional[str] = None
    container: str = "kdump"

    @property
    def file(self) -> str:
        """The name of the core."""
        state = self.fault or "healthy"
        return f"synth-{self.description}-{state}.{self.container}"

    def argv(self) -> list[str]:
        """The command that makes it."""
        faults = [] if self.fault is None else ["--fault", self.fault]
        described = f"descriptions/{self.description}.toml"
        container = ["--container", self.container]
        return ["synth", described, "-o", self.file, *container, *faults]


def _faults() -> dict[str, list[str]]:
    """The generations in which each fault makes sense."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        with redirect_stdout(out):
            drgn_hvo(["faults", "--json"])
        out.seek(0)
        return {f["name"]: f["generations"] for f in json.load(out)["faults"]}


def _synthetic(faults: dict[str, list[str]]) -> Iterator[Synthetic]:
    """All cores to make."""
    # Some faults are possible everywhere, so that all generations are named.
    generations = dict.fromkeys(g for where in faults.values() for g in where)
    for generation in generations:
        for container in _CONTAINERS:
            yield Synthetic(generation, container=container)
        yield Synthetic(f"{generation}-kaslr")
    for fault, where in faults.items():
        # A core that breaks off is another matter in every container.
        containers = _CONTAINERS if fault == "truncated" else ("kdump",)
        for container in containers:
            yield from (Synthetic(name, fault, container) for name in where)


def _describe(directory: Path, name: str) -> None:
    """Write a description; its name is that of a generation, perhaps with KASLR."""
    generation = name[: -len("-kaslr")] if name.endswith("-kaslr") else name
    kaslr = _KASLR if name != generation else ""
    text = f'generation = "{generation}"\nseed = 11\n{kaslr}{_MACHINE}'
    path = directory / "descriptions" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _make_core(directory: Path, core: Synthetic) -> list[str]:
    """Make one core, and record what was said; gives a name if it was a bug."""
    os.chdir(directory)
    answer = _ask(core.argv(), Path(core.file))
    return _write(answer, directory / "made" / core.file / "synth.txt")


def make(args: argparse.Namespace) -> int:
    """Make synthetic cores. What ``synth`` says of them can be compared, too."""
    directory = args.cores.resolve()
    if directory.exists() and any(directory.iterdir()):
        raise RecordError(f"{args.cores} is not empty")
    cores = list(_synthetic(_faults()))
    for name in dict.fromkeys(core.description for core in cores):
        _describe(directory, name)
    bugs = _in_parallel(partial(_make_core, directory), cores, args.jobs)
    made = sorted(c.file for c in cores if (directory / c.file).exists())
    sums = [f"{_file_sha256(directory / name)}  {name}\n" for name in made]
    (directory / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    for core in cores:
        if core.file not in made:
            print(f"REFUSED: {core.file}", file=sys.stderr)
    return _report(f"{len(made)} of {len(cores)} cores made", bugs)


def _answers(directory: Path) -> dict[str, Path]:
    """
    The answers in a directory, by core and command.

    :raises RecordError: if there is none: nothing would differ from nothing.
    """
    found = {
        f"{path.parent.name} {path.stem}": path
        for path in sorted(directory.glob("*/*.txt"))
    }
    if not found:
        raise RecordError(f"there are no answers in {directory}")
    return found


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _print_difference(name: str, one: Path, other: Path, most: int) -> None:
    print(f"{name} differs:")
    lines = list(difflib.unified_diff(_read(one), _read(other), lineterm="", n=1))[2:]
    for line in lines[:most]:
        print(f"  {line[:160]}")
    if len(lines) > most:
        print(f"  ({len(lines) - most} more lines)")


def compare(args: argparse.Namespace) -> int:
    """Print what differs between two recordings."""
    one, other = _answers(args.one), _answers(args.other)
    both = [name for name in one if name in other]
    changed = [n for n in both if one[n].read_bytes() != other[n].read_bytes()]
    alone = sorted(one.keys() ^ other.keys())
    for name in changed:
        _print_difference(name, one[name], other[name], args.lines)
    for name in alone:
        print(f"{name} is only in {args.one if name in one else args.other}")
    print(
        f"{len(both)} answers compared: {len(changed)} differ; "
        f"{len(alone)} are in one recording only"
    )
    return 1 if changed or alone else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.record",
        description="Record what drgn-hvo answers, to show that a change of its code "
        "changes nothing.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    making = commands.add_parser("make", help="make synthetic cores")
    making.add_argument("cores", type=Path, metavar="CORES", help="a new directory")
    making.set_defaults(run=make)
    running = commands.add_parser("run", help="record what all commands answer")
    running.add_argument("answers", type=Path, metavar="ANSWERS", help="new directory")
    running.add_argument(
        "cores",
        type=Path,
        nargs="+",
        metavar="CORE_OR_DIRECTORY",
        help=f"in a directory, files that end in {', '.join(_SUFFIXES)}",
    )
    running.set_defaults(run=run)
    for with_jobs in (making, running):
        with_jobs.add_argument(
            "-j", dest="jobs", type=int, default=1, metavar="N", help="processes to use"
        )
    comparing = commands.add_parser("compare", help="print what differs")
    comparing.add_argument("one", type=Path, metavar="A", help="answers")
    comparing.add_argument("other", type=Path, metavar="B", help="others")
    comparing.add_argument(
        "--lines",
        type=int,
        default=20,
        metavar="N",
        help="show N lines of each difference (default: 20)",
    )
    comparing.set_defaults(run=compare)
    return parser


def main() -> int:
    """Run the command line; 1 if something differs or is a bug, 2 for a usage error."""
    args = _parser().parse_args()
    try:
        status: int = args.run(args)
    except RecordError as e:
        print(f"tools.record: {e}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
