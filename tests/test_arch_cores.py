# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Captures of other architectures, against what the guests said of themselves and what a
page table walk of its own found.
"""

from functools import cache
import re
from typing import Any

import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.helpers.compound import compound_heads
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import Hvo, hvo
from tests.cores import core_path, truth

WITH_HVO = ["loong64-nokf", "riscv64-1g", "riscv64-612", "riscv64-sv39"]
WITHOUT_HVO = ["arm64", "ppc64el", "s390x"]
CORES = [*WITH_HVO, *WITHOUT_HVO]

POOL = re.compile(r"/sys/kernel/mm/hugepages/hugepages-(\d+)kB/(\w+)_hugepages")
COUNTERS = {
    "nr": "total",
    "free": "free",
    "surplus": "surplus",
    "resv": "reserved",
}


@cache
def bound(name: str) -> Hvo:
    return hvo(open_target(str(core_path(f"arch/{name}"))))


@cache
def shown(name: str) -> Any:
    return show_document(bound(name), name, folios=True)


def truth_of(name: str) -> Any:
    return truth(f"arch/{name}")


@pytest.mark.parametrize("name", CORES)
def test_pools(name):
    by_size = {state["page_bytes"] // 1024: state for state in shown(name)["hstates"]}
    seen = 0
    for path, value in truth_of(name)["pools"].items():
        match = POOL.fullmatch(path)
        if match is not None and match[2] in COUNTERS:
            assert by_size[int(match[1])][COUNTERS[match[2]]] == int(value), path
            seen += 1
    assert seen or name == "s390x"


@pytest.mark.parametrize("name", CORES)
def test_huge_pages(name):
    found = [
        [folio["head_pfn"], 1 << folio["order"]] for folio in shown(name)["folios"]
    ]
    assert found == sorted(truth_of(name)["huge"])
    assert {folio["list"] for folio in shown(name)["folios"]} <= {"free", "active"}


@pytest.mark.parametrize("name", WITH_HVO)
def test_what_shares_frames(name):
    known = truth_of(name)
    optimized = [f for f in shown(name)["folios"] if f["optimized_mapping"]]
    assert all(folio["optimized_flag"] for folio in optimized)
    assert len(optimized) == known.get("optimized", len(known["huge"]))
    users: dict[str, int] = {}
    for folio in optimized:
        (frame,) = folio["tail_frames"]
        users[str(frame)] = users.get(str(frame), 0) + 1
        slices = (64 << folio["order"]) // bound(name).kernel.geometry.page_size
        assert folio["shared_ptes"] == slices - 1
        # Neither architecture can map them read-only.
        assert folio["writable_shared_ptes"] == folio["shared_ptes"]
    assert users == known["shared_frames"]
    assert shown(name)["properties"][0]["name"] == "tails-writable-by-design"


@pytest.mark.parametrize("name", WITHOUT_HVO)
def test_kernels_without_hvo(name):
    document = shown(name)
    assert document["tail_layout"]["kind"] == "plain"
    assert document["encoding"]["kind"] == "pointer"
    assert document["properties"] == []
    assert document["saved"]["pages"] == 0
    assert all(folio["shared_ptes"] == 0 for folio in document["folios"])


@pytest.mark.parametrize("name", CORES)
def test_heads(name):
    end = bound(name).vmemmap.end_pfn
    heads = compound_heads(bound(name).kernel.prog, range(end))
    for head, pages in truth_of(name)["huge"]:
        assert (heads[head : head + pages] == head).all()
    known = heads != np.iinfo(np.uint64).max
    assert known.sum() > 100_000
    # A head is its own head, and no page precedes its head.
    assert (heads[heads[known].astype(np.int64)] == heads[known]).all()
    assert (heads[known] <= np.flatnonzero(known).astype(np.uint64)).all()


@pytest.mark.parametrize("name", CORES)
def test_check(name):
    document = check_document(bound(name), name, CheckScope(deep=True))
    assert document["findings"] == []
    assert document["status"] == "clean"
    assert document["complete"]
