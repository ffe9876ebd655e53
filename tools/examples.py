# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Examples in the documentation
-----------------------------

Runs each example of a command that README and ``docs/`` show with its output, on the
samples, and compares; ``python -m tools.examples`` writes what is printed now where it
differs. Examples on other cores are marked as ``text``, not ``console``. A line ``...``
in an example stands for lines that are left out; such examples are only compared.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass
import io
import os
from pathlib import Path
import re
import shlex
import sys
from tempfile import TemporaryDirectory

from drgn_hvo.cli import main

__all__ = ("Example", "differs", "documents", "examples", "run_example")

ROOT = Path(__file__).parents[1]
_SAMPLES = ROOT / "sample_vmcores"

#: What examples call the files of the reader.
_STAND_INS = {
    "vmcore": _SAMPLES / "debian-7.2.kdump",
    "sample_vmcores": _SAMPLES,
    "dmesg.txt": _SAMPLES / "debian-7.1-boot-oops.txt",
}

_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(
    r"^\$ drgn-hvo ((?:[^\n|]*\\\n)*[^\n|]*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE
)


@dataclass(frozen=True)
class Example:
    """
    A command and its output, as documentation shows them.

    :param start: Where the output begins in the document.
    """

    path: Path
    command: str
    output: str
    start: int


def documents() -> list[Path]:
    """README, what lies beside it, and ``docs/``."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def examples(path: Path) -> Iterator[Example]:
    """The examples of a document that show what is printed."""
    for block in _BLOCK.finditer(path.read_text()):
        for found in _COMMAND.finditer(block[1]):
            command, output = found.groups()
            if output.strip():
                yield Example(path, command, output, block.start(1) + found.start(2))


def run_example(example: Example) -> str:
    """What the command prints, where the files of the reader are samples."""
    here = os.getcwd()
    printed = io.StringIO()
    with TemporaryDirectory() as directory:
        for name, path in _STAND_INS.items():
            (Path(directory) / name).symlink_to(path)
        os.chdir(directory)
        try:
            with contextlib.redirect_stdout(printed):
                main(shlex.split(example.command))
        finally:
            os.chdir(here)
    return printed.getvalue()


def differs(example: Example, printed: str) -> str:
    """What of an example is not in what its command printed; empty if all is."""
    parts = re.split(r"^\.\.\.\n", example.output, flags=re.MULTILINE)
    at = 0
    for part in parts:
        wanted = part.rstrip("\n")
        found = printed.find(wanted, at)
        if found < 0:
            return part
        at = found + len(wanted)
    return printed[at:].strip() if parts[-1] else ""


def _rewrite(path: Path) -> Iterator[str]:
    """Bring the examples of a document up to date; give those that people have to."""
    text = path.read_text()
    for example in reversed(list(examples(path))):
        printed = run_example(example)
        if not differs(example, printed):
            continue
        if re.search(r"^\.\.\.$", example.output, re.MULTILINE):
            yield f"{path.name}: drgn-hvo {example.command}"
            continue
        end = example.start + len(example.output)
        text = text[: example.start] + printed.rstrip("\n") + "\n" + text[end:]
    path.write_text(text)


if __name__ == "__main__":
    by_hand = [line for path in documents() for line in _rewrite(path)]
    print("\n".join(by_hand) or "all are up to date", file=sys.stderr)
    sys.exit(bool(by_hand))
