# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The length of an array of shared tails that no type has: by MAX_FOLIO_ORDER, and by what
its slots hold.
"""

import pytest

from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import UsageError
from drgn_hvo.helpers.vmemmap import vmemmap_tails
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.described.description import HugePages, Node
from drgn_hvo.synth.machine.machine import SOMEBODY
from tests.damage_support import Case
from tests.synth_support import describe

MIN_ORDER = 7


def shown(case):
    return show_document(hvo_of(case.prog), "core", folios=False)


def of_order(max_folio_order, **changes):
    """A kernel with another MAX_FOLIO_ORDER than the usual one."""
    values = {"hstates": (9,), "max_folio_order": max_folio_order}
    return Case.of("next", **{**values, **changes})


def array_of(case):
    """Where the first array in use is."""
    return min(case.targets.machine.tail_arrays.values())


def test_the_usual_length():
    case = Case.of("next")
    layout = shown(case)["tail_layout"]
    assert layout["slots"] == 16
    assert layout["evidence"][-1] == (
        "data: 16 elements by MAX_FOLIO_ORDER; no slot speaks against it"
    )


@pytest.mark.parametrize("max_folio_order", [9, 10, 13, 15, 18, 21])
def test_a_shorter_array(max_folio_order):
    """What lies behind it are objects of others, which begin at once."""
    case = of_order(max_folio_order)
    slots = max_folio_order - MIN_ORDER + 1
    assert case.image.read(array_of(case) + 8 * slots, 8) in 2 * SOMEBODY
    document = shown(case)
    assert document["tail_layout"]["slots"] == slots
    assert f"data: {slots} elements, not 16" in document["tail_layout"]["evidence"][-1]
    assert document["shared_tails"] == [
        {**tail, "slot": ours["slot"], "value": ours["value"]}
        for tail, ours in zip(
            shown(of_order(22))["shared_tails"], document["shared_tails"]
        )
    ]
    checked = case.check(deep=True)
    assert (checked["status"], checked["complete"]) == ("clean", True)
    # The alignment that masks need follows from the length.
    needed = (1 << max_folio_order) * 64
    assert document["vmemmap"]["required_alignment"] == max(needed, 4096)
    zones = hvo_of(case.prog).mmzone.pgdats[0].node_zones
    assert len(vmemmap_tails(zones[1].address_of_())) == slots


def test_zeros_behind_it_do_not_tell():
    """They are slots that are not in use, for all we know."""
    case = of_order(10)
    behind = array_of(case) + 4 * 8
    for place in case.targets.machine.tail_arrays.values():
        for i in range(4, 16):
            case.put(place + 8 * i, 0)
    assert shown(case)["tail_layout"]["slots"] == 16
    assert case.check()["status"] == "clean"
    case.put(behind + 8 * 5, 0x1234)
    assert shown(case)["tail_layout"]["slots"] == 9


@pytest.mark.parametrize("index", [0, 2, 11])
def test_a_slot_that_a_pool_needs_is_wrong_and_not_the_end(index):
    case = Case.of("next")
    place = case.put(array_of(case) + 8 * index, 0x4141414141414140)
    assert shown(case)["tail_layout"]["slots"] == 16
    assert case.first() == ("shared-tail-entry", place)


def test_a_slot_in_use_behind_one_that_is_wrong():
    """One wrong slot is not the end, either."""
    case = Case.of("next")
    start = array_of(case)
    used = int.from_bytes(case.image.read(start + 8 * 2, 8), "little")
    wrong = case.put(start + 8 * 12, 0x4141414141414140)
    case.put(start + 8 * 14, used)
    assert shown(case)["tail_layout"]["slots"] == 16
    assert ("shared-tail-entry", wrong) in [
        (f["rule"], int(f["physical_address"], 0)) for f in case.check()["findings"]
    ]


def test_pools_that_were_not_read_tell_no_length():
    case = of_order(10)
    base = case.targets.machine.kernel.physical("hstates")
    case.image.missing.update(range(base >> 12, (base >> 12) + 12))
    assert shown(case)["tail_layout"]["slots"] == 16


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_loongarch_with_another_max_order(page_size):
    """CONFIG_ARCH_FORCE_MAX_ORDER there; no pool uses slots behind the usual ones."""
    order = {16384: 11, 65536: 13}[page_size]
    node = Node(0, ((0, 1 << 17),), {"DMA32": (1, 1 << 17)})
    case = Case.of(
        "next",
        architecture="loongarch64",
        page_size=page_size,
        nodes=(node,),
        huge_pages=(HugePages(0, "DMA32", order, 3),),
        pages=(),
        reserved={},
        max_folio_order=order + 1,
    )
    assert shown(case)["tail_layout"]["slots"] == 3
    assert case.check()["status"] == "clean"


@pytest.mark.parametrize("max_folio_order", [8, 23])
def test_no_machine_has_such_an_order(max_folio_order):
    with pytest.raises(UsageError, match="from the order of the largest pool on"):
        describe("next", hstates=(9,), max_folio_order=max_folio_order)
