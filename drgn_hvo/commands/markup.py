# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Markup
------

SVG and HTML made by :mod:`xml.etree.ElementTree`, which escapes all text and
attributes, whoever wrote them. What is made here names nothing to be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement, tostring

__all__ = ("add", "add_text", "as_html", "as_svg", "new_svg")

_SVG = "http://www.w3.org/2000/svg"


def _attributes(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def add(
    parent: Element, tag: str, values: Mapping[str, object] = {}, text: str = ""
) -> Element:
    """
    A new element at the end of another.

    :param values: Its attributes.
    """
    child = SubElement(parent, tag, _attributes(values))
    if text:
        child.text = text
    return child


def add_text(parent: Element, text: str) -> None:
    """Text behind the last child of an element."""
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text


def new_svg(width: int, height: int, title: str) -> Element:
    """
    A picture.

    :param title: What it shows, for those who cannot see it.
    """
    values: dict[str, object] = {
        "xmlns": _SVG,
        "viewBox": f"0 0 {width} {height}",
        "width": width,
        "height": height,
        "role": "img",
    }
    svg = Element("svg", _attributes(values))
    add(svg, "title", text=title)
    return svg


def as_svg(svg: Element) -> str:
    """A picture as a file of its own."""
    text = tostring(svg, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def as_html(page: Element) -> str:
    """A page, with the pictures in it."""
    text = tostring(page, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"
