# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Commands on a kernel
--------------------

What ``drgn-hvo VERB TARGET`` and ``%hvo VERB`` in a drgn session have in common:
one entry of :data:`VERBS` each, with its options and what it does. What reads the
kernel is imported when a verb runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import os
import time
from typing import TYPE_CHECKING, Optional

from drgn import Program, ProgramFlags

from drgn_hvo.commands.document import print_document, printable, with_dump
from drgn_hvo.errors import UsageError

if TYPE_CHECKING:
    from drgn_hvo.commands.check import CheckScope
    from drgn_hvo.memmap.hvo import Hvo

__all__ = (
    "VERBS",
    "Session",
    "Verb",
    "add_assume_option",
    "add_force_option",
    "add_format_options",
    "assumptions",
    "check_scope",
    "session_of",
)


@dataclass(frozen=True)
class Session:
    """
    What a verb works on.

    :param target: What the user calls it.
    :param open: Gives what is known of it; may raise
        :exc:`~drgn_hvo.errors.HvoError`.
    """

    target: str
    open: Callable[[], Hvo]


def _target_name(prog: Program) -> str:
    path = prog.core_dump_path
    if path is not None:
        return path
    if not prog.flags & ProgramFlags.IS_LIVE:
        return "this program"
    return "live" if prog.flags & ProgramFlags.IS_LOCAL else "qemu"


def session_of(prog: Program, assume: Optional[Mapping[str, str]] = None) -> Session:
    """
    A session on a program that is open already.

    :param assume: Properties to override, see
        :data:`~drgn_hvo.kernel.bound.ASSUMPTIONS`.
    """

    def opened() -> Hvo:
        from drgn_hvo.memmap.hvo import hvo_of

        return hvo_of(prog, assume)

    return Session(_target_name(prog), opened)


