# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reference pages of the documentation site
-----------------------------------------

Makes what the site says of the command line, JSON, faults, architectures and
descriptions from the code that decides it, each time the site is built.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import inspect
import json
from pathlib import Path
import re
from typing import Any

from drgn_hvo.cli import EXIT_STATUSES
from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.what_ran import WHAT_RAN
from drgn_hvo.synth.damage.faults import FAULTS
from drgn_hvo.synth.described.description import (
    Description,
    DeviceMemory,
    HugePages,
    Node,
    Pages,
)
from tools.command_line import arguments, commands

__all__ = ("SITE_PAGES", "write_site_pages")

_SCHEMAS = Path(inspect.getfile(Description)).parents[2] / "commands" / "schema"


def _cell(text: object) -> str:
    """Text in a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _table(*rows: tuple[object, ...]) -> Iterator[str]:
    """A table in Markdown; the first row is its head."""
    for i, row in enumerate(rows):
        yield "| " + " | ".join(map(_cell, row)) + " |"
        if i == 0:
            yield "|" + "---|" * len(row)
    yield ""


def _spelling(argument: argparse.Action) -> str:
    metavar = argument.metavar
    if metavar is None and argument.nargs != 0:
        choices = argument.choices
        metavar = "|".join(map(str, choices)) if choices else argument.dest.upper()
    value = f" {metavar}" if argument.option_strings and metavar else ""
    names = argument.option_strings or [str(metavar)]
    return ", ".join(f"`{name}{value}`" for name in names)


def cli_page() -> Iterator[str]:
    """Every command and option, from the parser."""
    yield "# The command line\n"
    yield "Made from the parser. Options are never abbreviated.\n"
    for name, command in commands().items():
        yield f"## `drgn-hvo {name}`\n"
        yield f"```\n{command.format_usage().strip()}\n```\n"
        rows = [(_spelling(a), a.help or "") for a in arguments(command)]
        yield from _table(("argument", "what it does"), *rows)
    yield "## Exit status\n"
    yield from _table(("status", "meaning"), *EXIT_STATUSES.items())


def _kind(node: dict[str, Any]) -> str:
    """What a value of JSON can be, in words."""
    for key in ("enum", "const"):
        if key in node:
            values = node[key] if key == "enum" else [node[key]]
            return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if "$ref" in node:
        return f"as {node['$ref'].rpartition('/')[2]}"
    for key in ("anyOf", "oneOf"):
        if key in node:
            return " or ".join(_kind(branch) for branch in node[key])
    kind = node.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _keys(node: dict[str, Any], path: str) -> Iterator[tuple[object, ...]]:
    """The keys below a node of a schema, with their paths."""
    for name, value in node.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        optional = "" if name in node.get("required", ()) else "optional"
        yield f"`{below}`", _kind(value), optional, value.get("description", "")
        yield from _keys(value, below)
    items = node.get("items")
    if isinstance(items, dict):
        yield from _keys(items, f"{path}[]")
    for key in ("anyOf", "oneOf", "allOf"):
        for branch in node.get(key, ()):
            yield from _keys(branch, path)


def json_page() -> Iterator[str]:
    """Every key of every document, from the schemas."""
    yield "# JSON\n"
    yield (
        "Made from the schemas, which ride in the package "
        "(`drgn_hvo/commands/schema/`). PFNs, counts and bytes are numbers, addresses "
        'and raw words are strings `"0x…"`, and what is not known is `null`. '
        "[The contract](../contract.md) says "
        "what will not change.\n"
    )
    for path in sorted(_SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text())
        yield f"## `{schema.get('title', path.stem)}`\n"
        head = ("key", "value", "", "what it is")
        yield from _table(head, *_keys(schema, ""))
        for name, part in schema.get("$defs", {}).items():
            yield f"### {name}\n"
            yield from _table(head, *_keys(part, ""))


def faults_page() -> Iterator[str]:
    """Every fault that ``synth`` can do."""
    yield "# Faults that `synth` can do\n"
    yield (
        "For `drgn-hvo synth DESCRIPTION --fault NAME`; the rule is the first that "
        "`check` names. [The matrix](../fault-matrix.md) shows it for each "
        "generation.\n"
    )
    rows = [(f"`{f.name}`", f.what, f"`{f.rule}`") for f in FAULTS]
    yield from _table(("fault", "damage", "rule"), *rows)


def architectures_page() -> Iterator[str]:
    """The table of architectures."""
    yield "# Architectures\n"
    yield (
        "Made from `drgn_hvo/formats/architectures/`. "
        "[What works where](../support.md) says what was run.\n"
    )
    rows = []
    for name, entry in ARCHITECTURES.items():
        model = entry.model
        pages = [f"{1 << shift - 10}K" for shift in model.page_shifts]
        levels = {n for shift in model.page_shifts for n in model.levels(shift)}
        rows.append(
            (
                name,
                WHAT_RAN[name][1],
                ", ".join(pages),
                ", ".join(map(str, sorted(levels))),
                f"`{entry.illegal_pointer_value + 0x400:#x}`",
                f"`{entry.lowest_kernel_address:#x}`",
            )
        )
    head = (
        "architecture",
        "run on Linux",
        "pages",
        "levels",
        "TAIL_MAPPING",
        "kernel addresses from",
    )
    yield from _table(head, *rows)


def _param_docs(kind: type) -> dict[str, str]:
    """The ``:param:`` lines of a dataclass."""
    found = re.findall(
        r":param (\w+): (.*?)(?=\n\s*:param |\Z)", kind.__doc__ or "", re.DOTALL
    )
    return {name: _rest(text) for name, text in found}


def _rest(text: str) -> str:
    """The little reStructuredText that our docstrings use, as Markdown."""
    text = re.sub(r":\w+:`~?(?:\w+\.)*([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`")


def description_page() -> Iterator[str]:
    """Every key of a description, from the dataclasses that hold it."""
    yield "# Descriptions of synthetic machines\n"
    yield (
        "`drgn-hvo synth DESCRIPTION` takes a TOML file with these keys; "
        "`sample_vmcores/*.toml` are examples. PFN ranges are `[START, END]`, the end "
        "excluded.\n"
    )
    for kind, title in (
        (Description, "The machine"),
        (Node, "`[[node]]`: a NUMA node"),
        (HugePages, "`[[huge_pages]]`: huge pages in one state"),
        (Pages, "`[[pages]]`: other pages"),
        (DeviceMemory, "`[[devices]]`: memory of devices"),
    ):
        docs = _param_docs(kind)
        yield f"## {title}\n"
        rows = []
        for f in dataclasses.fields(kind):
            default = "" if f.default is dataclasses.MISSING else f"`{f.default!r}`"
            rows.append((f"`{f.name}`", f"`{f.type}`", default, docs.get(f.name, "")))
        yield from _table(("key", "type", "default", "what it is"), *rows)


#: What makes each page, by its name.
SITE_PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "architectures": architectures_page,
    "cli": cli_page,
    "description": description_page,
    "faults": faults_page,
    "json": json_page,
}


def write_site_pages(directory: Path) -> None:
    """Write all pages into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in SITE_PAGES.items():
        (directory / f"{name}.md").write_text("\n".join(make()) + "\n")
