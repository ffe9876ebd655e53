# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports on dumps with holes: "no", "none", "not" and "0" are earned, or it is said that
something was not read.
"""

from pathlib import Path

from drgn import FaultError, Object
from drgn.helpers.linux.mm import follow_phys
import pytest

from drgn_hvo import (
    for_each_vmemmap_tail,
    validate_shared_tail,
    vmemmap_saved,
)
from drgn_hvo.commands.map import map_document, print_map
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.page_text import page_lines
from drgn_hvo.commands.show import show_document
from drgn_hvo.commands.show_text import print_show
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.kernel.pagetables import find_entry
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from tests.holes_support import a_folio, dump_of, frame_of, table_of
from tests.overlay import Overlay, image_to_phys
from tools.holes import HOLES

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

#: Words of a page report that claim that something is not so.
CLAIMS = ("on no list,", "not optimized", "private", "none", "not mapped")


def report(prog, pfn):
    (page,) = page_document(hvo_of(prog), "", [parse_page_spec(str(pfn))])["pages"]
    return page, page_lines(page)


def text(lines):
    return "\n".join(f"{name}: {value}" for name, value in lines)


@pytest.mark.parametrize("name", ["debian-7.2", "debian-6.12", "shared-7.3"])
def test_without_types_nothing_is_denied(name):
    """A huge page on a list, optimized: neither is denied."""
    dump, known = dump_of(name)
    pfn, _ = a_folio(known)
    base = dump.program()
    sources = core_sources(base)
    start, end = (sources.address(s) for s in ("__start_BTF", "__stop_BTF"))
    hole = image_to_phys(base, start), image_to_phys(base, end)
    page, lines = report(Overlay(base, missing=[hole]).prog, pfn)
    assert page["kind"] == "head"
    assert "on no list" not in text(lines)
    assert "not optimized" not in text(lines)
    assert any("need types" in reason for reason in page["unread"])
    assert page["folio"] is None
    # The page tables were read, and tell.
    assert page["slice"]["shared"] is (name == "debian-6.12")


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["debian-7.2", "shared-7.3"])
def test_a_list_left_out(name, hole):
    """hstates[] is missing: its folios may be on any list."""
    dump, known = dump_of(name)
    pfn, _ = a_folio(known)
    at = frame_of(known, known.kernel.prog["hstates"].address_of_().value_())
    page, lines = report(dump.program(at, hole), pfn)
    assert page["folio"] is not None
    assert page["folio"]["list"] is None
    assert page["folio"]["optimized_mapping"] is True
    assert "on no list that could be read" in text(lines)
    assert any("list entry" in reason for reason in page["unread"])


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["debian-7.2", "debian-6.12", "shared-7.3"])
def test_a_page_table_left_out(name, hole, capsys):
    dump, known = dump_of(name)
    pfn, _ = a_folio(known)
    prog = dump.program(table_of(known, pfn), hole)
    page, lines = report(prog, pfn)
    assert page["kind"] == "not in this dump"
    assert page["slice"]["frame"] is None
    assert page["unread"] == [
        "a page table of vmemmap not in this dump"
        if hole == "missing"
        else "a page table of vmemmap reads as zeros: left out of the dump?"
    ]
    assert not any(claim in text(lines[2:-1]) for claim in CLAIMS)
    assert "mapping not known" in text(lines)
    # Somebody whose own table is there: others may map its frames.
    other = next(
        int(head)
        for head in known.hugetlb.folios.head_pfn
        if known.hugetlb.folios.shared_ptes[
            list(known.hugetlb.folios.head_pfn).index(head)
        ]
        and hvo_of(prog).vmemmap.mapping(int(head) * 64 // 4096) is not None
    )
    page, lines = report(prog, other)
    assert page["slice"]["mapped_by"] is None
    assert "private" not in text(lines)
    print_map(map_document(hvo_of(prog), "core", parse_page_spec(str(other))))
    assert "others may map them" in capsys.readouterr().out
    doc = show_document(hvo_of(prog), "", folios=True)
    assert doc["saved"] is not None
    assert doc["saved"]["pages"] is None
    assert doc["saved"]["net_bytes"] is None
    assert {tail["mapped_by"] for tail in doc["shared_tails"] or ()} <= {None}
    print_show(doc)
    assert "Saved        ? pages" in capsys.readouterr().out


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["debian-7.2", "debian-6.12", "shared-7.3"])
def test_a_head_left_out(name, hole):
    """Its tails on a shared frame are there, and lead to it."""
    dump, known = dump_of(name)
    folios = known.hugetlb.folios
    i = next(i for i in range(len(folios)) if folios.shared_ptes[i])
    pfn = int(folios.head_pfn[i])
    prog = dump.program(int(folios.head_frame[i]), hole)
    page, lines = report(prog, pfn)
    assert page["word"] is None or set(page["word"]) <= set("0x")
    assert page["flags"] is None
    assert "reference count 0" not in text(lines)
    if name != "debian-6.12":
        page, lines = report(prog, pfn + 100)
        assert page["head_pfn"] == pfn
        # That it is a huge page, page tables tell, but nothing that its head does.
        one = page["covering_folio"]
        assert one is not None
        assert (one["order"], one["head_says"]) == (folios.order[i], None)
        assert page["folio"] is not None
        assert page["folio"]["refcount"] is None
        assert page["nid"] is None
        assert "no PG_head" not in page["kind"]
        assert page["unread"][0] == f"the struct pages of PFN {pfn}"
        assert "reference count not known" in text(lines)
        assert page["disagreements"] == []
        assert "nothing is wrong" not in " ".join(page["conclusions"])
    doc = show_document(hvo_of(prog), "", folios=True)
    (folio,) = (one for one in doc["folios"] or () if one["head_pfn"] == pfn)
    for key in ("refcount", "flags", "optimized_flag", "nid", "in_transition"):
        assert folio[key] is None
    assert folio["optimized_mapping"] is True
    pools = {pool["order"]: pool for pool in doc["hstates"] or ()}
    rows = pools[folio["order"]]["nodes"]
    assert {row["folios"] for row in rows} == {None}
    assert None not in {row["total"] for row in rows}


@pytest.mark.parametrize("hole", HOLES)
def test_counters_left_out_are_not_zero(hole, capsys):
    dump, known = dump_of("shared-7.3")
    pool = known.kernel.prog["hstates"][0]
    at = frame_of(known, pool.surplus_huge_pages_node[0].address_of_().value_())
    doc = show_document(hvo_of(dump.program(at, hole)), "", folios=False)
    (shown,) = (one for one in doc["hstates"] or () if one["order"] == 9)
    assert [node["surplus"] for node in shown["nodes"]] == [None, None]
    print_show(doc)
    assert "?" in capsys.readouterr().out


def test_a_whole_dump_claims_what_it_knows():
    """Whoever says "not known" of everything would pass all of the above."""
    for name in ("debian-7.2", "debian-6.12", "shared-7.3"):
        dump, known = dump_of(name)
        pfn, _ = a_folio(known)
        page, lines = report(dump.program(), pfn)
        assert page["unread"] == []
        assert page["folio"] is not None
        assert page["folio"]["list"] == "free"
        assert "not known" not in text(lines)
        assert "that could be read" not in text(lines)
        assert page["slice"]["mapped_by"] is not None


def test_negative_counters_show(capsys):
    """As the kernel's own are when they run below zero."""
    dump, known = dump_of("shared-7.3")
    counter = known.kernel.prog["hstates"][0].resv_huge_pages
    at = follow_phys(
        known.kernel.prog["init_mm"].address_of_(), counter.address_of_().value_()
    ).value_()
    patches = {at: (-512 & (1 << 64) - 1).to_bytes(8, "little")}
    doc = show_document(
        hvo_of(Overlay(dump.program(), patches=patches).prog), "", folios=False
    )
    assert [pool["reserved"] for pool in doc["hstates"] or ()] == [-512, 0]
    print_show(doc)
    assert "-512" in capsys.readouterr().out


