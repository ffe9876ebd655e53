# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The command line, called
------------------------

In this process, which saves the third of a second that a new one takes to import drgn
and NumPy; and how to start a real one, for what only processes have: signals, pipes,
descriptors.
"""

import contextlib
import io
import logging
import os
from pathlib import Path
from subprocess import CompletedProcess
import sys

from drgn_hvo.cli import main

__all__ = (
    "COMMAND",
    "captured",
    "check_refused",
    "is_running",
    "run",
    "without_reasons",
)

#: A real process.
COMMAND = [sys.executable, "-m", "drgn_hvo"]


def captured(args, call):
    """
    What a call that stands for a process writes and how it ends.

    :param args: What it stands for.
    :param call: Returns or exits with a status.
    """
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger("drgn")
    level, environment = logger.level, dict(os.environ)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = call()
    except SystemExit as e:
        if isinstance(e.code, str):
            err.write(f"{e.code}\n")
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        logger.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
    return CompletedProcess(args, status or 0, out.getvalue(), err.getvalue())


def run(*args):
    """``drgn-hvo`` with arguments of any type: status, output and errors, as text."""
    words = [str(arg) for arg in args]
    return captured(words, lambda: main(words))


def check_refused(result, *words):
    """One line on stderr, nothing on stdout, exit 2."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def is_running(pid):
    """Whether there is such a process, and it has not ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # What is dead and was not waited for still has an entry.
    return text.rpartition(")")[2].split()[0] != "Z"


def without_reasons(text):
    """
    The text of a command without why something is not known: of an extract, that is
    that it is one.
    """
    return [line for line in text.splitlines() if "not known: " not in line]
