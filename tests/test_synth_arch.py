# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Machines of every architecture: page sizes, levels of page tables, byte orders, places
of the kernel. And an architecture that does not exist, as one more entry.
"""

from dataclasses import replace

import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import FormatError, UsageError
from drgn_hvo.extract.command import extract_document
from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.architectures.architecture import Architecture, LinearRange
from drgn_hvo.formats.machine_models import KernelLayout, MachineModel
from drgn_hvo.formats.page_table_formats import (
    Bits,
    EntryAddress,
    PageTableFormat,
    Protections,
    TableLevel,
)
from drgn_hvo.helpers.hugetlb import for_each_hugetlb_folio, validate_hugetlb_folio
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.containers.output import write_core
from drgn_hvo.synth.damage import to_mappings
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.description import Description, HugePages, Node, Pages
from drgn_hvo.synth.described.generations import generation as generation_of
from drgn_hvo.synth.machine.machine import build_machine

# Where memory begins; elsewhere at 0.
RAM = {"riscv64": 0x80000000, "aarch64": 0x40000000}
LAYOUTS = [
    (name, *layout)
    for name, entry in ARCHITECTURES.items()
    for layout in entry.model.layouts
]
# One of each architecture, its usual layout but where another says more.
USUAL = [
    (name, *next(iter(entry.model.layouts)))
    for name, entry in ARCHITECTURES.items()
    if name != "x86_64"
]
GENERATIONS = ["shared-7.3", "fake-head-6.12", "fake-head-6.1", "plain-7.2", "seed-v5"]


def describe(name: str, page_shift: int, levels: int, generation: str) -> Description:
    model = ARCHITECTURES[name].model
    order = model.huge_orders[page_shift][0]
    base = RAM.get(name, 0) >> page_shift
    section = 1 << (model.section_size_bits[page_shift] - page_shift)
    align = max(1 << order, section)
    count = -(-max((64 << 20) >> page_shift, 40 << order) // align) * align
    middle = base + (count // 2 >> order << order)
    zones = {"DMA32": (max(base, 1), middle), "Normal": (middle, base + count)}
    return Description(
        generation=generation,
        architecture=name,
        page_size=1 << page_shift,
        paging_levels=levels,
        nodes=(Node(0, ((base, base + count),), zones),),
        huge_pages=(
            HugePages(0, "DMA32", order, 4),
            HugePages(0, "DMA32", order, 2, list="active"),
            HugePages(0, "Normal", order, 3),
            HugePages(0, "Normal", order, 2, origin="restored"),
            HugePages(0, "Normal", order, 2, optimized=False),
        ),
        pages=(Pages(0, "DMA32", "slab", 3, 3), Pages(0, "DMA32", "buddy", 2, 2)),
    )


def assert_healthy(bound, description):
    document = check_document(bound, "core", CheckScope(deep=True))
    assert document["findings"] == []
    assert document["complete"]
    shown = show_document(bound, "core", folios=True)
    folios = shown["folios"]
    assert folios is not None
    assert len(folios) == 13
    optimized = [folio for folio in folios if folio["optimized_mapping"]]
    expected = [g for g in description.huge_pages if description.is_optimized(g)]
    assert len(optimized) == sum(group.count for group in expected)
    by_design = ARCHITECTURES[description.architecture].model.uname in (
        "riscv64",
        "loongarch64",
    )
    properties = [one["name"] for one in shown["properties"]]
    assert properties == ["tails-writable-by-design"] * bool(by_design and optimized)
    for folio in optimized:
        writable = folio["shared_ptes"] if by_design else 0
        assert folio["writable_shared_ptes"] == writable


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(("name", "page_shift", "levels"), LAYOUTS)
def test_healthy_machines(name, page_shift, levels, generation):
    description = describe(name, page_shift, levels, generation)
    assert_healthy(hvo_of(program(build_machine(description))), description)


@pytest.mark.parametrize("generation", ["shared-7.3", "fake-head-6.12"])
@pytest.mark.parametrize(("name", "page_shift", "levels"), USUAL)
def test_faults(name, page_shift, levels, generation):
    """The first finding is the wrong word, on every architecture."""
    tried = set()
    for fault in FAULTS:
        # What is no word of a page table and was tried with shared tails is the same.
        if (
            generation != "shared-7.3"
            and fault.possible(generation_of("shared-7.3"))
            and fault.find.__module__ != to_mappings.__name__
        ):
            continue
        try:
            description = describe(name, page_shift, levels, generation)
            machine, _ = make_machine(description, [fault.name])
        except UsageError:
            continue
        tried.add(fault.name)
        scope = CheckScope(deep=True)
        document = check_document(hvo_of(program(machine)), "core", scope)
        first = document["findings"][0]["rule"] if document["findings"] else None
        assert first == fault.rule, fault.name
    assert {"pte-foreign-frame", "pte-none", "head-read-only"} <= tried
    by_design = name in ("riscv64", "loongarch64")
    assert ("pte-writable" in tried) != by_design


@pytest.mark.parametrize("generation", ["shared-7.3", "fake-head-6.12"])
@pytest.mark.parametrize(("name", "page_shift", "levels"), USUAL)
def test_validators_pass_on_a_healthy_machine(name, page_shift, levels, generation):
    machine = build_machine(describe(name, page_shift, levels, generation))
    prog = program(machine)
    folios = list(for_each_hugetlb_folio(prog))
    assert folios
    for folio in folios:
        validate_hugetlb_folio(folio)


@pytest.mark.parametrize("container", ["elf", "vmcore", "kdump"])
@pytest.mark.parametrize(("name", "page_shift", "levels"), USUAL)
def test_files(name, page_shift, levels, container, tmp_path):
    description = describe(name, page_shift, levels, "shared-7.3")
    write_core(description, tmp_path / "core", container)
    bound = hvo_of(open_target(str(tmp_path / "core")))
    assert bound.kernel.arch == name
    assert_healthy(bound, description)
    # An extract answers the same.
    extract_document(bound.kernel.prog, "core", tmp_path / "extract", small=True)
    again = hvo_of(open_target(str(tmp_path / "extract")))
    documents = [show_document(of, "core", folios=True) for of in (bound, again)]
    assert documents[0] == documents[1]


@pytest.mark.parametrize(("name", "page_shift", "levels"), USUAL)
def test_memory_is_read_where_it_is(name, page_shift, levels):
    """What the kernel's own pointers lead to, against the machine itself."""
    machine = build_machine(describe(name, page_shift, levels, "shared-7.3"))
    bound = hvo_of(program(machine))
    prog, kernel = bound.kernel.prog, machine.kernel
    assert prog["max_pfn"].value_() == machine.plan.max_pfn
    for symbol in ("hstates", "init_uts_ns", "swapper_pg_dir"):
        physical = kernel.physical(symbol)
        assert bound.kernel.translation.physical(kernel.address(symbol)) is not None
        expected = machine.image.read(physical, 64)
        assert prog.read(kernel.address(symbol), 64) == expected
    for placed in machine.plan.huge:
        for head in placed.heads():
            address = machine.plan.space.page_address(head)
            expected = machine.image.read(machine.page_physical(head), 64)
            assert prog.read(address, 64) == expected
            assert bound.kernel.direct_map(head << page_shift) == (
                machine.plan.space.virtual(head)
            )


