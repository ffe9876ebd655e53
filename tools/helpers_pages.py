# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reference of the helpers
------------------------

Makes the pages of ``docs/helpers`` from docstrings, in Markdown: a page a module, as
drgn's documentation has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
import inspect
from pathlib import Path
import re
import sys
from types import ModuleType

import drgn_hvo

__all__ = ("helper_modules", "reference_page", "write_reference")

_COMMAND = "python -m tools.helpers_pages docs/helpers"

# The reStructuredText that our docstrings use. Roles come first: what they make is
# in single backquotes.
_MARKUP = (
    (re.compile(r":linux:`([^`]+)`"), r"`\1`"),
    (re.compile(r":\w+:`~(?:\w+\.)*([^`]+)`"), r"`\1`"),
    (re.compile(r":\w+:`([^`]+)`"), r"`\1`"),
    (re.compile(r"``([^`]+)``"), r"`\1`"),
)
_FIELD = re.compile(r":(param|return|raises)(?: (\w+))?: ")


def helper_modules() -> list[ModuleType]:
    """The modules that have helpers, by name."""
    names = {getattr(drgn_hvo, name).__module__ for name in drgn_hvo.__all__[1:]}
    return [import_module(name) for name in sorted(names)]


def _markdown(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def _field(block: str) -> str:
    """``:param x: …`` as an entry of a list."""
    match = _FIELD.match(block)
    assert match is not None, block
    kind, name = match.groups()
    text = _markdown(" ".join(block[match.end() :].split()))
    if kind == "return":
        return f"- returns: {text}"
    return f"- {'raises ' if kind == 'raises' else ''}`{name}`: {text}"


def _blocks(docstring: str) -> Iterator[str]:
    """The paragraphs, examples and lists of fields of a docstring, in Markdown."""
    for block in re.split(r"\n\s*\n", docstring.strip()):
        if block.startswith(">>>"):
            yield f"```pycon\n{block}\n```"
        elif block.startswith(":"):
            fields = re.split(r"\n(?=:)", block)
            yield "\n".join(_field(field) for field in fields)
        else:
            yield _markdown(block)


def _attributes(cls: type) -> Iterator[str]:
    """What a named tuple has; its docstrings stand behind each in the source."""
    source = inspect.getsource(cls)
    for name, kind, text in re.findall(
        r'^    (\w+): ([^\n]+)\n    """(.*?)"""', source, re.DOTALL | re.MULTILINE
    ):
        yield f"- `{name}`: `{kind}`. {_markdown(' '.join(text.split()))}"


def _entry(name: str, helper: object) -> Iterator[str]:
    if isinstance(helper, type):
        yield f"## `{name}`"
        yield from _blocks(inspect.getdoc(helper) or "")
        yield "\n".join(_attributes(helper))
        return
    assert callable(helper), name
    yield f"## `{name}{inspect.signature(helper)}`".replace("'", "")
    yield from _blocks(inspect.getdoc(helper) or "")


def reference_page(module: ModuleType) -> str:
    """The page of a module."""
    title, _, *rest = (inspect.getdoc(module) or "").splitlines()
    parts = [
        f"# {title}",
        f"Made from docstrings by `{_COMMAND}`.",
        *_blocks("\n".join(rest)),
        "All are exported by `drgn_hvo`.",
    ]
    for name in module.__all__:
        parts += _entry(name, getattr(module, name))
    return "\n\n".join(parts) + "\n"


def write_reference(directory: Path) -> None:
    """Write the pages of all modules."""
    for module in helper_modules():
        name = module.__name__.rpartition(".")[2]
        (directory / f"{name}.md").write_text(reference_page(module))


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
