# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Files of results
----------------

A file appears under its name when it is complete, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import os
from pathlib import Path
import secrets
from typing import IO, Optional, Union

from drgn_hvo.errors import UsageError

__all__ = ("check_replaceable", "replace_file")

# Open files of this process, by their numbers.
_OWN_FILES = "/proc/self/fd"

# Bytes of a name, of which file systems take 255.
_NAME = 200

# What open(2) says of O_TMPFILE where a file system, or a kernel, has no such files.
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR)


def check_replaceable(path: Union[str, Path], *, force: bool) -> None:
    """
    Check whether :func:`replace_file()` may write a file, before much work is done.

    :param force: Whether a file that is there may be replaced.
    :raises UsageError: if it may not.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; use --force to replace it")


@contextmanager
def replace_file(path: Union[str, Path], *, force: bool) -> Iterator[IO[bytes]]:
    """
    A new file that takes the place of *path* if all goes well; whatever goes wrong,
    Ctrl-C included, *path* is then as it was.

    :param force: Whether a file that is there may be replaced.
    :raises UsageError: if it cannot be written, or is there and must stay.
    """
    check_replaceable(path, force=force)
    path = Path(path)
    # A name may be as long as any, and this one has to be longer.
    name = os.fsencode(path.name)[:_NAME].decode(errors="ignore")
    temporary = path.with_name(f".{name}.{secrets.token_hex(8)}")
    try:
        with _unnamed(path.parent) as file:
            if file is not None:
                yield file
                file.flush()
                # link(2) replaces nothing.
                _name(file.fileno(), temporary)
                temporary.replace(path)
                return
        # Unlike mkstemp(), with the permissions that any new file gets; and wherever
        # a signal comes, the name is known.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, 0o666), "w+b") as file:
            yield file
        temporary.replace(path)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _unnamed(directory: Path) -> Iterator[Optional[IO[bytes]]]:
    """
    A file without a name, of which nothing is left if the process is killed; ``None``
    where there are no such files.
    """
    try:
        if not os.path.isdir(_OWN_FILES):
            raise OSError(errno.EOPNOTSUPP, "nothing names open files")
        flags = os.O_RDWR | os.O_TMPFILE
        descriptor = os.open(directory, flags, 0o666)
    except OSError as e:
        if e.errno not in _NO_UNNAMED:
            raise
        yield None
        return
    with os.fdopen(descriptor, "w+b") as file:
        yield file


def _name(descriptor: int, path: Path) -> None:
    """Give an open file a name, as open(2) says of ``O_TMPFILE``."""
    # A directory has to be named for Python to follow the link; which one is all the
    # same for an absolute path.
    os.link(f"{_OWN_FILES}/{descriptor}", path, src_dir_fd=descriptor)
