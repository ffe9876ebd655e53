# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The wrong word of real kernels
------------------------------

As test_check_causes.py, in copies of five real kernels: one word is changed that
contradicts others, and the first finding is at its address.
"""

from pathlib import Path

import drgn
import pytest

from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Audit
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.translation import entries_to
from drgn_hvo.memmap.hvo import hvo_of
from tests.cores import open_core
from tests.overlay import Overlay

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
KERNELS = ("debian-6.1", "debian-6.12", "debian-7.2", "seed5-2node", "seed6-2node")
SHARED = KERNELS[2:]
PRESENT, WRITABLE = 1, 2


class Core:
    """A real core, and where its words are."""

    def __init__(self, name):
        path = SAMPLES / f"{name}.kdump"
        if path.exists():
            self.base = drgn.Program()
            self.base.set_core_dump(path)
        else:
            self.base = open_core(name)
        install(self.base)
        self.hvo = hvo_of(self.base)
        self.context = Context(self.hvo, Audit())
        self.pool = next(
            pool for pool in self.base["hstates"] if pool.nr_huge_pages.value_()
        )

    def read(self, address, size=8):
        return int.from_bytes(self.base.read(address, size, True), "little")

    def check(self, address, value, size=8):
        """With one word changed: all findings, the first of which is at that word."""
        patch = {address: (value % (1 << 8 * size)).to_bytes(size, "little")}
        found = check_document(
            hvo_of(Overlay(self.base, patches=patch).prog), "core", CheckScope()
        )
        first, *others = found["findings"]
        assert first["physical_address"] == hex(address)
        assert first["caused_by"] is None
        assert all(finding["caused_by"] == 0 for finding in others)
        return first

    def place(self, obj):
        return self.context.translate(obj.address_of_().value_())


@pytest.fixture(scope="module", name="core")
def _core(request):
    return Core(request.param)


@pytest.mark.parametrize("core", SHARED, indirect=True)
@pytest.mark.parametrize("step", [1, -1])
def test_a_slot_that_is_off_by_one_frame(core, step):
    for tail in core.hvo.shared_tails:
        array = core.hvo.layout.tails.array
        size = 1 if array.element == "pfn" else core.context.size
        place = core.context.translate(tail.slot)
        first = core.check(place, tail.value + step * size)
        assert first["rule"] == "shared-tail-entry"
        assert int(first["expected"], 0) == tail.value


@pytest.mark.parametrize("core", KERNELS, indirect=True)
@pytest.mark.parametrize("name", ["nr_huge_pages", "free_huge_pages"])
@pytest.mark.parametrize("node", [None, 0, 1])
@pytest.mark.parametrize("more", [1, -1])
def test_a_counter_that_is_off_by_one(core, name, node, more):
    pool = core.pool
    counter = pool.member_(name)
    if node is not None:
        counter = pool.member_(f"{name}_node")[node]
    right = counter.value_()
    first = core.check(core.place(counter), right + more, counter.type_.size)
    assert first["rule"] == "hstate-counters"
    assert (int(first["expected"], 0), int(first["actual"], 0)) == (right, right + more)


@pytest.mark.parametrize("core", KERNELS, indirect=True)
@pytest.mark.parametrize(
    ("bit", "level"),
    # Without a table further up, nothing of vmemmap would be left.
    [(WRITABLE, 1), (WRITABLE, 2), (WRITABLE, 3), (PRESENT, 1)],
)
def test_an_entry_above_the_lowest_level(core, level, bit):
    """One finding at that entry, none at the healthy ones below."""
    kernel = core.hvo.kernel
    folios = core.hvo.hugetlb.folios
    address = core.hvo.vmemmap.page_address(int(folios.head_pfn[len(folios) // 2]))
    (entry,) = (
        entry
        for entry in entries_to(
            kernel.reader.read_bytes, kernel.page_table_format, "little", address
        )
        if entry is not None and entry.level == level
    )
    first = core.check(entry.address, entry.value ^ bit)
    assert first["rule"] == "vmemmap-head-frame"
    assert int(first["actual"], 0) == entry.value ^ bit
    if bit == WRITABLE:
        assert int(first["expected"], 0) == entry.value
    assert first["affected"]


@pytest.mark.parametrize("core", KERNELS, indirect=True)
def test_node_bits_of_a_head(core):
    layout = core.hvo.mmzone.flags_layout
    for which in (0, -1):
        head = int(core.hvo.hugetlb.folios.head_pfn[which])
        spot = core.context.word_spot(head, core.hvo.kernel.struct_page.flags)
        flags = core.read(spot.physical_address)
        first = core.check(spot.physical_address, flags ^ 1 << layout.node_shift)
        assert first["rule"] == "folio-node"
        assert int(first["expected"], 0) == flags
