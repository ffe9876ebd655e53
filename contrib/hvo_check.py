#!/usr/bin/env drgn
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Audit HVO in whatever kernel drgn has opened::

    drgn -c vmcore contrib/hvo_check.py --deep

Options and exit statuses are those of ``drgn-hvo check``.
"""

from __future__ import annotations

import argparse
import sys

from drgn import NoDefaultProgramError, get_default_prog

from drgn_hvo.commands.failures import EXIT_BUG, EXIT_USAGE, bug, failure
from drgn_hvo.commands.verbs import VERBS, session_of


def _fail(status: int, message: str) -> int:
    print(f"hvo_check: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def main() -> int:
    """Audit, print, and return the exit status."""
    check = next(verb for verb in VERBS if verb.name == "check")
    parser = argparse.ArgumentParser(
        description="Audit HVO in the kernel at hand.", allow_abbrev=False
    )
    check.add_options(parser)
    args = parser.parse_args()
    try:
        return check.run(session_of(get_default_prog()), args)
    except NoDefaultProgramError:
        return _fail(EXIT_USAGE, "run this with drgn: drgn -c CORE hvo_check.py")
    except Exception as e:
        known = failure(e)
        if known is not None:
            return _fail(EXIT_USAGE, known)
        return _fail(EXIT_BUG, bug(e))


if __name__ == "__main__":
    sys.exit(main())
