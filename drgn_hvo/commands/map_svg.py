# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``map --svg``
-------------

The picture of :mod:`drgn_hvo.commands.map` as SVG, made from the same document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from drgn_hvo.commands.document import printable_document
from drgn_hvo.commands.map import (
    access_text,
    frame_text,
    map_title,
    marks_text,
    owner_text,
    sharing_lines,
)
from drgn_hvo.commands.markup import add, as_svg, new_svg

if TYPE_CHECKING:
    from drgn_hvo.commands.single_page_reports import MapReport, MapRowEntry

__all__ = ("map_svg",)

# A folio whose vmemmap is in more pieces is not drawn to its end.
_MAX_ROWS_DRAWN = 2048

# Longer lines are wrapped.
_MAX_LINE = 150

_STYLE = """
text{font:13px ui-monospace,'DejaVu Sans Mono',monospace}
.title{font-weight:bold}
.folio,.slices,.frame{fill:#f4f4f4;stroke:#000}
.shared{fill:#cfe4f5}.head{fill:#fffbe0}
.unknown{fill:#fff;stroke-dasharray:3 3}
.wrong{stroke:#c00000;stroke-width:3}
.says{fill:#c00000;font-weight:bold}
.arrow{stroke:#000;fill:none}
"""

# Pixels: rows, and where what is in a row begins.
_HEIGHT = 26
_FOLIO, _SLICES, _FRAMES, _OWNER = (10, 140), (260, 290), (640, 210), 860
_CHARACTER = 8
_LINE = 18


def _box(svg: Element, style: str, left: tuple[int, int], y: int, text: str) -> None:
    x, width = left
    place = {"x": x, "y": y, "width": width, "height": _HEIGHT - 4}
    add(svg, "rect", {"class": style, **place})
    add(svg, "text", {"x": x + 8, "y": y + 15}, text)


def _arrow(svg: Element, start: int, end: int, y: int, text: str) -> None:
    add(svg, "path", {"class": "arrow", "d": f"M{start} {y}H{end}m-7 -4l7 4l-7 4"})
    values = {"x": (start + end) // 2, "y": y - 3, "text-anchor": "middle"}
    add(svg, "text", values, text)


def _draw_row(svg: Element, row: MapRowEntry, y: int) -> None:
    first, last = row["first"], row["last"]
    number = str(first) if first == last else f"{first} - {last}"
    wrong = marks_text(row)
    style = "slices wrong" if wrong else "slices"
    _box(svg, style, _SLICES, y, f"{number:>9}  {row['address']}")
    end = _SLICES[0] + _SLICES[1]
    _arrow(svg, end + 4, _FRAMES[0] - 4, y + 13, access_text(row))
    style = "frame"
    if row["frame"] is None:
        style = "frame unknown"
    elif row["repeats_head"] or not first:
        style = "frame head"
    elif row["tail"] is not None:
        style = "frame shared"
    _box(svg, style, _FRAMES, y, frame_text(row))
    values = {"x": _OWNER, "y": y + 15}
    said = add(svg, "text", values, owner_text(row).strip())
    if wrong:
        add(said, "tspan", {"class": "says"}, wrong)


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in wrap(line, _MAX_LINE)]


def _draw_lines(svg: Element, lines: Sequence[str], y: int, style: str) -> None:
    for i, line in enumerate(lines):
        values = {"class": style, "x": _FOLIO[0], "y": y + _LINE * i}
        add(svg, "text", values, line)


def _draw_picture(
    svg: Element, doc: MapReport, rows: Sequence[MapRowEntry], y: int
) -> None:
    """The folio, its struct pages and their frames."""
    for (x, _), name in (
        (_FOLIO, "folio"),
        (_SLICES, f"struct pages ({doc['slices']} pages)"),
        (_FRAMES, "page frames"),
    ):
        add(svg, "text", {"x": x, "y": y - 8}, name)
    x, width = _FOLIO
    place = {"x": x, "y": y, "width": width, "height": _HEIGHT * len(rows) - 4}
    add(svg, "rect", {"class": "folio", **place})
    add(svg, "text", {"x": x + 8, "y": y + 15}, f"PFN {doc['head_pfn']}")
    _arrow(svg, x + width + 4, _SLICES[0] - 4, y + 13, "pfn_to_page")
    for i, row in enumerate(rows):
        _draw_row(svg, row, y + _HEIGHT * i)


def map_svg(doc: MapReport) -> str:
    """The picture of a compound page."""
    doc = printable_document(doc)
    rows = doc["rows"][:_MAX_ROWS_DRAWN]
    title = map_title(doc)
    conclusions = _wrapped(doc["conclusions"])
    below = _wrapped(sharing_lines(doc))
    if len(doc["rows"]) > len(rows):
        below.insert(0, f"{len(doc['rows']) - len(rows)} more rows are not drawn.")
    longest = max(len(line) for line in (title, *conclusions, *below))
    said = max(len(owner_text(row)) + len(marks_text(row)) for row in rows)
    width = max(_OWNER + _CHARACTER * said, 20 + _CHARACTER * longest)
    top = 30 + _LINE * (len(conclusions) + 2)
    bottom = top + _HEIGHT * len(rows) + _LINE
    svg = new_svg(width, bottom + _LINE * len(below), title)
    add(svg, "style", text=_STYLE)
    add(svg, "rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    _draw_lines(svg, [title], 20, "title")
    _draw_lines(svg, conclusions, 20 + _LINE, "below")
    _draw_picture(svg, doc, rows, top)
    _draw_lines(svg, below, bottom, "below")
    return as_svg(svg)
