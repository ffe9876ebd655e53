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

from drgn_hvo.extract.owners import Owner, owners
from drgn_hvo.formats.kdump_writer import kdump_pages
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.pagetables import find_entry
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.targets import Targets
from drgn_hvo.synth.described.description import HugePages, Pages
from drgn_hvo.synth.machine.machine import build_machine
from drgn_hvo.synth.machine.page_uses import PAGE_USES
from drgn_hvo.synth.machine.plan import AnyPlaced
from tests.extract_support import MARK, Marked, extract, marks
from tests.synth_support import ALL, describe

NAMES = ["shared-7.3", "fake-head-6.12", "fake-head-6.1"]

# Pages of these kinds are always more than one.
COMPOUND = ("thp", "slab", "compound")
USED = [
    *((kind, 0) for kind in PAGE_USES if kind not in COMPOUND),
    *((kind, 9 if kind == "thp" else 3) for kind in PAGE_USES),
]
# All others are somebody's.
OWNERS = {"slab": Owner.OBJECTS, "compound": Owner.OBJECTS}


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


def kept_texts(case, path):
    """Of all pages with a text that a damaged entry lets into an extract."""
    case.map_victim()
    extract(program(case.machine), path)
    contents = b"".join(data for _, data in kdump_pages(path.read_bytes()))
    return [kind for kind, use in PAGE_USES.items() if use.text in contents]


def used(kind, order, index):
    """A machine with pages of a kind, each full of its text, and the entry's page."""
    pages = Pages(0, "DMA32", kind, order, 2, first_pfn=0x4000)
    return Case("shared-7.3", 0x4000 + index, pages=(pages,), marked=True)


@pytest.mark.parametrize("kind", [k for k in PAGE_USES if k not in COMPOUND])
def test_one_sign_is_enough(kind, tmp_path):
    """Of "isolated", "truncated" and "charged" pages, each has another one alone."""
    case = used(kind, 0, 1)
    assert case.machine.image.read(0x4001 << 12, 16) == PAGE_USES[kind].text
    assert kept_texts(case, tmp_path / "core") == []


@pytest.mark.parametrize("kind", PAGE_USES)
@pytest.mark.parametrize("index", [0, 3])
def test_what_a_tail_is_its_head_says(kind, index, tmp_path):
    """All signs are in the head; inside a transparent huge page, too."""
    case = used(kind, 9 if kind == "thp" else 3, index)
    assert case.machine.image.read((0x4000 + index) << 12, 16) == PAGE_USES[kind].text
    assert kept_texts(case, tmp_path / "core") == []


def test_what_is_marked_would_be_found(tmp_path):
    """A charged page whose struct page is overwritten looks like one of the kernel."""
    case = used("charged", 0, 1)
    case.set("memcg_data", 0)
    assert kept_texts(case, tmp_path / "core") == ["charged"]


@pytest.mark.parametrize("name", ALL)
def test_whose_pages_are(name):
    groups = [
        Pages(0, "DMA32", kind, order, 1, first_pfn=0x4000 + 512 * i)
        for i, (kind, order) in enumerate(USED)
    ]
    machine = build_machine(describe(name, pages=tuple(groups)))
    hvo = hvo_of(program(machine))
    for group in groups:
        first = group.first_pfn
        assert first is not None
        pfns = np.arange(first, first + (1 << group.order))
        owner = OWNERS.get(group.kind, Owner.DATA)
        assert set(owners(hvo, pfns).tolist()) == {owner}, group


@pytest.mark.parametrize("name", NAMES)
def test_what_is_free_has_what_its_last_user_left(name, tmp_path):
    case = Case(name)
    case.set("_refcount", 0, 4)
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
