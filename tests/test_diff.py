# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``diff`` and its helpers: what is said to have changed is what was changed, word by
word, and two real instants of one kernel differ in what happened between them.
"""

from dataclasses import replace
import json
from pathlib import Path

import pytest

import drgn_hvo
from drgn_hvo.audit.rules import RULES
from drgn_hvo.commands.diff import diff_document, print_diff, side_of
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.moments import changes, moment_of
from drgn_hvo.synth.damage.faults import FAULTS
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.command_support import check_refused, run
from tests.cores import core_path, open_core
from tests.damage_support import Case
from tests.overlay import Overlay, image_to_phys

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"
DEEP: set[str] = {rule.id for rule in RULES if rule.deep}
SHARED = SAMPLES / "shared-7.3.kdump"


def document(*words):
    result = run("diff", *words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def compared(case, change):
    """What changed when a case was changed, in one program that runs on."""
    before = side_of(hvo_of(case.prog), "before")
    change(case)
    return diff_document(before, side_of(hvo_of(case.prog), "after"))


def check_nothing_else(doc, *kinds):
    for kind in {"counters", "tails", "folios", "findings"} - set(kinds):
        assert doc[kind] == [], kind


@pytest.mark.parametrize("name", ["shared-7.3", "debian-6.12", "plain-7.2", "5.15"])
def test_a_core_and_itself(name):
    core = SAMPLES / f"{name}.kdump"
    doc = document(core, core)
    check_nothing_else(doc)
    assert "Nothing that was looked at changed." in doc["conclusions"]
    # A boot ID proves it; extracts and machines of synth have none.
    assert doc["same_boot"] is None


def test_other_boots():
    other = document(core_path("7.2-2node"), core_path("7.2-mix"))
    assert other["same_boot"] is False
    assert other["tails"] is None
    assert other["folios"] is None
    assert other["counters"]
    assert other["conclusions"][0].startswith("Not the same boot")


def test_boot_ids():
    """What /proc/sys/kernel/random/boot_id says, once somebody has read it."""
    base = open_core("7.2-2node")
    address = hvo_of(open_target(str(core_path("7.2-2node")))).kernel.sources.address(
        "sysctl_bootid"
    )
    place = image_to_phys(base, address)
    moments = [
        moment_of(hvo_of(Overlay(base, patches={place: boot_id * 16}).prog))
        for boot_id in (b"\1", b"\1", b"\2", b"\0")
    ]
    said = [changes(moments[0], other).same_boot for other in moments[1:]]
    assert said == [True, False, None]


def test_two_instants_of_one_kernel():
    """Three instructions: enqueue_hugetlb_folio() has added it and counts it."""
    instants = SAMPLES / "instants"
    words = [instants / f"n-7.3-enq-{n}.kdump" for n in ("080", "083")]
    doc = document(*words)
    counters = [
        (one["counter"], one["nid"], one["after"] - one["before"])
        for one in doc["counters"]
    ]
    assert ("free", None, 1) in counters
    (folio,) = doc["folios"]
    assert folio["before"]["list"] is None
    assert folio["after"]["list"] == "free"
    assert doc["tails"] == []
    assert "29184" in run("diff", *words).stdout


def test_a_word_of_a_shared_tail_page():
    doc = compared(
        Case.of("shared-7.3"),
        lambda case: case.flip(case.targets.tail_field("mapping"), 1 << 9),
    )
    (tail,) = doc["tails"]
    assert tail["words"] == 1
    assert tail["before"] == tail["after"]
    assert [one["change"] for one in doc["findings"]] == ["new"]
    assert doc["findings"][0]["finding"]["rule"] == "shared-tail-mapping"
    assert "1 shared tail pages were written to" in "\n".join(doc["conclusions"])
    check_nothing_else(doc, "tails", "findings")


def test_a_reference_of_a_huge_page():
    case = Case.of("shared-7.3")
    found = hvo_of(case.prog).hugetlb.folios
    i = int(found.refcount.argmax())
    pfn, count = int(found.head_pfn[i]), int(found.refcount[i])
    doc = compared(
        case,
        lambda case: case.put(case.field(pfn, "_refcount"), count + 3, 4),
    )
    (folio,) = doc["folios"]
    assert folio["head_pfn"] == pfn
    assert folio["after"] == {**folio["before"], "refcount": count + 3}
    check_nothing_else(doc, "folios")


def test_a_counter_of_a_pool():
    def change(case):
        counter = case.targets.hstate(9, "nr_huge_pages_node[0]")
        case.put(counter, case.targets.read(counter) + 2)

    doc = compared(Case.of("shared-7.3"), change)
    (counter,) = doc["counters"]
    assert (counter["order"], counter["nid"], counter["counter"]) == (9, 0, "total")
    assert counter["after"] - counter["before"] == 2
    assert doc["findings"][0]["finding"]["rule"] == "hstate-counters"
    check_nothing_else(doc, "counters", "findings")


@pytest.mark.parametrize("generation", ["shared-7.3", "fake-head-6.12"])
def test_every_fault_shows_as_a_finding_that_is_new_and_then_gone(generation):
    """And nothing of what the damage does not touch is said to have changed."""
    entry = next(one for one in GENERATIONS if one.name == generation)
    healthy = side_of(hvo_of(Case.of(generation).prog), "core")
    for fault in FAULTS:
        if fault.rule is None or not fault.possible(entry):
            continue
        if fault.rule in DEEP:
            continue  # diff looks as check does without --deep
        damaged = side_of(hvo_of(Case.of(generation, [fault.name]).prog), "core")
        for sides, change in (
            ((healthy, damaged), "new"),
            ((damaged, healthy), "gone"),
        ):
            doc = diff_document(*sides)
            found = damaged.audit["findings"]
            if doc["same_boot"] is False:
                continue  # vmemmap elsewhere
            assert len(doc["findings"]) == len(found), fault.name
            assert {one["change"] for one in doc["findings"]} == {change}
            assert doc["findings"][0]["finding"]["rule"] == fault.rule
            assert doc["findings_in_both"] == 0
            assert len(doc["folios"] or ()) <= 12, fault.name
            print_diff(doc)


def test_what_was_not_read_is_no_change():
    whole = moment_of(hvo_of(Case.of("shared-7.3").prog))
    holes = moment_of(hvo_of(Case.of("shared-7.3", ["page-missing"]).prog))
    for sides in ((whole, holes), (holes, whole)):
        found = changes(*sides)
        assert found.folios == ()
        assert found.counters == ()
    unread = replace(whole, counters=dict.fromkeys(whole.counters))
    assert changes(whole, unread).counters == ()
    none = replace(whole, words=dict.fromkeys(whole.words))
    assert changes(whole, none).tails == ()
    broken = moment_of(hvo_of(Case.of("shared-7.3", ["list-loop"]).prog))
    assert not broken.knows_lists
    for sides in ((whole, broken), (broken, whole)):
        assert all(one.before and one.after for one in changes(*sides).folios or ())


def test_helpers():
    instants = SAMPLES / "instants"
    snapshots = []
    for n in ("080", "083"):
        prog = open_target(str(instants / f"n-7.3-enq-{n}.kdump"))
        install(prog)
        snapshots.append(drgn_hvo.snapshot_hugetlb(prog))
    found = drgn_hvo.hugetlb_changes(*snapshots)
    assert [one.head_pfn for one in found.folios or ()] == [29184]
    assert found.tails == []
    assert {one.counter for one in found.counters} == {"free"}
    assert drgn_hvo.hugetlb_changes(snapshots[0], snapshots[0])[1:] == ([], [], [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((SHARED,), "required"),
        ((SHARED, "nowhere"), "nowhere"),
        ((SHARED, SHARED, "--wait", "-1"), "--wait"),
        ((SHARED, SHARED, "--wait", "nan"), "--wait"),
    ],
)
def test_what_it_refuses(words, said):
    check_refused(run("diff", *words), said)
