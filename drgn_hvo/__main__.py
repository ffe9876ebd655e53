# SPDX-License-Identifier: LGPL-2.1-or-later

"""``python -m drgn_hvo``: the command line."""

import sys

from drgn_hvo.cli import main

if __name__ == "__main__":
    sys.exit(main())
