# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Memory of devices: what was described is what every command says of it, and what is
described is as a real kernel with device DAX has it.
"""

from typing import Any

import numpy as np
import pytest

from drgn_hvo.commands.map import map_document
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import UsageError
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.synth.containers.output import write_machine
from drgn_hvo.synth.described.description import DeviceMemory, HugePages, Node
from drgn_hvo.synth.described.description_file import parse_description
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.command_support import run, without_reasons
from tests.cores import core_path
from tests.damage_support import Case
from tests.synth_support import NODES, describe, expected_heads, loaded

DAX = [entry.name for entry in GENERATIONS if entry.dax]
ONE = DeviceMemory(1, 0x28000, 9, 64)
GIGANTIC = DeviceMemory(0, 0x40000, 18, 1)
PAGE, WRITABLE = 4096, 2
FRAMES = (1 << 52) - PAGE


def machine_of(name, *devices, **changes):
    return Case.of(name, devices=devices or (ONE,), **changes)


def own_slices(case):
    """How many slices of a compound page of a device have a frame of their own."""
    return {"first-tail": 2, "shared": 1}[case.targets.plan.generation.dax]


def shown(case):
    return show_document(hvo_of(case.prog), "core", folios=True)


@pytest.mark.parametrize("name", DAX)
@pytest.mark.parametrize("device", [ONE, GIGANTIC], ids=["2M", "1G"])
def test_show(name, device):
    case = machine_of(name, device)
    document = shown(case)
    slices = device.count << device.order >> 6
    frames = own_slices(case) * device.count
    # One page of tails for all of them.
    frames += case.targets.plan.generation.dax == "shared"
    assert document["devices"] == [
        {
            "nid": device.node,
            "first_pfn": device.first_pfn,
            "last_pfn": device.end_pfn - 1,
            "slices": slices,
            "frames": frames,
            "saved_pages": slices - frames,
        }
    ]
    without = shown(Case.of(name))
    # They are none of the huge pages', nor is what they share.
    assert document["saved"] == without["saved"]
    assert len(document["folios"]) == len(without["folios"])
    zones = [tail["zone"] for tail in document["shared_tails"]]
    assert zones.count("Device") == (case.targets.plan.generation.dax == "shared")


def test_a_shared_tail_page_of_devices():
    """Its owner has one reference to it, and so has each mapping."""
    case = machine_of("next", ONE, DeviceMemory(1, 0x38000, 9, 64))
    (tail,) = [t for t in shown(case)["shared_tails"] if t["zone"] == "Device"]
    assert (tail["nid"], tail["order"], tail["boot"]) == (1, 9, False)
    assert tail["mapped_by"] == 2 * 64 * 7
    assert tail["frame_refcount"] == 1 + 2 * 64 * 7
    document = page_document(
        hvo_of(case.prog), "core", [parse_page_spec(f"pfn:0d{tail['pfn']}")]
    )
    assert (
        "896 slices of 128 pages of devices" in document["pages"][0]["conclusions"][1]
    )


@pytest.mark.parametrize("name", DAX)
def test_every_head(name):
    case = machine_of(name)
    found = hvo_of(case.prog)
    heads = np.concatenate(list(found.heads.range(ONE.first_pfn, ONE.end_pfn)))
    expected = expected_heads(case.targets.machine)
    wanted = [expected[pfn][0] for pfn in range(ONE.first_pfn, ONE.end_pfn)]
    assert heads.tolist() == wanted


@pytest.mark.parametrize("name", DAX)
@pytest.mark.parametrize("index", [0, 1, 63, 64, 200, 511])
def test_page(name, index):
    case = machine_of(name)
    head = ONE.heads()[3]
    spec = parse_page_spec(f"pfn:0d{head + index}")
    page = page_document(hvo_of(case.prog), "core", [spec])["pages"][0]
    assert (page["head_pfn"], page["order"]) == (head, 9)
    assert (page["nid"], page["zone"], page["hugetlb"]) == (1, "Device", False)
    assert page["use"] == "memory of a device (ZONE_DEVICE)"
    assert page["folio"] is None
    assert (page["findings"], page["disagreements"]) == ([], [])
    slice_, own = index // 64, own_slices(case)
    assert page["slice"]["index_in_folio"] == slice_
    assert page["slice"]["writable"]
    users = 1 if slice_ == 0 else 7 if own == 2 else 7 * 64
    assert page["slice"]["mapped_by"] == users
    assert page["slice"]["shared"] == (users > 1)


@pytest.mark.parametrize("name", DAX)
def test_map(name):
    case = machine_of(name)
    head = ONE.heads()[5]
    document = map_document(
        hvo_of(case.prog), "core", parse_page_spec(f"pfn:0d{head + 99}")
    )
    assert (document["head_pfn"], document["order"]) == (head, 9)
    assert document["kind"] == "compound page"
    rows = document["rows"]
    assert all(row["writable"] for row in rows)
    own = own_slices(case)
    frames = [row["frame"] for row in rows]
    assert len(set(frames)) == 2
    assert frames[1:] == [frames[1]] * 7
    for pfn, frame in ((head, frames[0]), (head + 64, frames[1])):
        if pfn == head or own == 2:
            assert divmod(case.targets.machine.page_physical(pfn), PAGE) == (frame, 0)
    repeats = [row["repeats_slice"] for row in rows]
    assert repeats == [None, None, *([1] * 6 if own == 2 else [None] * 6)]
    tails = [row["tail"] and row["tail"]["zone"] for row in rows]
    assert tails == [None, *([None] if own == 2 else ["Device"]) * 7]
    elsewhere = [one["elsewhere"] for one in document["shared_frames"]]
    assert elsewhere == ([] if own == 2 else [63 * 7])


@pytest.mark.parametrize("name", DAX)
@pytest.mark.parametrize("device", [ONE, GIGANTIC], ids=["2M", "1G"])
def test_check(name, device):
    checked = machine_of(name, device).check(deep=True)
    assert (checked["status"], checked["complete"]) == ("clean", True)


@pytest.mark.parametrize("name", ["shared-7.3", "next"])
def test_extract(name, tmp_path):
    case = machine_of(name)
    core, small = tmp_path / "core", tmp_path / "small"
    write_machine(case.targets.machine, core)
    assert run("extract", core, "-o", small).returncode == 0
    head = ONE.heads()[7]
    for command in (
        ("show", "--folios"),
        ("page", f"pfn:0d{head}", f"pfn:0d{head + 1}", f"pfn:0d{head + 300}"),
        ("map", f"pfn:0d{head}"),
    ):
        name, *options = command
        told = [run(name, path, *options).stdout for path in (core, small)]
        assert without_reasons(told[0]) == without_reasons(told[1]) != []
    assert run("check", small).returncode == 0


def test_devices_with_memory_between_them():
    """The zone of devices spans memory of another one, which is not counted."""
    node = Node(2, ((0x28000, 0x30000),), {"Normal": (0x28000, 0x30000)})
    devices = (DeviceMemory(2, 0x20000, 9, 64), DeviceMemory(2, 0x30000, 9, 64))
    case = machine_of("shared-7.3", *devices, nodes=(*NODES, node))
    (one,) = shown(case)["devices"]
    assert (one["nid"], one["first_pfn"], one["last_pfn"]) == (2, 0x20000, 0x37FFF)
    assert (one["slices"], one["frames"]) == (1024, 256)
    assert case.check(deep=True)["status"] == "clean"


def test_a_device_within_a_zone():
    """Struct pages tell what lies in the range of two zones."""
    memory = ((0x20000, 0x28000), (0x30000, 0x38000))
    node = Node(2, memory, {"Normal": (0x20000, 0x38000)})
    case = machine_of(
        "shared-7.3", DeviceMemory(2, 0x28000, 9, 64), nodes=(*NODES, node)
    )
    (one,) = shown(case)["devices"]
    assert (one["nid"], one["first_pfn"], one["last_pfn"]) == (2, 0x28000, 0x2FFFF)
    assert (one["slices"], one["frames"]) == (512, 128)
    assert case.check(deep=True)["status"] == "clean"


def test_what_was_not_read_is_not_known():
    case = machine_of("shared-7.3")
    entry = case.entry(ONE.first_pfn)
    case.image.missing.add(entry // PAGE)
    document = shown(case)
    assert document["devices"] is None
    assert document["saved"]["pages"] is None


def test_no_devices():
    assert shown(Case.of("shared-7.3"))["devices"] == []
    # CONFIG_ZONE_DEVICE=n.
    assert shown(Case.of("seed-v5"))["devices"] == []


@pytest.mark.parametrize("slice_", [0, 3])
def test_a_slice_of_a_device_on_a_page_of_tails_of_huge_pages(slice_):
    case = machine_of("next")
    shared = case.targets.tail().pfn
    entry = case.entry(ONE.heads()[2], slice_)
    value = int.from_bytes(case.image.read(entry, 8), "little")
    case.put(entry, value & ~FRAMES | shared * PAGE)
    assert case.first() == ("stray-shared-tail", entry)


def test_the_head_of_a_device_on_the_shared_tail_page():
    """Slices behind the first may map it, and no other."""
    case = machine_of("next")
    entry = case.entry(ONE.heads()[2])
    behind = int.from_bytes(case.image.read(case.entry(ONE.heads()[2], 1), 8), "little")
    case.put(entry, behind)
    assert ("stray-shared-tail", entry) in [
        (f["rule"], int(f["physical_address"], 0)) for f in case.check()["findings"]
    ]


# Partly optimized for good.


@pytest.mark.parametrize("count", [1, 3, 6])
def test_folios_that_stay_partly_optimized(count, tmp_path):
    """Savings are counted by entry; show, page, map, check and extract agree."""
    group = HugePages(0, "DMA32", 9, 4, restored_slices=count)
    case = Case.of("next", huge_pages=(group,), reserved={})
    document = shown(case)
    assert document["saved"]["pages"] == 4 * (7 - count)
    for folio in document["folios"]:
        assert (folio["shared_ptes"], folio["private_frames"]) == (7 - count, 1 + count)
        assert folio["optimized_flag"]
        assert folio["optimized_mapping"]
    checked = case.check(deep=True)
    assert (checked["status"], checked["findings"]) == ("clean", [])
    head = case.groups()[0].heads()[2]
    found = hvo_of(case.prog)
    rows = map_document(found, "core", parse_page_spec(f"pfn:0d{head}"))["rows"]
    assert [row["writable"] for row in rows] == [True] * (1 + count) + [False] * (
        7 - count
    )
    for slice_ in range(8):
        spec = parse_page_spec(f"pfn:0d{head + 64 * slice_ + 9}")
        page = page_document(found, "core", [spec])["pages"][0]
        assert page["head_pfn"] == head
        assert page["slice"]["shared"] == (slice_ > count)
        assert (page["findings"], page["disagreements"]) == ([], [])
        if slice_ <= count:
            physical = case.targets.machine.page_physical(head + 64 * slice_)
            assert page["slice"]["frame"] == physical // PAGE
    core, small = tmp_path / "core", tmp_path / "small"
    write_machine(case.targets.machine, core)
    assert run("extract", core, "-o", small).returncode == 0
    told = [run("show", path, "--folios").stdout for path in (core, small)]
    assert without_reasons(told[0]) == without_reasons(told[1])
    assert run("check", small).returncode == 0


def test_a_wrong_word_in_a_restored_slice():
    group = HugePages(0, "DMA32", 9, 4, restored_slices=2)
    case = Case.of("next", huge_pages=(group,), reserved={})
    head = case.groups()[0].heads()[1]
    case.flip(case.field(head + 64 + 5, "tail_word"), 1 << 17)
    assert case.first() == ("vmemmap-tail-frame", case.entry(head, 1))


# A real kernel.


@pytest.fixture(scope="module")
def real():
    return hvo_of(loaded(core_path("7.3-dax")))


def device_of(found):
    devices: Any = show_document(found, "core", folios=False)["devices"]
    (device,) = devices
    return device


def rows_of(found, first, count):
    data = found.vmemmap.read_pages(np.arange(first, first + count)).data
    return data.view("<u8").reshape(count, 8)


def test_struct_pages_are_as_real_ones(real):
    """Word for word, but for node and zone, and addresses."""
    synthetic = hvo_of(machine_of("shared-7.3").prog)
    device = device_of(real)
    first = device["first_pfn"]
    one, two = rows_of(real, first, 1024), rows_of(synthetic, ONE.first_pfn, 1024)
    for found, rows in ((real, one), (synthetic, two)):
        layout: Any = found.mmzone.flags_layout
        assert set(layout.zonenums(rows[:, 0]).tolist()) == {4}
        rows[:, 0] &= ~np.uint64(layout.place_mask)
    assert (one[:, 0] == two[:, 0]).all()
    heads = np.arange(1024) % 512 == 0
    # page->pgmap.
    assert (one[heads, 1] >> np.uint64(48) == 0xFF3A).all()
    one[heads, 1] = two[heads, 1]
    # Addresses of list heads in struct pages themselves.
    lists = np.arange(1024) % 512 == 2
    for found, rows, base in ((real, one, first), (synthetic, two, ONE.first_pfn)):
        own = found.vmemmap.page_addresses(base + np.arange(1024))[lists]
        rows[lists, 2:4] -= own[:, None]
    assert (one == two).all()


def test_mappings_are_as_real_ones(real):
    synthetic = hvo_of(machine_of("shared-7.3").prog)
    device = device_of(real)
    shapes = []
    for found, first in ((real, device["first_pfn"]), (synthetic, ONE.first_pfn)):
        slices = first // 64 + np.arange(64)
        pfns, mapped = found.vmemmap.frames(slices)
        index, _ = found.vmemmap.slices_to_runs(slices)
        assert mapped.all()
        firsts = [int(np.flatnonzero(pfns == pfn)[0]) for pfn in pfns]
        references = rows_of(found, int(pfns[1]), 1)[0, 6] >> np.uint64(32)
        writable = found.vmemmap.runs.writable[index].tolist()
        shapes.append((firsts, writable, int(references)))
    assert shapes[0] == shapes[1]
    assert shapes[0][2] == 7


def test_zones_are_as_real_ones(real):
    for found in (real, hvo_of(machine_of("shared-7.3").prog)):
        device = device_of(found)
        pgdat = found.mmzone.pgdats[device["nid"]]
        zone = pgdat.node_zones[4]
        assert pgdat.nr_zones == 5
        assert zone.present_pages == zone.managed_pages.counter == 0
        assert zone.zone_start_pfn == device["first_pfn"]
        end = pgdat.node_start_pfn + pgdat.node_spanned_pages
        assert end > device["last_pfn"]


# Descriptions that no machine can have.

TEXT = """
generation = "{generation}"
[[node]]
id = 0
ranges = [[0x0, 0x8000]]
zones = {{ DMA32 = [0x1, 0x8000] }}
[[devices]]
node = {node}
first_pfn = {first}
order = {order}
count = {count}
"""


def described(generation="next", node=0, first=0x8000, order=9, count=64):
    return parse_description(TEXT.format(**locals()))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"generation": "5.15"}, "has no compound pages of devices"),
        ({"generation": "seed-v5"}, "has no compound pages of devices"),
        ({"node": 3}, "there is no node 3"),
        ({"order": 7}, "pages of the sizes of huge pages only"),
        ({"count": 0}, "0 of them"),
        ({"count": 63}, "whole sections of 0x8000 pages"),
        ({"first": 0x8200}, "whole sections of 0x8000 pages"),
        ({"first": 0}, "overlap"),
        ({"first": 1 << 40}, "cannot be mapped"),
    ],
)
def test_refused(changes, why):
    assert described().devices == (DeviceMemory(0, 0x8000, 9, 64),)
    with pytest.raises(UsageError, match=why):
        described(**changes)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("shared-7.3", {"restored_slices": 2}, "leaves none of them partly optimized"),
        ("next", {"restored_slices": 7}, "7 of 8 slices cannot be restored"),
        ("next", {"restored_slices": 1, "optimized": False}, "none of them is optim"),
    ],
)
def test_restored_slices_are_refused(name, changes, why):
    with pytest.raises(UsageError, match=why):
        describe(name, huge_pages=(HugePages(0, "DMA32", 9, **changes),), reserved={})
