# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Description files
-----------------

The TOML form of a ``Description``: its fields, with ``[[node]]``, ``[[huge_pages]]``,
``[[pages]]`` and ``[[devices]]`` as arrays of tables.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any, TypeVar, Union

from drgn_hvo.errors import UsageError
from drgn_hvo.synth.described.description import (
    Description,
    DeviceMemory,
    HugePages,
    Node,
    Pages,
    Range,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ("load_description", "load_toml", "parse_description")


# Bytes of a file that somebody wrote by hand, or a program for thousands of nodes; what
# is no description may be endless.
_MAX_SIZE = 4 << 20


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise UsageError(message)


T = TypeVar("T", bound="DataclassInstance")


def _table(kind: type[T], table: Any, what: str, **converted: Any) -> T:
    """Make a dataclass from a TOML table."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    _refuse(not isinstance(table, dict), f"{what} is no table")
    for key in table:
        unknown = key not in known or key in converted
        _refuse(unknown, f"{what} has an unknown key {key!r}")
    values = {**table, **converted}
    for name, f in known.items():
        missing = f.default is f.default_factory is dataclasses.MISSING
        _refuse(missing and name not in values, f"{what} has no {name}")
        if name in values and name not in converted:
            _refuse(
                not _is_a(values[name], str(f.type)),
                f"{what}: {name} cannot be {values[name]!r}",
            )
    return kind(**values)


_TOML_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "Optional[int]": (int, type(None)),
    "Optional[str]": (str, type(None)),
    "Optional[bool]": (bool, type(None)),
}


def _is_a(value: object, annotation: str) -> bool:
    allowed = _TOML_TYPES[annotation]
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed)


def _range(value: Any, what: str) -> Range:
    good = (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    )
    _refuse(not good, f"{what} is not [START, END]")
    return (value[0], value[1])


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.pop(key, [])
    _refuse(not isinstance(value, list), f"{key} is no list")
    return list(value)


def _node(table: Any) -> Node:
    _refuse(not isinstance(table, dict), "a node is no table")
    what = f"node {table.get('id', '?')}"
    ranges = _list(table, "ranges")
    zones = table.pop("zones", {})
    _refuse(not isinstance(zones, dict), f"zones of {what} are no table")
    return _table(
        Node,
        table,
        what,
        ranges=tuple(sorted(_range(r, f"a range of {what}") for r in ranges)),
        zones={k: _range(v, f"zone {k} of {what}") for k, v in zones.items()},
    )


def _huge_pages(table: Any) -> HugePages:
    what = "a [[huge_pages]]"
    _refuse(not isinstance(table, dict), f"{what} is no table")
    failed = _list(table, "failed")
    _refuse(
        not all(_is_a(index, "int") for index in failed),
        f"{what}: failed is no list of numbers",
    )
    return _table(HugePages, table, what, failed=tuple(failed))


def load_toml(text: str, name: str) -> dict[str, Any]:
    """
    Read a TOML document.

    :param name: What to call it if it is none.
    :raises UsageError: if it is none.
    """
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (RecursionError, ValueError) as e:
        # TOMLDecodeError is a ValueError, and so are numbers of too many digits.
        raise UsageError(f"{name}: {e}") from None
    return document


def parse_description(text: str, name: str = "description") -> Description:
    """
    Read a description in TOML.

    :raises UsageError: if it is no TOML, or no machine can be so.
    """
    document = load_toml(text, name)
    nodes = tuple(_node(table) for table in _list(document, "node"))
    huge_pages = tuple(_huge_pages(table) for table in _list(document, "huge_pages"))
    pages = tuple(
        _table(Pages, table, "a [[pages]]") for table in _list(document, "pages")
    )
    devices = tuple(
        _table(DeviceMemory, table, "a [[devices]]")
        for table in _list(document, "devices")
    )
    converted: dict[str, Any] = {
        "nodes": nodes,
        "huge_pages": huge_pages,
        "pages": pages,
        "devices": devices,
    }
    if "hstates" in document:
        converted["hstates"] = tuple(_list(document, "hstates"))
        _refuse(
            not all(_is_a(order, "int") for order in converted["hstates"]),
            "hstates is no list of orders",
        )
    reserved = document.pop("reserved", {})
    _refuse(
        not isinstance(reserved, dict)
        or not all(_is_a(count, "int") for count in reserved.values()),
        "reserved is no table of numbers",
    )
    converted["reserved"] = {_order(key): value for key, value in reserved.items()}
    return _table(Description, document, name, **converted)


def _order(key: str) -> int:
    _refuse(not key.isdecimal(), f"reserved: {key!r} is no order")
    return int(key)


def load_description(path: Union[str, Path]) -> Description:
    """
    Read a description from a TOML file.

    :raises UsageError: as :func:`parse_description()`, or if it cannot be read.
    """
    try:
        with open(path, "rb") as f:
            data = f.read(_MAX_SIZE + 1)
        _refuse(len(data) > _MAX_SIZE, f"{path} is too large for a description")
        text = data.decode()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path}: {reason}") from None
    return parse_description(text, Path(path).name)
