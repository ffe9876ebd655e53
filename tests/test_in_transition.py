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
from drgn_hvo.memmap.hvo import hvo
from tests.command_support import run
from tests.damage_support import Case

INSTANTS = Path(__file__).resolve().parents[2] / "shared" / "cores" / "instants"

KERNELS = ("shared-7.1", "shared-7.3", "fake-head-6.1", "fake-head-6.12", "seed-v5")


class Half:
    """A compound page that is being made or undone, in a slice that HVO split."""

    def __init__(self, name, order):
        self.case = Case.of(name)
        self.order = order
        self.pfn = self.case.targets.order_0_slice()
        self.has_mask = hvo(self.case.prog).layout.encoding.has_mask
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
        place = hvo(self.case.prog).fields.order_place
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


# Of each extract in ../shared: what is found, as its README says.
TRUTH = {
    "m-7.3-grow3-h1-s900": (0, {}),
    "m-7.3-upd-h1-s5000": (0, {}),
    "m-6.12.107-shrink-h2-s0": (0, {}),
    "n-7.3-enq-080": (0, {}),
    "n-7.3-enq-083": (0, {}),
    "n-7.3-rem-043": (0, {}),
    "n-7.3rt-enq-081": (0, {}),
    "hotplug1-7.2a": (0, {}),
    "boot1g3-7.3": (
        1,
        {
            "folio-tail-refcount": "boot-tail-refcount",
            "stray-head": "boot-tail-refcount",
        },
    ),
    "boot1g1-6.18": (1, {"vmemmap-tail-writable": "boot-tail-writable"}),
}


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("deep", [False, True])
def test_real_instants(name, deep):
    core = INSTANTS / f"{name}.small.kdump"
    if not core.exists():
        pytest.skip("no instants in ../shared/cores")
    result = run("check", core, "--json", *(["--deep"] if deep else []))
    found = json.loads(result.stdout)
    status, defects = TRUTH[name]
    errors = [f for f in found["findings"] if f["severity"] == "error"]
    assert {f["rule"]: f["defect"] for f in errors} == defects
    # Extracts do not have all of vmemmap.
    assert result.returncode == (status or (3 if deep else 0))
    if name.startswith("m-"):
        assert found["in_transition"] == 1
    if name.startswith("n-"):
        assert found["excused"]


def test_one_story_with_its_cause():
    """What the defect left behind follows from what it did."""
    core = INSTANTS / "boot1g3-7.3.small.kdump"
    if not core.exists():
        pytest.skip("no instants in ../shared/cores")
    findings = json.loads(run("check", core, "--json").stdout)["findings"]
    assert [(f["rule"], f["caused_by"]) for f in findings] == [
        ("shared-tail-refcount", None),
        ("shared-tail-refcount", None),
        ("folio-tail-refcount", 0),
        ("stray-head", 0),
    ]
    assert findings[3]["affected"] == 478
