# SPDX-License-Identifier: LGPL-2.1-or-later

"""
JSON schemas
------------

What scripts can rely on in the JSON that commands print, as JSON Schema: one a command,
and one for what ``--progress json`` prints. ``page --oops`` prints what ``oops`` does.
Keys may be added to later versions.
:mod:`drgn_hvo.commands.reports` says the same in types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ("load_schema",)


def load_schema(name: str) -> Any:
    """
    A schema, parsed.

    :param name: Of the command, or ``progress``.
    """
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text())
