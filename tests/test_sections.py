# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``mem_section.compound_page_order``, which says independently of all struct pages of
which compound pages a section is.
"""

import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.page import page_document
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.memmap.sections import section_orders
from drgn_hvo.synth.described.description import DeviceMemory, HugePages, Node
from tests.damage_support import Case
from tests.synth_support import ALL
from tools.shapes import Kernel

ONE = DeviceMemory(1, 0x28000, 9, 128)
GIGANTIC = DeviceMemory(0, 0x80000, 18, 1)
NODES = (
    Node(
        0,
        ((0, 0x80000),),
        {"DMA": (1, 0x1000), "DMA32": (0x1000, 0x80000)},
    ),
)
# One huge page of 1 GiB from boot, in sections 8 to 15.
BOOT = (HugePages(0, "DMA32", 18, origin="boot", first_pfn=0x40000),)
OFFSET = 16
PAGE = 4096
FRAMES = (1 << 52) - PAGE


def devices(**changes):
    return Case.of("next", devices=(ONE,), **changes)


def booted(**changes):
    values = {"nodes": NODES, "huge_pages": BOOT, "pages": (), "reserved": {}}
    return Case.of("next", devices=(GIGANTIC,), **{**values, **changes})


def word(case, number):
    """Where a section has its order."""
    return case.targets.machine.sections[number] + OFFSET


def decided(case, **scope):
    """Result, reason and reasons for doubt of the rule."""
    document = case.check(**scope)
    (rule,) = [r for r in document["rules"] if r["id"] == "section-order"]
    doubts = [u for u in document["undecided"] if u["rule"] == "section-order"]
    return rule["result"], rule["reason"], doubts


def findings(case):
    return [
        (int(f["physical_address"], 0), int(f["expected"], 0), int(f["actual"], 0))
        for f in case.check()["findings"]
        if f["rule"] == "section-order"
    ]


@pytest.mark.parametrize("make", [devices, booted])
def test_orders_are_those_of_the_description(make):
    case = make()
    plan, found = case.targets.plan, hvo_of(case.prog)
    read = section_orders(found.vmemmap, found.believable_end_pfn)
    assert read is not None
    assert read.unread == {}
    assert read.numbers.tolist() == sorted({*plan.sections, *plan.device_sections})
    pages = plan.description.section_pages
    for number, order in zip(read.numbers.tolist(), read.orders.tolist()):
        first = number * pages
        expected = 0
        for device in plan.description.devices:
            if device.first_pfn <= first < device.end_pfn:
                expected = device.order
        for placed in plan.huge:
            gigantic = placed.group.order == 18 and placed.group.origin == "boot"
            if gigantic and placed.first_pfn <= first < placed.end_pfn:
                expected = 18
        assert order == expected
    assert read.early.tolist() == [n in plan.sections for n in read.numbers.tolist()]
    checked = case.check(deep=True)
    assert (checked["status"], checked["complete"]) == ("clean", True)
    assert decided(case) == ("pass", None, [])


@pytest.mark.parametrize("order", [0, 1, 8, 10, 18, 22, 255])
@pytest.mark.parametrize("number", [5, 6])
def test_a_section_of_a_device(number, order):
    case = devices()
    place = case.put(word(case, number), order, 4)
    assert findings(case) == [(place, 9, order)]


@pytest.mark.parametrize("order", [0, 9, 17])
def test_a_section_of_a_gigantic_page_of_a_device(order):
    case = booted()
    place = case.put(word(case, 19), order, 4)
    assert findings(case) == [(place, 18, order)]


def test_most_compound_pages_tell():
    """One damaged head is not the section's fault."""
    case = devices()
    case.flip(case.field(ONE.first_pfn, "flags"), case.flag("head"))
    case.flip(case.field(ONE.first_pfn + 0x1000 + 1, "flags"), 1)
    assert findings(case) == []


@pytest.mark.parametrize(("order", "is_wrong"), [(0, False), (9, False), (8, True)])
def test_a_device_that_has_all_its_struct_pages(order, is_wrong):
    """With an altmap they lie in the device itself, and nothing is shared."""
    case = devices()
    own = ONE.first_pfn
    for head in ONE.heads():
        for slice_ in range(1, 8):
            entry = case.entry(head, slice_)
            value = int.from_bytes(case.image.read(entry, 8), "little")
            case.put(entry, value & ~FRAMES | own * PAGE)
            own += 1
    for number in (5, 6):
        case.put(word(case, number), order, 4)
    found = [(actual, expected) for _, expected, actual in findings(case)]
    assert found == [(order, 9)] * 2 * is_wrong


