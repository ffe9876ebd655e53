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
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.memmap.hvo import hvo
from drgn_hvo.memmap.zones import Mmzone
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from tests.synth_support import ALL, describe


def damaged(name, *faults, **changes):
    machine, _ = make_machine(describe(name, **changes), faults)
    return hvo(program(machine))


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
