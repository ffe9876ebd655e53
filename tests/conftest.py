# SPDX-License-Identifier: LGPL-2.1-or-later

"""Options and environment of the test suite."""

import os
import signal
from typing import Any

from hypothesis import Phase, settings

# A program in a test has just the finders that the test gives it, installed or not.
# What the plugin does is tested in processes of their own.
os.environ["DRGN_DISABLE_PLUGINS"] = "hvo"

# The same examples each time: a test that fails now and then tells nobody what broke
# it. To look for new ones: pytest --hypothesis-profile default.
settings.register_profile("drgn-hvo", derandomize=True, deadline=None)
# Who only wants to know whether a test fails need not wait for the simplest example.
settings.register_profile(
    "first-failure",
    settings.get_profile("drgn-hvo"),
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("drgn-hvo")

# What a shell without job control, nohup or a supervisor leaves ignored or blocked
# would stay so in all processes that tests start and interrupt.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGQUIT: signal.SIG_DFL,
}


# Several processes each run whole files, so that what a file makes once is made once:
# a guest under QEMU, an extract of a real core. These take longest, so they come first.
_LONG = (
    "test_vmtest.py",
    "test_check_random.py",
    "test_extract.py",
    "test_extract_private.py",
    "test_contrib.py",
)


def pytest_cmdline_main(config):
    # pytest -n sets it if nothing is said of how to distribute; xdist may be missing.
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_configure():
    for number, handler in _DEFAULTS.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _DEFAULTS)


def pytest_addoption(parser):
    parser.addoption(
        "--all-generations",
        action="store_true",
        help="ask for pages that faults damage in all generations, not in a few",
    )
    parser.addoption(
        "--damage-cases",
        type=int,
        default=300,
        metavar="N",
        help="how many machines to damage at random (default: 300)",
    )
