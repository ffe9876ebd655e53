# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pictures, read
--------------

What is on a page or in an SVG, found out by parsers of the standard library, and what a
browser makes of it.
"""

from dataclasses import dataclass, field
from html.parser import HTMLParser
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

__all__ = ("Page", "browse", "cells_of", "check_harmless", "pictures_of")

_SVG = "{http://www.w3.org/2000/svg}"

# No end tags.
_VOID = {"meta"}


@dataclass
class Page(HTMLParser):
    """A page: what is in it, and whether it is well-formed."""

    source: str
    tags: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.feed(self.source)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in _VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if self.open_tags and self.open_tags[-1] != "style":
            self.text += data


_ALLOWED = frozenset(
    (
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div",
        "span", "a", "table", "tr", "th", "td", "ul", "li", "code",
        "svg", "defs", "pattern", "rect", "path", "g", "text",
    )
)  # fmt: skip


def check_harmless(page):
    """It loads nothing, runs nothing, and all links lead to places on it."""
    assert _ALLOWED.issuperset(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name in ("xmlns", "href", "content") or "//" not in value
    styles = "".join(re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL))
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", styles))
    assert "@import" not in styles


def pictures_of(source):
    """The SVGs of a page, parsed as XML, by their titles."""
    found = {}
    for text in re.findall(r"<svg .*?</svg>", source, re.DOTALL):
        svg = ElementTree.fromstring(text)
        found[svg.findtext(f"{_SVG}title")] = svg
    return found


@dataclass(frozen=True)
class Cell:
    """What a picture of a zone says of a range of PFNs."""

    first: int
    last: int
    letters: str
    said: str


def cells_of(svg):
    """The cells of a picture of a zone, neighbours that are alike as one."""
    letters = {}
    for text in svg.iter(f"{_SVG}text"):
        if text.get("class") == "letters":
            y = int(text.get("y"))
            for x, letter in zip(text.get("x").split(), text.text):
                letters[int(x), y] = letter
    cells = []
    for rect in svg.iter(f"{_SVG}rect"):
        if rect.get("class") != "cell":
            continue
        x, y, width, height = (
            int(rect.get(name)) for name in ("x", "y", "width", "height")
        )
        inside = [
            letters[at]
            for at in sorted(letters)
            if x <= at[0] < x + width and y <= at[1] < y + height
        ]
        said = rect.findtext(f"{_SVG}title")
        ((first, last, said),) = re.findall(r"^PFN (\d+) to (\d+): (.*)$", said)
        cells.append(Cell(int(first), int(last), "".join(inside), said))
    return cells


def _chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    return pytest.skip("Chromium is not here")


def browse(path, directory):
    """
    Open a page without scripts or network in a browser.

    :return: Its document when it is loaded, what the console said, and a screenshot.
    """
    options = [_chromium(), "--headless", "--disable-gpu", "--no-sandbox"]
    options += [f"--user-data-dir={directory}/profile", "--enable-logging=stderr"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,3000"]
    shot = directory / "shot.png"
    done = [
        subprocess.run(
            [*options, action, path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        for action in ("--dump-dom", f"--screenshot={shot}")
    ]
    said = [
        line
        for one in done
        for line in one.stderr.splitlines()
        if "CONSOLE" in line or "Refused" in line
    ]
    return done[0].stdout, said, shot.read_bytes()
