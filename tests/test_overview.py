# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``show`` without ``--folios`` of many huge pages: what page tables and counters tell is
what reading each huge page tells, on every real core, sample and damaged machine, or it
is not told. The two ways share nothing but the page table walk and the counters.
"""

import json
from pathlib import Path

import pytest

from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap import overview
from drgn_hvo.memmap.folio_heads import FolioHeads
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.overview import counted_overview, overview_of
from drgn_hvo.synth.damage.faults import FAULTS
from tests.command_support import run
from tests.cores import CORES, core_path
from tests.damage_support import Case

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"
ALL_SAMPLES = sorted(path.stem for path in SAMPLES.glob("*.kdump"))
GENERATIONS = ["shared-7.3", "fake-head-6.12", "5.15", "seed-v5"]

# Damage of page tables, slots or counters, which then account for nothing; or
# memory of devices, and huge pages that stay partly optimized.
UNACCOUNTED = {
    "debian-7.1-boot-oops",
    "next",
    "shared-7.3-pte-writable",
    "shared-7.3-two-slots",
}


def sample(name):
    return hvo_of(open_target(str(SAMPLES / f"{name}.kdump"), [], None))


def check_alike(counted, read):
    """All that was counted is what was read."""
    assert counted.nodes.keys() == read.nodes.keys()
    for place, counts in counted.nodes.items():
        assert counts.optimized == read.nodes[place].optimized, place
        assert counts.folios in (read.nodes[place].folios, None), place
    assert counted.saved == read.saved
    assert counted.not_optimized in (read.not_optimized, None)
    assert counted.hwpoisoned in (read.hwpoisoned, None)
    assert counted.tails_are_writable == read.tails_are_writable
    unknown = [counts for counts in counted.nodes.values() if counts.folios is None]
    assert len(counted.left_out) == (1 + bool(unknown) + (counted.hwpoisoned is None))


def both(hvo, monkeypatch):
    """What is counted, without a head that is read; and what is read."""
    with monkeypatch.context() as patch:
        patch.setattr(FolioHeads, "of", None)
        patch.setattr(FolioHeads, "read", None)
        counted = counted_overview(hvo)
    assert not hvo.has_read_folios
    return counted, overview_of(hvo, whole=True)


@pytest.mark.parametrize("name", ALL_SAMPLES)
def test_samples(name, monkeypatch):
    hvo = sample(name)
    counted, read = both(hvo, monkeypatch)
    assert (counted is None) == (name in UNACCOUNTED)
    if counted is not None:
        check_alike(counted, read)


@pytest.mark.parametrize("name", [*CORES, "7.3-poison", "7.3-dax"])
def test_real_cores(name, monkeypatch):
    hvo = hvo_of(open_target(str(core_path(name)), [], None))
    counted, read = both(hvo, monkeypatch)
    # DAX maps shared tails, too: those are no huge pages of any pool.
    assert (counted is None) == (name == "7.3-dax")
    if counted is not None:
        check_alike(counted, read)
        # The counter of pages in which memory failed decides.
        assert (counted.hwpoisoned is None) == (name == "7.3-poison")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_damaged_machines(generation, monkeypatch):
    counted_ones = 0
    for fault in (fault.name for fault in FAULTS):
        try:
            hvo = hvo_of(Case.of(generation, [fault]).prog)
            counted, read = both(hvo, monkeypatch)
        except HvoError:
            continue  # this fault cannot be made there, or leaves nothing to read
        if counted is None:
            continue
        counted_ones += 1
        assert sum(counted.saved.values()) == sum(read.saved.values()), fault
        for place, counts in counted.nodes.items():
            theirs = read.nodes[place]
            # Zones tell the node of a head that is not in the dump.
            assert theirs.optimized in (counts.optimized, None), (fault, place)
            known = (counts.folios, theirs.folios)
            # Of what is wrong with lists, counters tell nothing.
            assert None in known or known[0] == known[1] or "list" in fault, fault
    assert counted_ones > 10


@pytest.mark.parametrize(
    ("slice_", "bits"), [(3, 1 << 12), (3, 1 << 1), (0, 1 << 1), (0, 1 << 0)]
)
def test_what_does_not_account_for_itself(slice_, bits):
    """Another frame; a writable tail; a head that is read-only, or not there."""
    case = Case.of("shared-7.3")
    assert counted_overview(hvo_of(case.prog)) is not None
    case.flip(case.entry(case.groups(optimized=True)[0].first_pfn, slice_), bits)
    found = counted_overview(hvo_of(case.prog))
    # Who may write to a head is no matter of counts.
    assert (found is None) == ((slice_, bits) != (0, 1 << 1))


def test_a_frame_that_is_nobodys_to_share():
    """The heads of two huge pages on one frame: no slice behind them looks wrong."""
    case = Case.of("shared-7.3", ["head-frame-shared"])
    assert counted_overview(hvo_of(case.prog)) is None


def test_more_huge_pages_than_the_pool_has():
    case = Case.of("shared-7.3")
    counter = case.targets.hstate(9, "nr_huge_pages_node[0]")
    assert case.targets.read(counter) > 1
    case.put(counter, 1)
    assert counted_overview(hvo_of(case.prog)) is None


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(overview, "_FEW_FOLIOS", 0)


def shown(name, *options):
    result = run("show", SAMPLES / f"{name}.kdump", *options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_show_says_what_folios_adds(many):
    text = shown("shared-7.3")
    assert "--folios reads each huge page" in text
    assert "--folios says whether they can be found" in text
    document = json.loads(shown("shared-7.3", "--json"))
    assert document["hwpoisoned"] is None
    assert document["not_optimized"] is None
    nodes = [node for hstate in document["hstates"] for node in hstate["nodes"]]
    assert {node["folios"] == node["total"] for node in nodes} == {True, False}
    for node in nodes:
        assert node["folios"] in (node["total"], None)
    whole = shown("shared-7.3", "--folios")
    assert "--folios" not in whole
    assert "?" not in whole


def test_show_of_few_reads_each_huge_page():
    assert "--folios" not in shown("shared-7.3")
    document = json.loads(shown("shared-7.3", "--json"))
    assert document["hwpoisoned"] == []
    assert document["not_optimized"]


def test_what_was_read_is_used(many):
    hvo = sample("shared-7.3")
    assert hvo.hugetlb.hstates
    assert overview_of(hvo, whole=False).left_out == ()
