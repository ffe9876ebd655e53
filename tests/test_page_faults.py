# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``page`` and ``map`` on damaged words: every fault in every generation. The machine's
own plan says which huge page each page is in; whatever its word says, that is the
answer, with the finding that ``check`` has.
"""

import json
from pathlib import Path

import pytest

from drgn_hvo.audit.findings import Audit, Finding
from drgn_hvo.audit.rules import RULES
from drgn_hvo.audit.subjects import FolioHead
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.map import map_document, print_map
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.page_text import print_pages
from drgn_hvo.errors import UsageError
from drgn_hvo.memmap import list_place
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.command_support import run
from tests.cores import core_path
from tests.page_support import pages_of
from tests.synth_support import ALL, FEW, describe

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

# All of vmemmap is not looked at for one page.
DEEP = {rule.id for rule in RULES if rule.deep}
NOTICED = [
    fault for fault in FAULTS if fault.rule is not None and fault.rule not in DEEP
]
CASES = [
    (fault, entry.name)
    for fault in NOTICED
    for entry in GENERATIONS
    if fault.possible(entry)
]


def spec(pfn):
    return parse_page_spec(f"pfn:0d{pfn}")


def pages(found, *pfns):
    return page_document(found, "core", [spec(pfn) for pfn in pfns])["pages"]


def folio_at(machine, pfn):
    """Head and order of the huge page that covers a page, by the machine's plan."""
    for placed in machine.plan.huge:
        for head in placed.heads():
            if head <= pfn < head + (1 << placed.group.order):
                return head, placed.group.order
    return None


@pytest.mark.parametrize("name", ALL)
def test_all_sources_agree_in_a_healthy_machine(name):
    machine, _ = make_machine(describe(name))
    found = hvo_of(program(machine))
    wanted = {t.pfn for t in machine.vmemmap.tails}
    for placed in machine.plan.huge:
        head = placed.heads()[-1]
        end = head + (1 << placed.group.order)
        wanted |= {head - 1, head, head + 1, head + 2, head + 65, end - 1, end}
        wanted.add(machine.page_physical(head) // machine.plan.page_size)
    for page in pages(found, *sorted(p for p in wanted if p < machine.plan.max_pfn)):
        assert page["disagreements"] == []
        assert page["findings"] == []
        assert page["copy_of"] is None
        one, expected = page["covering_folio"], folio_at(machine, page["pfn"])
        assert (None if one is None else (one["head_pfn"], one["order"])) == expected
        if expected is not None:
            assert page["resolved_by"]["word"]["head_pfn"] == expected[0]
            assert page["slice"]["index_in_folio"] < one["slices"]


def pytest_generate_tests(metafunc):
    if metafunc.function is not test_a_damaged_word:
        return
    every = metafunc.config.getoption("--all-generations")
    cases = [case for case in CASES if every or case[1] in FEW]
    ids = [f"{fault.name}-{name}" for fault, name in cases]
    metafunc.parametrize(("fault", "name"), cases, ids=ids)


def test_a_damaged_word(fault, name, capsys):
    machine, (applied,) = make_machine(describe(name), [fault.name])
    found = hvo_of(program(machine))
    checked = check_document(found, "core", CheckScope())["findings"]
    first = checked[0]
    for pfn in pages_of(machine, applied.changes):
        doc = page_document(found, "core", [spec(pfn)])
        (page,) = doc["pages"]
        cited = page["findings"][0]
        assert cited["rule"] == fault.rule
        assert cited["physical_address"] == first["physical_address"]
        assert cited["actual"] == first["actual"]
        assert cited["index"] == 0
        for finding in page["findings"]:
            assert finding["index"] is not None
            named = checked[finding["index"]]
            assert named["rule"] == finding["rule"]
        rules = {finding["rule"] for finding in page["findings"]}
        assert rules <= {fault.rule, *fault.consequences}
        one, expected = page["covering_folio"], folio_at(machine, pfn)
        assert (None if one is None else (one["head_pfn"], one["order"])) == expected
        if one is not None:
            index = page["slice"]["index_in_folio"]
            assert index is not None
            assert 0 <= index < one["slices"]
            assert (page["head_pfn"], page["order"]) == expected
        print_pages(doc)
        text = capsys.readouterr().out
        assert f"(rule {fault.rule})" in text
        assert "Nothing" not in text
        if fault.name.startswith(("tail-", "pte-", "private-", "head-")):
            assert (
                cited["here"]
                or len(applied.changes) > 1
                or fault.name in ("head-frame-shared",)
            )


@pytest.mark.parametrize("name", ["fake-head-6.12", "shared-7.3", "next"])
def test_lists_that_are_not_followed(name, monkeypatch):
    """A large pool: a folio's links and its neighbours' tell the same."""
    monkeypatch.setattr(list_place, "_FEW", -1)
    machine, _ = make_machine(describe(name))
    found = hvo_of(program(machine))
    for placed in machine.plan.huge:
        for head in placed.heads():
            (page,) = pages(found, head + 5)
            one = page["covering_folio"]
            of_group = placed.group.list
            assert one["list"] == (None if of_group == "none" else of_group)
            assert one["list_by"] == "links"
            assert page["findings"] == []
            assert page["disagreements"] == []


@pytest.mark.parametrize("fault", NOTICED, ids=lambda fault: fault.name)
def test_damage_where_lists_are_not_followed(fault, monkeypatch):
    monkeypatch.setattr(list_place, "_FEW", -1)
    name = "shared-7.3"
    if not fault.possible(next(g for g in GENERATIONS if g.name == name)):
        name = "fake-head-6.12"
    try:
        machine, (applied,) = make_machine(describe(name), [fault.name])
    except UsageError:
        pytest.skip("not in this generation")
    found = hvo_of(program(machine))
    for pfn in pages_of(machine, applied.changes):
        (page,) = pages(found, pfn)
        if fault.name == "two-lists":
            continue  # the wrong word is the end of another list, far away
        assert page["findings"][0]["rule"] == fault.rule


def test_findings_are_those_of_check():
    """Also those that check folds, of which there are more than it lists."""
    core = str(SAMPLES / "debian-6.12-restored.kdump")
    checked = json.loads(run("check", core, "--json").stdout)["findings"]
    page = json.loads(run("page", core, "6720", "--json").stdout)["pages"][0]
    for finding in page["findings"]:
        named = checked[finding["index"]]
        for key in ("rule", "severity", "defect"):
            assert named[key] == finding[key]
    assert (
        f"#{page['findings'][0]['index']} of check" in run("page", core, "6720").stdout
    )


def test_what_is_found_beyond_those_that_are_listed():
    audit = Audit()
    for n in range(40):
        audit.add(Finding("folio-head", f"{n}", about=FolioHead(n)))
    assert audit.has_rest("folio-head")
    assert not audit.has_rest("folio-node")
    assert len(audit.findings) == 16


def test_a_word_of_another_order(capsys):
    """The word says PFN 4096, page tables and lists say slice 1 of PFN 4608."""
    machine, (applied,) = make_machine(describe("shared-7.3"), ["tail-wrong-order"])
    found = hvo_of(program(machine))
    (shared,) = {pfn % 64 for pfn in pages_of(machine, applied.changes)}
    head = next(p for p in machine.plan.huge if p.group.list == "free").heads()[0]
    pfn = head + 64 + shared
    (page,) = pages(found, pfn)
    head, order = folio_at(machine, pfn)
    assert page["resolved_by"]["word"]["order"] == order + 1
    assert page["resolved_by"]["page_tables"]["head_pfn"] == head
    assert page["resolved_by"]["lists"]["head_pfn"] == head
    (wrong,) = page["disagreements"]
    assert wrong["source"] == "word"
    assert wrong["believed"] == ["page_tables", "lists"]
    print_map(map_document(found, "core", spec(pfn)))
    drawn = capsys.readouterr().out
    assert f"order {order} (" in drawn
    assert f"PFN {head} to {head + (1 << order) - 1}" in drawn
    assert "<- WRONG: shared-tail-info" in drawn


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("pte-foreign-frame", "vmemmap-tail-frame"),
        ("pte-none", "vmemmap-tail-writable"),
        ("pte-writable", "vmemmap-tail-writable"),
        ("head-read-only", "vmemmap-head-frame"),
    ],
)
@pytest.mark.parametrize("name", ["fake-head-6.12", "shared-7.3"])
def test_a_broken_entry_is_marked(fault, rule, name, capsys):
    machine, (applied,) = make_machine(describe(name), [fault])
    found = hvo_of(program(machine))
    (pfn,) = pages_of(machine, applied.changes)
    print_map(map_document(found, "core", spec(pfn)))
    drawn = capsys.readouterr().out.splitlines()
    marked = [line for line in drawn if f"<- WRONG: {rule}" in line]
    assert len(marked) == 1
    size, page_size = found.vmemmap.size, found.vmemmap.page_size
    slice_ = found.vmemmap.base + pfn * size // page_size * page_size
    assert f"{slice_:#x}" in marked[0]


