# SPDX-License-Identifier: LGPL-2.1-or-later

"""
JSON schemas
------------

What scripts can rely on in the output of ``show --json``, ``page --json`` and
``check --format json``, as JSON Schema. Keys may be added to later versions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ("load_schema",)


def load_schema(name: str) -> Any:
    """
    A schema, parsed.

    :param name: ``"show"``, ``"page"``, ``"check"`` or ``"extract"``.
    """
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text())
