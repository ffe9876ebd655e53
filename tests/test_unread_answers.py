# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Dumps with holes, asked by ``diff``, ``who``, ``sharers`` and ``map``, and of the tables
of symbols and types: what was not read did not change, is not absent, and is nobody's.
"""

from dataclasses import replace

from drgn import FaultError, Object, sizeof
import pytest

from drgn_hvo import for_each_folio_on_vmemmap_tail, vmemmap_saved
from drgn_hvo.commands.diff import diff_document, print_diff, side_of
from drgn_hvo.commands.map import map_document, print_map
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.page_text import page_lines
from drgn_hvo.commands.sharers import print_sharers, sharers_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.commands.show_text import print_show
from drgn_hvo.commands.who import print_who, who_document
from drgn_hvo.errors import DetectionError, NotInDumpError, UnavailableError, UsageError
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.processes import mappings_of
from drgn_hvo.memmap.holders import holders_of
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.moments import changes, moment_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.memmap.pools import NO_LIST
from tests.cores import open_core, truth
from tests.damage_support import Case
from tests.holes_support import a_folio, dump_of, frame_of, table_of
from tests.overlay import Overlay, image_to_phys
from tools.holes import HOLES, audited

NAME = "shared-7.3"


def spec(pfn):
    return parse_page_spec(f"pfn:0d{pfn}")


def at_symbol(known, name):
    return frame_of(known, known.kernel.prog[name].address_of_().value_())


#: What is lost, and the frame that holds it.
LOSSES = {
    "slots": lambda known: frame_of(known, known.shared_tails[0].slot),
    "a shared tail page": lambda known: known.shared_tails[0].pfn,
    "a page table": lambda known: table_of(known, a_folio(known)[0]),
    "all page tables": lambda known: known.kernel.page_table_format.root >> 12,
    "pools": lambda known: at_symbol(known, "hstates"),
    "nodes": lambda known: at_symbol(known, "node_data"),
}


def with_hole(loss, hole, name=NAME):
    dump, known = dump_of(name)
    return known, hvo_of(dump.program(LOSSES[loss](known), hole))


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [NAME, "debian-7.2"])
def test_what_was_not_read_did_not_change(name, loss, hole, capsys):
    known, holey = with_hole(loss, hole, name)
    sides = side_of(known, "whole"), side_of(holey, "holey")
    for before, after in (sides, sides[::-1]):
        doc = diff_document(before, after)
        assert (doc["counters"], doc["tails"], doc["folios"]) == ([], [], [])
        assert doc["findings"] == []
        assert not doc["complete"]
        print_diff(doc)
    assert "are new" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["5.15", "debian-6.12", "seed-v6"])
def test_no_tail_was_seen_because_page_tables_are_missing(name):
    """The advice to assume an encoding does not stand alone."""
    _, holey = with_hole("all page tables", "missing", name)
    with pytest.raises(DetectionError, match="page tables of vmemmap are not in this"):
        assert holey.layout


def test_a_slot_that_was_read_did_change():
    """A slot that is empty, and one of a node that is not there, name nothing."""
    known = moment_of(dump_of(NAME)[1])
    slot, tail = next(iter(known.tails.items()))
    others = {s: t for s, t in known.tails.items() if s != slot}
    empty = replace(known, tails=others, empty_slots=known.empty_slots | {slot})
    (change,) = changes(known, empty).tails or ()
    assert (change.slot, change.before, change.after) == (slot, tail, None)
    gone = replace(known, tails=others)
    assert len(changes(gone, known).tails or ()) == 1
    assert changes(replace(gone, knows_slots=False), known).tails == ()


def test_a_folio_on_no_list_is_found_by_its_frames_alone():
    known = moment_of(dump_of(NAME)[1])
    folios = known.folios
    i = int((folios.shared_ptes > 0).argmax())
    lists = folios.on_list.copy()
    lists[i] = NO_LIST
    none = moment_of(dump_of("plain-7.2")[1]).folios
    before = replace(known, folios=replace(folios, on_list=lists))
    whole = replace(known, folios=none)
    for after, count in (
        (whole, 1),
        (replace(whole, knows_mappings=False), 0),
        (replace(whole, knows_slots=False), 0),
    ):
        heads = [one.head_pfn for one in changes(before, after).folios or ()]
        assert heads.count(int(folios.head_pfn[i])) == count


@pytest.mark.parametrize("hole", HOLES)
def test_a_finding_is_not_gone_because_its_rule_was_not_decided(hole, capsys):
    case = Case.of(NAME, ["pte-writable"])
    damaged = side_of(hvo_of(case.prog), "damaged")
    (finding,) = damaged.audit["findings"]
    dump, known = dump_of(f"{NAME}-pte-writable")
    lost = dump.program(table_of(known, a_folio(known)[0]), hole)
    sides = damaged, side_of(hvo_of(lost), "holey")
    for (before, after), found_in in ((sides, "before"), (sides[::-1], "after")):
        doc = diff_document(before, after)
        (change,) = doc["findings"]
        assert (change["change"], change["found_in"]) == (None, found_in)
        assert change["finding"] == finding
        assert doc["findings_in_both"] == 0
        print_diff(doc)
        assert "may have, too" in "\n".join(doc["conclusions"])
    out = capsys.readouterr().out
    assert "gone" not in out
    assert "new" not in out


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("loss", ["a page table", "all page tables", "pools"])
def test_who_does_not_deny_huge_pages(loss, hole):
    known, holey = with_hole(loss, hole)
    pfn, _ = a_folio(known)
    try:
        doc = who_document(holey, "", spec(pfn + 70))
    except NotInDumpError as e:
        assert "whether a huge page covers" in str(e)  # noqa: PT017
    else:
        assert doc["head_pfn"] == pfn
    with pytest.raises(UsageError, match="no huge page covers"):
        who_document(known, "", spec(1))


@pytest.mark.parametrize("hole", HOLES)
def test_who_has_a_huge_page_whose_head_was_not_read(hole, capsys):
    dump, known = dump_of(NAME)
    pfn, _ = a_folio(known, "active")
    slice_ = pfn * known.vmemmap.size // known.vmemmap.page_size
    mapping = known.vmemmap.mapping(slice_)
    assert mapping is not None
    doc = who_document(hvo_of(dump.program(mapping.pfn, hole)), "", spec(pfn))
    assert (doc["refcount"], doc["anonymous"], doc["left_over"]) == (None, None, None)
    assert doc["unread"]
    print_who(doc)
    out = capsys.readouterr().out
    assert "Whether a file has it is not known." in out
    assert "Whether processes map it is not known." in out
    assert "?: ? of the file, ? of mappings, ? left over; pins ?" in out


def test_a_task_that_was_not_read_is_no_thread_of_the_kernel():
    """
    Each page of the task_struct and mm_struct of a process that maps a huge page in
    turn: it is found, or it is said that something was not read.
    """
    base = open_core("6.12-mix")
    install(base)
    known = hvo_of(base)
    folios = [f for f in truth("6.12-mix")["folios"] if f["refcount"] > 0]
    found = (holders_of(known, f["pfn"], f["order"]) for f in folios)
    pfn, whole = next((f["pfn"], one) for f, one in zip(folios, found) if one.mappings)
    order = next(f["order"] for f in folios if f["pfn"] == pfn)
    task = Object(base, "struct task_struct *", whole.mappings[0].task)
    told = {(one.pid, one.comm) for one in whole.mappings}
    frames = {
        frame_of(known, address)
        for start, size in (
            (task.value_(), sizeof(task[0])),
            (task.mm.value_(), sizeof(task.mm[0])),
        )
        for address in range(start, start + size, 2048)
    }
    for frame in frames:
        holey = Overlay(base, patches={frame << 12: bytes(4096)}).prog
        install(holey)
        now = mappings_of(hvo_of(holey).kernel, pfn, pfn + (1 << order))
        assert {(one.pid, one.comm) for one in now.found} <= told, frame
        assert now.unread or len(now.found) == len(whole.mappings), frame


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("loss", LOSSES)
def test_sharers_are_those_that_were_found(loss, hole, capsys):
    known, holey = with_hole(loss, hole)
    tail = known.shared_tails[0]
    whole = sharers_document(known, "", spec(tail.pfn))
    assert whole["unread"] == []
    pfn, _ = a_folio(known)
    for asked in (tail.pfn, pfn + 70):
        try:
            doc = sharers_document(holey, "", spec(asked))
        except (NotInDumpError, UnavailableError):
            continue
        if loss != "a shared tail page":
            assert doc["unread"]
            assert doc["others"] is None
        assert len(doc["huge_pages"]) <= len(whole["huge_pages"])
        assert doc["mapped_by"] in (None, whole["mapped_by"])
        print_sharers(doc)
    out = capsys.readouterr().out
    assert "none" not in out
    if loss != "a shared tail page":
        assert all(
            line.startswith("At least")
            for line in out.splitlines()
            if "tails on" in line
        )


@pytest.mark.parametrize("hole", HOLES)
def test_the_helper_ends_with_what_was_not_read(hole):
    known, _ = with_hole("pools", hole)
    dump, _ = dump_of(NAME)
    prog = dump.program(LOSSES["pools"](known), hole)
    install(prog)
    page = known.vmemmap.page_address(known.shared_tails[0].pfn)
    folios = for_each_folio_on_vmemmap_tail(Object(prog, "struct page *", page))
    with pytest.raises(FaultError, match="there may be more folios"):
        list(folios)


@pytest.mark.parametrize("hole", HOLES)
def test_map_says_why_nothing_can_be_drawn(hole):
    known, holey = with_hole("all page tables", hole)
    with pytest.raises(UnavailableError, match="not in this dump") as e:
        map_document(holey, "", spec(a_folio(known)[0]))
    assert "architecture" not in str(e.value)


@pytest.mark.parametrize("hole", HOLES)
def test_map_does_not_count_folios_that_it_did_not_ask(hole, capsys):
    known, holey = with_hole("slots", hole, "debian-7.2")
    doc = map_document(holey, "", spec(a_folio(known)[0]))
    (shared,) = doc["shared_frames"]
    assert shared["folios"] is None
    print_map(doc)
    assert "and maybe others" in capsys.readouterr().out


@pytest.mark.parametrize("hole", HOLES)
def test_nodes_that_are_not_named_are_not_all_there_could_be(hole):
    """node_data[] begins in the page that is lost, and NULL ends it in the next one."""
    known, holey = with_hole("nodes", hole)
    assert set(holey.mmzone.nids) <= set(known.mmzone.nids)
    pfn, _ = a_folio(known)
    page = page_document(holey, "", [spec(pfn)])["pages"][0]
    assert page["folio"] is not None
    assert page["folio"]["list"] in ("free", None)
    lines = dict(page_lines(page))
    assert "on no list," not in lines["Huge page"]


@pytest.mark.parametrize("hole", HOLES)
def test_pools_that_were_not_read_are_not_empty(hole, capsys):
    """hstates[] lies in several pages; of some pools, or of all, nothing is left."""
    dump, known = dump_of("debian-6.1")
    large, _ = known.hugetlb.hstates
    for address in (large.address, known.hugetlb.hstates[1].address):
        doc = show_document(
            hvo_of(dump.program(frame_of(known, address), hole)), "", folios=False
        )
        text = "\n".join(doc["conclusions"])
        assert "There are no huge pages." not in text
        assert "known" in text
        assert doc["hstates"] is None or doc["hstates"]
        assert doc["not_optimized"] is None
        assert doc["saved"] is not None
        assert doc["saved"]["pages"] == 448
        print_show(doc)
    assert "There are no" not in capsys.readouterr().out


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["debian-6.1", NAME])
def test_what_is_saved_by_folios_that_nothing_leads_to(name, hole):
    """A pool and the head of a folio are missing: nobody knows how many there are."""
    dump, known = dump_of(name)
    folios = known.hugetlb.folios
    i = int((folios.shared_ptes > 0).argmax())
    pool = frame_of(known, next(h.address for h in known.hugetlb.hstates))
    lost = {pool, int(folios.head_frame[i])}
    pages = dump.pages
    dump.pages = {pfn: data for pfn, data in pages.items() if pfn not in lost}
    if hole == "zeros":
        dump.pages.update(dict.fromkeys(lost, bytes(dump.page_size)))
    prog = dump.program()
    dump.pages = pages
    install(prog)
    shown = show_document(hvo_of(prog), "", folios=False)
    assert shown["saved"] is not None
    saved = sum(known.hugetlb.folios.shared_ptes.tolist())
    assert shown["saved"]["pages"] in (None, saved)
    for hstate in shown["hstates"] or ():
        for node in hstate["nodes"] if hstate["order"] == 9 else ():
            whole = int(((folios.order == 9) & (known.folio_nids == node["nid"])
                         & (folios.shared_ptes > 0)).sum())  # fmt: skip
            assert node["optimized"] in (None, whole)
    if shown["saved"]["pages"] is None:
        with pytest.raises(FaultError, match="there may be more folios"):
            vmemmap_saved(prog)
    else:
        assert sum(vmemmap_saved(prog).values()) == saved


def test_a_page_of_symbols_or_types_that_reads_as_zeros():
    """Each page of kallsyms and BTF in turn: zeros are no names, offsets or types."""
    base = open_core("7.2-2node")
    sources = core_sources(base)
    known = sources.vmcoreinfo().addresses()
    kallsyms = sources.kallsyms()
    btf = [sources.address(f"__{end}_BTF") or 0 for end in ("start", "stop")]
    lock = kallsyms._indices("hugetlb_lock")[0]
    pages = {
        "kallsyms": (
            known["kallsyms_offsets"] + 4 * lock,
            known["kallsyms_num_syms"],
            known["kallsyms_token_table"],
            known["kallsyms_token_table"] - 4096,
        ),
        "BTF": (btf[0], btf[1] - 2),
    }
    for what, addresses in pages.items():
        for address in addresses:
            hole = image_to_phys(base, address) & -4096
            answer = audited(Overlay(base, patches={hole: bytes(4096)}).prog)
            assert answer.error is not None, hex(address)
            assert f"{what} is not in this dump: it reads as zeros" in answer.error


def test_symbols_of_an_extract_that_read_as_zeros():
    """The tables that ``extract --small`` cuts down end in zeros, which are no hole."""
    dump, known = dump_of("debian-7.2")
    names = known.kernel.sources.vmcoreinfo().addresses()
    assert known.kernel.sources.extract_kind == "small"
    for name in ("num_syms", "names", "token_table", "token_index", "offsets"):
        frame = frame_of(known, names[f"kallsyms_{name}"])
        answer = audited(dump.program(frame, "zeros"))
        assert answer.error is not None, name
        assert "is not in this dump: it reads as zeros" in answer.error


@pytest.mark.parametrize("hole", HOLES)
def test_links_of_another_pool_are_no_place_in_this_one(hole):
    """The heads of lists of 1 GiB are missing; a huge page of 2 MiB is on none."""
    dump, known = dump_of("riscv64-sv48")
    pfn = next(
        int(p)
        for p, order in zip(known.hugetlb.folios.head_pfn, known.hugetlb.folios.order)
        if order == 9 and not p % (1 << 18)
    )
    # hstates[] is somewhere in what follows the kernel's symbols, page by page.
    data = [frame for frame in dump.pages if 267266 <= frame < 267290]
    assert len(data) > 16
    for frame in data:
        prog = dump.program(frame, hole)
        (page,) = page_document(hvo_of(prog), "", [spec(pfn)])["pages"]
        if page["covering_folio"] is None:
            assert page["unread"], frame
            continue
        assert page["covering_folio"]["order"] == 9
        assert page["findings"] == []
        assert page["disagreements"] == []


@pytest.mark.parametrize("hole", HOLES)
def test_struct_pages_do_not_end_where_page_tables_are_missing(hole):
    dump, known = dump_of(NAME)
    last = known.vmemmap.end_pfn - 1
    frame = table_of(known, last)
    holey = hvo_of(dump.program(frame, hole))
    max_pfn = known.kernel.variable("max_pfn")
    assert holey.vmemmap.end_pfn >= min(max_pfn, last + 1)
    page = page_document(holey, "", [spec(last)])["pages"][0]
    assert page["kind"] == "not in this dump"
    root = LOSSES["all page tables"](known)
    (page,) = page_document(hvo_of(dump.program(root, hole)), "", [spec(last)])["pages"]
    assert page["unread"]
    with pytest.raises(UsageError, match="out of range"):
        page_document(known, "", [spec(last + 1)])


def test_a_page_of_zeros_is_not_said_to_be_right():
    dump, known = dump_of(NAME)
    pfn, _ = a_folio(known)
    slice_ = pfn * known.vmemmap.size // known.vmemmap.page_size
    mapping = known.vmemmap.mapping(slice_)
    assert mapping is not None
    base = dump.program()
    sources = core_sources(base)
    btf = image_to_phys(base, sources.address("__start_BTF") or 0)
    patches = {mapping.pfn << 12: bytes(4096)}
    prog = Overlay(base, patches=patches, missing=[(btf, btf + 4096)]).prog
    (page,) = page_document(hvo_of(prog), "", [spec(pfn)])["pages"]
    assert page["kind"].startswith("all zeros")
    assert "Nothing wrong was found." not in page["conclusions"]


def test_one_finding_is_one_whatever_defect_is_made_of_it():
    """Without a struct page, a finding loses its defect: it is neither gone nor new."""
    _, known = dump_of("debian-7.2-boot-1g")
    whole = side_of(known, "whole")
    assert whole.audit["findings"]
    audit = whole.audit.copy()
    audit["findings"] = [one.copy() for one in whole.audit["findings"]]
    for one in audit["findings"]:
        one["defect"] = None
    doc = diff_document(whole, replace(whole, audit=audit))
    assert doc["findings"] == []


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("next", 65534),  # zones of node 1, that of devices among them
        ("next", 65524),  # a slice that a huge page has for itself, left restored
        ("next", 65054),  # the head of a compound page of a device
        ("5.15", 65525),  # the second page that a huge page keeps
    ],
)
def test_other_generations_with_holes(name, frame, hole):
    """Healthy kernels: no finding, and never complete."""
    dump, known = dump_of(name)
    whole = audited(known.kernel.prog)
    assert (whole.status, whole.complete, whole.findings) == (0, True, ())
    answer = audited(dump.program(frame, hole))
    assert (answer.status, answer.complete, answer.findings) == (3, False, ())


@pytest.mark.parametrize("hole", HOLES)
def test_a_page_of_a_device_is_in_no_huge_page(hole):
    dump, known = dump_of("next")
    prog = dump.program(65054, hole)
    pfns = known.vmemmap.slices_on(65054) * known.kernel.geometry.pages_per_slice
    for pfn in pfns.tolist():
        (page,) = page_document(hvo_of(prog), "", [spec(pfn)])["pages"]
        assert page["covering_folio"] is None
        assert page["findings"] == []
        assert hvo_of(prog).vmemmap.mapped_by(65054)
    assert len(pfns)
    found = hvo_of(prog).hugetlb.folios.head_pfn
    assert found.tolist() == known.hugetlb.folios.head_pfn.tolist()


@pytest.mark.parametrize("hole", HOLES)
def test_a_second_page_that_was_not_read_does_not_pass(hole):
    dump, known = dump_of("5.15")
    folios = known.hugetlb.folios
    kept = folios.tail_frame[folios.tail_frame != folios.head_frame]
    results = dict(audited(dump.program(int(kept[0]), hole)).results)
    for rule in ("mapping", "mapcount", "flags", "refcount"):
        assert results[f"folio-tail-{rule}"] == "skip", rule
