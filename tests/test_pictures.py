# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``show --html`` and ``map --svg``: pictures say what the machine is, of what was read,
to those who see no colours, too; and nothing that a dump holds gets out of its text.
"""

from html import unescape
import json
from pathlib import Path
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from drgn_hvo.commands.machine_page import machine_page
from drgn_hvo.commands.machine_svg import zone_picture
from drgn_hvo.commands.markup import as_svg
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.huge_page_states import KINDS
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.memory_cells import ZoneCells, memory_cells
from drgn_hvo.memmap.zones import Zone
from drgn_hvo.synth.described.description import Description, HugePages, Node
from tests.command_support import run
from tests.cores import open_core
from tests.damage_support import Case
from tests.overlay import Overlay, image_to_phys, without_symbols
from tests.picture_support import Page, browse, cells_of, check_harmless, pictures_of
from tests.synth_support import (
    ALL,
    NODES,
    describe,
    expected_folios,
    machine_and_program,
)

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

# At most this much of a page, however large the machine.
LARGEST = 2 << 20


def page_of(prog, target="core"):
    text, _ = machine_page(hvo_of(prog), target)
    assert len(text.encode()) <= LARGEST
    page = Page(text)
    check_harmless(page)
    return page


def _letter(folio):
    if folio.list is None:
        return "T"
    names = {("active", True): "O", ("free", True): "F"}
    return names.get((folio.list, folio.optimized)) or (
        "P" if folio.list == "active" else "N"
    )


def _zones(page):
    """The cells of each zone that is drawn, by node and name."""
    return {
        (int(nid), zone): cells_of(svg)
        for title, svg in pictures_of(page.source).items()
        for nid, zone in re.findall(r"^Node (\d+), zone (\w+): ", title)
    }


def _one(pattern, text):
    """What a pattern that fits once has between parentheses."""
    (found,) = re.findall(pattern, text)
    return found


@pytest.mark.parametrize("name", ALL)
def test_each_huge_page_has_its_letter(name):
    """By what was described, not by what was read."""
    machine, prog = machine_and_program(describe(name))
    page = page_of(prog)
    cell_order = memory_cells(hvo_of(prog)).order
    if not hvo_of(prog).vmemmap.has_mappings:
        pytest.skip("page tables of this architecture are not read")
    zones = _zones(page)
    seen = {}
    for (nid, zone), cells in zones.items():
        for cell in cells:
            for i, letter in enumerate(cell.letters):
                pfn = cell.first + (i << cell_order)
                if letter.isalpha():
                    seen[pfn, nid, zone] = letter
    expected = {}
    for pfn, folio in expected_folios(machine).items():
        if folio.list is None and not folio.optimized:
            continue  # Neither a list nor a mapping leads to it.
        for at in range(pfn, pfn + (1 << folio.order), 1 << cell_order):
            expected[at, folio.nid, folio.zone] = _letter(folio)
    assert seen == expected
    assert len(zones) == sum(len(node.zones) for node in NODES)


def test_users_of_shared_tails():
    """The ranges that the page names are the huge pages that were made to use them."""
    machine, prog = machine_and_program(describe("shared-7.3"))
    page = page_of(prog)
    users: dict[tuple[int, str], list[int]] = {}
    for pfn, folio in expected_folios(machine).items():
        if folio.optimized:
            users.setdefault((folio.nid, folio.zone), []).append(pfn)
    rows = re.findall(r'<tr id="tail-\d+">(.*?)</tr>', page.source)
    assert len(rows) == len(users)
    for row in rows:
        cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", row)]
        pfns = users[int(cells[0]), cells[1]]
        assert cells[4].startswith(f"{len(pfns)} huge page")
        named = re.findall(r"(\d+) to (\d+)", cells[4])
        inside = [p for a, b in named for p in range(int(a), int(b) + 1, 512)]
        assert inside == sorted(pfns)
        assert cells[5] == f"{7 * len(pfns)} pages of vmemmap"


def test_findings_are_linked():
    """From the cell to the finding, from the finding to the cell and the tail."""
    case = Case.of("shared-7.3", ["tail-bit-cleared"])
    page = page_of(case.prog)
    finding = case.check()["findings"][0]
    pfn = int(finding["physical_address"], 0) >> 12
    row = _one(r'<tr id="finding-0">(.*?)</tr>', page.source)
    assert finding["rule"] in row
    assert unescape(re.sub("<.*?>", "", row)).find(finding["message"]) > 0
    back = _one(rf'href="#(finding-[\d-]+)">PFN {pfn}<', row)
    assert re.search(rf'<a href="#finding-0" id="{back}">', page.source)
    tail = _one(r'href="#(tail-\d+)">S', row)
    assert f"PFN {pfn}" in _one(rf'id="{tail}">(.*?)</tr>', page.source)
    assert "check: 1 error" in page.text
    assert "Not healthy: one thing is wrong." in page.text
    assert "check says whether" not in page.text


def test_each_finding_leads_to_a_cell():
    """Also those that share one, which has one frame around it."""
    case = Case.of("shared-7.3", ["tail-bit-cleared"])
    frame = int(case.check()["findings"][0]["physical_address"], 0) >> 12 << 12
    case.flip(frame + 64 * 40 + 24, 1 << 9)
    assert len(case.check()["findings"]) > 1
    assert len(re.findall(r'href="#finding-[\d-]+">PFN', page_of(case.prog).source)) > 1


def test_fake_heads_are_explained():
    _, prog = machine_and_program(describe("fake-head-6.12"))
    text = page_of(prog).text
    assert "fake heads" in text
    assert "onto the page that holds its own head" in text


def test_what_was_not_read_is_unknown():
    """Without pools' lists no memory is said to be in no huge page."""
    case = Case.of("shared-7.3")
    whole = page_of(case.prog)
    assert "other memory." in whole.text
    hole = page_of(_without_lists(case))
    assert "other memory." not in hole.text
    assert "Not all is known" in hole.text
    for svg in pictures_of(hole.source).values():
        for cell in cells_of(svg):
            assert "\u00b7" not in cell.letters
    assert "could not be decided" in hole.text


