# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Lists of targets
----------------

What the user names, spelled out: directories become the cores below them, a file gives
a target a line, and what an earlier run has done is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import os
from pathlib import Path
import sys
from typing import BinaryIO, Optional

from drgn_hvo.errors import UsageError
from drgn_hvo.formats.elf_segments import ELF_MAGIC
from drgn_hvo.formats.kdump import FLATTENED_SIGNATURE, KDUMP_SIGNATURE

__all__ = ("drop_cut_line", "expand_targets", "without_done")

# What begins a dump that is no ELF file. Those of diskdump cannot be opened, but are
# cores: better refused than passed over.
_SIGNATURES = (KDUMP_SIGNATURE, FLATTENED_SIGNATURE, b"DISKDUMP")

# As e_type in an ELF header says in either byte order: ET_CORE. Directories of cores
# have kernels and modules beside them.
_ET_CORE = (b"\4\0", b"\0\4")
_E_TYPE = slice(16, 18)

# A line longer than any path is no list of targets, and one longer than any result no
# list of those: findings are folded, and the ones of a machine take a MiB at most.
_MAX_LINE = 1 << 16
_MAX_DOCUMENT = 64 << 20

# How each of our documents begins.
_DOCUMENT = b'{"schema": '

# What editors of Windows begin a text with.
_BOM = b"\xef\xbb\xbf"


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
        # Python's sign of a stdin that was closed before it began.
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        yield from _targets_in(sys.stdin.buffer, path)
        return
    try:
        with open(path, "rb") as f:
            yield from _targets_in(f, path)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None


def _bounded_lines(f: BinaryIO, longest: int, path: str, what: str) -> Iterator[bytes]:
    """
    The lines of a file, which may be endless.

    :raises UsageError: if one is longer than it can be.
    """
    while True:
        line = f.readline(longest + 1)
        if not line:
            return
        if len(line) > longest:
            raise UsageError(f"{path}: {what}")
        yield line


def _targets_in(f: BinaryIO, path: str) -> Iterator[str]:
    what = "not a list of targets, one a line"
    for number, line in enumerate(_bounded_lines(f, _MAX_LINE, path, what)):
        if b"\0" in line:
            raise UsageError(f"{path}: {what}")
        if number == 0 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        if line.endswith(b"\r\n"):
            line = line[:-2]
        if line.strip():
            # As the names of files that are given on the command line.
            yield os.fsdecode(line.rstrip(b"\n"))


def _cores_below(directory: str) -> Iterator[str]:
    """
    The cores, and directories that cannot be read: as targets, these are errors, and
    what is in them is not missing without a word.
    """
    unread: list[OSError] = []
    for folder, folders, names in os.walk(directory, onerror=unread.append):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if _is_core(path):
                yield path
    yield from (os.fsdecode(e.filename) for e in unread)


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


def without_done(
    targets: Sequence[str], path: str, *, strict: bool
) -> tuple[list[str], set[int]]:
    """
    The targets that an earlier run has not audited, or that have changed since: by
    path, size and time of the last change.

    :param path: What ``check --format json`` printed then.
    :param strict: Whether warnings count.
    :return: Also the exit statuses of the others, which are those of this run, too.
    :raises UsageError: if it cannot be read.
    """
    done = dict(_done(path, strict))
    keys = [_key(target) for target in targets]
    left = [target for target, key in zip(targets, keys) if key not in done]
    return left, {done[key] for key in keys if key is not None and key in done}


def drop_cut_line(path: str) -> None:
    """
    Where results are added to those of an earlier run that was killed, as with
    ``--resume FILE >>FILE``: let the first one begin a line. The half of a result that
    the other run left has no use, and would keep readers of JSON from the rest.

    :param path: What that run printed.
    """
    try:
        out = sys.stdout.fileno()
    except OSError:
        # What stands in for it is no file.
        return
    with open(path, "rb") as f:
        if not os.path.samestat(os.fstat(f.fileno()), os.fstat(out)):
            return
        start, last = 0, b""
        for line in f:
            start, last = start + len(last), line
    if last.endswith(b"\n") or not last:
        return
    if last.startswith(_DOCUMENT[: len(last)]) and _result_in(last, False) is None:
        os.ftruncate(out, start)
    else:
        os.write(out, b"\n")


# Path, size and time of the last change.
_Key = tuple[str, int, float]


def _done(path: str, strict: bool) -> Iterator[tuple[_Key, int]]:
    try:
        with open(path, "rb") as f:
            what = "not what check --format json prints"
            for line in _bounded_lines(f, _MAX_DOCUMENT, path, what):
                result = _result_in(line, strict)
                if result is not None:
                    yield result
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from None


def _result_in(line: bytes, strict: bool) -> Optional[tuple[_Key, int]]:
    """
    What was audited, and the exit status of it. ``None`` for an error, and for the last
    line of a run that was interrupted.
    """
    import json

    from drgn_hvo.commands.check import exit_status

    try:
        document = json.loads(line)
        if document["status"] == "error":
            return None
        target, dump = document["target"], document["dump"]
        size, mtime = dump["size"], dump["mtime"]
        status = exit_status(document, strict=strict)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    is_key = isinstance(target, str) and isinstance(size, int)
    if not is_key or not isinstance(mtime, (int, float)):
        return None
    return (target, size, mtime), status


def _key(target: str) -> Optional[_Key]:
    try:
        status = Path(target).stat()
    except (OSError, ValueError):
        return None
    return target, status.st_size, status.st_mtime
