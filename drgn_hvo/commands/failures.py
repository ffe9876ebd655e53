# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Failures
--------

What a user is told of an exception, wherever it ends: on the command line, in a drgn
session, or in the document of one target among several.
"""

from __future__ import annotations

from typing import Optional

from drgn import BadDataError, FaultError

from drgn_hvo.errors import HvoError

__all__ = ("EXIT_BUG", "EXIT_USAGE", "bug", "failure", "output_failure")

EXIT_USAGE = 2
EXIT_BUG = 70

# Errors that are no bugs, and what to say of them.
_KNOWN: tuple[tuple[type[Exception], str], ...] = (
    (HvoError, "{}"),
    (FaultError, "not in this dump: {}"),
    # drgn cannot make sense of VMCOREINFO, or of the file.
    (BadDataError, "the dump is damaged: {}"),
    # What libkdumpfile says of a line of VMCOREINFO has that line in it. Nothing that
    # we decode ourselves raises this.
    (
        UnicodeDecodeError,
        "the dump is damaged: VMCOREINFO, or what is said of it, is no text",
    ),
    (MemoryError, "not enough memory for this target"),
)


def failure(error: Exception) -> Optional[str]:
    """What to say of an error; ``None`` if it is a bug of drgn-hvo."""
    for kind, text in _KNOWN:
        if isinstance(error, kind):
            return text.format(error)
    return None


def output_failure(error: OSError) -> str:
    """What to say of a result that cannot be written."""
    return f"{error.filename or 'output'}: {error.strerror or error}"


def bug(error: Exception, hint: str = "") -> str:
    """
    What to say of any other error.

    :param hint: How to find out more.
    """
    message = f"internal error: {type(error).__name__}: {error} (a bug in drgn-hvo"
    return f"{' '.join(message.split())}{hint})"
