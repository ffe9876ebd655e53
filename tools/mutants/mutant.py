# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One deliberate mistake
----------------------
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Mutant", "StaleError", "missing_tests", "mutated")


class StaleError(Exception):
    """A mutant whose place or text is not in the code any more, or not just once."""


@dataclass(frozen=True)
class Mutant:
    """
    A mistake.

    :param id: What ``--only`` takes.
    :param place: File below ``drgn_hvo/`` and, behind ``::``, the function, class or
        method that has the text.
    :param old: Text that occurs exactly once there.
    :param new: What is written in its place.
    :param why: What goes wrong for users if the line is like that.
    :param tests: Node IDs below ``tests/`` of tests of which at least one must fail.
    """

    id: str
    place: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    @property
    def path(self) -> str:
        """The file, from the root of the tree on."""
        return f"drgn_hvo/{self.place.partition('::')[0]}"


def _span(source: str, name: str) -> tuple[int, int]:
    """
    First and end offset of a definition.

    :param name: As ``Class.method``, or of a variable of the module.
    :raises StaleError: if there is none.
    """
    body: list[ast.stmt] = ast.parse(source).body
    found: list[ast.stmt] = []
    for part in name.split("."):
        found = [node for node in body if part in _names(node)]
        if len(found) != 1:
            raise StaleError(f"{len(found)} definitions of {name}")
        body = getattr(found[0], "body", [])
    # Columns of ast are bytes of UTF-8; whole lines need no such care.
    lines = source.splitlines(keepends=True)
    (node,) = found
    assert node.end_lineno is not None, "ast.parse() sets it"
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    before, inside = lines[: first - 1], lines[first - 1 : node.end_lineno]
    start = sum(map(len, before))
    return start, start + sum(map(len, inside))


def _names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def mutated(mutant: Mutant, root: Path) -> str:
    """
    The text of the mutant's file with the mistake in it.

    :param root: Of the tree.
    :raises StaleError: if the text is not there exactly once, or the result is no
        Python.
    """
    path, _, name = mutant.place.partition("::")
    file = root / "drgn_hvo" / path
    if not file.is_file():
        raise StaleError(f"there is no drgn_hvo/{path}")
    source = file.read_text(encoding="utf-8")
    start, end = _span(source, name) if name else (0, len(source))
    count = source.count(mutant.old, start, end)
    if count != 1:
        raise StaleError(f"{mutant.place} has {count} times {mutant.old!r}")
    at = source.index(mutant.old, start, end)
    text = source[:at] + mutant.new + source[at + len(mutant.old) :]
    try:
        ast.parse(text)
    except SyntaxError as e:
        raise StaleError(f"{mutant.place} becomes no Python: {e}") from None
    return text


def missing_tests(mutant: Mutant, root: Path) -> list[str]:
    """
    Tests that the mutant names and that are not there; of a parametrized one, whether
    the function is.

    :param root: Of the tree.
    """
    return [test for test in mutant.tests if not _is_defined(root / "tests", test)]


def _is_defined(tests: Path, node_id: str) -> bool:
    path, *names = node_id.partition("[")[0].split("::")
    if not (tests / path).is_file():
        return False
    if not names:
        return True
    try:
        _span((tests / path).read_text(encoding="utf-8"), ".".join(names))
    except StaleError:
        return False
    return True
