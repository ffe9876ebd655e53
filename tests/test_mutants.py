# SPDX-License-Identifier: LGPL-2.1-or-later

"""
That the deliberate mistakes of ``python -m tools.mutants`` can still be made; what it
takes to run all of them is no part of the suite.
"""

from collections import Counter
from pathlib import Path

import pytest

from tools.mutants import MUTANTS
from tools.mutants.mutant import Mutant, StaleError, missing_tests, mutated

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_it_can_be_made(mutant):
    assert mutated(mutant, ROOT) != (ROOT / mutant.path).read_text(encoding="utf-8")
    assert mutant.why
    assert mutant.tests
    assert missing_tests(mutant, ROOT) == []


def test_there_are_enough_of_each_room():
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
    rooms = Counter(mutant.place.partition("/")[0] for mutant in MUTANTS)
    assert sum(rooms.values()) >= 80
    for room in ("formats", "kernel", "memmap", "audit", "helpers", "commands"):
        assert rooms[room] >= 8, room
    assert min(rooms["extract"], rooms["synth"]) >= 6


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "drgn_hvo").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "drgn_hvo" / "a.py").write_text(
        "def one(x):\n    return x + 1\n\n\nclass B:\n    def two(self, x):\n"
        "        return x + 1\n"
    )
    (tmp_path / "tests" / "test_a.py").write_text("def test_one():\n    assert 1\n")
    return tmp_path


def make(place, old="x + 1", new="x", *tests):
    return Mutant("id", place, old, new, "why", tests)


def test_the_text_is_changed_where_it_was_meant(tree):
    changed = mutated(make("a.py::B.two"), tree)
    assert changed.count("x + 1") == 1
    assert changed.endswith("def two(self, x):\n        return x\n")


@pytest.mark.parametrize(
    ("mutant", "why"),
    [
        (make("a.py"), "has 2 times"),
        (make("a.py::one", "x + 2"), "has 0 times"),
        (make("a.py::three"), "0 definitions"),
        (make("b.py"), "there is no"),
        (make("a.py::one", "x + 1", "x +"), "no Python"),
    ],
)
def test_what_is_stale_says_why(tree, mutant, why):
    with pytest.raises(StaleError, match=why):
        mutated(mutant, tree)


def test_tests_that_are_not_there(tree):
    tests = ("test_a.py::test_one[x]", "test_a.py::test_two", "test_b.py", "test_a.py")
    assert missing_tests(make("a.py", "", "", *tests), tree) == [
        "test_a.py::test_two",
        "test_b.py",
    ]
