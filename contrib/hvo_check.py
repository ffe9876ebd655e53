#!/usr/bin/env drgn
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Audit HVO in whatever kernel drgn has opened::

    drgn -c vmcore contrib/hvo_check.py --deep

Options and exit statuses are those of ``drgn-hvo check``.
"""

from __future__ import annotations

import argparse
import json
import sys

from drgn import FaultError, NoDefaultProgramError, get_default_prog

from drgn_hvo.errors import HvoError
from drgn_hvo.hvo import hvo
from drgn_hvo.report import Document
from drgn_hvo.report.check import (
    check_document,
    exit_status,
    parse_rules,
    print_check,
    print_ktap,
)

EXIT_USAGE = 2
EXIT_BUG = 70


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Audit HVO in the kernel at hand.")
    parser.add_argument("--format", choices=("text", "json", "ktap"), default="text")
    parser.add_argument("--deep", action="store_true", help="read all of vmemmap")
    parser.add_argument("--rules", metavar="ID,…", help="check only these rules")
    parser.add_argument("--ignore", metavar="ID,…", help="leave these rules out")
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    return parser.parse_args()


def _audit(args: argparse.Namespace) -> Document:
    only = None if args.rules is None else parse_rules(args.rules)
    ignore = frozenset() if args.ignore is None else parse_rules(args.ignore)
    prog = get_default_prog()
    target = prog.core_dump_path or "the running kernel"
    return check_document(
        hvo(prog), str(target), deep=args.deep, only=only, ignore=ignore
    )


def _fail(status: int, message: str) -> int:
    print(f"hvo_check: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def main() -> int:
    """Audit, print, and return the exit status."""
    args = _arguments()
    try:
        document = _audit(args)
    except NoDefaultProgramError:
        return _fail(EXIT_USAGE, "run this with drgn: drgn -c CORE hvo_check.py")
    except HvoError as e:
        return _fail(EXIT_USAGE, str(e))
    except FaultError as e:
        return _fail(EXIT_USAGE, f"not in this dump: {e}")
    except Exception as e:
        return _fail(EXIT_BUG, f"a bug in drgn-hvo: {type(e).__name__}: {e}")
    if args.format == "json":
        print(json.dumps(document))
    elif args.format == "ktap":
        print_ktap([document], strict=args.strict)
    else:
        print_check(document)
    return exit_status(document, strict=args.strict)


if __name__ == "__main__":
    sys.exit(main())
