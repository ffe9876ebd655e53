# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports
-------

What the commands print. Each report first builds the document that ``--json``
prints; the text for people is made from that document alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
import sys
from typing import TYPE_CHECKING, Any, Optional

from drgn_hvo import __version__

if TYPE_CHECKING:
    from drgn import Program

    from drgn_hvo.kernel.dump import Dump

__all__ = (
    "Document",
    "document",
    "dump_problems",
    "envelope",
    "human_size",
    "print_document",
    "print_json",
    "with_dump",
)

Document = dict[str, Any]


def envelope() -> Document:
    """The keys that every JSON document begins with."""
    return {"schema": 1, "tool": {"name": "drgn-hvo", "version": __version__}}


def document(target: str, release: Optional[str]) -> Document:
    """The keys that a JSON document about a target begins with."""
    return {**envelope(), "target": target, "release": release}


def with_dump(doc: Document, prog: Program) -> Document:
    """A document of a kernel, with what the dump that it lies in says of itself."""
    from drgn_hvo.kernel.dump import dump_of

    dump = dump_of(prog)
    head = dict(list(doc.items())[:4])
    return {**head, "dump": None if dump is None else _dump_document(dump), **doc}


def _dump_document(dump: Dump) -> Document:
    health = dump.health
    return {
        "format": health.format,
        "size": health.size,
        "mtime": dump.mtime,
        "incomplete_flag": health.incomplete_flag,
        "truncated": None if health.truncated is None else asdict(health.truncated),
        "split": None if health.split is None else asdict(health.split),
        "filtered": health.filtered,
        "unwritten_pages": health.unwritten,
        "problems": dump.complaints,
    }


def dump_problems(doc: Document) -> list[str]:
    """What is wrong with the dump that a document is about, one line each."""
    dump = doc.get("dump")
    return dump["problems"] if dump else []


def human_size(size: int) -> str:
    """A size in the largest binary unit that divides it: ``2 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size % 1024 or not size:
            return f"{size} {unit}"
        size //= 1024
    return f"{size} TiB"


def print_json(doc: Document) -> None:
    """Print a document on one line."""
    # Not at the top: every drgn session imports this module.
    import json

    json.dump(doc, sys.stdout)
    sys.stdout.write("\n")


def print_document(
    doc: Document, print_text: Callable[[Document], None], *, as_json: bool
) -> None:
    """
    Print a document as JSON or for people.

    :param print_text: Does the latter.
    """
    if as_json:
        print_json(doc)
    else:
        print_text(doc)
