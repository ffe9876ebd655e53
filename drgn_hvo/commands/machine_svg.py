# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pictures of a machine
---------------------

Zones in cells, and shared tail pages with their users, as SVG. Colours say nothing that
a pattern and a letter do not say, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional
from xml.etree.ElementTree import Element

import numpy as np

from drgn_hvo.commands.document import printable
from drgn_hvo.commands.markup import add, new_svg
from drgn_hvo.kernel.arrays import Int64Array
from drgn_hvo.memmap.huge_page_states import HOLE, KINDS, UNKNOWN
from drgn_hvo.memmap.memory_cells import ZoneCells

__all__ = (
    "PICTURE_STYLE",
    "Mark",
    "UserBand",
    "about_size",
    "legend_swatch",
    "pattern_definitions",
    "text_of_pages",
    "users_picture",
    "zone_picture",
)

# Cells of a row, and pixels of a cell.
_COLUMNS = 64
_SIDE = 14

# Room for the first PFN of a row.
_LEFT = 96

# Letters stand this far below the upper edge of their cell.
_BASELINE = 11

# Colours that people who confuse red and green tell apart, and the lines above them.
_FILLS = (
    ("#8cc0e8", "M0 6L6 0"),
    ("#d3e9f9", "M1 1h1v1h-1zM4 4h1v1h-1z"),
    ("#f5b477", "M3 0V6"),
    ("#fde4c8", "M2 2h2v2h-2z"),
    ("#d8b4e8", "M0 0L6 6M0 6L6 0"),
    ("#ff9a9a", "M0 3H6M3 0V6"),
    ("#ffffff", "M0 0h3v3h-3zM3 3h3v3h-3z"),
    ("#eeeeee", ""),
    ("none", ""),
)

PICTURE_STYLE = "\n".join(
    [
        *(f".k{i}{{fill:url(#k{i})}}" for i in range(len(KINDS))),
        f".k{HOLE}{{fill:none}}",
        ".cell{fill:transparent}",
        ".letters,.pfn,.label{font:10px ui-monospace,'DejaVu Sans Mono',monospace}",
        ".letters{text-anchor:middle;font-weight:bold;"
        "paint-order:stroke;stroke:#fff;stroke-width:2px}",
        ".pfn{text-anchor:end;fill:#444}",
        ".frame{fill:none;stroke:#bbb}",
        ".finding{fill:transparent;stroke:#c00000;stroke-width:3}",
        ".sign{font:bold 11px sans-serif;fill:#c00000;"
        "paint-order:stroke;stroke:#fff;stroke-width:3px}",
        ".tail{fill:transparent;stroke:#000;stroke-width:1.5;stroke-dasharray:3 2}",
        ".box{fill:#fffbe0;stroke:#000}",
        ".band{fill:#f4f4f4;stroke:#bbb}",
        ".users{fill:#3a78b0}",
        ".arrow{stroke:#000;fill:none}",
        ".place{stroke:#000;stroke-width:1.5}",
    ]
)


@dataclass(frozen=True)
class Mark:
    """
    Something about the memory of a cell that is said elsewhere on the page.

    :param link: Where.
    :param style: ``"finding"`` or ``"tail"``.
    :param anchor: What links to the cell name it by.
    """

    pfn: int
    style: str
    link: str
    text: str
    anchor: str


def pattern_definitions() -> Element:
    """The patterns of all kinds, which pictures of the page fill areas with."""
    svg = new_svg(0, 0, "patterns")
    svg.set("style", "position:absolute")
    definitions = add(svg, "defs")
    for i, (fill, lines) in enumerate(_FILLS):
        values: dict[str, object] = {"id": f"k{i}", "width": 6, "height": 6}
        values["patternUnits"] = "userSpaceOnUse"
        pattern = add(definitions, "pattern", values)
        add(pattern, "rect", {"width": 6, "height": 6, "fill": fill})
        if lines:
            ink = {"d": lines, "stroke": "#555", "stroke-width": "0.8", "fill": "none"}
            add(pattern, "path", ink)
    return svg