def test_frames_of_vmemmap():
    machine, _ = make_machine(describe("shared-7.3"))
    found = hvo_of(program(machine))
    tail = machine.vmemmap.tails[0]
    (page,) = pages(found, tail.pfn)
    use = page["frame_of"]
    mine = [
        placed
        for placed in machine.plan.huge
        if placed.optimized and placed.group.order == tail.order
        and machine.plan.zone_of(placed.first_pfn).nid == tail.nid
        and machine.plan.zone_of(placed.first_pfn).index == tail.zone
    ]  # fmt: skip
    count = sum(placed.group.count for placed in mine)
    assert (use["kind"], use["nid"], use["order"]) == (
        "shared-tail",
        tail.nid,
        tail.order,
    )
    assert use["huge_pages"] == count
    slices = (1 << tail.order) * 64 // 4096
    assert use["mapped_by"] == count * (slices - 1)
    head = mine[0].heads()[0]
    (page,) = pages(found, machine.page_physical(head) // 4096)
    assert page["frame_of"]["kind"] == "head"
    assert (page["frame_of"]["first_pfn"], page["frame_of"]["last_pfn"]) == (
        head,
        head + 63,
    )
    assert any("frame of vmemmap" in text for text in page["conclusions"])


def test_a_left_copy_of_a_head():
    core = core_path("6.12-mix")
    shown = run("page", core, "6720").stdout
    assert "PFN 6720 is no head" in shown
    assert "copy of the head of PFN 6656" in shown
    assert "restored-fake-heads" in shown
    drawn = run("map", core, "6720").stdout
    assert "PFN 6656 to 7167" in drawn
    assert drawn.count("<- WRONG") == 8
