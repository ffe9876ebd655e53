# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where huge pages lie, and what their pools are
----------------------------------------------

Several words say one thing: whichever is wrong is the first finding, and the others are
believed.
"""

from drgn import FaultError
import pytest

from drgn_hvo.audit import check_identity
from drgn_hvo.audit.context import Context
from drgn_hvo.audit.lock import Lock
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.zones import Mmzone
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.damage.targets import Targets
from tests.synth_support import ALL, describe


def damaged(name, *faults, **changes):
    machine, _ = make_machine(describe(name, **changes), faults)
    return hvo_of(program(machine))


def check(bound, **scope):
    return check_document(bound, "core", CheckScope(**scope))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fault", ["head-node", "head-zone"])
def test_a_head_elsewhere_is_counted_where_it_lies(name, fault):
    bound, healthy = damaged(name, fault), damaged(name)
    assert bound.folio_nids.tolist() == healthy.folio_nids.tolist()
    assert bound.folio_zones.tolist() == healthy.folio_zones.tolist()
    (finding,) = check(bound, deep=True)["findings"]
    assert finding["rule"] == "folio-node"
    layout = healthy.mmzone.flags_layout
    i = healthy.hugetlb.folios.head_pfn.tolist().index(finding["head_pfn"])
    assert int(finding["expected"], 0) == int(healthy.hugetlb.folios.flags[i])
    assert layout is not None


def test_zones_that_were_not_read(monkeypatch):
    monkeypatch.setattr(Mmzone, "knows_all_zones", False)
    doc = check(damaged("shared-7.3", "head-zone"), only=("folio-node",))
    assert doc["findings"] == []
    assert doc["complete"] is False
    (undecided,) = doc["undecided"]
    assert undecided["rule"] == "folio-node"


@pytest.mark.parametrize(
    ("ranges", "wrong"),
    [([], True), ([(0, 1 << 40)], False), ([(0, 1), (1 << 40, 1 << 41)], True)],
)
def test_a_head_that_names_cma(monkeypatch, ranges, wrong):
    bound = damaged("shared-7.3")
    folios = bound.hugetlb.folios
    bits = {**bound.hugetlb.hpg_flags, "cma": bound.hugetlb.hpg_flags["freed"]}
    object.__setattr__(bound.hugetlb, "hpg_flags", bits)
    monkeypatch.setattr(check_identity, "hugetlb_cma_ranges", lambda *_: ranges)
    findings = check(bound, only=("folio-head",))["findings"]
    freed = [pfn for pfn, p in zip(folios.head_pfn, folios.private) if p >> 3 & 1]
    assert [f["head_pfn"] for f in findings[:2]] == (freed[:2] if wrong else [])


def test_cma_areas_that_were_not_read(monkeypatch):
    bound = damaged("shared-7.3")
    bits = {**bound.hugetlb.hpg_flags, "cma": bound.hugetlb.hpg_flags["freed"]}
    object.__setattr__(bound.hugetlb, "hpg_flags", bits)

    def fail(*_):
        raise FaultError("not in this dump", 0)

    monkeypatch.setattr(check_identity, "hugetlb_cma_ranges", fail)
    doc = check(bound, only=("folio-head",))
    assert doc["findings"] == []
    assert [one["rule"] for one in doc["undecided"]] == ["folio-head"]


def pool_word(machine, member):
    """Where a member of the first pool is."""
    return Targets(machine).hstate(machine.plan.description.hstates[0], member)


def with_bit(machine, address, bit, size):
    """The machine with one bit the other way round."""
    order = machine.plan.description.model.byteorder
    old = machine.image.read(address, size)
    new = int.from_bytes(old, order) ^ 1 << bit
    machine.image.write(address, new.to_bytes(size, order))
    bound = hvo_of(program(machine))
    doc = check(bound)
    machine.image.write(address, old)
    return bound, doc


@pytest.mark.parametrize(
    ("member", "size"), [("order", 4), ("mask", 8), ("name", 8), ("demote_order", 4)]
)
def test_two_of_three_words_decide_what_a_pool_is(member, size):
    """Each bit of each word: it is the first finding, and all else is as before."""
    machine, _ = make_machine(describe("shared-7.3"))
    healthy = hvo_of(program(machine)).hugetlb
    address = pool_word(machine, member)
    for bit in range(8 * size):
        bound, doc = with_bit(machine, address, bit, size)
        (finding,) = doc["findings"]
        assert finding["rule"] == "hstate-identity"
        assert 0 <= int(finding["physical_address"], 0) - address < size
        assert finding["order"] == 9
        assert bound.hugetlb.hstates == healthy.hstates
        assert bound.hugetlb.lists == healthy.lists
        if finding["expected"] is not None:
            flipped = int(finding["expected"], 0) ^ int(finding["actual"], 0)
            assert flipped == 1 << bit % (8 if member == "name" else 64)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bit", [0, 1, 5, 31])
def test_how_many_pools_there_are(name, bit):
    machine, _ = make_machine(describe(name))
    healthy = hvo_of(program(machine)).hugetlb.hstates
    address = machine.kernel.physical("hugetlb_max_hstate")
    bound, doc = with_bit(machine, address, bit, 4)
    assert bound.hugetlb.hstates == healthy
    (finding,) = doc["findings"]
    assert finding["rule"] == "hstate-identity"
    assert int(finding["physical_address"], 0) == address
    assert int(finding["expected"], 0) == len(healthy)


@pytest.mark.parametrize("member", ["order", "mask", "name"])
def test_a_pool_that_is_not_there(member):
    """What nobody uses has nothing in it, and is no pool for one bit."""
    machine, _ = make_machine(describe("shared-7.3", hstates=(9,)))
    address = pool_word(machine, member) + machine.plan.structures.hstate.size
    bound, doc = with_bit(machine, address, 3, 8)
    assert len(bound.hugetlb.hstates) == 1
    (finding,) = doc["findings"]
    assert finding["rule"] == "hstate-identity"
    assert int(finding["physical_address"], 0) & -8 == address & -8


def test_a_pool_that_is_gone():
    """All of its words are zeros: its huge pages are there without one."""
    machine, _ = make_machine(describe("shared-7.3", hstates=(18, 9)))
    size = machine.plan.structures.hstate.size
    start = pool_word(machine, "order") + size
    for member, length in (("order", 4), ("mask", 8), ("name", 32)):
        machine.image.write(pool_word(machine, member) + size, bytes(length))
    first, *others = check(hvo_of(program(machine)))["findings"]
    assert first["rule"] == "hstate-identity"
    assert "hugetlb_max_hstate is 2" in first["message"]
    assert any("no pool has huge pages of order 9" in f["message"] for f in others)
    assert start


def test_pools_that_cannot_be_read():
    """What a page of hstates[] would say is unknown, and no finding."""
    machine, _ = make_machine(describe("shared-7.3"))
    machine.image.missing.add(pool_word(machine, "name") >> 12)
    doc = check(hvo_of(program(machine)), only=("hstate-identity",))
    assert doc["findings"] == []
    assert {one["rule"] for one in doc["undecided"]} == {"hstate-identity"}


@pytest.mark.parametrize("count", [3, 99, 2**32 - 1])
def test_more_pools_than_a_page_that_is_not_there_tells(count):
    machine, _ = make_machine(describe("shared-7.3"))
    machine.image.missing.add(pool_word(machine, "order") >> 12)
    at = machine.kernel.physical("hugetlb_max_hstate")
    machine.image.write(at, count.to_bytes(4, "little"))
    doc = check(hvo_of(program(machine)))
    assert doc["findings"] == []
    assert doc["complete"] is False
    assert "hstate-identity" in {one["rule"] for one in doc["undecided"]}


@pytest.mark.parametrize(
    ("reserved", "defect", "found"),
    [(0, None, False), (1, None, False), (10**6, None, True),
     (-1, "resv-underflow-pinned", True), (-512, "resv-underflow-pinned", True)],
)  # fmt: skip
def test_reserved_huge_pages(reserved, defect, found):
    machine, _ = make_machine(describe("shared-7.3"))
    address = pool_word(machine, "resv_huge_pages")
    machine.image.write(address, reserved.to_bytes(8, "little", signed=True))
    doc = check(hvo_of(program(machine)))
    assert bool(doc["findings"]) == found
    for finding in doc["findings"]:
        assert (finding["rule"], finding["severity"]) == ("hstate-reserve", "warning")
        assert finding["defect"] == defect
        assert int(finding["actual"], 0) == reserved % (1 << 64)
        assert int(finding["physical_address"], 0) == address


@pytest.mark.parametrize(
    ("state", "findings", "undecided"), [("held", 0, 0), ("unknown", 0, 1)]
)
def test_reserved_while_pools_change(monkeypatch, state, findings, undecided):
    machine, _ = make_machine(describe("shared-7.3"))
    address = pool_word(machine, "resv_huge_pages")
    machine.image.write(address, (10**6).to_bytes(8, "little"))
    monkeypatch.setattr(Context, "lock", Lock(state, "not told"))
    doc = check(hvo_of(program(machine)), only=("hstate-reserve",))
    assert len(doc["findings"]) == findings
    assert len(doc["undecided"]) == undecided
