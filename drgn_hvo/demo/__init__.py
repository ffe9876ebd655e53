# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Demonstration
-------------

The core of ``drgn-hvo demo`` rides in the package, so that every command can be seen
at work before there is a core of one's own: ``debian-7.2.kdump`` of
``sample_vmcores/``, an extract of a stock Debian kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ("DEMO_CORE", "DemoStep", "demo_steps")

#: The core that rides in the package.
DEMO_CORE = Path(__file__).with_name("debian-7.2.kdump")


@dataclass(frozen=True)
class DemoStep:
    """
    A command of the demonstration.

    :param about: What it shows, for people.
    :param argv: The arguments of ``drgn-hvo``.
    """

    about: str
    argv: tuple[str, ...]


def demo_steps(directory: str) -> Iterator[DemoStep]:
    """
    The commands of the demonstration.

    :param directory: Takes the files that some of them write.
    """
    core = str(DEMO_CORE)
    heads, small = f"{directory}/heads.npy", f"{directory}/small.kdump"
    yield DemoStep("What HVO did to this kernel, and what it saved", ("show", core))
    yield DemoStep("Is any of it damaged?", ("check", core))
    yield DemoStep("One struct page: a tail of a huge page", ("page", core, "7300"))
    yield DemoStep("How the struct pages of that huge page lie", ("map", core, "7300"))
    yield DemoStep(
        "The heads of all pages of that huge page, as an array",
        ("heads", core, "--pfns", "7168-7679", "-o", heads),
    )
    yield DemoStep(
        "A core to share, with nobody's data in it",
        ("extract", core, "--small", "-o", small),
    )
