# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Files of results
----------------

A file appears under its name when it is complete, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import secrets
from typing import IO, Union

from drgn_hvo.errors import UsageError

__all__ = ("check_replaceable", "replace_file")


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
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
