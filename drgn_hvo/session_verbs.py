# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Verbs of sessions
-----------------

What ``%hvo`` has in a drgn session and the rooms below cannot have: ``extract`` reads
all that the other commands read.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drgn_hvo.commands.verbs import Session, Verb

__all__ = ("add_extract_options", "extract_verb")


def add_extract_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``extract``, here and on the command line."""
    from drgn_hvo.commands.verbs import add_force_option, add_format_options

    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the core to write"
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="cut symbols and types down to those that the commands need",
    )
    parser.add_argument(
        "--all-struct-pages",
        action="store_true",
        help="keep all of vmemmap, for check --deep and heads of all pages",
    )
    add_force_option(parser)
    add_format_options(parser)


def _run_extract(session: Session, args: argparse.Namespace) -> int:
    from drgn_hvo.commands.document import print_document
    from drgn_hvo.commands.verbs import assumptions
    from drgn_hvo.extract.command import extract_document, print_extract

    document = extract_document(
        session.open().kernel.prog,
        session.target,
        args.output,
        assume=assumptions(args.assume),
        small=args.small,
        all_struct_pages=args.all_struct_pages,
        force=args.force,
    )
    print_document(document, print_extract, as_json=args.format == "json")
    return 0


def extract_verb() -> Verb:
    """``extract``."""
    from drgn_hvo.commands.verbs import Verb

    what = "minimal core to share, without user data"
    return Verb("extract", what, add_extract_options, _run_extract)
