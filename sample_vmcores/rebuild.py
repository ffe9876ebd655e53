#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Rebuild the sample cores
------------------------

``rebuild.py`` writes every core of ``samples.toml`` anew, ``rebuild.py --check``
compares each with what its description gives and writes nothing. Compared are pages,
decompressed: versions of zlib compress the same page differently.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys
import tempfile
from typing import Any

from drgn_hvo.errors import HvoError
from drgn_hvo.formats.kdump_writer import kdump_pages
from drgn_hvo.synth.containers.output import write_core
from drgn_hvo.synth.described.description_file import load_description, load_toml

HERE = Path(__file__).resolve().parent


def samples() -> dict[str, dict[str, Any]]:
    """What ``samples.toml`` says, by the name of the core."""
    path = HERE / "samples.toml"
    return load_toml(path.read_text(encoding="utf-8"), path.name)


def core_path(name: str) -> Path:
    """Where a sample core is."""
    return HERE / f"{name}.kdump"


def build(_name: str, sample: dict[str, Any], path: Path) -> None:
    """Write one core."""
    description = load_description(HERE / sample["description"])
    write_core(description, path, "kdump", sample.get("faults", ()), force=True)


def differs(name: str, sample: dict[str, Any]) -> bool:
    """Whether a core is not what its description gives."""
    with tempfile.TemporaryDirectory() as directory:
        again = Path(directory, "core")
        build(name, sample, again)
        new = list(kdump_pages(again.read_bytes()))
    return new != list(kdump_pages(core_path(name).read_bytes()))


def main() -> int:
    """Rebuild or check all samples."""
    parser = argparse.ArgumentParser(
        description="rebuild the sample cores", allow_abbrev=False
    )
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit 1 if one differs"
    )
    check = parser.parse_args().check
    status = 0
    try:
        for name, sample in samples().items():
            if not check:
                build(name, sample, core_path(name))
            elif not core_path(name).exists() or differs(name, sample):
                print(f"{core_path(name).name} is not what its description gives")
                status = 1
    except HvoError as e:
        print(f"rebuild.py: {e}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
