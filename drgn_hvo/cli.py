# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Command line
------------

``drgn-hvo``: targets, exit statuses, and what needs no kernel. The commands on a
kernel are those of :mod:`drgn_hvo.commands.verbs`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from drgn_hvo import __version__
from drgn_hvo.commands.document import (
    clipped,
    envelope,
    print_document,
    print_json,
    printable,
)
from drgn_hvo.commands.failures import (
    EXIT_BUG,
    EXIT_USAGE,
    bug,
    failure,
    output_failure,
)
from drgn_hvo.commands.verbs import (
    VERBS,
    Session,
    Verb,
    add_assume_option,
    add_force_option,
    add_format_options,
    assumptions,
    check_scope,
)
from drgn_hvo.errors import HvoError, UsageError
from drgn_hvo.formats.what_ran import what_ran
from drgn_hvo.progress import discard, progress_as_json, say
from drgn_hvo.synth import CONTAINER_NAMES

if TYPE_CHECKING:
    from drgn import Program

    from drgn_hvo.memmap.hvo import Hvo

__all__ = ("EXIT_STATUSES", "command_line", "main")

#: What scripts can rely on.
EXIT_STATUSES = {
    0: "the command did its job; check: clean, or warnings only",
    1: "check found errors, or with --strict warnings",
    2: "usage, or the target cannot be opened or understood",
    3: "check found no error, but could not decide everything",
    70: "a bug in drgn-hvo",
    130: "interrupted",
    141: "the reader of the output went away",
}

# GiB for each of several targets: the largest machines that were measured, 4 TiB, take
# one. It is the last fence against a core made to eat the memory of its reader.
_MEMORY = 16

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which accepts no abbreviated options."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own swallows that the message could not be written.
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        said = clipped(printable(message))
        self.exit(EXIT_USAGE, f"{self.prog}: error: {said} (--help shows usage)\n")


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    """Those of commands on targets."""
    parser.add_argument(
        "-s",
        "--symbols",
        metavar="PATH",
        action="append",
        default=[],
        help="load the kernel's debuginfo from this file; never required",
    )
    parser.add_argument(
        "--vmcoreinfo",
        metavar="PATH",
        help="read VMCOREINFO from this file, for a core that has none",
    )
    add_assume_option(parser)
    _add_progress_option(parser)
    _add_debug_option(parser)


def _add_debug_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_progress_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        choices=("auto", "json"),
        default="auto",
        help="how to say on stderr how far it is: a bar on a terminal, or JSON lines",
    )


_TARGET_HELP = "a core, 'live', or 'qemu:ADDRESS' (QMP socket)"


