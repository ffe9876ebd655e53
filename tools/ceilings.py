# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Ceilings
--------

Makes ``docs/ceilings.md`` of the limits in the code on what a dump, a log or a peer
can decide: each is a constant ``_MAX_…`` (or the like) with its reason in the comment
above, and whoever reaches one says so. ``python -m tools.ceilings > docs/ceilings.md``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
import re
import sys

__all__ = ("Ceiling", "ceilings", "ceilings_page", "main")

_ROOT = Path(__file__).parents[1]

# Names of limits; the others are how much is done at once, or how results are shown.
_NAME = re.compile(r"_?(?:MAX|MOST|LONGEST|FEW)_\w+|_LONGEST_LINE|(?:DRGN_)?TIMEOUT")

# What synth makes is described by who runs it, and has limits of its own.
_NOT_IN = ("synth/", "demo/")

_HEAD = """\
# Ceilings

What a core says may be damage, or malice: a count of 2^32 symbols, a name that does
not end, page tables that map one frame a billion times. Counts, strings, walks, lists,
tables and allocations that a dump, a log or a QMP peer decides have ceilings that real
kernels stay far below. What reaches one is an error of one line, or is left out and
counted. `--memory` and `--timeout` of `check` are the last fence, around each process.

| where | ceiling | value | why |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Ceiling:
    """A limit in the code; *why* is the comment above it."""

    where: str
    name: str
    value: str
    why: str


def _comment_above(lines: list[str], line: int) -> str:
    """The comment in front of a line; constants below each other share one."""
    found: list[str] = []
    for text in reversed(lines[:line]):
        if text.startswith("#"):
            found.append(text.lstrip("#: "))
        elif found or not re.match(r"_?[A-Z][A-Z_]* = ", text):
            break
    return " ".join(reversed(found))


def _in_file(path: Path) -> Iterator[Ceiling]:
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    for node in ast.parse(text).body:
        if not isinstance(node, ast.Assign) or not isinstance(
            node.targets[0], ast.Name
        ):
            continue
        name = node.targets[0].id
        if _NAME.fullmatch(name) and not isinstance(node.value, ast.Call):
            where = str(path.relative_to(_ROOT / "drgn_hvo"))
            behind = lines[node.lineno - 1].partition("  # ")[2]
            why = _comment_above(lines, node.lineno - 1) or behind
            yield Ceiling(where, name.lstrip("_"), ast.unparse(node.value), why)


def ceilings() -> list[Ceiling]:
    """All of them, by file."""
    files = sorted((_ROOT / "drgn_hvo").rglob("*.py"))
    return [
        ceiling
        for path in files
        if not str(path.relative_to(_ROOT / "drgn_hvo")).startswith(_NOT_IN)
        for ceiling in _in_file(path)
    ]


def ceilings_page() -> str:
    """The page."""
    rows = (
        f"| `{one.where}` | `{one.name}` | {one.value} | {one.why} |"
        for one in ceilings()
    )
    return _HEAD + "\n".join(rows) + "\n"


def main() -> int:
    """Print the page."""
    sys.stdout.write(ceilings_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
