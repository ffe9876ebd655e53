# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The command line, as data
-------------------------

argparse has no public way to ask a parser what was added to it, which all that is made
from ours needs: the man page, completions, the reference, and tests of them.
"""

from __future__ import annotations

import argparse
from typing import Optional

from drgn_hvo.cli import command_line

__all__ = ("arguments", "commands")


def commands(
    parser: Optional[argparse.ArgumentParser] = None,
) -> dict[str, argparse.ArgumentParser]:
    """
    The parsers of all commands, by name.

    :param parser: That of the whole command line; by default a new one.
    """
    for action in (parser or command_line())._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def arguments(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a command takes, without ``--help``."""
    actions = command._actions
    return [a for a in actions if not isinstance(a, argparse._HelpAction)]
