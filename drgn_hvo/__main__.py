# SPDX-License-Identifier: LGPL-2.1-or-later

"""``drgn-hvo`` and ``python -m drgn_hvo``: the command line as a process."""

import gc
import sys

__all__ = ("run",)


def run() -> int:
    """
    Run the command line, with little garbage collection: imported modules are never
    freed, and what a run leaves behind goes with its process. Looking through both
    takes a tenth of a short run.

    :return: The exit status.
    """
    gc.disable()
    from drgn_hvo.cli import main

    gc.freeze()
    gc.enable()
    status = main()
    gc.freeze()
    return status


if __name__ == "__main__":
    sys.exit(run())
