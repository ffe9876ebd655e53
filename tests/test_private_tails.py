# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Private tails
-------------

Every word of the struct pages behind a head that the kernel fixes, in every generation
that has other fields: one bit of it is wrong, and is the first finding, at its address.
What the kernel leaves free is none.
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.tail_fields import TailFields
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.synth_support import SHAPES, describe


@pytest.fixture(scope="module", params=SHAPES)
def machine(request):
    return build_machine(describe(request.param))


def opened(machine):
    prog = program(machine)
    install(prog)
    return hvo_of(prog)


@contextmanager
def flipped(machine, address, bits):
    """Bits of a word of memory the other way round for a while."""
    old = machine.image.read(address, 8)
    order = machine.plan.description.model.byteorder
    new = int.from_bytes(old, order) ^ bits
    machine.image.write(address, new.to_bytes(8, order))
    yield
    machine.image.write(address, old)


def findings(machine, **scope):
    return check_document(opened(machine), "core", CheckScope(**scope))["findings"]


def heads(machine, kind):
    """Heads of folios on a list of a kind."""
    return [
        pfn
        for placed in machine.plan.huge
        if placed.group.list == kind
        for pfn in placed.heads()
    ]


def first_fields(machine):
    """All fields that are fixed, a struct page that has each, and one of their bits."""
    fields = opened(machine).private_tails.fields
    last = max(field.index for field in fields)
    for i, field in enumerate(fields):
        index = field.index + 7 * (field.index == last)
        bits = [bit for bit in range(8 * field.size) if field.mask >> bit & 1]
        # Another bit of each field, high ones and low ones.
        yield field, index, bits[i * 11 % len(bits)]


def word_of(machine, head, field, index):
    """The word that a field is in, and by how much it is shifted there."""
    address = machine.page_physical(head + index) + field.offset
    start = address & -8
    within = address - start
    if machine.plan.description.model.byteorder == "big":
        within = 8 - field.size - within
    return start, 8 * within


def test_each_field_of_a_free_folio(machine):
    head = heads(machine, "free")[1]
    seen = set()
    for field, index, bit in first_fields(machine):
        address, shift = word_of(machine, head, field, index)
        with flipped(machine, address, 1 << bit + shift):
            first, *others = findings(machine)
        rule = "folio-" + "tail-" * (field.verdict != "head") + field.verdict
        assert first["rule"] == rule, field
        assert int(first["physical_address"], 0) & -8 == address, field
        assert first["head_pfn"] == head
        assert first["pfn"] == head + index
        assert int(first["expected"], 0) ^ int(first["actual"], 0) == 1 << bit
        assert others == []
        seen.add(field.verdict)
    assert seen == {"head", "mapping", "mapcount", "flags", "refcount", "rest"}


def test_what_users_change_is_fixed_in_free_folios_only(machine):
    head = heads(machine, "active")[0]
    for field, index, bit in first_fields(machine):
        # Three bits of a pointer are 0 in any folio.
        if field.kind == "pointer" and bit < 3:
            continue
        address, shift = word_of(machine, head, field, index)
        with flipped(machine, address, 1 << bit + shift):
            found = findings(machine)
        assert bool(found) == (field.when in ("always", "unpoisoned")), field


def test_what_the_kernel_leaves_there(machine):
    """lru.prev and index of tails hold what the page held in its last life."""
    bound = opened(machine)
    page = bound.kernel.struct_page
    head = heads(machine, "free")[0]
    address = machine.page_physical(head + 9)
    for offset in (page.offset + 8, page.mapping + 8):
        with flipped(machine, address + offset, 0x1234_5678_9ABC_DEF0):
            assert findings(machine) == []
    layout = bound.mmzone.flags_layout
    cpupid = 1 << layout.zone_shift - 1
    with flipped(machine, address + page.flags, cpupid):
        assert findings(machine) == []


def test_a_folio_on_its_way_is_counted(machine):
    if not machine.plan.generation.can_optimize:
        pytest.skip("only HVO leads to folios that are on no list")
    head = heads(machine, "none")[0]
    refcount = opened(machine).kernel.struct_page.refcount
    start = machine.page_physical(head + 9) + refcount
    with flipped(machine, start & -8, 1 << 8 * (start & 7)):
        doc = check_document(opened(machine), "core", CheckScope())
    assert doc["findings"] == []
    assert doc["in_transition"] == 1


def test_a_kernel_without_mm_ids(machine, monkeypatch):
    """Without CONFIG_MM_ID, index of the first tail stays what it was."""
    without = TailFields._has

    def has(self, type_name, member):
        return member != "mm_id" and without(self, type_name, member)

    names = {field.name for field in opened(machine).private_tails.fields}
    monkeypatch.setattr(TailFields, "_has", has)
    if "_mm_id_mapcount" not in names:
        pytest.skip("this kernel is older")
    head = heads(machine, "free")[0]
    folio = machine.plan.structures.folio
    address = machine.page_physical(head) + folio.offset("_mm_id_mapcount")
    with flipped(machine, address, 0xFFFF_0000_1234_5678):
        assert findings(machine) == []


