# SPDX-License-Identifier: LGPL-2.1-or-later

"""
HVO of v5.14 to v5.17: vmemmap_remap_free() with RESERVE_VMEMMAP_NR of 2 lets all slices
from the third on show the frame of the second, which stays writable there.
"""

import numpy as np
import pytest

from drgn_hvo.commands.map import map_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.synth.containers.output import write_machine
from drgn_hvo.synth.described.description import HugePages, Node
from tests.command_support import run, without_reasons
from tests.damage_support import Case

WRITABLE, PAGE = 2, 4096
FRAMES = (1 << 52) - PAGE


def shown(case):
    return show_document(hvo_of(case.prog), "core", folios=True)


def a_folio(case):
    return case.groups(optimized=None, list="free")[0].first_pfn


def entry_of(case, head, slice_):
    place = case.entry(head, slice_)
    return place, int.from_bytes(case.image.read(place, 8), "little")


def second_frame(case, head):
    return entry_of(case, head, 1)[1] & FRAMES


def test_it_is_told_from_the_others():
    document = shown(Case.of("5.15"))
    layout = document["tail_layout"]
    assert layout["kind"] == "first-tail"
    assert "hugetlb_free_vmemmap_enabled" in layout["evidence"][0]
    assert "16 that of a slice of tails" in layout["evidence"][1]
    assert document["saved"]["pages"] == document["saved"]["net_pages"] == 16 * 6
    for folio in document["folios"]:
        optimized = folio["optimized_mapping"]
        assert folio["shared_ptes"] == (6 if optimized else 0)
        assert folio["private_frames"] == (2 if optimized else 8)


@pytest.mark.parametrize("struct_page", [0, 1, 17, 63])
@pytest.mark.parametrize(
    ("offset", "rule"),
    [
        (0, "folio-tail-flags"),
        (8, "folio-tail-info"),
        (24, "folio-tail-mapping"),
        (48, "folio-tail-mapcount"),
        (52, "folio-tail-refcount"),
    ],
)
def test_one_bit_of_the_second_page(struct_page, offset, rule):
    """It is read by all slices behind, but nothing else of vmemmap repeats it."""
    case = Case.of("5.15")
    word = second_frame(case, a_folio(case)) + struct_page * 64 + offset
    place = case.flip(word, 1 << 16, 4 if offset >= 48 else 8)
    assert case.first() == (rule, place)


def test_the_second_slice_is_read_only():
    case = Case.of("5.15")
    place, value = entry_of(case, a_folio(case), 1)
    case.put(place, value & ~WRITABLE)
    assert case.first() == ("vmemmap-head-frame", place)


@pytest.mark.parametrize("other", ["own head", "another folio's"])
def test_the_second_slice_has_another_frame(other):
    case = Case.of("5.15")
    head = a_folio(case)
    place, value = entry_of(case, head, 1)
    _, wrong = entry_of(case, *((head, 0) if other == "own head" else (head + 512, 1)))
    case.put(place, value & ~FRAMES | wrong & FRAMES)
    assert place in [place for rule, place in findings(case)]


@pytest.mark.parametrize("slice_", [2, 4, 7])
def test_a_slice_behind_has_another_frame(slice_):
    """Fake heads would be what is wrong here: they show the head's."""
    case = Case.of("5.15")
    head = a_folio(case)
    place, value = entry_of(case, head, slice_)
    case.put(place, value & ~FRAMES | entry_of(case, head, 0)[1] & FRAMES)
    assert ("vmemmap-tail-frame", place) in findings(case)


def test_the_second_slice_is_not_mapped():
    case = Case.of("5.15")
    place, _ = entry_of(case, a_folio(case), 1)
    case.put(place, 0)
    assert case.first()[1] == place


def findings(case):
    return [
        (one["rule"], int(one["physical_address"], 0))
        for one in case.check()["findings"]
    ]


def with_symbols(monkeypatch, present):
    """Kernels that have, or have not, some variables besides their own."""
    has = Kernel.has_variable

    def has_variable(kernel, name):
        return present[name] if name in present else has(kernel, name)

    monkeypatch.setattr(Kernel, "has_variable", has_variable)


