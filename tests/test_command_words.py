# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What commands and helpers say of synthetic machines, in process: ends of ranges, what is
not there, and what only looks like something else.
"""

from pathlib import Path
import shutil
import struct
from typing import Any

from drgn import FaultError, Object
import numpy as np
import pytest

from drgn_hvo.cli import main
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.map import map_document, print_map
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.helpers.compound import compound_heads
from drgn_hvo.helpers.hugetlb import folio_vmemmap_frames, vmemmap_saved
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.damage.targets import Targets
from drgn_hvo.synth.described.description import HugePages, Node
from tests.extract_support import opened as opened_core
from tests.synth_support import describe, expected_heads

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"


def made(name, *faults):
    machine, _ = make_machine(describe(name), faults)
    return machine, Targets(machine)


def opened(machine):
    prog = program(machine)
    install(prog)
    return prog


def page(machine, pfn):
    specs = [parse_page_spec(f"pfn:0d{pfn}")]
    return page_document(hvo_of(opened(machine)), "core", specs)["pages"][0]


@pytest.fixture(scope="module")
def core():
    return SAMPLES / "shared-7.3.kdump"


@pytest.fixture(scope="module")
def end_pfn(core):
    return hvo_of(opened_core(core)).vmemmap.end_pfn


def test_both_ends_of_a_range_are_in_it(core, tmp_path):
    out = tmp_path / "heads"
    assert main(["heads", str(core), "--pfns", "100-163", "-o", str(out)]) == 0
    assert len(np.load(out)) == 64
    assert main(["heads", str(core), "--pfns", "7-7", "-o", str(out), "--force"]) == 0
    assert np.load(out).tolist() == [7]


def test_ranges_end_with_memory(core, end_pfn, tmp_path, capsys):
    out = tmp_path / "heads"
    command = ["heads", str(core), "--force", "-o", str(out), "--pfns"]
    assert main([*command, f"{end_pfn - 2}-{end_pfn - 1}"]) == 0
    assert main([*command, f"{end_pfn - 2}-{end_pfn}"]) == 2
    assert "out of range" in capsys.readouterr().err
    assert len(np.load(out)) == 2


def test_warnings_count_if_they_are_asked_to(capsys):
    core = str(SAMPLES / "shared-7.3-boot-1g.kdump")
    assert main(["check", core]) == 0
    assert main(["check", core, "--strict"]) == 1
    assert main(["check", core, "--strict", "--ignore", "shared-tail-refcount"]) == 0
    assert main(["check", str(SAMPLES / "shared-7.3.kdump"), "--strict"]) == 0


def test_rules_that_nobody_asked_for_are_not_reported(capsys):
    core = str(SAMPLES / "shared-7.3-tail-bit-cleared.kdump")
    assert main(["check", core]) == 1
    assert main(["check", core, "--rules", "folio-head"]) == 0
    assert main(["check", core, "--ignore", "shared-tail-info"]) == 0


def test_names_of_files_are_no_directives(core, tmp_path, capsys):
    named = tmp_path / "core # SKIP nothing to see"
    shutil.copy(core, named)
    assert main(["check", "--format", "ktap", str(named)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ok 1 ")
    assert "#" not in last


def test_a_rule_that_could_not_be_decided_is_no_pass(capsys):
    machine, _ = made("shared-7.3", "page-missing")
    doc = check_document(hvo_of(opened(machine)), "core", CheckScope())
    results = {rule["id"]: rule["result"] for rule in doc["rules"]}
    assert results["folio-head"] == "skip"
    assert results["shared-tail-info"] == "pass"


def test_a_tail_of_what_is_no_head_is_said_to_be_one():
    machine, targets = made("shared-7.3")
    head = targets.optimized_head()
    assert "no PG_head" not in page(machine, head + 5)["kind"]
    at = targets.page_field(head, "flags")
    flags = int.from_bytes(machine.image.read(at, 8), "little")
    changed = flags & ~machine.plan.structures.page_flag("head")
    machine.image.write(at, changed.to_bytes(8, "little"))
    assert "no PG_head" in page(machine, head + 5)["kind"]


def test_a_shared_tail_that_is_none_is_named():
    machine, targets = made("shared-7.3", "tail-bit-cleared")
    pfn = targets.optimized_head() + 64 + targets.INDEX
    assert "on a shared tail page: it should be a tail" in page(machine, pfn)["kind"]


def test_nothing_is_said_of_a_folio_that_is_not_there():
    machine, targets = made("shared-7.3")
    head = targets.optimized_head()
    machine.image.missing.add(machine.page_physical(head) >> 12)
    shown: Any = show_document(hvo_of(opened(machine)), "core", folios=True)
    unknown = [f for f in shown["folios"] if f["refcount"] is None]
    assert unknown
    for folio in unknown:
        assert (folio["flags"], folio["optimized_flag"], folio["nid"]) == (None,) * 3
        assert folio["optimized_mapping"] is True


@pytest.mark.parametrize("name", ["shared-7.3", "seed-v5", "fake-head-6.12"])
def test_shared_tail_pages_are_not_saved(name):
    machine, _ = made(name)
    saved: Any = show_document(hvo_of(opened(machine)), "core", folios=False)["saved"]
    pages = sum(
        p.group.count * ((64 << p.group.order) // 4096 - 1)
        for p in machine.plan.huge
        if p.optimized
    )
    tails = len(machine.vmemmap.tails)
    assert (saved["pages"], saved["net_pages"]) == (pages, pages - tails)
    assert saved["net_bytes"] == (pages - tails) * 4096


@pytest.mark.parametrize(
    ("name", "words"),
    [("fake-head-6.12", "fake heads"), ("shared-7.3", "shared tail page of node 0")],
)
def test_the_picture_says_what_is_behind_the_head(name, words, capsys):
    machine, targets = made(name)
    head = targets.optimized_head()
    print_map(
        map_document(hvo_of(opened(machine)), "core", parse_page_spec(f"pfn:0d{head}"))
    )
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
def test_heads_from_the_first_page_on(name):
    machine, _ = made(name)
    prog = opened(machine)
    heads = {pfn: head for pfn, (head, _) in expected_heads(machine).items()}
    some = [0, *list(heads)[::97], 5]
    found = compound_heads(prog, np.array(some)).tolist()
    assert found == [heads.get(pfn, pfn) for pfn in some]


def folio(machine, pfn):
    prog = opened(machine)
    address = machine.plan.space.page_address(pfn)
    return Object(prog, "struct folio *", address)


def test_a_page_of_vmemmap_that_is_not_mapped_has_no_frame():
    machine, targets = made("shared-7.3")
    head = targets.optimized_head()
    machine.image.write(machine.slice_entry(head, 3), bytes(8))
    frames = folio_vmemmap_frames(folio(machine, head))
    tail = targets.tail().pfn
    assert frames.pfn.tolist()[1:] == [tail, tail, -1, tail, tail, tail, tail]
    assert frames.users.tolist()[3] == 0
    assert not frames.writable[3]


def test_a_page_table_that_is_not_there_is_no_hole():
    """Of a gigantic page: some of its tables are there."""
    nodes = (Node(0, ((0, 0x100000),), {"DMA32": (1, 0x100000)}),)
    description = describe(
        "shared-7.3",
        nodes=nodes,
        hstates=(18,),
        huge_pages=(HugePages(0, "DMA32", 18, 1),),
        pages=(),
        reserved={},
    )
    machine, _ = make_machine(description)
    (placed,) = machine.plan.huge
    table = machine.slice_entry(placed.first_pfn, 4000) >> 12
    assert table != machine.slice_entry(placed.first_pfn) >> 12
    assert len(folio_vmemmap_frames(folio(machine, placed.first_pfn)).pfn) == 4096
    machine.image.missing.add(table)
    with pytest.raises(FaultError, match="not in this dump"):
        folio_vmemmap_frames(folio(machine, placed.first_pfn))
    with pytest.raises(FaultError, match="not in this dump"):
        vmemmap_saved(program(machine))


@pytest.mark.parametrize("size", [4097, 8192])
def test_a_page_larger_than_a_block_is_damage(core, size, tmp_path, capsys):
    """Its bytes are in the file, and readers would trust the descriptor."""
    data = bytearray(core.read_bytes())
    block, sub, bitmaps = struct.unpack_from("<iiI", data, 428)
    descriptors = (1 + sub + bitmaps) * block
    offset, _, _ = struct.unpack_from("<QII", data, descriptors)
    assert offset + size < len(data)
    struct.pack_into("<I", data, descriptors + 8, size)
    path = tmp_path / "core"
    path.write_bytes(data)
    assert main(["show", str(path)]) == 2
    assert "damaged" in capsys.readouterr().err
