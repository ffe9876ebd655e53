# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Real vmcores against their ground truth
---------------------------------------

The truth was found by an independent program and checked against what the guest
said. Where it is silent, drgn's own helpers on the same core are the oracle. No
test here uses debuginfo.
"""

import contextlib
import io
import json
import random

from drgn.helpers.linux.mm import compound_head, follow_phys
import numpy as np
import pytest

from drgn_hvo.cli import main
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from tests.cores import (
    CORES,
    DRGN_IS_WRONG,
    core_path,
    layout_of,
    open_core,
    truth,
)


@pytest.fixture(scope="module", params=CORES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def expected(name):
    return truth(name)


@pytest.fixture(scope="module")
def bound(name):
    return hvo_of(open_core(name))


@pytest.fixture(scope="module")
def shown(name):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["show", "--folios", "--json", str(core_path(name))]) == 0
    return json.loads(out.getvalue())


def zone_name(expected, nid, index):
    (node,) = (node for node in expected["nodes"] if node["nid"] == nid)
    return node["zones"][index]["name"]


def test_kernel(shown, expected):
    assert shown["release"] == expected["release"]
    assert shown["arch"] == "x86_64"
    assert shown["types_from"] == "btf"
    assert shown["symbols_from"] == "kallsyms"
    assert shown["struct_page"] == {
        "size": expected["struct_page_size"],
        "member": expected["info_field"],
        "offset": expected["info_offset"],
    }
    assert shown["vmemmap"]["base"] == expected["vmemmap_base"]
    assert shown["hvo_enabled"] == bool(expected["vmemmap_optimize_enabled"])


def test_layout(shown, expected, name):
    assert shown["encoding"]["kind"] == expected["encoding"]
    kind, where, element = layout_of(name)
    layout = shown["tail_layout"]
    assert (layout["kind"], layout["where"], layout["element"]) == (
        kind,
        where,
        element,
    )
    if kind == "shared":
        # MAX_FOLIO_ORDER is 22 on x86-64: 16 GiB.
        assert (layout["min_order"], layout["slots"]) == (7, 16)
        assert shown["vmemmap"]["required_alignment"] == 64 << 22
        assert shown["vmemmap"]["aligned"] is True
    assert shown["encoding"]["evidence"]
    assert layout["evidence"]


def test_the_only_note_is_where_drgn_is_wrong(shown, name):
    # Who limits pools is in slab memory, which most dumps have only in part.
    notes = [note for note in shown["notes"] if not note.startswith("limits of ")]
    assert len(notes) == (name in DRGN_IS_WRONG)
    assert all("drgn's own compound_head()" in note for note in notes)


def test_shared_tails(shown, expected):
    def entry(nid, zone, tail):
        own = tail["own_struct_page"]
        return nid, zone, tail["index"], tail["order"], tail["pfn"], own["refcount"]

    wanted = []
    for node in expected["nodes"]:
        wanted += [entry(node["nid"], None, t) for t in node.get("vmemmap_tails", ())]
        for zone in node["zones"]:
            wanted += [
                entry(node["nid"], zone["name"], t)
                for t in zone.get("vmemmap_tails", ())
            ]
    found = [
        (
            tail["nid"],
            tail["zone"],
            tail["index"],
            tail["order"],
            tail["pfn"],
            tail["frame_refcount"],
        )
        for tail in shown["shared_tails"]
    ]
    assert found == wanted
    users: dict[int, int] = {}
    for folio in expected["folios"]:
        for run in folio["vmemmap_runs"]:
            if run["step"] == 0:
                users[run["pfn"]] = users.get(run["pfn"], 0) + run["count"]
    for tail in shown["shared_tails"]:
        assert tail["mapped_by"] == users[tail["pfn"]]


def test_hstates(shown, expected):
    wanted = {h["order"]: h for h in expected["hstates"]}
    assert [h["order"] for h in shown["hstates"]] == [
        h["order"] for h in expected["hstates"]
    ]
    for hstate in shown["hstates"]:
        truly = wanted[hstate["order"]]
        assert hstate["page_bytes"] == 4096 << hstate["order"]
        assert hstate["total"] == truly["nr_huge_pages"]
        assert hstate["free"] == truly["free_huge_pages"]
        assert hstate["surplus"] == truly["surplus_huge_pages"]
        assert hstate["reserved"] == truly["resv_huge_pages"]
        for node in hstate["nodes"]:
            nid = str(node["nid"])
            assert node["total"] == truly["nr_huge_pages_node"][nid]
            assert node["free"] == truly["free_huge_pages_node"][nid]
            assert node["surplus"] == truly["surplus_huge_pages_node"][nid]
            here = [
                folio
                for folio in expected["folios"]
                if (folio["order"], str(folio["nid"])) == (hstate["order"], nid)
            ]
            assert node["folios"] == len(here)
            assert node["optimized"] == sum(f["optimized_mapping"] for f in here)


def test_folios(shown, expected):
    assert len(shown["folios"]) == len(expected["folios"])
    for folio, truly in zip(shown["folios"], expected["folios"]):
        head, tails = truly["vmemmap_runs"]
        assert folio == {
            "head_pfn": truly["pfn"],
            "order": truly["order"],
            "nid": truly["nid"],
            "zone": zone_name(expected, truly["nid"], truly["zone"]),
            "list": truly["where"],
            "refcount": truly["refcount"],
            "flags": truly["hpg"],
            "optimized_flag": truly["optimized_flag"],
            "optimized_mapping": truly["optimized_mapping"],
            "head_frame": head["pfn"],
            "tail_frames": [tails["pfn"]],
            "private_frames": head["count"],
            "shared_ptes": tails["count"],
            "writable_shared_ptes": 0,
            "in_transition": False,
            "hwpoison": False,
        }
        assert (tails["step"], tails["writable"], head["writable"]) == (0, False, True)


def test_saved(shown, expected):
    totals = expected["totals"]
    saved = shown["saved"]
    assert saved["pages"] == totals["saved_vmemmap_pages"]
    assert saved["shared_tail_pages"] == totals["shared_tail_frames"]
    assert saved["net_pages"] == saved["pages"] - saved["shared_tail_pages"]
    assert saved["net_bytes"] == 4096 * saved["net_pages"]
    wanted: dict[tuple[int, int], int] = {}
    for folio in expected["folios"]:
        key = folio["nid"], folio["order"]
        wanted[key] = wanted.get(key, 0) + folio["saved"]
    found = {(e["nid"], e["order"]): e["pages"] for e in saved["by_node_order"]}
    assert found == wanted


def test_memmap(bound, expected):
    runs = bound.vmemmap.runs
    memmap = expected["memmap"]
    assert runs.count.sum() == memmap["pages"]
    assert runs.count[~runs.writable].sum() == memmap["read_only"]
    for level, size in ((0, 4096), (1, 2 << 20)):
        mapped = runs.count[runs.level == level].sum()
        assert mapped == memmap["mapped_by_size"].get(str(size), 0)
    assert bound.vmemmap.walk.missing == ()


def all_heads(bound):
    return np.concatenate(list(bound.heads.range(0, bound.vmemmap.end_pfn)))


@pytest.fixture(scope="module")
def heads(bound):
    return all_heads(bound)


def broken_orders(expected):
    """Orders whose shared tail page memmap_init() of that kernel wrote over."""
    return {
        tail["order"]
        for node in expected["nodes"]
        for tail in node.get("vmemmap_tails", ())
        if not tail["as_initialised"]
    }


def test_heads_of_hugetlb_folios(heads, expected):
    """Every page of every folio resolves to its head, unless its tails are broken."""
    for folio in expected["folios"]:
        start, nr = folio["pfn"], 1 << folio["order"]
        own = 64 if folio["order"] in broken_orders(expected) else nr
        assert (heads[start : start + own] == start).all()
        pfns = np.arange(start + own, start + nr, dtype=np.uint64)
        assert (heads[start + own : start + nr] == pfns).all()


def test_heads_equal_drgn(bound, heads, expected, name):
    """drgn's compound_head() is the oracle, where it is right."""
    prog = bound.kernel.prog
    rng = random.Random(name)
    mapped = np.flatnonzero(heads != np.uint64(ALL_ONES)).tolist()
    pfns = rng.sample(mapped, 10000)
    for folio in expected["folios"]:
        pfns += range(folio["pfn"], folio["pfn"] + (1 << folio["order"]))
    vmemmap = prog["vmemmap"].read_()
    base = vmemmap.value_()
    theirs = [(compound_head(vmemmap + pfn).value_() - base) // 64 for pfn in pfns]
    ours = heads[pfns].tolist()
    if name in DRGN_IS_WRONG:
        # Where it differs, it left vmemmap.
        wrong = [their for their, our in zip(theirs, ours) if their != our]
        assert wrong
        assert all(not 0 <= their < len(heads) for their in wrong)
    else:
        assert theirs == ours


def test_drgn_answers_wrongly_where_we_say_so(bound, expected, name):
    if name not in DRGN_IS_WRONG:
        pytest.skip("drgn decodes the tails of this kernel")
    folio = next(f for f in expected["folios"] if f["order"] == 9)
    tail = bound.kernel.prog["vmemmap"] + folio["pfn"] + 100
    assert compound_head(tail).value_() == 0xFFFFFFFFFFFF8000


def test_no_struct_page_no_head(heads, bound):
    slices = np.arange(bound.vmemmap.end_pfn // 64, dtype=np.int64)
    _, mapped = bound.vmemmap.frames(slices)
    assert ((heads.reshape(-1, 64) == np.uint64(ALL_ONES)).all(axis=1) == ~mapped).all()


def test_fake_heads(bound, heads, expected, name):
    """Every slice that repeats a head's frame begins with a fake head."""
    vmemmap = bound.vmemmap
    count = 0
    for first in range(0, vmemmap.end_pfn // 64, 4096):
        last = min(first + 4096, vmemmap.end_pfn // 64)
        pages = vmemmap.read_slices(first, last)
        looks = (vmemmap.flags(pages) & np.uint64(bound.kernel.PG_head_mask)) != 0
        looks &= (vmemmap.tail_words(pages) & np.uint64(1)) == 0
        pfns = np.arange(first * 64, last * 64, dtype=np.uint64)
        count += int((looks & (heads[first * 64 : last * 64] != pfns)).sum())
    kind, _, _ = layout_of(name)
    saved = expected["totals"]["saved_vmemmap_pages"]
    assert count == (saved if kind == "fake-head" else 0)


def check_translation(bound, slices):
    prog = bound.kernel.prog
    install(prog)
    init_mm = prog["init_mm"].address_of_()
    pfns, mapped = bound.vmemmap.frames(np.array(slices, dtype=np.int64))
    assert mapped.all()
    for slice_, pfn in zip(slices, pfns.tolist()):
        address = bound.vmemmap.base + slice_ * 4096
        assert follow_phys(init_mm, address).value_() == pfn * 4096


def test_walk_equals_follow_phys_on_folios(bound, expected):
    slices: list[int] = []
    for folio in expected["folios"]:
        first = folio["pfn"] // 64
        slices += range(first, first + folio["vmemmap_pages"])
    check_translation(bound, slices)


def test_walk_equals_follow_phys_at_random(bound, name):
    everything = np.arange(bound.vmemmap.end_pfn // 64, dtype=np.int64)
    _, mapped = bound.vmemmap.frames(everything)
    slices = everything[mapped].tolist()
    check_translation(bound, random.Random(name).sample(slices, min(3000, len(slices))))
