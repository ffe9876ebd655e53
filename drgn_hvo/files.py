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
import tempfile
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
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
        # mkstemp() makes files private; this one gets what any new file gets.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
