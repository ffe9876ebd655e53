# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Huge pages between two stores
-----------------------------

What HVO, demotion and the pools store while they remap, split up or move a huge page is
done here one store after the other, in the order of the kernel's code; at no instant
is a healthy kernel accused. What no such code leaves is damage, also of a huge page
that nobody holds.
"""

from dataclasses import replace

import pytest

from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.damage.targets import Targets
from drgn_hvo.synth.described.description import HugePages
from drgn_hvo.synth.machine.frames import Extent, Image
from tests.damage_support import Case

WRITABLE = 2
SHARED = ("shared-7.1", "shared-7.3", "seed-v5", "seed-v6")
FAKE = ("fake-head-6.1", "fake-head-6.12", "mask-6.18-stable")
SLICES = 8

HUGETLB_FLAG = 1 << 4  # HPG_vmemmap_optimized


class Flying:
    """An optimized huge page that is on no list, and frozen."""

    def __init__(self, name):
        machine = Case.of(name).targets.machine
        image, free = machine.image, Targets(machine).free_frame()
        spare = Extent.stored(free, bytes(SLICES * 4096), 4096)
        image = Image(image.memory, [*image.extents, spare], image.page_size)
        self.case = Case(Targets(replace(machine, image=image)))
        (placed,) = self.case.groups(list="none")
        self.pfn = placed.first_pfn
        self.name = name
        self.free = iter(range(free, free + SLICES))

    def entry(self, slice_):
        return self.case.entry(self.pfn, slice_)

    def read(self, address, size):
        return self.case.image.read(address, size)

    def give_frame(self, slice_):
        """What vmemmap_restore_pte() does for one slice."""
        entry = self.entry(slice_)
        value = int.from_bytes(self.read(entry, 8), "little")
        page_table = hvo_of(self.case.prog).kernel.page_table_format
        assert page_table is not None
        shared = page_table.decode(value, 0).address >> 12
        content = self.read(shared << 12, 4096)
        if self.name in FAKE:  # reset_struct_pages()
            content = content[192:384] + content[192:]
        frame = next(self.free)
        self.case.image.write(frame << 12, content)
        new = page_table.with_write(
            page_table.with_frame(value, 0, frame), 0, allowed=True
        )
        self.case.put(entry, new)

    def set_flag(self, is_set):
        place = self.case.field(self.pfn, "private")
        value = int.from_bytes(self.read(place, 8), "little") & ~HUGETLB_FLAG
        self.case.put(place, value | HUGETLB_FLAG * is_set)

    def check(self):
        found = self.case.check()
        assert (found["findings"], found["status"]) == ([], "clean")
        return found["in_transition"]


@pytest.mark.parametrize("name", [*SHARED, *FAKE])
def test_no_instant_of_restoring_is_damage(name):
    """Slice 1 to the last one, then the flag."""
    flying = Flying(name)
    if name == "fake-head-6.1":
        # remove_hugetlb_page() has given it the reference that freeing it drops.
        flying.case.put(flying.case.field(flying.pfn, "_refcount"), 1, 4)
    for slice_ in range(1, SLICES):
        flying.give_frame(slice_)
        assert flying.check() == int(slice_ < SLICES - 1), slice_
        listed = set(hvo_of(flying.case.prog).hugetlb.folios.head_pfn.tolist())
        assert (flying.pfn in listed) == (slice_ < SLICES - 1)
    flying.set_flag(False)
    flying.check()


@pytest.mark.parametrize("name", [*SHARED, *FAKE])
def test_no_instant_of_optimizing_is_damage(name):
    """The flag, then slice 1 to the last one; in 6.1, slices, flag, then the type."""
    for done in range(1, SLICES):
        flying = Flying(name)
        for slice_ in range(done + 1, SLICES):
            flying.give_frame(slice_)
        if name == "fake-head-6.1":
            flying.set_flag(False)
            place = hvo_of(flying.case.prog).fields.hugetlb_place
            assert place is not None
            offset, size, _ = place
            address = flying.case.targets.machine.page_physical(flying.pfn) + offset
            COMPOUND_PAGE_DTOR = 1
            flying.case.put(address, COMPOUND_PAGE_DTOR, size)
        assert flying.check() == int(done < SLICES - 1 or name == "fake-head-6.1")


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12", "fake-head-6.1"])
@pytest.mark.parametrize(
    ("own", "rule"),
    [
        ((3,), "vmemmap-tail-frame"),
        ((1, 3), "vmemmap-tail-frame"),
        ((2, 3, 4, 5, 6), "vmemmap-tail-frame"),
    ],
)
def test_slices_that_no_code_leaves_so(name, own, rule):
    """Those with frames of their own are the first ones, or the last ones."""
    flying = Flying(name)
    for slice_ in own:
        flying.give_frame(slice_)
    found = flying.case.check()
    assert found["in_transition"] == 0
    assert found["findings"][0]["rule"] == rule
    places = {int(f["physical_address"], 0) for f in found["findings"]}
    assert places <= {flying.entry(slice_) for slice_ in range(1, SLICES)}


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
@pytest.mark.parametrize("restored", [0, 1])
@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda f: f.case.flip(f.entry(3), WRITABLE), "vmemmap-tail-writable"),
        (lambda f: f.case.flip(f.entry(7), 1 << 13), "vmemmap-tail-frame"),
        (lambda f: f.case.flip(f.entry(3), 1), "vmemmap-tail-writable"),
    ],
    ids=["writable", "frame", "absent"],
)
def test_damage_of_a_huge_page_that_nobody_holds(name, restored, damage, rule):
    flying = Flying(name)
    if restored:
        flying.give_frame(1)
    place = damage(flying)
    found = flying.case.check()
    first = found["findings"][0]
    assert (first["rule"], int(first["physical_address"], 0)) == (rule, place)


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
def test_a_head_that_allows_no_writes(name):
    """No code makes it so, whoever holds the huge page."""
    flying = Flying(name)
    place = flying.case.flip(flying.entry(0), WRITABLE)
    assert flying.case.first() == ("vmemmap-head-frame", place)


class Demotion:
    """A huge page of four smaller ones that is being split up into them."""

    SMALL, LARGE = 9, 11

    def __init__(self, name):
        self.case = Case.of(
            name,
            hstates=(self.SMALL, self.LARGE),
            huge_pages=(
                HugePages(0, "DMA32", self.SMALL, 2),
                HugePages(0, "DMA32", self.LARGE, 1, list="none", origin="restored"),
            ),
            reserved={},
        )
        (placed,) = self.case.groups(order=self.LARGE)
        self.pfn = placed.first_pfn
        self.has_mask = hvo_of(self.case.prog).layout.encoding.has_mask

    def put(self, pfn, member, value, size=8):
        return self.case.put(self.case.field(pfn, member), value, size)

    def set_order(self, pfn, order):
        place = hvo_of(self.case.prog).fields.order_place
        assert place is not None
        offset, size = place
        at = self.case.targets.machine.page_physical(pfn + 1) + offset - 64
        self.case.put(at, order, size)

    def set_head(self, pfn):
        place = self.case.field(pfn, "flags")
        flags = int.from_bytes(self.case.image.read(place, 8), "little")
        self.case.put(place, flags | self.case.flag("head"))

    def set_tails(self, pfn, count):
        address = self.case.targets.plan.space.page_address(pfn)
        word = (1 << 64) - (64 << self.SMALL) if self.has_mask else address
        for tail in range(pfn + 1, pfn + 1 + count):
            self.put(tail, "tail_word", word | 1)

    def make(self, piece, *, tails=511, is_done=True):
        """What demote_free_hugetlb_folios() does to one piece."""
        pfn = self.pfn + (piece << self.SMALL)
        if piece:
            self.put(pfn, "tail_word", 0)
        if tails is None:
            return pfn
        self.set_head(pfn)
        self.set_tails(pfn, tails)
        if is_done:
            self.set_order(pfn, self.SMALL)
            self.init(pfn)
        return pfn

    def init(self, pfn):
        """What init_new_hugetlb_folio() does."""
        self.put(pfn, "_mapcount", 0xF4000000, 4)

    def check(self):
        found = self.case.check(deep=True)
        assert (found["findings"], found["status"]) == ([], "clean")
        return found["in_transition"]


DEMOTING = ("shared-7.1", "shared-7.3", "fake-head-6.12")


@pytest.mark.parametrize("name", DEMOTING)
@pytest.mark.parametrize("piece", range(4))
def test_no_instant_of_demoting_is_damage(name, piece):
    demotion = Demotion(name)
    assert demotion.check() == 0
    for earlier in range(piece):
        demotion.make(earlier)
    demotion.check()
    for tails in (None, 0, 1, 300, 510, 511):
        demotion.make(piece, tails=tails, is_done=False)
        in_transition = demotion.check()
        assert bool(in_transition) == bool(piece)
    demotion.make(piece)
    assert demotion.check() == int(piece < 3)


@pytest.mark.parametrize("name", DEMOTING)
def test_damage_is_no_demotion(name):
    """A tail of a whole that is not there, or that is among those of its piece."""
    demotion = Demotion(name)
    for piece in range(3):
        demotion.make(piece)
    address = demotion.case.targets.plan.space.page_address(demotion.pfn)
    word = (1 << 64) - (64 << demotion.LARGE) if demotion.has_mask else address
    place = demotion.put(demotion.pfn + 512 + 5, "tail_word", word | 1)
    findings = demotion.case.check(deep=True)["findings"]
    assert [(f["rule"], int(f["physical_address"], 0)) for f in findings] == [
        ("compound-heads", place)
    ]
