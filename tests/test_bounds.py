# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The last value that is right and the first one that is wrong, where nothing but damage
ever comes near.
"""

import random
import re
import zlib

import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.heads import write_heads
from drgn_hvo.errors import DetectionError, FormatError, TargetError, UsageError
from drgn_hvo.formats.kdump_writer import pack_page
from drgn_hvo.formats.tail_words import Geometry, is_pointer, mask_order
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.pagetables import Runs
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.mapping import _repeated_frames
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from drgn_hvo.synth.machine.plan import AnyPlaced
from tests.overlay import Overlay, vmcoreinfo_text
from tests.synth_support import describe

X86 = Geometry(4096, 64)
BASE = 0xFFFFEA0000000000


def test_no_tail_has_the_mask_of_a_single_page():
    assert mask_order(X86, 2**64 - 64 + 1) is None
    assert mask_order(X86, 2**64 - 128 + 1) == 1


def test_pointers_end_with_vmemmap():
    end = BASE + 64 * 1000
    assert is_pointer(X86, end - 64 + 1, BASE, end)
    assert not is_pointer(X86, end + 1, BASE, end)
    assert is_pointer(X86, BASE + 1, BASE, end)
    assert not is_pointer(X86, BASE - 64 + 1, BASE, end)


@pytest.mark.parametrize("offset", range(2, 64, 2))
def test_pointers_are_to_the_beginning_of_a_struct_page(offset):
    assert not is_pointer(X86, BASE + 640 + offset + 1, BASE, BASE + (1 << 40))


def test_the_first_number_of_more_than_64_bits():
    assert Vmcoreinfo(b"SIZE(a)=18446744073709551615").size("a") == 2**64 - 1
    with pytest.raises(FormatError, match="out of range"):
        Vmcoreinfo(b"SIZE(a)=18446744073709551616").size("a")


@pytest.fixture(scope="module")
def machine():
    return build_machine(describe("shared-7.3"))


def patched(machine, name, value, size):
    """The machine with another value of a variable."""
    patches = {machine.kernel.physical(name): value.to_bytes(size, "little")}
    return Overlay(program(machine), patches=patches).prog


@pytest.mark.parametrize("bits", [1, 12, 57])
@pytest.mark.parametrize("deep", [False, True])
def test_no_section_is_of_such_a_size(bits, deep):
    machine = build_machine(describe("shared-7.3"))
    old = re.compile(rb"SECTION_SIZE_BITS\)=\d+")
    note = old.sub(b"SECTION_SIZE_BITS)=%d" % bits, machine.vmcoreinfo)
    object.__setattr__(machine, "vmcoreinfo", note)
    with pytest.raises(TargetError, match=f"has SECTION_SIZE_BITS={bits}"):
        check_document(hvo_of(program(machine)), "core", CheckScope(deep=deep))


def test_two_places_of_vmemmap_are_none(machine):
    """VMCOREINFO says one, the kernel's own variable another."""
    prog = program(machine)
    assert Kernel(prog, {}).vmemmap == machine.plan.space.vmemmap
    moved = machine.plan.space.vmemmap + (1 << 30)
    with pytest.raises(DetectionError, match="where is vmemmap"):
        Kernel(patched(machine, "vmemmap_base", moved, 8), {}).vmemmap  # noqa: B018


@pytest.mark.parametrize(
    ("line", "value"), [("OFFSET(page.flags)", 8), ("OFFSET(page.compound_info)", 16)]
)
def test_types_that_are_not_of_this_kernel_are_refused(machine, line, value):
    text = vmcoreinfo_text(program(machine))
    assert line in text
    lines = [
        f"{line}={value}" if old.startswith(line) else old for old in text.split("\n")
    ]
    prog = Overlay(program(machine), vmcoreinfo="\n".join(lines).encode()).prog
    with pytest.raises(DetectionError, match="disagree about struct page"):
        Kernel(prog, {})


@pytest.mark.parametrize("count", [3, 1000, 2**32 - 1])
def test_more_pools_than_the_array_has(machine, count):
    """It is noted, and pools are those that there can be."""
    right = hvo_of(program(machine)).hugetlb.hstates
    bound = hvo_of(patched(machine, "hugetlb_max_hstate", count, 4))
    assert bound.hugetlb.hstates == right
    (wrong,) = bound.hugetlb.wrong_pool_words
    assert "hugetlb_max_hstate" in wrong.what


def test_a_node_that_says_it_is_another_is_left_out(machine):
    """Both entries of node_data[] lead to one node: the second is damaged."""
    at = machine.kernel.physical("node_data")
    first = machine.image.read(at, 8)
    prog = Overlay(program(machine), patches={at + 8: first}).prog
    bound = hvo_of(prog)
    assert list(bound.mmzone.pgdats) == [0]
    assert any(str(one).endswith("node 1: is damaged") for one in bound.unread)


def flags_patches(machine, pfns):
    """Struct pages with the bits of node and zone the other way round."""
    patches = {}
    for pfn in pfns:
        at = machine.page_physical(pfn)
        flags = int.from_bytes(machine.image.read(at, 8), "little")
        patches[at] = (flags ^ 0xFFFF << 48).to_bytes(8, "little")
    return patches