@pytest.mark.parametrize("order", [0, 9, 10, 17])
@pytest.mark.parametrize("number", [8, 11, 15])
def test_a_section_of_a_gigantic_page_from_boot(number, order):
    """Seven others say what it should be."""
    case = booted()
    place = case.put(word(case, number), order, 4)
    assert findings(case) == [(place, 18, order)]


@pytest.mark.parametrize("order", [1, 9, 18, 22])
@pytest.mark.parametrize("number", [0, 5])
def test_a_section_of_other_memory(number, order):
    case = booted()
    place = case.put(word(case, number), order, 4)
    assert findings(case) == [(place, 0, order)]


def test_a_gigantic_page_that_is_gone():
    """Nothing changes the order as long as the section is there."""
    case = booted(huge_pages=())
    for number in range(8, 16):
        case.put(word(case, number), 18, 4)
    assert findings(case) == []


def test_memory_that_was_added_later():
    """section_activate() sets no order for it."""
    case = booted(huge_pages=())
    for number in range(8, 16):
        case.put(word(case, number), 18, 4)
    section = case.targets.machine.sections[12]
    case.flip(section, 1 << 3)  # SECTION_IS_EARLY
    assert findings(case) == [(section + OFFSET, 0, 18)]


def test_what_was_not_read_is_undecided():
    case = devices()
    case.image.missing.add(word(case, 5) // 4096)
    result, _, doubts = decided(case)
    assert result != "pass"
    count = len(case.targets.machine.sections)
    assert [(u["why"], u["count"]) for u in doubts] == [
        ("sections not in this dump", count)
    ]


def test_struct_pages_of_a_device_that_were_not_read():
    case = devices()
    frames = case.targets.machine.vmemmap.devices[0]
    case.image.missing.update(range(frames.pfn, frames.pfn + frames.device.count))
    result, _, doubts = decided(case)
    assert result != "pass"
    assert doubts


@pytest.mark.parametrize("name", [name for name in ALL if name != "next"])
def test_kernels_without_it(name):
    result, reason, doubts = decided(Case.of(name))
    assert (result, doubts) == ("skip", [])
    assert reason == "struct mem_section of this kernel has no compound_page_order"


@pytest.mark.parametrize("shape", ["struct", "array", "pointer", "bit field"])
def test_an_order_of_another_shape(shape, tmp_path):
    kernel = Kernel("next", tmp_path)
    (member,) = [
        m for m in kernel.types.members() if str(m).endswith(".compound_page_order")
    ]
    with kernel.changed_program(member, shape) as prog:
        document = check_document(hvo_of(prog), "core", CheckScope())
    (rule,) = [r for r in document["rules"] if r["id"] == "section-order"]
    assert rule["result"] == "skip"
    assert document["findings"] == []
    whys = [u["why"] for u in document["undecided"] if u["rule"] == "section-order"]
    assert any("compound_page_order" in why for why in whys)


@pytest.mark.parametrize("pfn", [ONE.first_pfn + 700, 0x30000 + 3, 0x10400, 3])
def test_page(pfn):
    """Of one page, its section alone is looked at."""
    case = devices()
    spec = parse_page_spec(f"pfn:0d{pfn}")
    page = page_document(hvo_of(case.prog), "core", [spec])["pages"][0]
    assert page["findings"] == []
    number = pfn >> 15
    case.flip(word(case, number), 1 << 1, 4)
    page = page_document(hvo_of(case.prog), "core", [spec])["pages"][0]
    assert [f["rule"] for f in page["findings"]] == ["section-order"]
    other = page_document(hvo_of(case.prog), "core", [parse_page_spec("pfn:0d106000")])[
        "pages"
    ][0]
    assert other["findings"] == []


def test_a_page_of_a_gigantic_page():
    """Its section says as those of its siblings do."""
    case = booted()
    spec = parse_page_spec("pfn:0d262244")
    page = page_document(hvo_of(case.prog), "core", [spec])["pages"][0]
    assert page["head_pfn"] == 0x40000
    assert page["findings"] == []


def test_sections_are_read_where_they_are():
    """The array of what was read names each section's own word."""
    case = devices()
    found = hvo_of(case.prog)
    read = section_orders(found.vmemmap, found.believable_end_pfn)
    assert read is not None
    for number, address in zip(read.numbers.tolist(), read.addresses.tolist()):
        physical = case.targets.plan.space.page_offset
        assert address - physical == word(case, number)
    assert np.all(read.orders >= 0)