@dataclass(frozen=True)
class _Command:
    """
    A command.

    :param add_options: Its options. They are added when they are needed: those of all
        commands take longer than some commands do.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]


def _on_targets(
    add_options: Callable[[argparse.ArgumentParser], None], nargs: Optional[str] = None
) -> Callable[[argparse.ArgumentParser], None]:
    """Options of a command on a target, or on several."""

    def add(parser: argparse.ArgumentParser) -> None:
        _add_common_options(parser)
        parser.add_argument("target", metavar="TARGET", nargs=nargs, help=_TARGET_HELP)
        add_options(parser)

    return add


def _command_of(verb: Verb) -> _Command:
    if verb.name != "check":
        return _Command(
            verb.name, verb.help, _run_verb(verb), _on_targets(verb.add_options)
        )

    def add_options(parser: argparse.ArgumentParser) -> None:
        _add_fleet_options(parser)
        verb.add_options(parser)

    return _Command(verb.name, verb.help, _run_check, _on_targets(add_options, "*"))


def _add_fleet_options(parser: argparse.ArgumentParser) -> None:
    """What only makes sense for several targets, or for one in a process of its own."""
    parser.add_argument(
        "--targets-from",
        metavar="FILE",
        help="more targets, one a line ('-': stdin)",
    )
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="leave out what FILE, the JSON lines of an earlier run, has already",
    )
    parser.add_argument(
        "-j",
        dest="jobs",
        metavar="N",
        type=_jobs,
        default=1,
        help="how many processes audit at the same time, several targets or one large "
        "core",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive,
        help="give a target up after this long, and go on with the others",
    )
    parser.add_argument(
        "--memory",
        metavar="GIB",
        type=_positive,
        help=f"give a target up that needs more memory (several targets: {_MEMORY})",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="audit on the Dask cluster of this scheduler, tcp://HOST:PORT, whose "
        "workers see the targets by the same paths; 'local' starts one here",
    )


def command_line(asked: Optional[str] = None) -> _Parser:
    """
    The parser of all commands; what it parses says in ``run`` which one to run.

    :param asked: The only command whose options are needed; by default those of all.
    """
    parser = _Parser(
        prog="drgn-hvo",
        description="Explain HugeTLB Vmemmap Optimization (HVO) in a Linux kernel.",
        epilog="Exit status: "
        + "; ".join(f"{status}: {text}" for status, text in EXIT_STATUSES.items())
        + f". {what_ran()}",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(run=lambda _args: _print_help(parser), debug=False)
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_help(commands, parser)
    for command in _commands():
        one = commands.add_parser(command.name, help=command.help)
        one.set_defaults(run=command.run)
        if asked in (None, command.name):
            command.add_options(one)
    return parser


def _asked(argv: Sequence[str]) -> Optional[str]:
    """The command that is asked for; ``None`` if that needs the options of all."""
    command = next((word for word in argv if not word.startswith("-")), None)
    return None if command == "help" else command


def _commands() -> Iterator[_Command]:
    from drgn_hvo.session_verbs import add_extract_options

    yield from map(_command_of, VERBS)
    yield _Command(
        "extract",
        "minimal core to share, without user data",
        _run_extract,
        _on_targets(add_extract_options),
    )
    yield _Command("synth", "write a synthetic vmcore", _run_synth, _add_synth_options)
    yield _Command(
        "oops",
        "explain the reports about pages in a log, without a core",
        _run_oops,
        _add_oops_options,
    )
    yield _Command(
        "demo",
        "show every command at work on a small core that came along",
        _run_demo,
        _add_debug_option,
    )
    yield _Command("rules", "what check checks", _run_rules, add_format_options)
    yield _Command(
        "faults", "what damage synth can do", _run_faults, add_format_options
    )
    yield _Command(
        "defects",
        "known kernel defects that check recognises",
        _run_defects,
        add_format_options,
    )


def _print_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


def _add_help(commands: argparse._SubParsersAction[_Parser], parser: _Parser) -> None:
    help_command = commands.add_parser("help", help="show this, or a command's help")
    help_command.add_argument("command", metavar="COMMAND", nargs="?")

    def run(args: argparse.Namespace) -> int:
        if args.command is not None and args.command not in commands.choices:
            help_command.error(f"there is no command {args.command!r}")
        return _print_help(commands.choices.get(args.command, parser))

    help_command.set_defaults(run=run)


def _add_oops_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="FILE", help="the log ('-': stdin)")
    add_format_options(parser)
    _add_debug_option(parser)


def _add_synth_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "description", metavar="DESCRIPTION", help="TOML file that says what to make up"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the core to write"
    )
    parser.add_argument(
        "--container",
        choices=CONTAINER_NAMES,
        default="elf",
        help="format of the core (default: elf, as QEMU writes it)",
    )
    parser.add_argument(
        "--fault",
        action="extend",
        nargs="+",
        default=[],
        dest="faults",
        metavar="NAME",
        help="damage to do; what was changed is reported as JSON",
    )
    add_force_option(parser)
    add_format_options(parser)
    _add_progress_option(parser)
    _add_debug_option(parser)


def _jobs(text: str) -> int:
    jobs = int(text)
    if jobs < 1:
        raise ValueError
    return jobs


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


# What the kernel can be told as a limit; none at all would be no limit.
_LEAST, _MOST = 1 << 20, 1 << 62


def _bytes(gib: float) -> int:
    return int(min(max(gib * (1 << 30), _LEAST), _MOST))


def _quieten(args: argparse.Namespace) -> None:
    """Keep drgn from warning about what we say ourselves, as an error."""
    if not args.debug:
        logging.getLogger("drgn").setLevel(logging.ERROR)


def _open_program(args: argparse.Namespace) -> Program:
    from drgn_hvo.kernel.target import open_target

    _quieten(args)
    args.prog = open_target(args.target, args.symbols, args.vmcoreinfo)
    return args.prog


def _open(args: argparse.Namespace) -> Hvo:
    from drgn_hvo.memmap.hvo import hvo_of

    return hvo_of(_open_program(args), assumptions(args.assume))


def _run_verb(verb: Verb) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        status = verb.run(Session(args.target, lambda: _open(args)), args)
        if verb.name != "show":
            _warn_of_dump(args.prog)
        return status

    return run


def _run_check(args: argparse.Namespace) -> int:
    from drgn_hvo.commands.check_targets import CheckOptions, check_targets
    from drgn_hvo.commands.targets import (
        drop_cut_line,
        expand_targets,
        without_done,
    )
    from drgn_hvo.commands.workers import Limits

    _quieten(args)
    targets, earlier = expand_targets(args.target, args.targets_from), set[int]()
    if args.resume is not None:
        targets, earlier = without_done(targets, args.resume, strict=args.strict)
        drop_cut_line(args.resume)
    options = CheckOptions(
        symbols=tuple(args.symbols),
        vmcoreinfo=args.vmcoreinfo,
        assume=tuple(assumptions(args.assume).items()),
        debug=args.debug,
        scope=check_scope(args),
        evidence=args.evidence,
    )
    memory = args.memory or (_MEMORY if len(targets) > 1 else None)
    limits = Limits(args.jobs, args.timeout, None if memory is None else _bytes(memory))
    return check_targets(targets, options, args.format, limits, args.scheduler, earlier)


def _run_extract(args: argparse.Namespace) -> int:
    from drgn_hvo.extract.command import extract_document, print_extract

    prog = _open_program(args)
    _warn_of_dump(prog)
    document = extract_document(
        prog,
        args.target,
        args.output,
        symbols=args.symbols,
        assume=assumptions(args.assume),
        small=args.small,
        all_struct_pages=args.all_struct_pages,
        force=args.force,
    )
    print_document(document, print_extract, as_json=args.format == "json")
    return 0


def _run_oops(args: argparse.Namespace) -> int:
    from drgn_hvo.commands.oops import oops_document
    from drgn_hvo.commands.oops_text import print_oopses
    from drgn_hvo.formats.oops_log import read_log

    found = oops_document(None, args.log, read_log(args.log))
    print_document(found, print_oopses, as_json=args.format == "json")
    return 0


def _run_demo(args: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from drgn_hvo.demo import demo_steps

    debug = ("--debug",) if args.debug else ()
    with TemporaryDirectory(prefix="drgn-hvo-demo-") as directory:
        for step in demo_steps(directory):
            print(f"# {step.about}\n$ drgn-hvo {' '.join(step.argv)}", flush=True)
            status = _run([*step.argv, *debug])
            if status != 0:
                return status
            print()
    return 0


def _run_synth(args: argparse.Namespace) -> int:
    from drgn_hvo.commands.synth import run_synth

    return run_synth(args)


def _run_faults(args: argparse.Namespace) -> int:
    from drgn_hvo.commands.synth import run_faults

    return run_faults(args)


def _run_rules(args: argparse.Namespace) -> int:
    from drgn_hvo.commands.catalogues import print_rules, rules_document

    if args.format == "json":
        print_json(rules_document())
    else:
        print_rules()
    return 0


def _run_defects(args: argparse.Namespace) -> int:
    from drgn_hvo.commands.catalogues import defects_document, print_defects

    if args.format == "json":
        print_json(defects_document())
    else:
        print_defects()
    return 0


def _with_complaint(message: str, args: argparse.Namespace) -> str:
    """An error of a command on a target, with what is wrong with that."""
    prog: Optional[Program] = getattr(args, "prog", None)
    if prog is None:
        return message
    from drgn_hvo.kernel.dump import with_complaint

    return with_complaint(message, prog)


def _warn_of_dump(prog: Program) -> None:
    """Say what is wrong with a dump, where results do not begin with it."""
    from drgn_hvo.kernel.dump import dump_of

    dump = dump_of(prog)
    for complaint in dump.complaints if dump else ():
        say(f"drgn-hvo: warning: the dump is {complaint}")


def _fail(status: int, message: str) -> int:
    """Say why, if anybody can hear it; the status says enough if not."""
    say(f"drgn-hvo: {clipped(printable(' '.join(message.split())))}")
    return status


def _prepare_streams() -> None:
    """
    Make the streams take whatever is printed: a terminal that lacks a character gets
    it escaped, and what is said of errors goes nowhere if stderr is closed. Python
    sets closed streams to ``None``.

    :raises UsageError: if stdout is closed.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process)
    if sys.stdout is None:
        raise UsageError("stdout is closed: there is nowhere to print to")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(argv: Optional[Sequence[str]]) -> int:
    """Parse and do; argparse's own exits are statuses like any other."""
    try:
        words = sys.argv[1:] if argv is None else argv
        args = command_line(_asked(words)).parse_args(words)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else EXIT_USAGE
    is_json = getattr(args, "progress", "auto") == "json"
    progress_as_json(envelope() if is_json else None)
    try:
        status: int = args.run(args)
    except OSError:
        raise
    except Exception as e:
        known = failure(e)
        if known is not None:
            raise HvoError(_with_complaint(known, args)) from None
        if args.debug:
            traceback.print_exc()
        raise
    return status


def main(argv: Optional[Sequence[str]] = None) -> int:
    """
    Run the command line; nothing that goes wrong in here ends in a traceback or in a
    status that could be taken for a finding.

    :return: The exit status, see :data:`EXIT_STATUSES`.
    """
    # Nobody types drgn's commands here, and looking for plugins takes a tenth of a
    # short run. A user who sets the variable gets the plugins it allows.
    os.environ.setdefault("DRGN_DISABLE_PLUGINS", "*")
    # NumPy's linear algebra, which nobody uses here, starts a thread for each processor
    # when it is loaded, and they spin: a sixth of the processor time of a short run.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        _prepare_streams()
        status = _run(argv)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as e:
        how_far = f": {e}" if str(e) else ""
        return _fail(EXIT_INTERRUPTED, f"interrupted{how_far}")
    except BrokenPipeError:
        discard(sys.stdout)
        return EXIT_BROKEN_PIPE
    except OSError as e:
        discard(sys.stdout)
        return _fail(EXIT_USAGE, f"error: {output_failure(e)}")
    except Exception as e:
        known = failure(e)
        if known is not None:
            return _fail(EXIT_USAGE, f"error: {known}")
        return _fail(EXIT_BUG, bug(e, "; --debug shows where"))