def legend_swatch(kind: int) -> Element:
    """A cell of one kind."""
    svg = new_svg(_SIDE + 2, _SIDE + 2, KINDS[kind].text)
    place = {"x": 1, "y": 1, "width": _SIDE, "height": _SIDE}
    add(svg, "rect", {"class": f"k{kind}", **place})
    add(svg, "rect", {"class": "frame", **place})
    middle = {"x": 1 + _SIDE // 2, "y": 1 + _BASELINE}
    if KINDS[kind].letter:
        add(svg, "text", {"class": "letters", **middle}, KINDS[kind].letter)
    return svg


def _shares(pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Kind, left edge and width in pixels of what a cell has, each to be seen."""
    kinds = [kind for kind, count in enumerate(pages) if count]
    total, at = sum(pages), 0
    for place, kind in enumerate(kinds):
        behind = len(kinds) - place - 1
        width = max(round(_SIDE * pages[kind] / total), 1)
        width = min(width, _SIDE - at - behind) if behind else _SIDE - at
        yield kind, at, width
        at += width


def _letter(pages: Sequence[int]) -> str:
    """
    What stands in a cell: huge pages in front of other memory, in lower case if they
    are not all of it.
    """
    kinds = [kind for kind, count in enumerate(pages) if count]
    huge = [kind for kind in kinds if kind < UNKNOWN]
    main = max(huge or kinds, key=lambda kind: pages[kind])
    if not huge and UNKNOWN in kinds:
        main = UNKNOWN
    letter = KINDS[main].letter
    return letter if len(kinds) == 1 else letter.lower()


def about_size(size: int) -> str:
    """A size in two to four digits."""
    for shift, unit in ((30, "GiB"), (20, "MiB")):
        if size >= 10 << shift or (size and size % (1 << shift) == 0):
            return f"{size >> shift} {unit}"
    return f"{size >> 10} KiB"


def text_of_pages(pages: Sequence[int], page_size: int) -> str:
    """How much there is of each kind, in words."""
    return "; ".join(
        f"{about_size(count * page_size)} {KINDS[kind].name}"
        for kind, count in enumerate(pages)
        if count
    )


@dataclass(frozen=True)
class _Cell:
    """A cell of a row, as it is drawn."""

    column: int
    first: int
    last: int
    pages: tuple[int, ...]


def _rows(cells: ZoneCells) -> Iterator[list[_Cell]]:
    edges = cells.edges.tolist()
    rows = [tuple(row) for row in cells.pages.tolist()]
    for start in range(0, len(rows), _COLUMNS):
        yield [
            _Cell(i - start, edges[i], edges[i + 1] - 1, rows[i])
            for i in range(start, min(start + _COLUMNS, len(rows)))
        ]


def _joined(row: Sequence[_Cell]) -> Iterator[tuple[_Cell, int]]:
    """Neighbours that are alike as one, and how many they are."""
    start = 0
    for i in range(1, len(row) + 1):
        is_alike = i < len(row) and row[i].pages == row[start].pages
        if not is_alike:
            first = row[start]
            last = row[i - 1].last
            total = tuple(count * (i - start) for count in first.pages)
            yield _Cell(first.column, first.first, last, total), i - start
            start = i


def _draw_row(
    svg: Element, row: Sequence[_Cell], y: int, page_size: int, paths: dict[int, str]
) -> None:
    """
    Draw letters of cells, and what is said of each where a pointer rests on it.

    :param paths: Gets the areas of each kind.
    """
    places, letters = [], []
    for cell in row:
        left = _LEFT + cell.column * _SIDE
        for kind, at, width in _shares(cell.pages):
            area = f"M{left + at} {y}h{width}v{_SIDE}h-{width}z"
            paths[kind] = paths.get(kind, "") + area
        letter = _letter(cell.pages)
        if letter:
            places.append(str(left + _SIDE // 2))
            letters.append(letter)
    if letters:
        values: dict[str, object] = {"class": "letters", "x": " ".join(places)}
        add(svg, "text", {**values, "y": y + _BASELINE}, "".join(letters))
    for cell, count in _joined(row):
        values = {"class": "cell", "x": _LEFT + cell.column * _SIDE, "y": y}
        values.update(width=count * _SIDE, height=_SIDE)
        said = add(svg, "rect", values)
        where = f"PFN {cell.first} to {cell.last}"
        add(said, "title", text=f"{where}: {text_of_pages(cell.pages, page_size)}")
    add(svg, "text", {"class": "pfn", "x": _LEFT - 6, "y": y + _BASELINE},
        str(row[0].first))  # fmt: skip


def _draw_mark(svg: Element, mark: Mark, index: int, count: int) -> None:
    """
    Draw a mark around a cell.

    :param count: How many marks the cell has.
    """
    row, column = divmod(index, _COLUMNS)
    x, y = _LEFT + column * _SIDE, 1 + row * _SIDE
    link = add(svg, "a", {"href": mark.link, "id": mark.anchor})
    values: dict[str, object] = {"class": mark.style, "x": x, "y": y}
    values.update(width=_SIDE, height=_SIDE)
    more = f" (and {count - 1} more here)" if count > 1 else ""
    add(add(link, "rect", values), "title", text=mark.text + more)
    if mark.style == "finding":
        add(link, "text", {"class": "sign", "x": x + _SIDE - 4, "y": y + 6}, "!")


def zone_picture(
    cells: ZoneCells, page_size: int, marks: Sequence[Mark], title: str
) -> Element:
    """
    A zone, cell by cell in rows.

    :param marks: What to mark; those that lie elsewhere are left out.
    """
    rows = list(_rows(cells))
    width = _LEFT + _COLUMNS * _SIDE + 4
    svg = new_svg(width, len(rows) * _SIDE + 4, title)
    # Areas stand in front of what is drawn over them.
    areas = add(svg, "g")
    paths: dict[int, str] = {}
    for number, row in enumerate(rows):
        _draw_row(svg, row, 1 + number * _SIDE, page_size, paths)
    for kind, path in sorted(paths.items()):
        add(areas, "path", {"class": f"k{kind}", "d": path})
    by_cell: dict[tuple[int, str], list[Mark]] = {}
    for mark in marks:
        index = cells.cell(mark.pfn)
        if index is not None:
            by_cell.setdefault((index, mark.style), []).append(mark)
    # Findings last: they lie above all.
    for index, style in sorted(by_cell, key=lambda key: key[1] == "finding"):
        here = by_cell[index, style]
        _draw_mark(svg, here[0], index, len(here))
    return svg


@dataclass(frozen=True)
class UserBand:
    """
    A shared tail page and where its users are.

    :param span: First PFN of the memory that may use it, and its end.
    :param frame: ``None`` if it is not known.
    :param starts: Of ranges of PFNs that use it, ascending.
    :param ends: Of the same.
    """

    label: str
    link: str
    span: tuple[int, int]
    frame: Optional[int]
    starts: Int64Array
    ends: Int64Array


_BAND_LEFT = 290
_BAND_WIDTH = 640
_BAND_HEIGHT = 40


def _band_areas(band: UserBand, y: int) -> str:
    """The pixels of a band in which there are users, as a path."""
    low, high = band.span
    scale = _BAND_WIDTH / max(high - low, 1)
    lefts = np.floor((band.starts - low) * scale).astype(np.int64)
    rights = np.maximum(np.ceil((band.ends - low) * scale).astype(np.int64), lefts + 2)
    taken = np.zeros(_BAND_WIDTH + 2, dtype=np.int64)
    inside = (lefts >= 0) & (lefts < _BAND_WIDTH)
    np.add.at(taken, lefts[inside], 1)
    np.add.at(taken, np.minimum(rights[inside], _BAND_WIDTH), -1)
    covered = np.concatenate(([0], (np.cumsum(taken) > 0).astype(np.int64), [0]))
    turns = np.flatnonzero(np.diff(covered)).reshape(-1, 2).tolist()
    return "".join(
        f"M{_BAND_LEFT + left} {y}h{right - left}v18h-{right - left}z"
        for left, right in turns
    )


def _draw_band(svg: Element, band: UserBand, y: int) -> None:
    """One shared tail page, with an arrow from those that map it."""
    link = add(svg, "a", {"href": band.link})
    add(link, "rect", {"class": "box", "x": 2, "y": y, "width": 230, "height": 18})
    add(link, "text", {"class": "label", "x": 8, "y": y + 13}, printable(band.label))
    arrow = f"M{_BAND_LEFT - 2} {y + 9}H234m7 -4l-7 4l7 4"
    add(svg, "path", {"class": "arrow", "d": arrow})
    area = {"x": _BAND_LEFT, "y": y, "width": _BAND_WIDTH, "height": 18}
    add(svg, "rect", {"class": "band", **area})
    add(svg, "path", {"class": "users", "d": _band_areas(band, y)})
    low, high = band.span
    left = {"class": "label", "x": _BAND_LEFT, "y": y + 29}
    add(svg, "text", left, f"PFN {low}")
    right = {"class": "pfn", "x": _BAND_LEFT + _BAND_WIDTH, "y": y + 29}
    add(svg, "text", right, f"PFN {high - 1}")
    if band.frame is not None and low <= band.frame < high:
        at = _BAND_LEFT + (band.frame - low) * _BAND_WIDTH // (high - low)
        path = f"M{at} {y + 18}V{y + 4}l-4 -7h8l-4 7"
        sign = add(svg, "path", {"class": "place", "d": path})
        add(sign, "title", text=f"the shared tail page itself, PFN {band.frame}")


def users_picture(bands: Sequence[UserBand], title: str) -> Element:
    """Shared tail pages on the left, the memory of those that use them on the right."""
    svg = new_svg(_BAND_LEFT + _BAND_WIDTH + 8, _BAND_HEIGHT * len(bands) + 4, title)
    for number, band in enumerate(bands):
        _draw_band(svg, band, 4 + number * _BAND_HEIGHT)
    return svg