def _without_lists(case):
    base = case.prog
    hstates = base["hstates"].address_of_().value_()
    start = image_to_phys(base, hstates)
    overlay = Overlay(base, missing=[(start, start + 4096)])
    install(overlay.prog)
    return overlay.prog


def test_without_types_nothing_is_drawn():
    """VMCOREINFO alone tells neither zones nor pools."""
    prog = open_core("6.12-mix")
    page = page_of(without_symbols(prog))
    assert "Unknown: zones and pools need types" in page.text
    assert "Unknown: pools need types" in page.text


EVIL = "<script>alert(1)</script>\x1b]0;x\x07\"'&\u202e\udcff"


def test_nothing_of_a_dump_leaves_its_text():
    """Names from the dump and of the file are text, wherever they stand."""
    case = Case.of("shared-7.3", release="7.3<b onload=x>&amp;'\"")
    page = page_of(case.prog, EVIL)
    assert "<script" not in page.source
    assert "\x1b" not in page.source
    assert "\u202e" not in page.source
    assert "<script>alert(1)</script>\\x1b]0;x\\x07\"'&\\u202e\\udcff" in page.text
    assert "7.3<b onload=x>&amp;'\"" in page.text


def test_a_zone_may_have_any_name():
    zone = Zone(0, 0, EVIL, 0, 4096, 0)
    edges = np.array([0, 512, 1024], dtype=np.int64)
    pages = np.zeros((2, len(KINDS)), dtype=np.int64)
    pages[:, 0] = 512
    svg = as_svg(zone_picture(ZoneCells(zone, edges, pages, 0), 4096, [], "zone"))
    assert "script" not in svg


def test_largest_picture():
    """Every cell another mixture of all kinds: as much as there can be to draw."""
    count = 3072
    rng = np.random.default_rng(1)
    zone = Zone(0, 2, "Normal", 0, count << 17, 0)
    edges = np.arange(count + 1, dtype=np.int64) << 17
    pages = rng.integers(1 << 40, size=(count, len(KINDS)))
    cells = ZoneCells(zone, edges, pages, 0)
    svg = as_svg(zone_picture(cells, 4096, [], "Node 0, zone Normal"))
    assert 0.4 * LARGEST < len(svg.encode()) < 0.8 * LARGEST
    assert len(cells_of(ElementTree.fromstring(svg.partition("\n")[2]))) == count


