# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Lists of targets
----------------

What the user names, spelled out: directories become the cores below them, a file gives
a target a line, and what an earlier run has done is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import os
from pathlib import Path
import sys
from typing import Any, Optional

from drgn_hvo.errors import UsageError
from drgn_hvo.formats.elf_segments import ELF_MAGIC
from drgn_hvo.formats.kdump import FLATTENED_SIGNATURE, KDUMP_SIGNATURE

__all__ = ("expand_targets", "without_done")

# What begins a dump that is no ELF file. Those of diskdump cannot be opened, but are
# cores: better refused than passed over.
_SIGNATURES = (KDUMP_SIGNATURE, FLATTENED_SIGNATURE, b"DISKDUMP")

# As e_type in an ELF header says in either byte order: ET_CORE. Directories of cores
# have kernels and modules beside them.
_ET_CORE = (b"\4\0", b"\0\4")
_E_TYPE = slice(16, 18)

# A line longer than any path is no list of targets.
_MAX_LINE = 1 << 16


def expand_targets(named: Sequence[str], from_file: Optional[str]) -> list[str]:
    """
    All targets, in the order given.

    :param named: Cores, directories, ``live`` or ``qemu:ADDRESS``.
    :param from_file: A file with a target a line; ``-`` is stdin.
    :raises UsageError: if there is none, or a list cannot be read.
    """
    found: list[str] = []
    for target in (*named, *_lines(from_file)):
        if os.path.isdir(target):
            cores = list(_cores_below(target))
            if not cores:
                raise UsageError(f"{target}: there is no core below this directory")
            found += cores
        else:
            found.append(target)
    if not found:
        raise UsageError("no target: name one, or give --targets-from a list of them")
    return found


def _lines(path: Optional[str]) -> Iterator[str]:
    if path is None:
        return
    if path == "-":
        yield from _targets_in(sys.stdin, path)
        return
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as f:
            yield from _targets_in(f, path)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None


def _targets_in(lines: Iterable[str], path: str) -> Iterator[str]:
    for line in lines:
        if len(line) > _MAX_LINE or "\0" in line:
            raise UsageError(f"{path}: not a list of targets, one a line")
        target = line.rstrip("\n")
        if target.strip():
            yield target


def _cores_below(directory: str) -> Iterator[str]:
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if _is_core(path):
                yield path


def _is_core(path: str) -> bool:
    """Whether a file begins as a core does; what cannot be read may be one."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as f:
            head = f.read(_E_TYPE.stop)
    except OSError:
        return True
    if head.startswith(ELF_MAGIC):
        return head[_E_TYPE] in _ET_CORE
    return head.startswith(_SIGNATURES)


def without_done(targets: Sequence[str], path: str) -> list[str]:
    """
    The targets that an earlier run has not audited, or that have changed since: by
    path, size and time of the last change.

    :param path: What ``check --format json`` printed then.
    :raises UsageError: if it cannot be read.
    """
    done = set(_done(path))
    return [target for target in targets if _key(target) not in done]


def _done(path: str) -> Iterator[tuple[Any, ...]]:
    import json

    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                try:
                    document = json.loads(line)
                    dump = document["dump"]
                    if document["status"] != "error":
                        yield document["target"], dump["size"], dump["mtime"]
                except (ValueError, LookupError, TypeError, RecursionError):
                    # The last line of a run that was interrupted.
                    continue
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None


def _key(target: str) -> Optional[tuple[Any, ...]]:
    try:
        status = Path(target).stat()
    except (OSError, ValueError):
        return None
    return target, status.st_size, status.st_mtime
