# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Our reader on synthetic cores
-----------------------------

Whatever was described is what the reader reports; the generator shares only the
pure layer with it.
"""

from typing import Any

import numpy as np
import pytest

from drgn_hvo.commands.show import show_document
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.described.description import HugePages, Node
from drgn_hvo.synth.described.generations import generation
from drgn_hvo.synth.machine.structures import structures
from tests.synth_support import (
    ALL,
    describe,
    expected_folios,
    expected_heads,
    machine_and_program,
)

GIGANTIC = (
    Node(
        0,
        ((0, 0xA0000), (0x100000, 0x1A0000)),
        {
            "DMA": (1, 0x1000),
            "DMA32": (0x1000, 0x100000),
            "Normal": (0x100000, 0x1A0000),
        },
    ),
)
TAILS = [name for name in ALL if generation(name).can_optimize]


def look(description):
    machine, prog = machine_and_program(description)
    return machine, hvo_of(prog)


def reported_folios(hvo):
    shown: Any = show_document(hvo, "x", folios=True)
    return {folio["head_pfn"]: folio for folio in shown["folios"]}


@pytest.fixture(scope="module", params=ALL)
def case(request):
    return look(describe(request.param))


def test_layout(case):
    machine, hvo = case
    entry = machine.plan.generation
    shown = show_document(hvo, "x", folios=False)
    assert shown["types_from"] == "btf"
    assert shown["symbols_from"] == "kallsyms"
    assert shown["release"] == entry.release
    page = structures(entry).page
    assert shown["struct_page"] == {
        "size": page.size,
        "member": entry.tail_word,
        "offset": page.offset(entry.tail_word),
    }
    assert shown["encoding"]["kind"] == ("mask" if entry.has_mask else "pointer")
    tails = shown["tail_layout"]
    assert tails["kind"] == entry.tails
    assert tails["where"] == entry.array
    if entry.array:
        assert tails["element"] == ("pfn" if entry.element_is_pfn else "struct page *")
        assert tails["slots"] == entry.slots
        assert tails["min_order"] == entry.min_order
    enabled = machine.plan.description.hvo_enabled if entry.hvo_built else None
    assert shown["hvo_enabled"] == enabled
    assert shown["vmemmap"]["base"] == hex(machine.plan.space.vmemmap)
    assert hvo.unread == ()


def test_kallsyms_addressing(case):
    machine, hvo = case
    kallsyms = hvo.kernel.sources.kallsyms()
    assert kallsyms.addressing == machine.plan.generation.kallsyms
    for name in ("hstates", "init_mm", "vmemmap_populate"):
        assert [entry.address for entry in kallsyms.lookup(name)] == [
            machine.kernel.address(name)
        ]


def test_offsets_differ_between_generations():
    """Nothing in the reader may depend on one of them."""
    for owner, member in (
        ("zone", "vm_stat"),
        ("hstate", "order"),
        ("pglist_data", "node_id"),
    ):
        offsets = {
            getattr(structures(generation(name)), owner).offset(member) for name in ALL
        }
        assert len(offsets) > 1, f"{owner}.{member}"


def test_folios(case):
    machine, hvo = case
    expected = expected_folios(machine)
    if not machine.plan.generation.can_optimize:
        # On no list and with frames of its own: nothing leads to it.
        expected = {p: f for p, f in expected.items() if f.list is not None}
    folios = reported_folios(hvo)
    assert sorted(folios) == sorted(expected)
    for pfn, want in expected.items():
        got = folios[pfn]
        assert (got["order"], got["nid"], got["zone"]) == (
            want.order,
            want.nid,
            want.zone,
        )
        assert got["list"] == want.list
        assert got["refcount"] == want.refcount
        assert got["optimized_flag"] == want.optimized
        assert got["optimized_mapping"] == want.optimized
        assert got["shared_ptes"] == (shared_slices(machine) if want.optimized else 0)
        assert got["writable_shared_ptes"] == 0
        assert got["in_transition"] == (want.list is None)
        assert got["head_frame"] == machine.page_physical(pfn) >> 12


def shared_slices(machine):
    """How many slices of an optimized folio of order 9 have no frame of their own."""
    return 8 - machine.plan.generation.private_slices


def test_shared_tails(case):
    machine, hvo = case
    described = {
        (tail.nid, tail.zone, tail.order): tail for tail in machine.vmemmap.tails
    }
    found = {(t.nid, t.zone_index, t.order): t for t in hvo.shared_tails}
    assert sorted(found, key=str) == sorted(described, key=str)
    assert bool(found) == (
        machine.plan.generation.shared and machine.plan.generation.can_optimize
    )
    for key, tail in described.items():
        assert found[key].pfn == tail.pfn
        assert found[key].boot is False
        assert found[key].frame_refcount == 1
        users = [
            p
            for p in machine.plan.huge
            if p.optimized
            and p.group.node == tail.nid
            and (
                tail.zone is None
                or machine.plan.zone_of(p.first_pfn).index == tail.zone
            )
        ]
        assert found[key].mapped_by == 7 * sum(p.group.count for p in users)


def test_saved(case):
    machine, hvo = case
    saved: Any = show_document(hvo, "x", folios=False)["saved"]
    optimized = sum(p.group.count for p in machine.plan.huge if p.optimized)
    assert saved["pages"] == shared_slices(machine) * optimized
    assert saved["shared_tail_pages"] == len(machine.vmemmap.tails)


def test_zones(case):
    machine, hvo = case
    zones = {(z.nid, z.name): (z.start_pfn, z.spanned) for z in hvo.mmzone.zones}
    for node in machine.plan.description.nodes:
        for name, (start, end) in node.zones.items():
            assert zones[node.id, name] == (start, end - start)
    assert hvo.mmzone.flags_layout is not None


def test_every_head(case):
    machine, hvo = case
    end = hvo.vmemmap.end_pfn
    heads = np.concatenate(list(hvo.heads.range(0, end)))
    expected = np.arange(end, dtype=np.uint64)
    for pfn, (head, _) in expected_heads(machine).items():
        expected[pfn] = head
    expected[0x16000:0x16040] = ALL_ONES
    wrong = np.flatnonzero(heads != expected)
    assert len(heads) == end == 0x20000
    assert wrong.tolist() == []


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("levels", [4, 5])
def test_gigantic_pages_from_boot(name, levels):
    description = describe(
        name,
        nodes=GIGANTIC,
        paging_levels=levels,
        huge_pages=(
            HugePages(0, "DMA32", 18, 1, origin="boot", first_pfn=0x40000),
            HugePages(0, "Normal", 18, 1, origin="boot", list="active"),
            HugePages(0, "DMA32", 9, 8, origin="demoted"),
        ),
        pages=(),
        reserved={},
    )
    machine, hvo = look(description)
    folios = reported_folios(hvo)
    gigantic = [folio for folio in folios.values() if folio["order"] == 18]
    shared = 4096 - machine.plan.generation.private_slices
    assert [folio["shared_ptes"] for folio in gigantic] == [shared, shared]
    assert all(folio["optimized_mapping"] for folio in folios.values())
    entry = machine.plan.generation
    boot = [tail for tail in hvo.shared_tails if tail.order == 18]
    assert len(boot) == {"zone": 2, "pglist_data": 1, None: 0}[entry.array]
    assert all(tail.boot for tail in boot)
    if entry.array != "zone":
        return
    if entry.array_is_allocated:
        return  # prep_compound_tail() runs over zeros
    # As on 7.2.13: reference count 1, last_cpupid all-ones, and a stale pointer.
    for tail in machine.vmemmap.tails:
        rows = np.frombuffer(machine.image.read(tail.pfn << 12, 4096), dtype="<u8")
        refcounts = rows.reshape(64, 8)[:, 6] >> np.uint64(32)
        prevs = rows.reshape(64, 8)[:, 2]
        assert set(refcounts.tolist()) == ({1} if tail.boot else {0})
        assert len(set(prevs.tolist())) == (64 if tail.boot else 1)


def test_shared_tail_words_of_the_seed_series():
    machine, _ = machine_and_program(describe("seed-v5"))
    tail = machine.vmemmap.tails[0]
    words = np.frombuffer(machine.image.read(tail.pfn << 12, 64), dtype="<u8")
    assert words.tolist() == [0, 0xFFFFFFFFFFFF8001, 0, 0xDEAD000000000400, 0, 0, 0, 0]


def test_static_key_counts_optimized_folios():
    machine, prog = machine_and_program(describe("fake-head-6.12"))
    enabled = prog["hugetlb_optimize_vmemmap_key"].key.enabled.counter.value_()
    assert enabled == sum(p.group.count for p in machine.plan.huge if p.optimized) > 0
