# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The kernel after 7.3, as far as it is settled: what the mailing list has of it, done by
hand to machines of the generation ``next``.
"""

import pytest

from drgn_hvo.commands.show import show_document
from drgn_hvo.helpers.vmemmap import for_each_vmemmap_tail, vmemmap_tails
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.machine.machine import SOMEBODY
from tests.command_support import run, without_reasons
from tests.damage_support import Case

WRITABLE, PAGE = 2, 4096


def shown(case):
    return show_document(hvo_of(case.prog), "core", folios=True)


def tail_words(case, offset):
    """Where the words at an offset of all tails of one shared tail page are."""
    pfn = hvo_of(case.prog).shared_tails[0].pfn
    assert pfn is not None
    return [pfn * PAGE + i * 64 + offset for i in range(64)]


def test_the_array_is_found():
    case = Case.of("next")
    document = shown(case)
    layout = document["tail_layout"]
    assert (layout["where"], layout["element"]) == ("zone", "struct page *")
    assert layout["slots"] == 16
    assert any("allocated" in line for line in layout["evidence"])
    tails = list(for_each_vmemmap_tail(case.prog))
    assert len(tails) == len(document["shared_tails"]) == 3
    for tail in tails:
        assert vmemmap_tails(tail.zone)[tail.order - 7].value_() == tail.page.value_()
    # drgn tells masks by the member, whatever its type is.
    assert not any("compound_head" in note for note in document["notes"])


def test_no_tail_yet():
    """No zone has an array before its first tail."""
    case = Case.of("next", huge_pages=(), reserved={})
    document = shown(case)
    assert document["shared_tails"] == []
    assert document["tail_layout"]["kind"] == "shared"
    assert case.check(deep=True)["status"] == "clean"
    zone = hvo_of(case.prog).mmzone.pgdats[0].node_zones[1].address_of_()
    assert not any(vmemmap_tails(zone))


@pytest.mark.parametrize("mapcount", [0xFFFFFFFF, 0])
@pytest.mark.parametrize("names_owner", [True, False])
def test_what_is_not_settled_may_be_either(mapcount, names_owner):
    """Initial _mapcount, node and zone of shared tails; but alike in all of a page."""
    case = Case.of("next")
    for place in tail_words(case, 48):
        case.put(place, mapcount, 4)
    flags = tail_words(case, 0)
    if not names_owner:
        for place in flags:
            case.put(place, 0)
    assert case.check(deep=True)["status"] == "clean"
    layout = hvo_of(case.prog).mmzone.flags_layout
    assert layout is not None
    place = case.flip(flags[9], 1 << layout.node_shift)
    assert case.first() == ("shared-tail-flags", place)
    case.flip(flags[9], 1 << layout.node_shift)
    place = case.flip(tail_words(case, 48)[3], 1, 4)
    assert case.first() == ("shared-tail-mapcount", place)


def restore_slice(case, slice_):
    """Give a slice of an optimized folio a frame of its own, with its tails in it."""
    head = case.groups(optimized=None, list="free")[0].first_pfn
    entry = case.entry(head, slice_)
    old = int.from_bytes(case.image.read(entry, 8), "little")
    frame = 0  # which is stored, and nobody's
    mask = (1 << 52) - PAGE
    case.image.write(frame * PAGE, case.image.read(old & mask, PAGE))
    case.put(entry, old & ~mask | frame * PAGE | WRITABLE)
    return head, entry, frame * PAGE


@pytest.mark.parametrize("slice_", [1, 4, 7])
def test_a_folio_that_is_partly_optimized_for_good(slice_):
    case = Case.of("next")
    before = shown(case)["saved"]["pages"]
    head, entry, frame = restore_slice(case, slice_)
    document = shown(case)
    assert document["saved"]["pages"] == before - 1
    (folio,) = [f for f in document["folios"] if f["head_pfn"] == head]
    assert (folio["shared_ptes"], folio["private_frames"]) == (6, 2)
    assert case.check()["findings"] == []
    # What is not the folio's own tails is not what a rollback left.
    case.flip(frame + 5 * 64 + 8, 1 << 20)
    assert case.first() == ("vmemmap-tail-frame", entry)


def test_before_it_that_was_damage():
    case = Case.of("shared-7.3")
    restore_slice(case, 4)
    assert case.first()[0] == "vmemmap-tail-frame"


def test_pointers_beside_the_array():
    """The array no longer says that tails hold masks."""
    case = Case.of("next", huge_pages=(), reserved={})
    space = case.targets.plan.space
    for placed in case.targets.plan.pages:
        order = placed.group.order
        if not order or getattr(placed.group, "kind", "") == "buddy":
            continue
        for head in range(placed.first_pfn, placed.end_pfn, 1 << order):
            word = space.page_address(head) | 1
            for pfn in range(head + 1, head + (1 << order)):
                case.put(case.field(pfn, "tail_word"), word)
    document = shown(case)
    assert document["encoding"]["kind"] == "pointer"
    assert any("pointers of this kernel for masks" in n for n in document["notes"])
    assert case.check()["findings"] == []


def test_an_extract_keeps_the_array_and_nothing_beside_it(tmp_path):
    """It lies among objects of others."""
    from drgn_hvo.synth.containers.output import write_machine

    case = Case.of("next")
    core, small = tmp_path / "core", tmp_path / "small"
    write_machine(case.targets.machine, core)
    assert SOMEBODY in core.read_bytes()
    assert run("extract", core, "-o", small).returncode == 0
    assert SOMEBODY not in small.read_bytes()
    told = [run("show", path, "--folios").stdout for path in (core, small)]
    assert without_reasons(told[0]) == without_reasons(told[1])
    assert run("check", small).returncode == 0
