# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Man page and completions
------------------------

Makes what the package installs for shells and ``man`` from the parser of the command
line, so that neither can say what the program does not do: ``share/man`` with
argparse-manpage, completions for bash, zsh and fish with shtab.
"""

from __future__ import annotations

from pathlib import Path
import re
import sys

from drgn_hvo import __version__
from drgn_hvo.cli import EXIT_STATUSES, command_line
from tools.command_line import arguments, commands

__all__ = ("SHELL_FILES", "completion", "man_page", "write_shell_files")

#: Where distributions look for each, below their ``share``.
SHELL_FILES = {
    "man": "man/man1/drgn-hvo.1",
    "bash": "bash-completion/completions/drgn-hvo",
    "zsh": "zsh/site-functions/_drgn-hvo",
    "fish": "fish/vendor_completions.d/drgn-hvo.fish",
}

# What stands for a file in the help of commands.
_FILES = ("DESCRIPTION", "FILE", "FILE.npy", "OTHER", "PATH", "TARGET")

_SEE_ALSO = """\
.SH SEE ALSO
.BR drgn (1),
.BR crash (8),
.BR makedumpfile (8)
.PP
The documentation of the project explains rules, defects, JSON and the helpers for
sessions of drgn.
"""


def completion(shell: str) -> str:
    """The completion for a shell, a key of :data:`SHELL_FILES`."""
    import shtab

    parser = command_line()
    for command in commands(parser).values():
        for argument in arguments(command):
            if argument.metavar in _FILES:
                argument.complete = shtab.FILE  # type: ignore[attr-defined] # shtab's own
    text: str = shtab.complete(parser, shell=shell)
    # shtab leaves spaces behind some lines.
    return re.sub(r"[ \t]+\n", "\n", text).rstrip("\n") + "\n"


def man_page() -> str:
    """``drgn-hvo.1``."""
    from argparse_manpage.manpage import Manpage

    page = Manpage(command_line(), format="single-commands-section")
    page.description = "explain HugeTLB Vmemmap Optimization in Linux kernels"
    text = re.sub(r"(?m)^\.TH .*$", _title(), str(page), count=1)
    # A quote that begins a line would begin a request of roff.
    text = re.sub(r"(?m)^'", r"\\&'", text)
    text = text.replace(".SH POSITIONAL ARGUMENTS", ".SH COMMANDS")
    return text.rstrip("\n") + "\n" + _exit_statuses() + _SEE_ALSO


def _title() -> str:
    # Without a date: the page is the same whenever it is made.
    return f'.TH DRGN-HVO 1 "" "drgn-hvo {__version__}" "User Commands"'


def _exit_statuses() -> str:
    lines = [".SH EXIT STATUS"]
    for status, text in EXIT_STATUSES.items():
        lines += [".TP", f".B {status}", text]
    return "\n".join(lines) + "\n"


def write_shell_files(directory: Path) -> None:
    """Write all of them below *directory*."""
    for kind, name in SHELL_FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(man_page() if kind == "man" else completion(kind))


if __name__ == "__main__":
    write_shell_files(Path(sys.argv[1] if len(sys.argv) > 1 else "share"))
