# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Inputs that are wrong: a fixed thousand; ``python -m tools.mutate_inputs`` tries more.
"""

import time

import pytest

from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from tests.command_support import check_refused, run
from tools.mutate_classes import CLASSES, Inputs
from tools.mutate_inputs import failures, try_case
from tools.mutate_run import limits

_EACH = 63


@pytest.mark.parametrize("kind", CLASSES)
def test_nothing_is_worse_than_an_error_of_one_line(kind, tmp_path):
    assert [str(f) for f in failures(tmp_path, [kind], _EACH, 1)] == []


# Cases of longer runs that went wrong once: class, number, seed.
_FOUND = [
    ("page-tables", 49, 101),  # cut tables whose place page tables do not name
    ("elf", 76, 101),  # a segment behind the end of any file
    ("elf", 146, 104),
    ("btf", 37, 106),  # flags that are bits of no word
    ("btf", 122, 107),
    ("btf", 126, 202),
    ("flattened", 5, 205),  # notes larger than the file
    ("vmcoreinfo", 84, 207),  # a destructor that no byte holds
    ("btf", 25, 110),  # a member that is void
]


@pytest.mark.parametrize(("kind", "number", "seed"), _FOUND)
def test_what_went_wrong_once(kind, number, seed, tmp_path):
    with limits():
        assert list(try_case(Inputs(tmp_path, seed), kind, number)) == []


def test_there_are_a_thousand():
    assert _EACH * len(CLASSES) >= 1000


def test_a_value_of_many_digits_makes_a_short_line():
    text = b"SYMBOL(a)=" + b"9" * 6000
    with pytest.raises(Exception, match="and 5872 more") as caught:
        Vmcoreinfo(text).symbol("a")
    assert len(str(caught.value)) < 300


def test_many_lines_of_one_key_take_no_time():
    """Comparing each with all would take seconds, and minutes of as many as fit."""
    lines = b"\n".join(b"KEY=%d" % i for i in range(130_000))
    assert len(lines) > 1 << 20
    start = time.process_time()
    Vmcoreinfo(lines[: 1 << 18])
    assert time.process_time() - start < 1
    noted = Vmcoreinfo(lines[: 1 << 20])
    with pytest.raises(Exception, match="more than once: '0' and '1'"):
        noted["KEY"]


def test_arguments_cannot_paint_the_terminal():
    check_refused(run("show", "core", "\x1b[31mred"), "\\x1b[31mred")