@pytest.mark.parametrize("hole", HOLES)
def test_an_iterator_ends_with_what_could_not_be_read(hole):
    """Not as if that had been all."""
    dump, known = dump_of("debian-7.2")
    zone = known.mmzone.pgdats[1].node_zones[1]
    at = frame_of(known, zone.vmemmap_tails[2].address_of_().value_())
    holey = dump.program(at, hole)
    tails = for_each_vmemmap_tail(holey)
    seen = next(tails).page.value_()
    with pytest.raises(FaultError, match="there may be more shared tail pages"):
        next(tails)
    pages = {tail.page.value_() for tail in for_each_vmemmap_tail(dump.program())}
    (lost,) = pages - {seen}
    page = Object(holey, "struct page *", lost)
    with pytest.raises(FaultError):
        validate_shared_tail(page)


@pytest.mark.parametrize("hole", HOLES)
def test_a_page_table_left_out_saves_nothing(hole):
    dump, known = dump_of("debian-7.2")
    head = int(known.hugetlb.folios.head_pfn[3])
    address = known.vmemmap.base + head * known.vmemmap.size
    page_table = known.kernel.page_table_format
    assert page_table is not None
    entry = find_entry(known.kernel.reader, page_table, address)
    assert entry is not None
    with pytest.raises(FaultError, match="page table"):
        vmemmap_saved(dump.program(entry.address >> 12, hole))
