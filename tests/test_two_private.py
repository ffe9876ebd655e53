# SPDX-License-Identifier: LGPL-2.1-or-later

"""
HVO of v5.14 to v5.17: vmemmap_remap_free() with RESERVE_VMEMMAP_NR of 2 lets all slices
from the third on show the frame of the second, which stays writable there.
"""

import pytest

from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.memmap.hvo import hvo_of
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