# An architecture that does not exist: 8K pages; three levels of 9, 8 and 7 bits; valid
# is bit 5; a bit that is set forbids writes; addresses are stored seven bits further
# up; the most significant byte comes first.

ODD_VALID, ODD_TABLE, ODD_READ_ONLY = 1 << 5, 1 << 9, 1 << 11
ODD_TEXT, ODD_DIRECT = 0xFFFF_FFF0_0000_0000, 0xFFFF_FFE0_0000_0000


class ShiftedDown(EntryAddress):
    """An address that is stored seven bits further up than it is."""

    def get(self, entry):
        return (entry & self.mask) >> 7

    def put(self, entry, address):
        return entry & ((1 << 64) - 1 ^ self.mask) | (address << 7) & self.mask


def odd_page_tables(vmcoreinfo):
    address = ShiftedDown((1 << 60) - (1 << 20))
    valid = Bits(ODD_VALID, ODD_VALID)

    def level(bits, lowest):
        return TableLevel(
            index_bits=bits,
            present=(valid,),
            writable=Bits(ODD_READ_ONLY, 0),
            address=address,
            table=None if lowest else Bits(ODD_TABLE, ODD_TABLE),
            # Tables are smaller than pages.
            table_address=ShiftedDown((1 << 60) - (1 << 17)),
            table_writable=Bits(ODD_READ_ONLY, 0),
        )

    root = vmcoreinfo.symbol("swapper_pg_dir") - vmcoreinfo.number("odd_offset")
    return (
        PageTableFormat(
            page_shift=13,
            levels=(level(9, True), level(8, False), level(7, False)),
            root=root,
            protections=Protections(
                kernel=ODD_VALID,
                read_only=ODD_VALID | ODD_READ_ONLY,
                text=ODD_VALID | ODD_READ_ONLY,
                rodata=ODD_VALID | ODD_READ_ONLY,
                table=ODD_VALID | ODD_TABLE,
                large=0,
            ),
            accessed=0,
            dirty=0,
        ),
    )


