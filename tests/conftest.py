# SPDX-License-Identifier: LGPL-2.1-or-later

"""Options of the test suite."""


def pytest_addoption(parser):
    parser.addoption(
        "--damage-cases",
        type=int,
        default=1000,
        metavar="N",
        help="how many machines to damage at random (default: 1000)",
    )
