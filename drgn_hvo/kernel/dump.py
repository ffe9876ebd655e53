# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The dump behind a program
-------------------------

What a core dump says of its own health, for programs that read one.
"""

from __future__ import annotations

from dataclasses import dataclass
import os
from typing import Optional

from drgn import Program

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.dump_health import DumpHealth, read_dump_health

__all__ = ("Dump", "dump_of", "remember_dump", "with_complaint")

_CACHE_KEY = "drgn_hvo.kernel.dump"


@dataclass(frozen=True)
class Dump:
    """
    A file that a program reads.

    :param mtime: When it was last changed, in seconds since 1970.
    """

    path: str
    mtime: float
    health: DumpHealth

    @property
    def complaints(self) -> list[str]:
        """What is wrong with it, one line each."""
        return self.health.complaints()


def remember_dump(prog: Program, path: str, health: DumpHealth) -> None:
    """Note what a file says of itself, of which a program was made."""
    prog.cache[_CACHE_KEY] = Dump(path, os.stat(path).st_mtime, health)


def dump_of(prog: Program) -> Optional[Dump]:
    """
    The dump that a program reads.

    :return: ``None`` for a running kernel, for memory that is no file, and for a file
        of which nothing can be said.
    """
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = _read(prog.core_dump_path)
    found: Optional[Dump] = prog.cache[_CACHE_KEY]
    return found


def with_complaint(message: str, prog: Optional[Program]) -> str:
    """
    What to say of an error: first what is wrong with the dump, which is likely why.

    :param prog: The program, if it was opened at all.
    """
    dump = None if prog is None else dump_of(prog)
    if dump is None or not dump.complaints:
        return message
    return f"the dump is {dump.complaints[0]}; {message}"


def _read(path: Optional[str]) -> Optional[Dump]:
    if path is None:
        return None
    try:
        with open(path, "rb") as f:
            health = read_dump_health(f)
            mtime = os.fstat(f.fileno()).st_mtime
    except (FormatError, OSError):
        return None
    return None if health is None else Dump(os.fspath(path), mtime, health)
