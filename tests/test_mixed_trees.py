# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Trees that took some pieces of HVO and not others: every combination of encoding,
private pages, fake heads, array of shared tails and its elements is served, or refused
by name.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.described import description
from drgn_hvo.synth.described.generations import generation
from tests.synth_support import ALL, describe, expected_folios, expected_heads
from tools.generations_page import generations_page

MASKS = (False, True)
#: Private pages of a folio, and what the slices behind them show.
TAILS = ("plain", "first-tail", "fake-head", "shared")
#: Where the array is, and whether it is allocated.
ARRAYS = (
    (None, False),
    ("zone", False),
    ("zone", True),
    ("pglist_data", False),
    ("pglist_data", True),
)
PFNS = (False, True)

COMBINATIONS = [
    pytest.param(
        mask,
        tails,
        array,
        is_pfn,
        id="-".join(
            (
                "mask" if mask else "pointer",
                tails,
                f"{array[0] or 'no'}{'-allocated' if array[1] else ''}",
                "pfn" if is_pfn else "page",
            )
        ),
    )
    for mask, tails, array, is_pfn in product(MASKS, TAILS, ARRAYS, PFNS)
    # A page of tails that many folios share cannot name their heads by pointers.
    if (array[0] is not None or not is_pfn) and (mask or tails != "shared")
]


def machine_of(monkeypatch, mask, tails, array, is_pfn, faults=()):
    """A machine of a kernel that took these pieces."""
    groups = tuple(
        replace(group, optimized=False if tails == "plain" else group.optimized)
        for group in describe("shared-7.3").huge_pages
    )
    mixed = replace(
        generation("shared-7.3"),
        name="mixed",
        mask=mask,
        tails=tails,
        array=array[0],
        array_is_allocated=array[1],
        element_is_pfn=is_pfn,
        # What shared tails hold besides follows from where the array is.
        tail_mapcount=0 if array[0] == "pglist_data" else -1,
        tail_has_zone=array[0] != "pglist_data",
        dax=None,
    )
    monkeypatch.setattr(description, "generation", lambda _name: mixed)
    machine, _ = make_machine(describe("shared-7.3", huge_pages=groups), faults)
    return machine


def answer(machine):
    """What is said of a machine, or why nothing is."""
    prog = program(machine)
    install(prog)
    known = hvo_of(prog)
    try:
        shown = show_document(known, "core", folios=True)
        return known, shown, check_document(known, "core", CheckScope(deep=True))
    except DetectionError as e:
        return str(e)


@pytest.mark.parametrize(("mask", "tails", "array", "is_pfn"), COMBINATIONS)
def test_served_or_refused_by_name(monkeypatch, mask, tails, array, is_pfn):
    machine = machine_of(monkeypatch, mask, tails, array, is_pfn)
    said = answer(machine)
    # The types of zones say that tails are shared, and hold masks; those of nodes, and
    # of what is allocated, only the first.
    speaks_of_sharing = array[0] is not None and array != ("pglist_data", True)
    speaks_of_masks = array == ("zone", False)
    if isinstance(said, str):
        assert "types and data disagree" in said
        assert (
            (speaks_of_sharing and tails not in ("shared", "plain"))
            or (speaks_of_masks and not mask)
            # Nothing names what they share.
            or (array[0] is None and tails == "shared")
        )
        return
    known, shown, checked = said
    assert shown["encoding"]["kind"] == ("mask" if mask else "pointer")
    assert shown["tail_layout"]["kind"] in (tails, "shared", "plain", None)
    found = {folio["head_pfn"]: folio for folio in shown["folios"]}
    for pfn, folio in expected_folios(machine).items():
        if folio.list is not None:
            assert found[pfn]["optimized_mapping"] == folio.optimized
            assert found[pfn]["list"] == folio.list
    heads = expected_heads(machine)
    some = sorted(heads)[::97]
    resolved = known.heads.many(np.array(some, dtype=np.int64)).tolist()
    assert resolved == [heads[pfn][0] for pfn in some]
    assert checked["findings"] == []


# What a kernel leaves behind when it restores a huge page shows in memory only: faults
# that do as it does, and the rule that finds them.
RESTORED = {
    "whole": ((), None),
    "copies-left": (("fake-heads-left",), "stray-head"),
    "head-left": (("stray-PG_head",), "stray-head"),
}


@pytest.mark.parametrize("restored", RESTORED)
@pytest.mark.parametrize("mask", MASKS)
def test_how_it_restores_is_asked_of_memory(monkeypatch, mask, restored):
    """Whichever encoding a tree with fake heads took."""
    faults, rule = RESTORED[restored]
    machine = machine_of(monkeypatch, mask, "fake-head", (None, False), False, faults)
    said = answer(machine)
    assert not isinstance(said, str)
    _, shown, checked = said
    assert shown["tail_layout"]["kind"] == "fake-head"
    assert shown["encoding"]["kind"] == ("mask" if mask else "pointer")
    rules = [one["rule"] for one in checked["findings"]]
    assert rules[:1] == ([rule] if rule else [])


def test_the_page_of_generations():
    """It is made from the table that the machines are made from."""
    page = Path(__file__).parents[1] / "docs" / "generations.md"
    assert page.read_text() == generations_page()
    rows = [line for line in generations_page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ALL
    assert len({row.count("|") for row in rows}) == 1
