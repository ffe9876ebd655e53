# SPDX-License-Identifier: LGPL-2.1-or-later

"""
README's first commands
-----------------------

Runs the commands that README begins with, up to the tests, exactly as they stand
there, where there is nothing of ours: in a source package that was just unpacked, with
a home of its own and no environment variable but those that lead to a package index.
``python -m tools.first_commands SOURCE.tar.gz``

``--root DIR`` runs them in another root file system, made by::

    debootstrap --variant=minbase --include=python3-venv bookworm DIR

``--tests PATHS`` narrows what pytest looks at, by its own variable: the commands stay
as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tarfile
from tempfile import TemporaryDirectory
import time
from typing import Optional

__all__ = ("commands", "main")

#: The sections that have them.
SECTIONS = ("Install, and see it work", "Test")

# How to reach a package index, and whom to trust there.
_KEPT = re.compile(r"PIP_\w+|\w*_proxy|\w*_PROXY|SSL_CERT_FILE")

_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def commands(readme: str) -> Iterator[str]:
    """The commands of the first sections, in their order."""
    for section in SECTIONS:
        _, _, rest = readme.partition(f"## {section}\n")
        if not rest:
            raise LookupError(f"README has no section {section!r}")
        body = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
        for block in re.findall(r"```console\n(.*?)```", body, re.DOTALL):
            yield from re.findall(r"^\$ (.*)$", block, re.MULTILINE)


def _environment(home: str, tests: Optional[str]) -> dict[str, str]:
    """What a fresh login has, and the way to the index."""
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
    ours = Path(sys.prefix, "bin")
    path = os.environ["PATH"].split(os.pathsep)
    path = [part for part in path if Path(part) != ours]
    made = {"HOME": home, "LANG": "C.UTF-8", "PATH": os.pathsep.join(path)}
    if tests:
        made["PYTEST_ADDOPTS"] = tests
    return {**kept, **made}


def _run(text: str, source: Path, root: Optional[Path], tests: Optional[str]) -> None:
    """Run one command in the source package."""
    started = time.monotonic()
    home = source.parent / "home"
    if root is None:
        done = subprocess.run(
            ["sh", "-c", text], cwd=source, env=_environment(str(home), tests)
        )
    else:
        inside = Path("/", source.relative_to(root))
        variables = _environment(str(inside.parent / "home"), tests)
        variables["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        words = [f"{name}={value}" for name, value in variables.items()]
        line = ["chroot", str(root), "/usr/bin/env", "-i", *words]
        line += ["sh", "-c", f"cd {inside} && {text}"]
        done = subprocess.run(line)
    print(f"# exit {done.returncode}, {time.monotonic() - started:.0f} s", flush=True)
    done.check_returncode()


def _prepare_root(root: Path) -> None:
    """Give a new root file system the way to the index."""
    for path in ("/etc/resolv.conf", _CERTIFICATES):
        if Path(path).exists():
            inside = root / path[1:]
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, inside)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--tests")
    args = parser.parse_args(argv)
    if args.root is not None:
        _prepare_root(args.root)
    where = None if args.root is None else args.root / "tmp"
    with TemporaryDirectory(dir=where) as directory:
        (Path(directory) / "home").mkdir()
        with tarfile.open(args.archive) as archive:
            archive.extractall(directory)
        (source,) = Path(directory).glob("drgn_hvo-*")
        for text in commands((source / "README.md").read_text()):
            print(f"$ {text}", flush=True)
            _run(text, source, args.root, args.tests)
    return 0


if __name__ == "__main__":
    sys.exit(main())