def test_fake_heads_before_they_had_a_static_key(monkeypatch):
    """e7d324850bfc alone, without a6b40850c442: the data tells."""
    keys = {"hugetlb_optimize_vmemmap_key": False, "hugetlb_free_vmemmap_enabled": True}
    with_symbols(monkeypatch, keys)
    layout = shown(Case.of("fake-head-6.1"))["tail_layout"]
    assert layout["kind"] == "fake-head"
    assert "no key of fake heads" in layout["evidence"][0]


def test_a_key_of_fake_heads_and_two_private_pages(monkeypatch):
    with_symbols(monkeypatch, {"hugetlb_optimize_vmemmap_key": True})
    with pytest.raises(DetectionError, match="types and data disagree"):
        shown(Case.of("5.15"))


def test_map():
    """Slices behind the second one are drawn as what they repeat."""
    case = Case.of("5.15")
    head = a_folio(case)
    spec = parse_page_spec(f"pfn:0d{head + 300}")
    rows = map_document(hvo_of(case.prog), "core", spec)["rows"]
    assert [row["first"] for row in rows] == list(range(8))
    assert [row["writable"] for row in rows] == [True, True] + 6 * [False]
    assert [row["repeats_slice"] for row in rows] == [None, None] + 6 * [1]
    assert not any(row["repeats_head"] or row["tail"] for row in rows)
    own = [entry_of(case, head, slice_)[1] & FRAMES for slice_ in (0, 1)]
    frames = [row["frame"] * PAGE for row in rows if row["frame"] is not None]
    assert frames == [own[0]] + 7 * [own[1]]


def test_a_gigantic_page():
    nodes = (Node(0, ((0, 0x80000),), {"DMA32": (1, 0x80000)}),)
    group = HugePages(0, "DMA32", 18, 1)
    case = Case.of("5.15", nodes=nodes, huge_pages=(group,), pages=(), reserved={})
    head = case.groups()[0].first_pfn
    rows = map_document(hvo_of(case.prog), "core", parse_page_spec(f"pfn:0d{head}"))
    assert [(r["first"], r["last"], r["repeats_slice"]) for r in rows["rows"]] == [
        (0, 0, None),
        (1, 1, None),
        (2, 4095, 1),
    ]
    assert shown(case)["saved"]["pages"] == 4094
    assert case.check(deep=True)["status"] == "clean"


def test_there_is_no_struct_folio():
    """It came with v5.16; struct page has the fields of first tails."""
    case = Case.of("5.15")
    prog = case.prog
    with pytest.raises(LookupError):
        prog.type("struct folio")
    assert prog.type("struct page").has_member("compound_order")
    with pytest.raises(LookupError):
        prog.type("struct hstate").member("demote_order")
    found = hvo_of(prog)
    assert found.fields.faults == ()
    assert found.unread == ()
    folios = found.hugetlb.folios
    assert folios.is_hugetlb is not None
    assert np.all(folios.is_hugetlb)
    assert np.all(folios.own_order == 9)
    checked = case.check(deep=True)
    assert (checked["status"], checked["complete"]) == ("clean", True)


@pytest.mark.parametrize("small", [False, True])
def test_an_extract_says_the_same(small, tmp_path):
    core, cut = tmp_path / "core", tmp_path / "cut"
    write_machine(Case.of("5.15").targets.machine, core)
    options = ("--small",) if small else ()
    assert run("extract", core, "-o", cut, *options).returncode == 0
    for command in (("show", "--folios"), ("check",)):
        name, *rest = command
        told = [run(name, path, *rest).stdout for path in (core, cut)]
        said = [text.replace(str(path), "") for text, path in zip(told, (core, cut))]
        assert without_reasons(said[0]) == without_reasons(said[1])


@pytest.mark.parametrize(
    ("member", "rule"),
    [("compound_nr", "folio-tail-rest"), ("compound_mapcount", "folio-tail-mapcount")],
)
def test_fields_of_the_folio_in_struct_page(member, rule):
    case = Case.of("5.15")
    page = case.targets.plan.structures.page
    word = case.targets.machine.page_physical(a_folio(case) + 1) + page.offset(member)
    place = case.flip(word, 1 << 4, 4)
    assert case.first() == (rule, place)