def test_positions_that_pages_contradict_are_not_known(machine):
    """Most pages of all zones say another node, so these bits are not it."""
    starts = [zone.start for zone in machine.plan.zones]
    one = Overlay(program(machine), patches=flags_patches(machine, starts[:1])).prog
    assert (
        hvo_of(one).mmzone.flags_layout == hvo_of(program(machine)).mmzone.flags_layout
    )
    assert hvo_of(one).mmzone.flags_layout is not None
    # If the first pages of most zones do, others are asked.
    first = Overlay(program(machine), patches=flags_patches(machine, starts)).prog
    assert hvo_of(first).mmzone.flags_layout is not None
    zones = hvo_of(program(machine)).mmzone.zones
    asked = [
        zone.start_pfn + i * zone.spanned // 8
        for zone in zones
        if zone.spanned
        for i in range(8)
    ]
    most = Overlay(program(machine), patches=flags_patches(machine, asked)).prog
    assert hvo_of(most).mmzone.flags_layout is None


def test_types_and_data_that_disagree_are_refused():
    """Types say masks; every tail that is looked at holds a pointer."""
    machine = build_machine(describe("shared-7.3"))
    other = build_machine(describe("fake-head-6.12"))
    bound = hvo_of(program(machine))
    offset = bound.kernel.struct_page.offset
    patches = {}
    groups: list[AnyPlaced] = [*machine.plan.huge, *machine.plan.pages]
    for placed in groups:
        if placed.group.order < 2 or getattr(placed.group, "kind", "") == "buddy":
            continue
        for head in placed.heads():
            word = machine.plan.space.page_address(head) | 1
            for pfn in range(head + 1, head + min(64, 1 << placed.group.order)):
                patches[machine.page_physical(pfn) + offset] = word.to_bytes(
                    8, "little"
                )
    for tail in machine.vmemmap.tails:
        head = machine.plan.huge[0].first_pfn
        pointer = (machine.plan.space.page_address(head) | 1).to_bytes(8, "little")
        for i in range(64):
            patches[(tail.pfn << 12) + i * 64 + offset] = pointer
    prog = Overlay(program(machine), patches=patches).prog
    with pytest.raises(DetectionError, match="types and data disagree"):
        hvo_of(prog).layout  # noqa: B018
    assert hvo_of(program(other)).layout.encoding.kind == "pointer"


@pytest.mark.parametrize("first", [1, 0])
def test_folios_between_states_are_frozen(first):
    """On no list, reference count 0; one that somebody holds is not."""
    machine = build_machine(describe("shared-7.3"))
    placed = next(p for p in machine.plan.huge if p.group.list == "none")
    bound = hvo_of(program(machine))
    at = machine.page_physical(placed.first_pfn) + bound.kernel.struct_page.require(
        "refcount"
    )
    machine.image.write(at, first.to_bytes(4, "little"))
    found = hvo_of(program(machine)).hugetlb
    which = found.folios.head_pfn == placed.first_pfn
    assert found.in_transition[which].tolist() == [first == 0]


def test_a_page_that_does_not_compress_is_stored_as_it_is():
    noise = random.Random(1).randbytes(4096)
    assert pack_page(noise, 9) == (0, noise)
    assert pack_page(noise[:4090] + bytes(6), 9)[0] == 0
    flags, packed = pack_page(bytes(4096), 9)
    assert (flags, zlib.decompress(packed)) == (1, bytes(4096))


def test_a_page_table_does_not_make_terabytes_of_heads(machine, tmp_path, monkeypatch):
    """It is asked for a range; nothing is written."""
    bound = hvo_of(program(machine))
    write_heads(bound, str(tmp_path / "heads"), None)
    monkeypatch.setitem(vars(bound.vmemmap), "end_pfn", 1 << 34)
    with pytest.raises(UsageError, match="up to PFN 17179869183, far behind"):
        write_heads(bound, str(tmp_path / "more"), None)
    assert [one.name for one in tmp_path.iterdir()] == ["heads"]


@pytest.mark.parametrize("is_live", [False, True])
def test_only_of_a_dump_is_a_frame_what_it_was(is_live):
    changing = build_machine(describe("shared-7.3"))
    pfn = changing.vmemmap.tails[0].pfn
    reader = FrameReader(program(changing, is_live=is_live), 4096)
    frames = np.array([pfn], dtype=np.int64)
    before = reader.read(frames).data.tobytes()
    changing.image.write(pfn << 12, b"changed!")
    after = reader.read(frames).data.tobytes()
    assert (after == before) == (not is_live)
    assert not is_live or after[:8] == b"changed!"


def test_addresses_of_struct_pages(machine):
    """Of all of them from PFN 0 on, and of nothing between them."""
    vmemmap = hvo_of(program(machine)).vmemmap
    base = machine.plan.space.vmemmap
    assert [vmemmap.page_pfn(base + i) for i in (0, 64, 64 * 0x1F000)] == [
        0,
        1,
        0x1F000,
    ]
    for offset in (-64, -1, 1, 8, 63, 64 * 7 + 32):
        assert vmemmap.page_pfn(base + offset) is None


def test_tables_of_other_memory():
    """Millions of frames that vmemmap maps twice are not listed one by one."""
    none = np.zeros(2, dtype=np.int64)
    runs = Runs(
        va=none.astype(np.uint64),
        pfn=none,
        count=none + (1 << 40),
        step=np.ones(2, dtype=np.int8),
        writable=none == 0,
        level=none.astype(np.uint8),
    )
    with pytest.raises(FormatError, match="more than once"):
        _repeated_frames(runs)
