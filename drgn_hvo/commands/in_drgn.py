# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``%hvo``
--------

The verbs of :mod:`drgn_hvo.commands.verbs` in a drgn session: ``%hvo show``. drgn's
commands have no subcommands, so the first word is looked up here. Importing this
module registers the command; the verbs are imported when it is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from drgn import Program
from drgn.commands import CommandArgumentError, CommandError, parse_shell_command
from drgn.commands.linux import linux_kernel_custom_command

from drgn_hvo.commands.document import print_json, printable
from drgn_hvo.commands.failures import bug, failure, output_failure

if TYPE_CHECKING:
    from drgn_hvo.commands.verbs import Session, Verb

__all__ = ("verb_makers",)


class _HelpPrintedError(Exception):
    """Help was asked for and printed."""


class _CommandParser(argparse.ArgumentParser):
    """Raises where argparse would end the process, and guesses no option."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        if not status:
            raise _HelpPrintedError
        raise CommandArgumentError((message or "").rstrip())

    def error(self, message: str) -> NoReturn:
        raise CommandArgumentError(
            f"{self.prog}: error: {message} (--help shows usage)"
        )


#: More verbs than those of :mod:`drgn_hvo.commands.verbs`, each made when the command
#: is used: the plugin adds those that rooms above this one have.
verb_makers: list[Callable[[], Verb]] = []


def _run_rules(_session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.catalogues import print_rules, rules_document

    if args.format == "json":
        print_json(rules_document())
    else:
        print_rules()
    return 0


def _run_defects(_session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.catalogues import defects_document, print_defects

    if args.format == "json":
        print_json(defects_document())
    else:
        print_defects()
    return 0


def _verbs() -> list[Verb]:
    """All verbs of a session."""
    from drgn_hvo.commands.verbs import VERBS, Verb, add_format_options

    return [
        *VERBS,
        *(make() for make in verb_makers),
        Verb("rules", "what check checks", add_format_options, _run_rules),
        Verb("defects", "known kernel defects", add_format_options, _run_defects),
    ]


def _add_verb(commands: argparse._SubParsersAction[_CommandParser], verb: Verb) -> None:
    from drgn_hvo.commands.verbs import add_assume_option

    parser = commands.add_parser(verb.name, help=verb.help, description=verb.help)
    verb.add_options(parser)
    if verb.name == "check":
        # As on a command line, where there can be many targets.
        parser.add_argument(
            "-j",
            metavar="N",
            type=int,
            help="as on the command line; one target takes one process",
        )
    add_assume_option(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(verb=verb)


def _parser() -> _CommandParser:
    parser = _CommandParser(prog="hvo", description=_DESCRIPTION)
    commands = parser.add_subparsers(metavar="VERB")
    for verb in _verbs():
        _add_verb(commands, verb)
    return parser


def _run(prog: Program, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.verbs import assumptions, session_of
    from drgn_hvo.kernel.dump import with_complaint

    verb: Verb = args.verb
    try:
        return verb.run(session_of(prog, assumptions(args.assume)), args)
    except (BrokenPipeError, CommandError):
        raise
    except OSError as e:
        raise CommandError(printable(output_failure(e))) from None
    except Exception as e:
        known = failure(e)
        if known is not None:
            raise CommandError(printable(with_complaint(known, prog))) from None
        if args.debug:
            traceback.print_exc()
        raise CommandError(bug(e, "; --debug shows where")) from e


_DESCRIPTION = "Explain HugeTLB Vmemmap Optimization (HVO) in this kernel."


@linux_kernel_custom_command(  # type: ignore[untyped-decorator] # drgn gives it no types
    name="hvo",
    description="explain HugeTLB Vmemmap Optimization (HVO)",
    usage="**hvo** [**--help**] *VERB* ...",
    long_description=_DESCRIPTION,
    epilog="%hvo alone lists the verbs, %hvo VERB --help the options of one.",
    parse=parse_shell_command,
)
def _cmd_hvo(
    prog: Program, _name: str, args: Sequence[str], **_kwargs: Any
) -> Optional[int]:
    parser = _parser()
    if not args:
        parser.print_help()
        return None
    try:
        parsed = parser.parse_args(args)
    except _HelpPrintedError:
        return None
    # drgn's commands return None; check's status is for scripts.
    return _run(prog, parsed) or None
