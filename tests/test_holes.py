# SPDX-License-Identifier: LGPL-2.1-or-later

"""Dumps with holes: what was not read is no error, no pass and not complete."""

from functools import lru_cache
import json
import os
from pathlib import Path
import shutil
import struct

import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.containers.output import write_machine
from drgn_hvo.synth.machine.machine import build_machine
from tests.command_support import run
from tests.extract_support import answers, extract
from tests.overlay import image_to_phys
from tests.synth_support import describe
from tools.holes import HOLES, Answer, Dump, audited, judge

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

#: Every so many pages are left out; "python -m tools.holes" tries all of them.
STEPS = {
    "debian-7.2": 53,
    "debian-6.12": 61,
    "shared-7.3": 31,
    "fake-head-6.12": 31,
    "odd-size-7.3": 61,
    "shared-7.3-two-slots": 97,
    "shared-7.3-pte-writable": 97,
    "shared-7.3-list-loop": 97,
    "fake-head-6.12-fake-heads-left": 97,
}


@lru_cache(maxsize=2)
def whole(name: str) -> tuple[Dump, Answer]:
    dump = Dump(str(SAMPLES / f"{name}.kdump"))
    return dump, audited(dump.program())


def pfn_of(name, symbol, offset=0):
    """The frame of a variable."""
    from drgn.helpers.linux.mm import follow_phys

    prog = whole(name)[0].program()
    hvo_of(prog)  # offers symbols
    address = prog[symbol].address_of_().value_() + offset
    return follow_phys(prog["init_mm"].address_of_(), address).value_() >> 12


def wrong_answers(name, pfn):
    dump, answer = whole(name)
    garbage = audited(dump.program(pfn, "garbage"))
    for hole in HOLES:
        if hole == "missing" or any(dump.pages[pfn]):
            holey = audited(dump.program(pfn, hole))
            for wrong in judge(answer, holey, garbage, hole):
                yield f"PFN {pfn} {hole}: {wrong}"


@pytest.mark.parametrize("name", STEPS)
def test_a_page_left_out(name):
    dump, _ = whole(name)
    pfns = sorted(dump.pages)[:: STEPS[name]]
    assert [wrong for pfn in pfns for wrong in wrong_answers(name, pfn)] == []


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["debian-7.2", "debian-6.12", "shared-7.3"])
@pytest.mark.parametrize(
    ("symbol", "rule"),
    [
        ("nr_node_ids", "hstate-counters"),
        ("node_states", "hstate-lists"),
        ("hugetlb_max_hstate", "hstate-lists"),
        ("hstates", "hstate-counters"),
    ],
)
def test_a_variable_left_out(name, symbol, rule, hole):
    """The kernel is sound: what a rule needs is missing, and it says so."""
    dump, _ = whole(name)
    answer = audited(dump.program(pfn_of(name, symbol), hole))
    assert answer.error is None
    assert answer.findings == ()
    assert (answer.status, answer.complete) == (3, False)
    assert dict(answer.results)[rule] == "skip"


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["debian-7.2", "debian-6.12", "shared-7.3"])
def test_a_pool_left_out(name, hole):
    """Its mask is never zero: zeros beside it are no counters."""
    prog = whole(name)[0].program()
    hvo_of(prog)  # offers types
    start = prog["hstates"].address_of_().value_()
    masks = [
        prog["hstates"][i].mask.address_of_().value_() - start
        for i in range(prog["hugetlb_max_hstate"].value_())
    ]
    for pfn in {pfn_of(name, "hstates", mask) for mask in masks}:
        answer = audited(whole(name)[0].program(pfn, hole))
        assert answer.findings == ()
        assert (answer.status, answer.complete) == (3, False)
        assert dict(answer.results)["hstate-reserve"] == "skip"


def test_a_second_pool_that_is_left_out():
    """There is none, as hugetlb_max_hstate says; its page is not in the dump."""
    machine = build_machine(describe("shared-7.3", hstates=(9,)))
    size = machine.plan.structures.hstate.size
    order = machine.plan.structures.hstate.offset("order")
    second = machine.kernel.physical("hstates") + size + order
    machine.image.missing.add(second >> 12)
    assert second >> 12 != machine.kernel.physical("hugetlb_max_hstate") >> 12
    document = check_document(hvo_of(program(machine)), "core", CheckScope())
    assert document["findings"] == []
    assert document["complete"] is False


def slots_pfn(name, nid, zone_index):
    """The frame of vmemmap_tails[] of a zone."""
    from drgn.helpers.linux.mm import follow_phys

    known = hvo_of(whole(name)[0].program())
    zone = known.mmzone.pgdats[nid].node_zones[zone_index]
    address = zone.vmemmap_tails[2].address_of_().value_()
    prog = known.kernel.prog
    return follow_phys(prog["init_mm"].address_of_(), address).value_() >> 12


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["debian-7.2", "shared-7.3"])
def test_slots_left_out_are_not_empty(name, hole):
    dump, _ = whole(name)
    pfn = slots_pfn(name, 1, 1)
    answer = audited(dump.program(pfn, hole))
    assert answer.findings == ()
    results = dict(answer.results)
    shared = {result for rule, result in results.items() if rule.startswith("shared-")}
    assert shared == {"skip"}
    assert results["vmemmap-tail-frame"] == "skip"
    assert answer.status == 3
    doc = show_document(hvo_of(dump.program(pfn, hole)), "", folios=False)
    saved = doc["saved"]
    assert saved is not None
    assert saved["shared_tail_pages"] is None
    assert saved["net_pages"] is None
    assert any("slots of vmemmap_tails[] of node 1" in note for note in doc["notes"])


