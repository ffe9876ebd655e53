# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damaged cores
-------------

Whatever is broken: an answer, a null with a reason, or one line. Never another
exception, never a hang.
"""

import random
import re
import time

import drgn
import pytest

from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.memmap.hvo import hvo_of
from tests.cores import open_core, truth
from tests.overlay import Overlay, image_to_phys, vmcoreinfo_text, without_symbols

NAMES = ["seed5-2node", "6.1-2node"]


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def base(name):
    return open_core(name)


def show(prog):
    return show_document(hvo_of(prog), "core", folios=True)


@pytest.fixture(scope="module")
def healthy(base):
    return show(Overlay(base).prog)


def outcome(prog):
    """The document or the one-line error; anything else fails the test."""
    started = time.monotonic()
    try:
        result = show(prog)
    except HvoError as e:
        result = e
    assert not isinstance(result, HvoError) or re.fullmatch(".+", str(result))
    assert time.monotonic() - started < 20
    return result


def test_overlay_changes_nothing_by_itself(healthy, name):
    assert [f["head_pfn"] for f in healthy["folios"]] == [
        f["pfn"] for f in truth(name)["folios"]
    ]


def vmcoreinfo_lines(base):
    return [line for line in vmcoreinfo_text(base).split("\n") if line]


def check_same_or_null(result, healthy):
    """Less may be known, but nothing else."""
    for key, value in result.items():
        if value is None or key in ("notes", "encoding", "tail_layout"):
            continue
        if key == "conclusions":
            continue  # words that rest on the rest
        if key in ("types_from", "symbols_from", "arch"):
            continue
        if key == "vmemmap":
            assert value["base"] == healthy[key]["base"]
            continue
        assert value == healthy[key], key
    assert result["encoding"]["kind"] == healthy["encoding"]["kind"]


def without(lines, i):
    return "\n".join(lines[:i] + lines[i + 1 :]) + "\n"


def test_vmcoreinfo_without_one_line(base, healthy):
    lines = vmcoreinfo_lines(base)
    for i in range(len(lines)):
        try:
            prog = Overlay(base, without(lines, i).encode()).prog
        except (drgn.BadDataError, OverflowError):
            continue  # drgn itself refuses that
        result = outcome(prog)
        if not isinstance(result, HvoError):
            check_same_or_null(result, healthy)


@pytest.mark.parametrize(
    "value", ["", "garbage", "-1", "0", "18446744073709551615", "7"]
)
def test_vmcoreinfo_with_a_nonsense_value(base, value):
    wanted = re.compile(
        r"(PAGESIZE|SYMBOL\((vmemmap|swapper_pg_dir|init_top_pgt|mem_section|kallsyms_\w+)\)"
        r"|SIZE\((page|mem_section)\)|OFFSET\(page\.\w+\)|LENGTH\(\w+\)"
        r"|NUMBER\((phys_base|pgtable_l5_enabled|PG_head_mask|sme_mask|\w+_BITS)\))="
    )
    lines = vmcoreinfo_lines(base)
    tried = 0
    for i, line in enumerate(lines):
        if not wanted.match(line):
            continue
        key = line.partition("=")[0]
        text = without(lines, i) + f"{key}={value}\n"
        try:
            prog = Overlay(base, text.encode()).prog
        except (drgn.BadDataError, OverflowError):
            continue  # drgn itself refuses that
        outcome(prog)
        tried += 1
    assert tried > 10


def test_vmcoreinfo_with_two_values(base):
    text = vmcoreinfo_text(base) + "SIZE(page)=56\n"
    result = outcome(Overlay(base, text.encode()).prog)
    assert isinstance(result, HvoError)
    assert "more than once" in str(result)


def test_vmcoreinfo_disagrees_with_types(base):
    text = re.sub(r"SIZE\(page\)=64", "SIZE(page)=128", vmcoreinfo_text(base))
    result = outcome(Overlay(base, text.encode()).prog)
    assert isinstance(result, HvoError)
    assert "btf and VMCOREINFO disagree" in str(result)


def test_only_vmcoreinfo(base, healthy, name):
    """Without kallsyms there are no types: what needs them is null, and we say so."""
    result = show(without_symbols(base))
    assert result["types_from"] == result["symbols_from"] == "vmcoreinfo"
    for key in ("hstates", "shared_tails", "saved", "folios", "hvo_enabled"):
        assert result[key] is None
    for key in ("release", "struct_page", "page_size"):
        assert result[key] == healthy[key]
    assert result["encoding"]["kind"] == healthy["encoding"]["kind"]
    assert result["tail_layout"]["kind"] == healthy["tail_layout"]["kind"]
    assert result["vmemmap"]["base"] == healthy["vmemmap"]["base"]
    assert any("no types" in note for note in result["notes"])


def rename_symbol(base, name):
    """A program whose kallsyms has another name for a symbol: as if it had none."""
    sources = core_sources(base)
    kallsyms = sources.kallsyms()
    (index,) = kallsyms._indices(name)
    last = int(kallsyms._ends[index]) - 1
    tables = sources.vmcoreinfo().addresses()
    at = image_to_phys(base, tables["kallsyms_names"] + last)
    old = base.read(at, 1, physical=True)[0]
    # Any other token ends the name otherwise.
    new = next(code for code in range(256) if kallsyms._tokens[code] == b"q")
    assert new != old
    return Overlay(base, patches={at: bytes([new])}).prog


def test_kernel_without_btf(base, healthy):
    result = show(rename_symbol(base, "__start_BTF"))
    assert result["types_from"] == "vmcoreinfo"
    assert result["symbols_from"] == "kallsyms"
    assert any("built without BTF" in note for note in result["notes"])
    assert result["encoding"]["kind"] == healthy["encoding"]["kind"]
    assert result["hstates"] is None


def test_kernel_without_hugetlb(base, healthy):
    """Without pools; what the page tables say is still told."""
    result = show(rename_symbol(base, "hstates"))
    assert result["hstates"] == []
    assert len(result["folios"]) == len(healthy["folios"])
    assert all(folio["list"] is None for folio in result["folios"])


def btf_range(base):
    sources = core_sources(base)
    start, end = (sources.address(s) for s in ("__start_BTF", "__stop_BTF"))
    return image_to_phys(base, start), image_to_phys(base, end)


def test_btf_not_in_dump(base):
    start, end = btf_range(base)
    result = show(Overlay(base, missing=[(start, end)]).prog)
    assert result["types_from"] == "vmcoreinfo"
    assert any("BTF is not in this dump" in note for note in result["notes"])


def kallsyms_range(base):
    tables = core_sources(base).vmcoreinfo().addresses()
    first, last = tables["kallsyms_names"], tables["kallsyms_token_index"] + 512
    return image_to_phys(base, first), image_to_phys(base, last)


@pytest.mark.parametrize("find", [btf_range, kallsyms_range])
def test_random_damage_to_types_and_symbols(base, find):
    start, end = find(base)
    rng = random.Random(0)
    for _ in range(25):
        patches = {
            rng.randrange(start, end): rng.randbytes(rng.choice((1, 4, 64)))
            for _ in range(rng.choice((1, 20, 400)))
        }
        outcome(Overlay(base, patches=patches).prog)


def test_random_damage_everywhere(base, name):
    """In the frames that say most: page tables, struct pages, zones, hstates."""
    expected = truth(name)
    frames = [int(expected["swapper_pg_dir_phys"], 0)]
    sources = core_sources(base)
    frames.append(image_to_phys(base, sources.address("hstates")))
    frames.append(image_to_phys(base, sources.address("node_data")))
    for folio in expected["folios"][:4]:
        frames += [run["pfn"] << 12 for run in folio["vmemmap_runs"]]
        frames += [int(at, 0) for at in folio["pte_phys"].values()]
    rng = random.Random(1)
    for _ in range(60):
        patches = {}
        for _ in range(rng.choice((1, 5, 50))):
            frame = rng.choice(frames) & ~0xFFF
            patches[frame + rng.randrange(4096)] = rng.randbytes(8)
        outcome(Overlay(base, patches=patches).prog)


def test_head_frame_not_in_dump(base, name, healthy):
    folio = truth(name)["folios"][3]
    frame = folio["vmemmap_runs"][0]["pfn"] << 12
    result = show(Overlay(base, missing=[(frame, frame + 4096)]).prog)
    shown = {f["head_pfn"]: f for f in result["folios"]}[folio["pfn"]]
    assert shown["refcount"] is None
    assert shown["flags"] is None
    assert shown["optimized_flag"] is None
    assert shown["optimized_mapping"] is True
    assert any("not in this dump" in note for note in result["notes"])
    # The list that it is on cannot be followed behind it, and we say that.
    assert any("list of" in note for note in result["notes"])
    assert len(result["folios"]) >= 32


def test_zeroed_head_frame(base, name):
    """What an ELF dump leaves out reads as zeros."""
    folio = truth(name)["folios"][3]
    frame = folio["vmemmap_runs"][0]["pfn"] << 12
    result = show(Overlay(base, patches={frame: bytes(4096)}).prog)
    shown = {f["head_pfn"]: f for f in result["folios"]}[folio["pfn"]]
    assert shown["refcount"] is None
    assert any("reads as zeros" in note for note in result["notes"])


def test_page_table_not_in_dump(base, name):
    folio = truth(name)["folios"][0]
    table = int(folio["pte_phys"]["head_pte"], 0) & ~0xFFF
    result = show(Overlay(base, missing=[(table, table + 4096)]).prog)
    assert any(f"page table {table:#x}" in note for note in result["notes"])
    shown = {f["head_pfn"]: f for f in result["folios"]}
    assert folio["pfn"] not in shown or shown[folio["pfn"]]["head_frame"] is None


def test_list_that_loops(base, name):
    """A broken list is followed up to where it breaks."""
    expected = truth(name)
    free = [f for f in expected["folios"] if f["where"] == "free" and f["nid"] == 0]
    first = free[0]
    frame = first["vmemmap_runs"][0]["pfn"] << 12
    lru = int(first["vmemmap"], 0) + 8
    patches = {frame + 8: lru.to_bytes(8, "little")}
    result = show(Overlay(base, patches=patches).prog)
    assert any(
        "leads into another" in note or "leads back" in note for note in result["notes"]
    )
    # Those that the list does not lead to any more are found by their mapping.
    assert len(result["folios"]) == len(expected["folios"])
    assert any(f["list"] is None for f in result["folios"])