def _tib():
    """1 TiB in huge pages of 1 GiB, and some memory beside."""
    gib = 1 << 18
    end = 1028 * gib
    zones = {"DMA": (1, 0x1000), "DMA32": (0x1000, 4 * gib), "Normal": (4 * gib, end)}
    nodes = (
        Node(0, ((0, 3 * gib), (4 * gib, end)), zones),
        Node(1, ((end, end + 12 * gib),), {"Normal": (end, end + 12 * gib)}),
    )
    groups = (
        HugePages(0, "Normal", 18, 512, 4 * gib, list="active"),
        HugePages(0, "Normal", 18, 512, 516 * gib),
    )
    return Description("shared-7.3", nodes, groups)


def test_a_terabyte():
    _, prog = machine_and_program(_tib())
    page = page_of(prog)
    assert "512 GiB optimized, in use" in page.text
    assert "512 GiB optimized, free" in page.text
    assert "1024 huge pages" in page.text


MACHINES = {
    "healthy": ("debian-7.2.kdump", "check: clean"),
    "damaged": ("shared-7.3-tail-bit-cleared.kdump", "check: 1 error"),
    "fake heads": ("debian-6.12.kdump", "fake heads"),
}


@pytest.mark.parametrize("name", [*MACHINES, "1 TiB"])
def test_in_a_browser(name, tmp_path):
    """Its text is there, and the console has nothing to say."""
    path = tmp_path / "page.html"
    if name == "1 TiB":
        _, prog = machine_and_program(_tib())
        path.write_text(machine_page(hvo_of(prog), "core")[0], encoding="utf-8")
        text = "1024 huge pages"
    else:
        sample, text = MACHINES[name]
        assert run("show", SAMPLES / sample, "--html", path).returncode == 0
    document, said, shot = browse(path, tmp_path)
    assert text in unescape(re.sub("<.*?>", "", document))
    assert said == []
    # An empty page of this size is about 15 KB.
    assert len(shot) > 50_000


def test_map_svg_says_what_map_says():
    """The same rows, frames and lines as in the document."""
    for sample, pfn in (
        ("shared-7.3-tail-bit-cleared.kdump", 4096),
        ("debian-6.12.kdump", None),
        ("debian-7.2-boot-1g.kdump", None),
    ):
        core = SAMPLES / sample
        if pfn is None:
            shown = json.loads(run("show", core, "--folios", "--json").stdout)
            pfn = shown["folios"][-1]["head_pfn"]
        doc = json.loads(run("map", core, pfn, "--json").stdout)
        printed = run("map", core, pfn, "--svg").stdout
        assert printed == run("map", core, pfn, "--format", "svg").stdout
        svg = ElementTree.fromstring(printed.encode())
        texts = ["".join(one.itertext()) for one in svg.iter() if one.tag.endswith("t")]
        for row in doc["rows"]:
            assert sum(row["address"] in text for text in texts) == 1
            assert any(text.startswith(f"PFN {row['frame']}") for text in texts)
        wrong = sum("WRONG" in text for text in texts)
        assert wrong >= sum(bool(row["findings"]) for row in doc["rows"])
        lowest = max(float(one.get("y") or 0) for one in svg.iter())
        assert lowest < float(svg.get("height") or 0)


SAMPLE_CORES = sorted(path.name for path in SAMPLES.glob("*.kdump"))


@pytest.mark.parametrize("sample", SAMPLE_CORES)
def test_every_sample(sample):
    """Whatever architecture, generation or damage."""
    page = page_of(open_target(str(SAMPLES / sample)), sample)
    assert f"HVO of {sample}" in page.text


def test_the_picture_in_the_documentation():
    """As the command prints it."""
    core = SAMPLES / "shared-7.3-tail-bit-cleared.kdump"
    kept = SAMPLES.parent / "docs" / "pictures" / "map.svg"
    assert run("map", core, 4096, "--svg").stdout == kept.read_text()


def test_html_is_refused(tmp_path):
    core = SAMPLES / "shared-7.3.kdump"
    path = tmp_path / "page.html"
    for options in (["--json"], ["--folios"], ["--drgn"]):
        done = run("show", core, "--html", path, *options)
        assert done.returncode == 2
        assert not path.exists()
    assert run("show", core, "--force").returncode == 2
    assert run("show", core, "--html", path).returncode == 0
    page = path.read_bytes()
    done = run("show", core, "--html", path)
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert run("show", core, "--html", path, "--force").returncode == 0
    assert path.read_bytes() == page
    assert run("show", core, "--html", core, "--force").returncode == 2
    assert core.stat().st_size > 0
