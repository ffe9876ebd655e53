# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page of generations
-------------------

Makes ``docs/generations.md`` of the generations that can be made up, each of which the
tests read as a kernel of its own: ``python -m tools.generations_page >
docs/generations.md``.
"""

from __future__ import annotations

import sys

from drgn_hvo.synth.described.generations import GENERATIONS, Generation
from drgn_hvo.synth.machine.structures import FIELDS

__all__ = ("generations_page", "main")

_HEAD = """\
# Generations

Made by `python -m tools.generations_page > docs/generations.md`.

What HVO makes of vmemmap changed from version to version, and stable trees and
distributions took some pieces of it and not others. So nothing is told from the
version: how tails name their heads, how many pages of struct pages a huge page keeps,
what the slices behind them map, where shared tails are, and what marks a huge page are
asked for one by one, of types, symbols and data. Combinations that are not in the table
are served as well if types and data agree, and refused with both if not.

Each line is a kernel that `drgn-hvo synth` makes and that the tests read;
`sample_vmcores/` has one of each.

| generation | kernels | a tail holds | kept | slices behind map | array | marked by |
|---|---|---|---|---|---|---|
"""

_BEHIND = {
    "plain": "their own frames",
    "first-tail": "the second one's frame",
    "fake-head": "the head's frame",
    "shared": "a page of tails that huge pages share",
}

_MARKS = {
    "destructor": "a destructor in the first tail",
    "flag": "a flag of the first tail",
    "type bit": "a bit of `page_type` that is clear",
    "type": "`page_type`",
}


def _array(entry: Generation) -> str:
    if entry.array is None:
        return "none"
    element = "PFNs" if entry.element_is_pfn else "`struct page *`"
    where = f"`struct {entry.array}`, {element}"
    return f"{where}, allocated" if entry.array_is_allocated else where


def _row(entry: Generation) -> str:
    word = f"a {'mask' if entry.has_mask else 'pointer'} in `{entry.tail_word}`"
    kept = str(entry.private_slices) if entry.can_optimize else "all"
    behind = _BEHIND[entry.tails if entry.can_optimize else "plain"]
    mark = _MARKS[FIELDS[entry.fields].hugetlb]
    cells = (f"`{entry.name}`", entry.reason, word, kept, behind, _array(entry), mark)
    return f"| {' | '.join(cells)} |\n"


def generations_page() -> str:
    """The page as Markdown."""
    return _HEAD + "".join(map(_row, GENERATIONS))


def main() -> int:
    """Print the page."""
    sys.stdout.write(generations_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