@pytest.mark.parametrize("hole", HOLES)
def test_nodes_that_hstate_counts_are_shown(hole):
    """Their pglist_data is not needed for that."""
    name = "debian-7.2"
    dump, _ = whole(name)
    prog = hvo_of(dump.program(pfn_of(name, "node_data"), hole))
    doc = show_document(prog, "", folios=False)
    assert doc["hstates"] is not None
    (pool,) = (hstate for hstate in doc["hstates"] if hstate["order"] == 9)
    assert [node["nid"] for node in pool["nodes"]] == [0, 1]
    assert [node["total"] for node in pool["nodes"]] == [32, 32]


@pytest.mark.parametrize("name", ["debian-6.12", "shared-7.3"])
def test_zeros_in_btf_are_no_types(name):
    """Members without names would be found nowhere, or be others."""
    dump, _ = whole(name)
    base = dump.program()
    sources = core_sources(base)
    start, end = sources.address("__start_BTF"), sources.address("__stop_BTF")
    assert start is not None
    assert end is not None
    first = -(-image_to_phys(base, start) >> 12)
    pfns = range(first, image_to_phys(base, end) >> 12)
    tried = [pfn for pfn in pfns if any(dump.pages.get(pfn, b""))]
    assert tried
    for pfn in tried:
        answer = audited(dump.program(pfn, "zeros"))
        assert answer.error is not None
        assert "reads as zeros" in answer.error


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("symbol", ["hstates", "node_data", "nr_node_ids"])
def test_an_extract_lacks_what_its_source_lacks(symbol, hole, small, tmp_path):
    dump, _ = whole("debian-7.2")
    pfn = pfn_of("debian-7.2", symbol)
    expected = answers(dump.program(pfn, hole))
    made, _ = extract(dump.program(pfn, hole), tmp_path / "extract", small=small)
    assert answers(made) == expected
    assert expected["check"]["status"] == "incomplete"


def test_an_extract_of_a_dump_that_is_cut_off_says_so(tmp_path):
    machine = build_machine(describe("shared-7.3"))
    cut, made = tmp_path / "cut", tmp_path / "extract"
    write_machine(machine, cut)
    os.truncate(cut, cut.stat().st_size * 97 // 100)
    told = run("check", cut)
    assert (told.returncode, "is cut off" in told.stdout) == (3, True)
    assert run("extract", cut, "-o", made).returncode == 0
    again = run("check", made)
    assert (again.returncode, "is incomplete" in again.stdout) == (3, True)
    # All else is the same, whatever the files are called.
    lines = [text.stdout.splitlines()[2:] for text in (told, again)]
    assert lines[0] == lines[1]


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """A healthy ELF core of two nodes."""
    path = tmp_path_factory.mktemp("two") / "nodes"
    write_machine(build_machine(describe("shared-7.3")), path)
    return path


def test_cut_at_every_twentieth(two_nodes, tmp_path):
    path, size = tmp_path / "cut", two_nodes.stat().st_size
    shutil.copy(two_nodes, path)
    statuses = set()
    for twentieth in range(19, 0, -1):
        os.truncate(path, size * twentieth // 20)
        result = run("check", path)
        statuses.add(result.returncode)
        assert "cut off" in result.stdout
    # Without any page table, too, what is left is looked at.
    assert statuses == {3}


def test_a_cut_copy_is_never_clean(two_nodes, tmp_path):
    """Whether what was lost would have been looked at, nobody can know."""
    path, size = tmp_path / "cut", two_nodes.stat().st_size
    shutil.copy(two_nodes, path)
    os.truncate(path, size - 1)
    result = run("check", path, "--json")
    found = json.loads(result.stdout)
    assert (result.returncode, found["status"], found["complete"]) == (
        3,
        "incomplete",
        False,
    )
    assert found["dump"]["truncated"] == {"expected": size, "actual": size - 1}
    assert "no error found, incomplete" in run("check", path).stdout


@pytest.mark.parametrize("share", [99, 95, 80, 60])
def test_segments_that_read_as_zeros(two_nodes, tmp_path, share):
    """p_filesz is less than p_memsz from some byte of the file on."""
    path = tmp_path / "zeros"
    shutil.copy(two_nodes, path)
    left = two_nodes.stat().st_size * share // 100
    with path.open("r+b") as file:
        header = file.read(64)
        at, (size, count) = (
            struct.unpack_from("<Q", header, 32)[0],
            struct.unpack_from("<HH", header, 54),
        )
        for place in range(at, at + size * count, size):
            file.seek(place)
            kind, _, offset, _, _, length = struct.unpack("<IIQQQQ", file.read(40))
            if kind == 1:
                kept = max(0, min(length, left - offset)) & -4096
                file.seek(place + 32)
                file.write(struct.pack("<Q", kept))
    result = run("check", path)
    assert result.returncode in (2, 3)
    assert "reads as zeros" in result.stdout or "not in this dump" in result.stdout
    assert "error," not in result.stdout