def test_a_subpool_before_it_had_a_name(machine):
    """A pointer in private of the first tails, which enumerators up to v6.2 number."""
    if machine.plan.structures.folio.has("_hugetlb_subpool"):
        pytest.skip("it has a name")
    head = heads(machine, "active")[0]
    private = opened(machine).kernel.struct_page.private
    address = machine.page_physical(head + 1) + private
    with flipped(machine, address, 0xFFFF_8880_1234_5678):
        assert findings(machine) == []
    with flipped(machine, address, 4):
        (finding,) = findings(machine)
        assert finding["rule"] == "folio-tail-rest"


def test_memory_that_failed(machine):
    """With PG_hwpoison, the head has a list of the pages that failed."""
    bound = opened(machine)
    fields = {field.name: field for field in bound.private_tails.fields}
    field = fields.get("_hugetlb_hwpoison")
    if field is None:
        pytest.skip("these kernels keep the list elsewhere")
    head = heads(machine, "active")[0]
    address, _ = word_of(machine, head, field, field.index)
    node = 0xFFFF_8880_1234_5678
    with flipped(machine, address, node):
        (finding,) = findings(machine)
        assert finding["rule"] == "folio-tail-rest"
        flags = machine.page_physical(head)
        poison = 1 << bound.kernel.constant("PG_hwpoison")
        with flipped(machine, flags, poison):
            assert findings(machine) == []
            with flipped(machine, address, 4):
                (finding,) = findings(machine)
                assert finding["rule"] == "folio-tail-rest"


@pytest.mark.parametrize("areas", [8, 9, 10, 11, 14])
def test_who_makes_a_folio_says_whether_its_tails_have_mappings(machine, areas):
    """Folios that the buddy allocator made have them, whatever its largest order is."""
    made = replace(
        machine,
        vmcoreinfo=machine.vmcoreinfo.replace(
            b"LENGTH(zone.free_area)=11", f"LENGTH(zone.free_area)={areas}".encode()
        ),
    )
    size = opened(made).kernel.struct_page.size
    mapping = opened(made).kernel.struct_page.mapping
    head = heads(made, "free")[1]
    old = made.image.read(made.page_physical(head), 4096)
    try:
        for index in range(1, 4096 // size):
            made.image.write(made.page_physical(head + index) + mapping, bytes(8))
        found = [f for f in findings(made) if f["rule"] == "folio-tail-mapping"]
    finally:
        made.image.write(made.page_physical(head), old)
    assert bool(found) == (areas > 9)


def test_in_bulk_as_one_by_one(machine):
    """What is told of all frames at once is what their fields say one by one."""
    bound = opened(machine)
    tails, folios = bound.private_tails, bound.hugetlb.folios
    if not bound.kernel.geometry.power_of_2:
        assert not folios.regular.any()
        return
    assert folios.regular.all()
    per_slice = bound.kernel.geometry.pages_per_slice
    rows = bound.vmemmap.read_pages(folios.head_pfn[:1], per_slice).data
    address = bound.vmemmap.page_addresses(folios.head_pfn[:1])
    order = folios.own_order[:1]
    size = bound.kernel.struct_page.size
    last = max(field.index for field in tails.fields)
    fixed: dict[str, set[tuple[int, int]]] = {"used": set(), "free": set()}
    for field in tails.fields:
        for index in range(
            field.index, per_slice if field.index == last else field.index + 1
        ):
            for bit in range(8 * field.size):
                if field.mask >> bit & 1:
                    at = index * size + field.offset + bit // 8, bit % 8
                    fixed["free"].add(at)
                    pointer = field.kind == "pointer" and bit < 3
                    if pointer or field.when in ("always", "unpoisoned"):
                        fixed["used"].add(at)
    rng = np.random.default_rng(14)
    flips = rng.integers(0, len(rows[0]), 400), rng.integers(0, 8, 400)
    for byte, bit in zip(*(part.tolist() for part in flips)):
        changed = rows.copy()
        changed[0, byte] ^= 1 << bit
        _, used, free = tails.frames.look(changed, address, order)
        offset = bound.kernel.struct_page.offset
        if byte >= size and byte % size // 8 * 8 == offset:
            continue  # tail words have rules of their own
        if byte < 2 * size and byte % size < 8 and (byte, bit) not in fixed["used"]:
            continue  # node, zone and order, which decide of the others
        assert bool(used[0]) == ((byte, bit) not in fixed["used"]), (byte, bit)
        assert bool(free[0]) == ((byte, bit) not in fixed["free"]), (byte, bit)