def odd_ranges(vmcoreinfo):
    offset = vmcoreinfo.number("odd_offset")
    return (
        LinearRange("image", ODD_TEXT, ODD_TEXT + (1 << 28), ODD_TEXT - offset),
        LinearRange("direct", ODD_DIRECT, ODD_DIRECT + (1 << 30), 0, True),
    )


ODD = Architecture(
    elf_machine=0xFEED,
    page_tables=odd_page_tables,
    linear_ranges=odd_ranges,
    model=MachineModel(
        uname="odd64",
        prstatus_size=336,
        layouts={
            (13, 3): KernelLayout(
                ODD_TEXT, ODD_DIRECT, ODD_DIRECT + (1 << 34), 0xFFFF_FFF8_0000_0000, 30
            )
        },
        notes=lambda made: [f"NUMBER(odd_offset)={made.text - made.text_physical}"],
        huge_orders={13: (9,)},
        section_size_bits={13: 26},
        max_physmem_bits={None: 36},
        byteorder="big",
    ),
    illegal_pointer_value=0xBAD << 52,
)


@pytest.mark.parametrize("generation", ["shared-7.3", "fake-head-6.12", "plain-7.2"])
def test_an_architecture_is_one_entry(generation, monkeypatch, tmp_path):
    monkeypatch.setitem(ARCHITECTURES, "unknown", ODD)
    description = describe("unknown", 13, 3, generation)
    bound = hvo_of(program(build_machine(description)))
    assert_healthy(bound, description)
    assert bound.kernel.geometry.page_size == 8192
    # From a file, too, and out of an extract.
    write_core(description, tmp_path / "core")
    bound = hvo_of(open_target(str(tmp_path / "core")))
    assert_healthy(bound, description)
    if description.kernel_generation.can_optimize:
        machine, _ = make_machine(description, ["pte-writable"])
        document = check_document(hvo_of(program(machine)), "core", CheckScope())
        assert [f["rule"] for f in document["findings"]] == ["vmemmap-tail-writable"]


def without_page_tables(monkeypatch, name):
    """As if nobody knew how they are laid out; drgn's own walk still does."""

    def unknown(vmcoreinfo):
        raise FormatError("nobody knows")

    entry = replace(ARCHITECTURES[name], page_tables=unknown)
    monkeypatch.setitem(ARCHITECTURES, name, entry)


@pytest.mark.parametrize("generation", ["shared-7.3", "fake-head-6.12", "plain-7.2"])
@pytest.mark.parametrize("name", ["aarch64", "ppc64"])
def test_without_page_tables(name, generation, monkeypatch):
    """Pools, lists, counters, nodes, zones and tails are told; mappings are unknown."""
    description = describe(name, 12, 4, generation)
    machine = build_machine(description)
    looping, _ = make_machine(description, ["list-loop"])
    whole = show_document(hvo_of(program(machine)), "core", folios=True)
    without_page_tables(monkeypatch, name)
    bound = hvo_of(program(machine))
    shown = show_document(bound, "core", folios=True)
    assert shown["hstates"] is not None
    assert whole["hstates"] is not None
    for state, known in zip(shown["hstates"], whole["hstates"]):
        for node in known["nodes"]:
            node["optimized"] = None
        assert state == known
    assert shown["folios"] is not None
    assert whole["folios"] is not None
    for folio, told in zip(shown["folios"], whole["folios"]):
        for key in ("head_pfn", "order", "nid", "zone", "list", "refcount", "flags"):
            assert folio[key] == told[key]
        assert folio["optimized_mapping"] is None
        assert folio["optimized_flag"] == told["optimized_flag"]
    assert shown["saved"] is not None
    assert shown["saved"]["pages"] is None
    document = check_document(bound, "core", CheckScope(deep=True))
    assert document["findings"] == []
    assert not document["complete"]
    results = {rule["id"]: rule["result"] for rule in document["rules"]}
    assert results["hstate-lists"] == results["hstate-counters"] == "pass"
    assert results["folio-head"] == results["compound-heads"] == "skip"
    document = check_document(hvo_of(program(looping)), "core", CheckScope())
    assert document["findings"][0]["rule"] == "hstate-lists"
