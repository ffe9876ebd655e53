# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports
-------

What the commands print. Each report first builds the document that ``--json``
prints; the text for people is made from that document alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import sys
from typing import TYPE_CHECKING, Any, Optional, TypeVar, Union

from drgn_hvo import __version__

if TYPE_CHECKING:
    from drgn import Program

    from drgn_hvo.commands.reports import (
        AnyReport,
        AuditReport,
        CheckReport,
        DumpEntry,
        ErrorReport,
        IdentityEntry,
        KernelReport,
        ShowReport,
        TargetReport,
    )
    from drgn_hvo.kernel.bound import Kernel

__all__ = (
    "clipped",
    "document",
    "dump_problems",
    "envelope",
    "human_size",
    "hwpoison_text",
    "kernel_document",
    "known",
    "print_document",
    "print_json",
    "printable",
    "printable_document",
    "with_dump",
)

_Doc = TypeVar("_Doc", bound=Mapping[str, object])
_OfKernel = TypeVar("_OfKernel", "AuditReport", "ErrorReport", "ShowReport")


def envelope() -> AnyReport:
    """The keys that every JSON document begins with."""
    return {"schema": 1, "tool": {"name": "drgn-hvo", "version": __version__}}


def document(target: str, release: Optional[str]) -> TargetReport:
    """The keys that a JSON document about a target begins with."""
    return {**envelope(), "target": target, "release": release}


def kernel_document(target: str, release: Optional[str]) -> KernelReport:
    """The keys that a JSON document about all of a kernel begins with."""
    doc = document(target, release)
    # Not "**doc": for mypy, that might have a key "dump" of any type.
    return {
        "schema": doc["schema"],
        "tool": doc["tool"],
        "target": target,
        "release": release,
    }


def with_dump(
    doc: _OfKernel, prog: Program, kernel: Optional[Kernel] = None
) -> _OfKernel:
    """
    A document of a kernel, with what the dump that it lies in says of itself, and which
    machine it is of.

    :param kernel: ``None`` if it could not be made out.
    """
    return {
        "schema": doc["schema"],
        "tool": doc["tool"],
        "target": doc["target"],
        "release": doc["release"],
        "dump": _dump_entry(prog),
        "identity": None if kernel is None else _identity_entry(kernel),
        **doc,
    }


def _identity_entry(kernel: Kernel) -> IdentityEntry:
    from drgn_hvo.kernel.identity import identity_of

    found = identity_of(kernel)
    return {
        "nodename": found.nodename,
        "release": found.release,
        "version": found.version,
        "crash_time": found.crash_time,
        "panic": found.panic,
    }


def _dump_entry(prog: Program) -> Optional[DumpEntry]:
    """What the dump that a program reads says of itself."""
    from drgn_hvo.kernel.dump import dump_of

    dump = dump_of(prog)
    if dump is None:
        return None
    health = dump.health
    truncated, split = health.truncated, health.split
    return {
        "format": health.format,
        "size": health.size,
        "mtime": dump.mtime,
        "incomplete_flag": health.incomplete_flag,
        "truncated": None
        if truncated is None
        else {"expected": truncated.expected, "actual": truncated.actual},
        "split": None
        if split is None
        else {"start_pfn": split.start_pfn, "end_pfn": split.end_pfn},
        "filtered": health.filtered,
        "unwritten_pages": health.unwritten,
        "problems": dump.complaints,
    }


def dump_problems(doc: Union[CheckReport, ShowReport]) -> list[str]:
    """What is wrong with the dump that a document is about, one line each."""
    dump = doc.get("dump")
    return dump["problems"] if dump else []


def known(value: object) -> object:
    """What to print of something, a question mark if it is not known."""
    return "?" if value is None else value


def human_size(size: int) -> str:
    """A size in the largest binary unit that divides it: ``2 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size % 1024 or not size:
            return f"{size} {unit}"
        size //= 1024
    return f"{size} TiB"


def printable(text: str) -> str:
    """
    Text that may come from a dump, a log or a file name, fit for a terminal and for one
    line: what would move the cursor, begin a line or set a title is escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


# Longer than any path, with words around it.
_LONGEST = 5000


def clipped(text: str) -> str:
    """An error that quotes what it was given is one line that can be read."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … {text[-half:]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable_document(doc: _Doc) -> _Doc:
    """A document with all its strings fit for a terminal, see :func:`printable()`."""
    made: _Doc = _printable_values(doc)
    return made


def _printable_values(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _printable_values(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable_values(part) for part in value]
    return value


def print_json(doc: Mapping[str, object]) -> None:
    """Print a document on one line."""
    # Not at the top: every drgn session imports this module.
    import json

    json.dump(doc, sys.stdout)
    sys.stdout.write("\n")


def print_document(
    doc: _Doc, print_text: Callable[[_Doc], None], *, as_json: bool
) -> None:
    """
    Print a document as JSON or for people.

    :param print_text: Does the latter.
    """
    if as_json:
        print_json(doc)
    else:
        print_text(printable_document(doc))


def hwpoison_text(raw_pages: Optional[list[int]], unknown: Optional[str]) -> str:
    """Which pages of a hardware-poisoned huge page failed, for people."""
    if raw_pages is None:
        return f"memory failed in it; where is not known: {unknown}"
    pages = ", ".join(map(str, raw_pages)) or "none listed"
    more = "" if unknown is None else f"; there may be more: {unknown}"
    return f"memory failed in it at PFN {pages}{more}"
