# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Faults
------

Each is applied where it says, changes what it says and nothing else, and exists in
every generation in which it makes sense.
"""

import json
from pathlib import Path
import re

import drgn
import numpy as np
import pytest

from drgn_hvo.cli import main
from drgn_hvo.errors import UsageError
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.containers.output import write_core
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.description import HugePages
from drgn_hvo.synth.described.generations import GENERATIONS, generation
from drgn_hvo.synth.machine.machine import build_machine
from tests.synth_support import ALL, describe, loaded

#: Faults that change nothing in memory.
OF_THE_DUMP = {"vmemmap-misaligned", "page-missing", "truncated"}

CASES = [
    (fault.name, entry.name)
    for fault in FAULTS
    for entry in GENERATIONS
    if fault.possible(entry)
]

# The rules by name, as scripts know them.
RULES = [
    "vmemmap-alignment",
    "hstate-identity",
    "section-order",
    "shared-tail-entry",
    "shared-tail-unique",
    "shared-tail-info",
    "shared-tail-mapping",
    "shared-tail-mapcount",
    "shared-tail-flags",
    "shared-tail-refcount",
    "shared-tail-rest",
    "vmemmap-entry-bits",
    "vmemmap-tail-frame",
    "vmemmap-tail-writable",
    "vmemmap-head-frame",
    "folio-head",
    "folio-node",
    "folio-tail-info",
    "folio-tail-mapping",
    "folio-tail-mapcount",
    "folio-tail-flags",
    "folio-tail-refcount",
    "folio-tail-rest",
    "folio-optimized-flag",
    "folio-unoptimized",
    "folio-list",
    "hstate-lists",
    "hstate-counters",
    "hstate-reserve",
    "stray-shared-tail",
    "stray-head",
    "compound-heads",
]


@pytest.mark.parametrize("name", ALL)
def test_changes_are_where_they_say(name):
    """A second, healthy machine says what was there, and elsewhere nothing moved."""
    description = describe(name)
    healthy = build_machine(description).image
    for fault in FAULTS:
        if not fault.possible(generation(name)):
            with pytest.raises(UsageError, match="makes no sense with"):
                make_machine(description, [fault.name])
            continue
        machine, (applied,) = make_machine(description, [fault.name])
        assert applied.fault is fault
        assert bool(applied.changes) == (fault.name not in OF_THE_DUMP), fault.name
        prog = program(machine)
        for change, old in applied.changes:
            assert old != change.new, fault.name
            assert healthy.read(change.address, len(old)) == old
            assert prog.read(change.address, len(old), True) == change.new
            frame, offset = change.address & -4096, change.address & 4095
            one, two = healthy.read(frame, 4096), machine.image.read(frame, 4096)
            rest = [
                i
                for i in range(4096)
                if one[i] != two[i] and not offset <= i < offset + len(old)
            ]
            others = [
                c.address
                for c, _ in applied.changes
                if c is not change and c.address & -4096 == frame
            ]
            assert not rest or others, fault.name


def test_the_table_is_sound():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) > 35
    for fault in FAULTS:
        assert fault.rule is None or fault.rule in RULES
        assert set(fault.consequences) <= set(RULES)
        assert len(fault.consequences) <= 3
        assert any(fault.possible(entry) for entry in GENERATIONS)
    # Every rule has damage that breaks it.
    assert {fault.rule for fault in FAULTS} >= set(RULES)


def test_unknown_fault():
    with pytest.raises(UsageError, match="there is no fault 'nonsense'"):
        make_machine(describe("shared-7.3"), ["nonsense"])


def test_nothing_to_damage():
    bare = describe("shared-7.3", huge_pages=(), pages=(), reserved={})
    with pytest.raises(UsageError, match="has no shared tail page to damage"):
        make_machine(bare, ["tail-bit-cleared"])
    one = describe("shared-7.3", huge_pages=(HugePages(0, "DMA32", 9, 1),), reserved={})
    with pytest.raises(UsageError, match="no free list with two folios"):
        make_machine(one, ["list-loop"])


def hvo_with(name, *faults):
    machine, _ = make_machine(describe(name), faults)
    return machine, hvo_of(program(machine))


def test_misaligned_vmemmap():
    _, hvo = hvo_with("shared-7.3", "vmemmap-misaligned")
    assert hvo.kernel.vmemmap % (1 << 28) == 64 << 20
    assert len(hvo.hugetlb.folios) == 21


def test_page_missing(tmp_path):
    """The frame is not in the core, in no container, and nothing else is missing."""
    description = describe("shared-7.3")
    machine, _ = make_machine(description, ["page-missing"])
    (pfn,) = machine.image.missing
    for container in ("elf", "vmcore", "kdump", "flattened"):
        path = tmp_path / container
        write_core(description, path, container, ["page-missing"])
        prog = loaded(path)
        with pytest.raises(drgn.FaultError):
            prog.read(pfn << 12, 8, True)
        folios = hvo_of(prog).hugetlb.folios
        assert (~folios.present).sum() == 1


@pytest.mark.parametrize("name", ["list-loop", "list-bad-pointer", "two-lists"])
def test_lists(name):
    _, hvo = hvo_with("shared-7.3", name)
    problems = [a_list.broken for a_list in hvo.hugetlb.lists]
    assert any(problems)


def test_flags_and_mappings():
    _, hvo = hvo_with("shared-7.3", "flag-without-remapping", "remapping-without-flag")
    flags = hvo.hugetlb.has_hpg_flag("vmemmap_optimized")
    assert (flags != hvo.hugetlb.optimized_mapping).sum() == 2


def test_fake_heads_left():
    """The frames of a restored folio begin with PG_head, as on 6.12.117."""
    machine, (applied,) = make_machine(describe("fake-head-6.12"), ["fake-heads-left"])
    assert len(applied.changes) == 7
    prog = program(machine)
    install(prog)
    bit = machine.plan.structures.page_flag("head")
    for change, old in applied.changes:
        assert int.from_bytes(prog.read(change.address, 8, True), "little") & bit
        assert not int.from_bytes(old[:8], "little") & bit


def test_boot_tail_overwritten():
    """As on a core of the seed series: slices read as order-0 pages."""
    machine, _ = make_machine(describe("seed-v5"), ["boot-tail-overwritten"])
    tail = machine.vmemmap.tails[0]
    rows = np.frombuffer(machine.image.read(tail.pfn << 12, 4096), dtype="<u8")
    assert set((rows.reshape(64, 8)[:, 1] & np.uint64(1)).tolist()) == {0}


DESCRIPTION = """
generation = "shared-7.3"
[[node]]
id = 0
ranges = [[0x0, 0x8000]]
zones = {DMA = [0x1, 0x1000], DMA32 = [0x1000, 0x8000]}
[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
count = 3
"""


def command(*args):
    return main(["synth", *map(str, args)])


def test_command(tmp_path: Path, capsys):
    description = tmp_path / "machine.toml"
    description.write_text(DESCRIPTION)
    core = tmp_path / "core"
    assert command(description, "-o", core) == 0
    assert capsys.readouterr() == ("", "")
    assert len(hvo_of(loaded(core)).hugetlb.folios) == 3
    assert command(description, "-o", core) == 2
    assert "exists" in capsys.readouterr().err
    names = ["tail-mapping", "pte-writable"]
    assert command(description, "-o", core, "--force", "--fault", *names) == 0
    document = json.loads(capsys.readouterr().out)
    assert [fault["fault"] for fault in document["faults"]] == names
    (change,) = document["faults"][0]["changes"]
    assert re.fullmatch("0x[0-9a-f]+", change["physical_address"])
    assert change["old"] == "000400000000adde"
    assert change["new"] == "00" * 8
    folios = hvo_of(loaded(core)).hugetlb.folios
    assert folios.writable_shared_ptes.sum() == 1


def test_catalogue(capsys):
    assert main(["faults", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [f["name"] for f in document["faults"]] == [fault.name for fault in FAULTS]
    assert sum(len(f["generations"]) for f in document["faults"]) == len(CASES)
    assert main(["faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [fault.name for fault in FAULTS]