@dataclass(frozen=True)
class Verb:
    """
    A command on one kernel.

    :param help: One line.
    :param add_options: Adds its options and arguments to a parser.
    :param run: Does it and gives the exit status.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Session, argparse.Namespace], int]


def _assumption(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def assumptions(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """
    What ``--assume`` options say together.

    :raises UsageError: if two of them contradict each other.
    """
    found: dict[str, str] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise UsageError(f"--assume says {key}={found[key]} and {key}={value}")
    return found


def add_assume_option(parser: argparse.ArgumentParser) -> None:
    """``--assume``, which all verbs have."""
    parser.add_argument(
        "--assume",
        metavar="KEY=VALUE",
        type=_assumption,
        action="append",
        default=[],
        help="override a detected property: encoding=pointer|mask, "
        "tail_layout=plain|fake-head|shared, vmemmap=ADDRESS",
    )


def add_format_options(
    parser: argparse._ActionsContainer, formats: Sequence[str] = ("text", "json")
) -> None:
    """``--format``, and ``--json`` for short, which all commands have."""
    parser.add_argument(
        "--format", choices=formats, default="text", help="how to print the result"
    )
    parser.add_argument(
        "--json",
        dest="format",
        action="store_const",
        const="json",
        help="the same as --format json",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    add_format_options(output)
    output.add_argument(
        "--drgn",
        action="store_true",
        help="print drgn code that finds out the same",
    )


def add_force_option(parser: argparse.ArgumentParser) -> None:
    """``--force``, which all commands that write a file have."""
    parser.add_argument(
        "--force", action="store_true", help="replace FILE if it exists"
    )


def _add_evidence_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--evidence", action="store_true", help="print how it was decided, too"
    )


def _add_show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folios", action="store_true", help="list every folio, too")
    _add_evidence_option(parser)
    _add_output_options(parser)
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write a page to look at instead, with memory, huge pages, shared tails "
        "and what check finds",
    )
    add_force_option(parser)


def _check_not_target(path: str, session: Session) -> None:
    """
    Check that a file to write is not what is read.

    :raises UsageError: if it is.
    """
    if os.path.realpath(path) == os.path.realpath(session.target):
        raise UsageError(f"{path}: is the target itself")


def _write_page(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.check import summary
    from drgn_hvo.commands.machine_page import machine_page
    from drgn_hvo.files import check_replaceable, replace_file

    if args.folios or args.drgn or args.format != "text":
        raise UsageError("--html takes no --folios, --drgn, --format or --json")
    _check_not_target(args.html, session)
    check_replaceable(args.html, force=args.force)
    page, checked = machine_page(session.open(), session.target)
    with replace_file(args.html, force=args.force) as file:
        file.write(page.encode())
    print(printable(f"{args.html}: {session.target}: {summary(checked)}"))
    return 0


def _run_show(session: Session, args: argparse.Namespace) -> int:
    if args.html is not None:
        return _write_page(session, args)
    if args.force:
        raise UsageError("--force needs --html FILE")
    from drgn_hvo.commands.drgn_code import show_code
    from drgn_hvo.commands.show import show_document
    from drgn_hvo.commands.show_text import print_show

    if args.drgn:
        print(show_code(session.open(), folios=args.folios), end="")
        return 0
    found = session.open()
    document = show_document(found, session.target, folios=args.folios, limits=True)
    document = with_dump(document, found.kernel.prog, found.kernel)
    print_text = partial(print_show, evidence=args.evidence)
    print_document(document, print_text, as_json=args.format == "json")
    return 0


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    add_format_options(parser, ("text", "json", "ktap"))
    parser.add_argument(
        "--deep",
        action="store_true",
        help="read all of vmemmap, not just what HVO used",
    )
    parser.add_argument(
        "--rules",
        metavar="ID,…",
        action="append",
        help="check only these rules (repeatable)",
    )
    parser.add_argument(
        "--ignore",
        metavar="ID,…",
        action="append",
        default=[],
        help="leave these rules out (repeatable)",
    )
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    _add_evidence_option(parser)


def check_scope(args: argparse.Namespace) -> CheckScope:
    """
    What the options of ``check`` ask for.

    :raises UsageError: if one names a rule that does not exist, or none is left.
    """
    from drgn_hvo.commands.check import CheckScope, parse_rules

    return CheckScope(
        deep=args.deep,
        only=None if args.rules is None else parse_rules(args.rules),
        ignore=parse_rules(args.ignore),
        strict=args.strict,
    )


def _run_check(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.check import check_document, exit_status, print_result
    from drgn_hvo.commands.ktap import print_ktap_document, print_ktap_plan

    scope = check_scope(args)
    start = time.monotonic()
    found = session.open()
    document = check_document(found, session.target, scope)
    document["duration_s"] = round(time.monotonic() - start, 3)
    document = with_dump(document, found.kernel.prog, found.kernel)
    if args.format == "ktap":
        print_ktap_plan(1)
        print_ktap_document(1, document, strict=scope.strict)
    else:
        print_result(document, args.format, evidence=args.evidence)
    return exit_status(document, strict=scope.strict)


_PAGE_HELP = (
    "pfn:N, page:0xADDR (a struct page), virt:0xADDR (kernel virtual), phys:0xADDR, "
    "task:PID:0xVADDR, or just a PFN"
)


def _add_page_options(parser: argparse.ArgumentParser) -> None:
    pages = parser.add_argument("pages", metavar="PAGE", nargs="+", help=_PAGE_HELP)
    # "*" would match nothing in front of an option, and refuse a PAGE behind it.
    pages.required = False
    parser.add_argument(
        "--oops",
        metavar="FILE",
        help="instead of PAGE: explain the reports about pages in this log "
        "('-': stdin, '@core': the log that the target holds)",
    )
    _add_evidence_option(parser)
    _add_output_options(parser)


def _run_page(session: Session, args: argparse.Namespace) -> int:
    if bool(args.pages) == (args.oops is not None):
        raise UsageError("page takes PAGE, or --oops FILE (--help shows usage)")
    if args.oops is not None:
        return _run_oops(session, args)
    from drgn_hvo.commands.drgn_code import page_code
    from drgn_hvo.commands.page import page_document
    from drgn_hvo.commands.page_text import print_pages
    from drgn_hvo.memmap.page_spec import parse_page_spec

    specs = [parse_page_spec(text) for text in args.pages]
    if args.drgn:
        print(page_code(specs), end="")
        return 0
    document = page_document(session.open(), session.target, specs)
    print_text = partial(print_pages, evidence=args.evidence)
    print_document(document, print_text, as_json=args.format == "json")
    return 0


#: The log that the target holds, for ``--oops``.
LOG_OF_CORE = "@core"


def _run_oops(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.oops import log_of_core, oops_document
    from drgn_hvo.commands.oops_text import print_oopses
    from drgn_hvo.formats.oops_log import read_log

    if args.drgn:
        raise UsageError("--drgn needs PAGE: a log has no equivalent in drgn")
    if args.evidence:
        raise UsageError("--evidence needs PAGE: of a log, all is printed")
    same_boot = args.oops == LOG_OF_CORE
    hvo = session.open() if same_boot else None
    log = read_log(args.oops) if hvo is None else log_of_core(hvo)
    document = oops_document(
        hvo or session.open(), session.target, log, same_boot=same_boot
    )
    print_document(document, print_oopses, as_json=args.format == "json")
    return 0


def _add_map_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("page", metavar="PAGE", help=_PAGE_HELP)
    output = parser.add_mutually_exclusive_group()
    add_format_options(output, ("text", "json", "svg"))
    output.add_argument(
        "--svg",
        dest="format",
        action="store_const",
        const="svg",
        help="print the picture as SVG; the same as --format svg",
    )


def _run_map(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.map import map_document, print_map
    from drgn_hvo.memmap.page_spec import parse_page_spec

    spec = parse_page_spec(args.page)
    document = map_document(session.open(), session.target, spec)
    if args.format == "svg":
        from drgn_hvo.commands.map_svg import map_svg

        print(map_svg(document), end="")
        return 0
    print_document(document, print_map, as_json=args.format == "json")
    return 0


def _add_holder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("page", metavar="PAGE", help=_PAGE_HELP)
    add_format_options(parser)


def _run_who(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.who import print_who, who_document
    from drgn_hvo.memmap.page_spec import parse_page_spec

    spec = parse_page_spec(args.page)
    document = who_document(session.open(), session.target, spec)
    print_document(document, print_who, as_json=args.format == "json")
    return 0


def _run_sharers(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.sharers import print_sharers, sharers_document
    from drgn_hvo.memmap.page_spec import parse_page_spec

    spec = parse_page_spec(args.page)
    document = sharers_document(session.open(), session.target, spec)
    print_document(document, print_sharers, as_json=args.format == "json")
    return 0


def _add_diff_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "other",
        metavar="OTHER",
        help="what to compare with: a later core, or 'live' or 'qemu:ADDRESS', read "
        "after the first was",
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="how long to wait in between, for two moments of a running kernel",
    )
    add_format_options(parser)


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def _run_diff(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.diff import diff_document, print_diff, side_of
    from drgn_hvo.kernel.target import open_target
    from drgn_hvo.memmap.hvo import hvo_of

    first = session.open()
    before = side_of(first, session.target)
    time.sleep(args.wait)
    # QEMU talks to one at a time: the same target is read again, not opened again.
    prog = first.kernel.prog
    if args.other != session.target:
        # On the command line, debuginfo is for both.
        prog = open_target(args.other, getattr(args, "symbols", ()))
    after = side_of(hvo_of(prog, assumptions(args.assume)), args.other)
    document = diff_document(before, after)
    print_document(document, print_diff, as_json=args.format == "json")
    return 0


def _add_heads_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pfns", metavar="A-B", help="only these PFNs, both included (default: all)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.npy",
        required=True,
        help="uint64 head PFNs, one a PFN; all ones where no struct page was "
        "initialised",
    )
    add_force_option(parser)
    add_format_options(parser)


def _run_heads(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.heads import (
        heads_document,
        parse_pfn_range,
        print_heads,
        write_heads,
    )

    pfns = None if args.pfns is None else parse_pfn_range(args.pfns)
    _check_not_target(args.output, session)
    hvo = session.open()
    written = write_heads(hvo, args.output, pfns, force=args.force)
    document = heads_document(hvo, session.target, args.output, written)
    print_document(document, print_heads, as_json=args.format == "json")
    return 0


#: All verbs, in the order in which help lists them.
VERBS = (
    Verb(
        "show",
        "kernel, layout, shared tails, pools, savings",
        _add_show_options,
        _run_show,
    ),
    Verb("check", "integrity audit", _add_check_options, _run_check),
    Verb("page", "explain struct pages", _add_page_options, _run_page),
    Verb(
        "map",
        "draw how a folio's struct pages are mapped",
        _add_map_options,
        _run_map,
    ),
    Verb(
        "who",
        "find all who have a huge page: files, processes, pins",
        _add_holder_options,
        _run_who,
    ),
    Verb(
        "sharers",
        "find the huge pages whose tails lie on one page",
        _add_holder_options,
        _run_sharers,
    ),
    Verb(
        "diff",
        "compare two dumps, or two moments of a running kernel",
        _add_diff_options,
        _run_diff,
    ),
    Verb(
        "heads",
        "resolve the heads of all pages into a file",
        _add_heads_options,
        _run_heads,
    ),
)
