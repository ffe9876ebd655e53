# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernels that are still booting
------------------------------

Huge pages of memblock memory share vmemmap, writable, before they have heads, and
shared tail pages are there before their tails are.
"""

import pytest

from drgn_hvo.audit.booting import is_booting
from drgn_hvo.audit.context import Context
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.described.description import HugePages
from tests.cores import open_core
from tests.damage_support import Case
from tests.overlay import Overlay, image_to_phys

WRITABLE = 2
SYSTEM_SCHEDULING, SYSTEM_RUNNING = 1, 3


@pytest.mark.parametrize("name", ["6.1-2node", "6.12-2node", "7.2-2node"])
@pytest.mark.parametrize("state", [0, SYSTEM_SCHEDULING, SYSTEM_RUNNING])
def test_what_a_real_kernel_says(name, state):
    base = open_core(name)
    install(base)
    assert is_booting(hvo_of(base).kernel) is False
    place = image_to_phys(base, base["system_state"].address_)
    patch = {place: state.to_bytes(4, "little")}
    kernel = hvo_of(Overlay(base, patches=patch).prog).kernel
    assert is_booting(kernel) is (state < SYSTEM_RUNNING)
    missing = [(place & ~4095, (place & ~4095) + 4096)]
    # That page of the kernel's data is needed for other things, too.
    if name == "7.2-2node":
        kernel = hvo_of(Overlay(base, missing=missing).prog).kernel
        assert is_booting(kernel) is None


@pytest.mark.parametrize(
    ("booting", "rules", "status"),
    [
        (True, [], "clean"),
        (None, [], "incomplete"),
        (False, ["vmemmap-tail-writable"], "findings"),
    ],
)
def test_slices_that_are_not_yet_protected(monkeypatch, booting, rules, status):
    case = Case.of("shared-7.3")
    (placed,) = case.groups(list="none")
    for slice_ in range(1, 8):
        case.flip(case.entry(placed.first_pfn, slice_), WRITABLE)
    monkeypatch.setattr(Context, "is_booting", booting)
    found = case.check()
    assert [f["rule"] for f in found["findings"]] == rules
    assert (found["status"], found["in_transition"]) == (status, int(booting is True))


@pytest.mark.parametrize("booting", [True, None, False])
def test_a_huge_page_on_a_list_is_made(monkeypatch, booting):
    case = Case.of("shared-7.3")
    entry = case.flip(case.entry(case.targets.optimized_head(), 3), WRITABLE)
    monkeypatch.setattr(Context, "is_booting", booting)
    assert case.first() == ("vmemmap-tail-writable", entry)


@pytest.mark.parametrize("booting", [True, False])
def test_a_shared_tail_page_that_is_not_yet_made(monkeypatch, booting):
    case = Case.of(
        "shared-7.3",
        huge_pages=(HugePages(0, "DMA32", 9, 6, origin="boot"),),
        reserved={},
    )
    tail = case.targets.tail()
    for index in range(20, 64):
        case.image.write(tail.pfn * 4096 + index * 64, bytes(64))
    monkeypatch.setattr(Context, "is_booting", booting)
    found = case.check()
    assert bool(found["findings"]) == (not booting)
    undecided = {item["rule"] for item in found["undecided"]}
    assert ("shared-tail-info" in undecided) == booting
