#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Check a running kernel many times in one process, as a monitor would.

Each check reads everything again. On a healthy kernel none may find anything, whatever
allocates and frees huge pages meanwhile; a known defect of the kernel is named and
counted apart. Exit status: 0 nothing found, 1 something was, 2 the target cannot be
checked.
"""

from __future__ import annotations

import argparse
from collections import Counter
import sys
import time

from drgn_hvo.audit.findings import Finding
from drgn_hvo.audit.run import confirmed_audit
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of


def _describe(finding: Finding) -> str:
    known = f" (known defect {finding.defect})" if finding.defect else ""
    return f"{finding.rule}{known}: {finding.message}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("target", nargs="?", default="live", help="default: live")
    parser.add_argument("-n", "--count", type=int, default=200, help="how many checks")
    parser.add_argument("--deep", action="store_true", help="read all of vmemmap")
    parser.add_argument(
        "--every", type=int, default=0, metavar="N", help="report after every N checks"
    )
    return parser.parse_args()


def _run(args: argparse.Namespace) -> int:
    prog = open_target(args.target)
    unknown: Counter[str] = Counter()
    known: Counter[str] = Counter()
    incomplete = 0
    folios: list[int] = []
    start = time.monotonic()
    for number in range(1, args.count + 1):
        audit = confirmed_audit(hvo_of(prog), deep=args.deep)
        for finding in audit.findings:
            which = known if finding.defect else unknown
            which[_describe(finding)] += 1
        incomplete += not audit.complete
        folios.append(audit.checked.get("folios", 0))
        if args.every and number % args.every == 0:
            print(
                f"# {number} checks, {time.monotonic() - start:.0f} s, "
                f"{folios[-1]} huge pages, {sum(unknown.values())} findings",
                flush=True,
            )
    for what, count in [*unknown.items(), *known.items()]:
        print(f"{count} x {what}")
    print(
        f"{args.count} checks in {time.monotonic() - start:.0f} s: "
        f"{sum(unknown.values())} findings, {sum(known.values())} of known defects, "
        f"{incomplete} incomplete; {min(folios)} to {max(folios)} huge pages"
    )
    return 1 if unknown else 0


def main() -> int:
    """Run the checks."""
    try:
        return _run(_arguments())
    except HvoError as e:
        print(f"live_checks: error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
