# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernels stopped between two stores
----------------------------------

The stores that make a compound page, or undo one, are done here one by one, in the
order of the kernel's code; at none of these instants is a healthy kernel accused. What
no such code leaves is damage.
"""

import json
from pathlib import Path

import pytest

from drgn_hvo.audit.in_transition import TRANSITIONS
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.described.description_file import load_toml
from tests.command_support import run
from tests.damage_support import Case

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample_vmcores" / "instants"
SHARED = ROOT.parent / "shared" / "cores" / "instants"
TRUTH = load_toml((SAMPLES / "truth.toml").read_text(), "truth.toml")

KERNELS = ("shared-7.1", "shared-7.3", "fake-head-6.1", "fake-head-6.12", "seed-v5")


class Half:
    """A compound page that is being made or undone, in a slice that HVO split."""

    def __init__(self, name, order):
        self.case = Case.of(name)
        self.order = order
        self.pfn = self.case.targets.order_0_slice()
        self.has_mask = hvo_of(self.case.prog).layout.encoding.has_mask
        for pfn in range(self.pfn, self.pfn + (1 << order)):
            self.put(pfn, "tail_word", 0, 8)
            self.put(pfn, "_refcount", 0, 4)
            self.put(pfn, "_mapcount", 0xFFFFFFFF, 4)

    def put(self, pfn, member, value, size):
        return self.case.put(self.case.field(pfn, member), value, size)

    def set_head(self):
        return self.case.flip(
            self.case.field(self.pfn, "flags"), self.case.flag("head")
        )

    def set_tails(self, first, end):
        """Tails from *first* to *end*, counted from the head."""
        address = self.case.targets.plan.space.page_address(self.pfn)
        mask = (1 << 64) - 1 << self.order + 6 & (1 << 64) - 1
        word = mask if self.has_mask else address
        for pfn in range(self.pfn + first, self.pfn + end):
            self.put(pfn, "tail_word", word | 1, 8)

    def set_order(self):
        place = hvo_of(self.case.prog).fields.order_place
        assert place is not None
        offset, size = place
        at = self.case.targets.machine.page_physical(self.pfn + 1) + offset - 64
        self.case.put(at, self.order, size)

    def check(self, **scope):
        return self.case.check(**scope)


def steps(order):
    """Some of the numbers of tails that are set or cleared at an instant."""
    last = (1 << order) - 1
    return sorted(
        {step for step in (0, 1, 2, last // 2, last - 1, last) if step <= last}
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("order", [1, 3, 6])
@pytest.mark.parametrize(
    "transition", TRANSITIONS, ids=lambda t: t.source.split("(")[0]
)
def test_no_instant_is_damage(name, order, transition):
    whole = 1 << order
    for step in steps(order):
        half = Half(name, order)
        half.set_head()
        if transition.has_order:
            half.set_order()
        if transition.is_prefix:
            half.set_tails(1, 1 + step)
        else:
            half.set_tails(1 + step, whole)
        found = half.check(deep=True)
        assert (found["findings"], found["status"]) == ([], "clean"), step
        # With an order and its first tail, it is a head like any other; in 6.1 an
        # order is always there, if only a stale one.
        may_look_whole = transition.has_order or name == "fake-head-6.1"
        if not (may_look_whole and (step > 0) == transition.is_prefix):
            assert found["in_transition"] == 1


def typed(half):
    half.put(half.pfn, "_mapcount", 0xF0FFFFFF, 4)


def counted(half):
    half.put(half.pfn, "_refcount", 2, 4)


def with_a_hole(half):
    half.put(half.pfn + 3, "tail_word", 0, 8)


def with_a_tail_of_another(half):
    address = half.case.targets.plan.space.page_address(half.pfn + 32)
    word = (1 << 64) - 1 << 7 & (1 << 64) - 1 if half.has_mask else address
    half.put(half.pfn + 6, "tail_word", word | 1, 8)


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
@pytest.mark.parametrize(
    "damage", [typed, counted, with_a_hole, with_a_tail_of_another]
)
def test_damage_is_no_transition(name, damage):
    """Six tails of sixteen, the order not yet stored, and something that is not so."""
    half = Half(name, 4)
    flags = half.set_head()
    half.set_tails(1, 7)
    damage(half)
    found = half.check()
    assert found["in_transition"] == 0
    first = found["findings"][0]
    assert (first["rule"], int(first["physical_address"], 0)) == ("stray-head", flags)


def instant(name):
    """The core of an instant; not all are small enough to be here."""
    for core in (SAMPLES / f"{name}.kdump", SHARED / f"{name}.small.kdump"):
        if core.exists():
            return core
    pytest.skip("no instants in ../shared/cores")


def check_instant(name, *options):
    core = instant(name)
    note = core.parent / f"{name}.vmcoreinfo"
    more = ["--vmcoreinfo", note] if note.exists() else []
    result = run("check", core, "--json", *more, *options)
    return json.loads(result.stdout), result.returncode


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("deep", [False, True])
def test_real_instants(name, deep):
    truth = TRUTH[name]
    found, status = check_instant(name, *(["--deep"] if deep else []))
    assert found["release"] == truth["release"]
    rules = truth.get("rules", {})
    assert {f["rule"]: f["defect"] for f in found["findings"]} == rules
    errors = any(f["severity"] == "error" for f in found["findings"])
    # Extracts do not have all of vmemmap.
    assert status == (1 if errors else 3 if deep else 0)
    assert found["in_transition"] == truth.get("in_transition", 0)
    assert [e["rule"] for e in found["excused"]] == truth.get("excused", [])


def test_one_story_with_its_cause():
    """What the defect left behind follows from what it did."""
    findings = check_instant("boot1g3-7.3")[0]["findings"]
    assert [(f["rule"], f["caused_by"]) for f in findings] == [
        ("shared-tail-refcount", None),
        ("shared-tail-refcount", None),
        ("folio-tail-refcount", 0),
        ("stray-head", 0),
    ]
    assert findings[3]["affected"] == 478
