# SPDX-License-Identifier: LGPL-2.1-or-later

"""Options and environment of the test suite."""

import os

# A program in a test has just the finders that the test gives it, installed or not.
# What the plugin does is tested in processes of their own.
os.environ["DRGN_DISABLE_PLUGINS"] = "hvo"


def pytest_addoption(parser):
    parser.addoption(
        "--damage-cases",
        type=int,
        default=1000,
        metavar="N",
        help="how many machines to damage at random (default: 1000)",
    )
