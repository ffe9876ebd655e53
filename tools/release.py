# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Packages of a release
---------------------

Builds the source package and the wheel of a commit so that whoever builds them again
gets the same bytes. setuptools does so for wheels when ``SOURCE_DATE_EPOCH`` is set;
into source packages it puts the times of the checkout, which are replaced here.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
import subprocess
import sys
import tarfile

__all__ = ("build_release", "normalise_sdist")

_ROOT = Path(__file__).parents[1]


def _commit_time() -> int:
    """When the commit that is checked out was made, in seconds since 1970."""
    command = ["git", "-C", str(_ROOT), "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def normalise_sdist(path: Path, when: int) -> None:
    """
    Rewrite a source package without what differs from one build to the next: times,
    owners, and the order in which a file system lists files.

    :param when: Seconds since 1970, for all files.
    """
    with tarfile.open(path) as archive:
        members = [
            (entry, None if (file := archive.extractfile(entry)) is None else file)
            for entry in sorted(archive.getmembers(), key=lambda entry: entry.name)
        ]
        temporary = path.with_suffix(".tmp")
        with (
            open(temporary, "wb") as raw,
            gzip.GzipFile("", "wb", mtime=when, fileobj=raw) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as copy,
        ):
            for entry, content in members:
                entry.mtime, entry.pax_headers = when, {}
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
                copy.addfile(entry, content)
    temporary.replace(path)


def build_release(directory: Path) -> list[Path]:
    """Build both packages into *directory*, and give their paths."""
    when = int(os.environ.get("SOURCE_DATE_EPOCH") or _commit_time())
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(directory), str(_ROOT)],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(when)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    for path in directory.glob("*.tar.gz"):
        normalise_sdist(path, when)
    return sorted(directory.iterdir())


if __name__ == "__main__":
    for built in build_release(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")):
        print(f"{built} ({built.stat().st_size} bytes)")
