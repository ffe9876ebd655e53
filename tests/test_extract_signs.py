# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Each sign of whose a page is
----------------------------

A damaged entry maps one page where struct pages of a huge page should be. Whether the
extract may hold that page, its own struct page says: each sign alone must keep it out.
Without any, it is a page of the kernel and stays, so that each test can fail.
"""

import numpy as np
import pytest

from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.pagetables import find_entry
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.targets import Targets
from drgn_hvo.synth.described.description import HugePages, Pages
from drgn_hvo.synth.machine.machine import build_machine
from drgn_hvo.synth.machine.plan import AnyPlaced
from tests.extract_support import MARK, Marked, extract, marks
from tests.synth_support import describe

NAMES = ["shared-7.3", "fake-head-6.12", "fake-head-6.1"]


class Case:
    """A machine with one page in place of struct pages."""

    def __init__(self, name, victim=None, **changes):
        self.machine = build_machine(describe(name, **changes))
        self.targets = Targets(self.machine)
        self.bound = hvo_of(program(self.machine))
        self.victim = victim or self.order_0_page()

    def order_0_page(self):
        """One that the kernel uses, with a mark in it."""
        plan, image = self.machine.plan, self.machine.image
        placed: list[AnyPlaced] = [*plan.huge, *plan.pages]
        groups = [(group.first_pfn, group.end_pfn) for group in placed]
        kernel = (plan.kernel_pfn, plan.kernel_pfn + plan.kernel_pages)
        return next(
            pfn
            for pfn in range(0x2009, plan.max_pfn)
            if not image.has(pfn)
            and not any(start <= pfn < end for start, end in (*groups, kernel))
        )

    def flag(self, name):
        bit = self.machine.plan.structures.page_flag(name)
        self.flip("flags", bit)

    def flip(self, member, bits, pfn=None, size=8):
        at = self.targets.page_field(self.victim if pfn is None else pfn, member)
        old = int.from_bytes(self.machine.image.read(at, size), "little")
        self.machine.image.write(at, (old ^ bits).to_bytes(size, "little"))

    def set(self, member, value, size=8):
        at = self.targets.page_field(self.victim, member)
        self.machine.image.write(at, value.to_bytes(size, "little"))

    def map_victim(self):
        """In place of the struct pages of a huge page, behind the head's."""
        folios = self.bound.hugetlb.folios
        plain = np.flatnonzero(~self.bound.hugetlb.optimized_mapping)
        split = [i for i in plain.tolist() if self.is_split(int(folios.head_pfn[i]))]
        head = int(folios.head_pfn[split[0]])
        page_table = self.bound.kernel.page_table_format
        assert page_table is not None
        address = self.bound.vmemmap.base + head * 64 + 3 * 4096
        entry = find_entry(self.bound.kernel.reader, page_table, address)
        assert entry is not None
        value = entry.value & ~0x000F_FFFF_FFFF_F000 | self.victim << 12
        self.machine.image.write(entry.address, value.to_bytes(8, "little"))

    def is_split(self, pfn):
        mapping = self.bound.vmemmap.mapping(pfn * 64 // 4096 + 3)
        return mapping is not None and mapping.level == 0

    def is_kept(self, path):
        self.map_victim()
        extract(Marked(self.machine).prog, path)
        return self.victim in marks(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_the_kernel_is_kept(name, tmp_path):
    assert Case(name).is_kept(tmp_path / "core")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mapping", [0xFFFF888000123401, 0xFFFF888000123400])
def test_memory_of_processes_and_page_cache_have_a_mapping(name, mapping, tmp_path):
    """PAGE_MAPPING_ANON is the lowest bit of a pointer."""
    case = Case(name)
    case.set("mapping", mapping)
    assert not case.is_kept(tmp_path / "core")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_on_an_lru_list_can_be_reclaimed(name, tmp_path):
    case = Case(name)
    case.flag("lru")
    assert not case.is_kept(tmp_path / "core")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_charged_is_of_a_process(name, tmp_path):
    case = Case(name)
    case.set("memcg_data", 0xFFFF888000567802)
    assert not case.is_kept(tmp_path / "core")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_free_has_what_its_last_user_left(name, tmp_path):
    case = Case(name)
    case.set("_refcount", 0, 4)
    assert not case.is_kept(tmp_path / "core")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["slab", "compound", "thp"])
@pytest.mark.parametrize("index", [0, 3])
def test_compound_pages_are_objects(name, kind, index, tmp_path):
    """What a tail is, its head says."""
    order = 9 if kind == "thp" else 3
    pages = (Pages(0, "DMA32", kind, order, 2, first_pfn=0x4000),)
    case = Case(name, 0x4000 + index, pages=pages)
    assert not case.is_kept(tmp_path / "core")


@pytest.mark.parametrize("name", NAMES)
def test_a_tail_is_what_its_head_says(name, tmp_path):
    """Of a page of a process the head has the mapping, the tail has nothing."""
    pages = (Pages(0, "DMA32", "reserved", 0, 8, first_pfn=0x4000),)
    case = Case(name, 0x4003, pages=pages)
    assert case.is_kept(tmp_path / "kept")
    pages = (Pages(0, "DMA32", "compound", 3, 1, first_pfn=0x4000),)
    case = Case(name, 0x4003, pages=pages)
    # Reserved pages are the kernel's, so it is not the size that decides.
    case.flip("flags", case.machine.plan.structures.page_flag("reserved"), 0x4003)
    assert not case.is_kept(tmp_path / "core")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_inside_a_huge_page_is_whatever_its_struct_pages_say(name, tmp_path):
    """They may be damaged: here all of them look like pages of the kernel."""
    groups = (
        HugePages(0, "DMA32", 9, 3, origin="restored"),
        HugePages(0, "DMA32", 9, 1, first_pfn=0x6000, optimized=False, list="active"),
    )
    case = Case(name, 0x6000 + 200, huge_pages=groups, reserved={})
    other = case.targets.order_0_slice() + 3
    row = case.machine.image.read(case.machine.page_physical(other), 64)
    case.machine.image.write(case.machine.page_physical(case.victim), row)
    assert not case.is_kept(tmp_path / "core")


def test_only_the_kernels_half_of_the_top_table_is_kept(tmp_path):
    """The lower half is of the process that ran."""
    machine = build_machine(describe("shared-7.3"))
    root = machine.kernel.physical("swapper_pg_dir") >> 12
    machine.image.write(root << 12, b"\xa5zQ9xW7v" * 256)
    copy, _ = extract(program(machine), tmp_path / "core")
    page = copy.read(root << 12, 4096, True)
    assert page[:2048] == bytes(2048)
    assert page[2048:] == machine.image.read((root << 12) + 2048, 2048)
    assert any(page[2048:])


def test_of_other_struct_pages_only_what_is_looked_at_is_kept(tmp_path):
    """Not private, which may be a pointer or a part of somebody's data."""
    case = Case("shared-7.3")
    pfn = case.targets.order_0_slice() + 3
    machine = case.machine
    at = case.targets.page_field(pfn, "private")
    machine.image.write(at, MARK[:8])
    copy, _ = extract(program(machine), tmp_path / "core")
    page = copy.read(at & -4096, 4096, True)
    flags = case.targets.page_field(pfn, "flags")
    kept = page[flags & 4095 :][:8]
    assert kept == machine.image.read(flags, 8) != bytes(8)
    assert page[at & 4095 :][:8] == bytes(8)
    assert marks(tmp_path / "core") == []


def test_the_name_of_the_machine_is_not_kept(tmp_path):
    """Release and version are, behind it in struct new_utsname."""
    machine = build_machine(describe("shared-7.3"))
    prog = program(machine)
    install(prog)
    names = machine.kernel.physical("init_uts_ns")
    data = machine.image.read(names & -4096, 4096)
    release = hvo_of(prog).kernel.release
    assert release is not None
    start = data.index(release.encode(), names & 4095) - 2 * 65
    for field in (1, 5):
        machine.image.write((names & -4096) + start + 65 * field, b"db17.example")
    copy, _ = extract(prog, tmp_path / "core")
    page = copy.read(names & -4096, 4096, True)
    assert b"example" not in page
    assert release.encode() in page
