# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The audit of real cores
-----------------------

Nothing where the kernel is healthy; where it has a known defect, that defect by
name; and known damage by the rule that names its cause.
"""

import json
from pathlib import Path

import pytest

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.audit.rules import RULES
from drgn_hvo.commands.check import CheckScope, check_document, exit_status
from drgn_hvo.memmap.hvo import hvo_of
from tests.cores import CORES, open_core, truth
from tests.overlay import Overlay

DEFECT_OF = {
    "6.12-mix": "restored-fake-heads",
    "7.2-boot1g": "boot-tail-refcount",
    "seed5-1g-hit": "memmap-init-overwrite",
}
HEALTHY = [name for name in CORES if name not in DEFECT_OF]


def check(prog, **options):
    return check_document(hvo_of(prog), "core", CheckScope(**options))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_on_a_healthy_kernel(name, deep):
    doc = check(open_core(name), deep=deep)
    assert doc["findings"] == []
    assert doc["not_in_dump"] == []
    assert doc["complete"] is True
    assert doc["status"] == "clean"
    assert doc["in_transition"] == 0
    assert exit_status(doc, strict=True) == 0
    expected = truth(name)
    assert doc["checked"]["folios"] == len(expected["folios"])
    assert (
        doc["checked"]["shared_tail_pages"] == expected["totals"]["shared_tail_frames"]
    )


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", sorted(DEFECT_OF))
def test_known_defects_by_name(name, deep):
    doc = check(open_core(name), deep=deep)
    assert {finding["defect"] for finding in doc["findings"]} == {DEFECT_OF[name]}
    defect = DEFECTS[DEFECT_OF[name]]
    assert {finding["rule"] for finding in doc["findings"]} <= set(defect.rules)


def test_leaked_huge_pages():
    """6.12-mix: 10 former heads and 70 copies, on no list."""
    doc = check(open_core("6.12-mix"))
    (finding,) = doc["findings"]
    assert finding["rule"] == "stray-head"
    assert finding["folded"] == 79
    assert finding["affected"] == 10
    assert exit_status(doc, strict=False) == 1


def test_reference_counts_of_boot_tails_are_warnings():
    doc = check(open_core("7.2-boot1g"))
    assert exit_status(doc, strict=False) == 0
    assert exit_status(doc, strict=True) == 1
    tails = {
        tail["pfn"]
        for node in truth("7.2-boot1g")["nodes"]
        for zone in node["zones"]
        for tail in zone["vmemmap_tails"]
    }
    assert {finding["pfn"] for finding in doc["findings"]} == tails
    assert all(finding["folded"] == 63 for finding in doc["findings"])


def test_an_overwritten_tail_is_one_story():
    """seed5-1g-hit: 64 tails in a page that 8190 slices map are one count."""
    doc = check(open_core("seed5-1g-hit"))
    (first,) = doc["findings"]
    assert first["rule"] == "shared-tail-info"
    assert first["caused_by"] is None
    assert first["affected"] == 2
    assert "524160 struct pages" in first["message"]
    (tail,) = (
        t
        for t in truth("seed5-1g-hit")["nodes"][0]["vmemmap_tails"]
        if not t["as_initialised"]
    )
    assert first["pfn"] == tail["pfn"]
    assert first["actual"] == tail["compound_info"][0]


def corruptions():
    path = Path(__file__).resolve().parents[2] / "shared" / "cores" / "corruptions.json"
    if not path.exists():
        return []
    return json.loads(path.read_text())["corruptions"]


@pytest.mark.skipif(not corruptions(), reason="no corruptions.json in ../shared/cores")
@pytest.mark.parametrize(
    "corruption",
    corruptions(),
    ids=lambda c: f"{c['core'].split('.d31')[0]}-{c['name']}",
)
def test_known_damage(corruption):
    base = open_core(corruption["core"].split(".d31")[0])
    patches = {}
    for change in corruption["changes"]:
        address, size = int(change["phys"], 0), change["size"]
        old = int(change["old"], 0).to_bytes(size, "little")
        assert base.read(address, size, physical=True) == old
        patches[address] = int(change["new"], 0).to_bytes(size, "little")
    doc = check(Overlay(base, patches=patches).prog)
    first = doc["findings"][0]
    # A head page that maps the shared tail: the entry itself is the cause, what is
    # read through it a consequence.
    wanted = corruption["first_finding"] or "vmemmap-head-frame"
    assert first["rule"] == wanted
    assert first["physical_address"] in {hex(address) for address in patches}
    assert first["caused_by"] is None
    assert all(finding["caused_by"] == 0 for finding in doc["findings"][1:])
    assert len(doc["findings"]) <= 4


def test_every_rule_has_a_result_and_an_order():
    doc = check(open_core("7.2-2node"))
    assert [rule["id"] for rule in doc["rules"]] == [rule.id for rule in RULES]
    for rule in doc["rules"]:
        assert rule["result"] in ("pass", "fail", "skip")
        assert (rule["reason"] is None) == (rule["result"] != "skip")


def test_rules_can_be_chosen_and_ignored():
    prog = open_core("6.12-mix")
    assert check(prog, ignore={"stray-head"})["findings"] == []
    assert check(prog, only={"folio-head"})["findings"] == []
    assert len(check(prog, only={"stray-head"})["findings"]) == 1


def test_a_missing_head_frame_is_not_corruption():
    name = "7.2-2node"
    folio = truth(name)["folios"][3]
    frame = folio["vmemmap_runs"][0]["pfn"] << 12
    doc = check(Overlay(open_core(name), missing=[(frame, frame + 4096)]).prog)
    assert doc["findings"] == []
    assert doc["complete"] is False
    assert exit_status(doc, strict=False) == 3


def test_a_missing_shared_tail_is_not_corruption():
    name = "7.2-2node"
    frame = truth(name)["folios"][0]["vmemmap_runs"][1]["pfn"] << 12
    for overlay in (
        Overlay(open_core(name), missing=[(frame, frame + 4096)]),
        Overlay(open_core(name), patches={frame: bytes(4096)}),
    ):
        doc = check(overlay.prog)
        assert doc["findings"] == []
        assert exit_status(doc, strict=False) == 3
        assert any("shared tail pages" in item["what"] for item in doc["not_in_dump"])


def test_a_missing_page_table_is_not_corruption():
    name = "7.2-2node"
    table = int(truth(name)["folios"][0]["pte_phys"]["head_pte"], 0) & ~0xFFF
    doc = check(Overlay(open_core(name), missing=[(table, table + 4096)]).prog)
    assert doc["findings"] == []
    assert exit_status(doc, strict=False) == 3


def test_a_folio_in_transition_is_not_corruption():
    """Frozen, on no list, its slices partly remapped, as in the middle of a restore."""
    name = "7.2-2node"
    expected = truth(name)
    # The first of the list: taking it out changes two links and the counters.
    folios = [f for f in expected["folios"] if f["nid"] == 0]
    base = open_core(name)
    bound = hvo_of(open_core(name))
    (free,) = (a for a in bound.hugetlb.lists if a.nid == 0 and a.heads)
    pfn, following = free.heads[:2]
    by_pfn = {f["pfn"]: f for f in folios}
    frame = by_pfn[pfn]["vmemmap_runs"][0]["pfn"] << 12
    next_frame = by_pfn[following]["vmemmap_runs"][0]["pfn"] << 12
    links = base.read(frame + 8, 16, physical=True)
    head = int.from_bytes(links[8:], "little")
    pte = int(by_pfn[pfn]["pte_phys"]["second_pte"], 0)
    own_frame = base.read_u64(pte - 8, physical=True)
    private = base.read_u64(frame + 40, physical=True)
    patches = {
        # Off the list, as remove_hugetlb_folio() leaves it.
        next_frame + 16: links[8:],
        phys(bound, head): links[:8],
        frame + 40: (private & ~(1 << bound.hugetlb.hpg_flags["freed"])).to_bytes(
            8, "little"
        ),
        # One slice is private again.
        pte: (own_frame + 0x1000 * 5000).to_bytes(8, "little"),
    }
    hstate = next(h for h in bound.hugetlb.hstates if h.order == 9)
    pool = bound.kernel.prog["hstates"][0]
    assert pool.order == hstate.order
    for counter in (
        pool.nr_huge_pages, pool.free_huge_pages,
        pool.nr_huge_pages_node[0], pool.free_huge_pages_node[0],
    ):  # fmt: skip
        less = (counter.value_() - 1).to_bytes(counter.type_.size, "little")
        patches[phys(bound, counter.address_of_().value_())] = less
    doc = check(Overlay(base, patches=patches).prog)
    assert doc["findings"] == []
    assert doc["in_transition"] == 1


def phys(bound, address):
    from drgn.helpers.linux.mm import follow_phys

    return follow_phys(bound.kernel.prog["init_mm"].address_of_(), address).value_()


def word(value, size=8):
    return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


class Target:
    """A free folio of a real core, and what can be damaged about it."""

    def __init__(self, name):
        self.base = open_core(name)
        self.bound = hvo_of(open_core(name))
        free = [f for f in truth(name)["folios"] if f["where"] == "free"]
        self.folio = free[5]
        self.frame = self.folio["vmemmap_runs"][0]["pfn"] << 12
        self.head_pte = int(self.folio["pte_phys"]["head_pte"], 0)
        self.second_pte = int(self.folio["pte_phys"]["second_pte"], 0)

    def read(self, address):
        return self.base.read_u64(address, physical=True)

    def flip(self, address, bits):
        return {address: word(self.read(address) ^ bits)}

    def counter(self, member):
        counter = self.bound.kernel.prog["hstates"][0].member_(member)
        at = phys(self.bound, counter.address_of_().value_())
        return {at: word(counter.value_() + 1)}


DAMAGE = {
    "PG_head": ("folio-head", lambda t: t.flip(t.frame, t.bound.kernel.PG_head_mask)),
    "order": (
        "folio-head",
        lambda t: {t.frame + t.bound.fields.order_place[0]: b"\x08"},
    ),
    "tail": ("folio-tail-info", lambda t: t.flip(t.frame + 7 * 64 + 8, 1 << 16)),
    "head-pte": ("vmemmap-head-frame", lambda t: t.flip(t.head_pte, 2)),
    "second-pte": ("vmemmap-tail-frame", lambda t: t.flip(t.second_pte, 1 << 13)),
    "refcount": ("folio-list", lambda t: {t.frame + 52: word(1, 4)}),
    "freed": ("folio-list", lambda t: t.flip(t.frame + 40, 8)),
    "next": (
        "hstate-lists",
        lambda t: {t.frame + 8: word(int(t.folio["vmemmap"], 0) + 8)},
    ),
    "prev": ("hstate-lists", lambda t: t.flip(t.frame + 16, 64)),
    "total": ("hstate-counters", lambda t: t.counter("nr_huge_pages")),
    "free": ("hstate-counters", lambda t: t.counter("free_huge_pages")),
    "surplus": ("hstate-counters", lambda t: t.counter("surplus_huge_pages")),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize(
    "name", ["6.1-2node", "6.12-2node", "7.2-2node", "seed5-2node", "seedgh-2node"]
)
def test_damage_to_a_real_folio(name, what):
    rule, damage = DAMAGE[what]
    target = Target(name)
    patches = damage(target)
    doc = check(Overlay(target.base, patches=patches).prog)
    first, *others = doc["findings"]
    assert first["rule"] == rule
    assert first["physical_address"] in {hex(address) for address in patches}
    assert all(finding["caused_by"] == 0 for finding in others)
