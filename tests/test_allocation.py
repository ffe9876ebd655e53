# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Why no huge page can be had: counters against the ground truth of real cores, words
against made-up numbers. ``test_holders_guest.py`` has limits of mounts and cgroups.
"""

import json
from pathlib import Path
from typing import Any

from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import virt_to_phys
import pytest

from drgn_hvo.commands.allocation_text import allocation_lines, exhausted
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.allocation import limits_of
from drgn_hvo.memmap.hvo import hvo_of
from tests.command_support import run
from tests.cores import CORES, core_path, open_core, truth
from tests.overlay import Overlay, image_to_phys

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"


@pytest.mark.parametrize("name", CORES)
def test_counters(name):
    printed = run("show", core_path(name), "--json")
    pools = {pool["order"]: pool for pool in json.loads(printed.stdout)["hstates"]}
    for known in truth(name)["hstates"]:
        pool = pools[known["order"]]
        assert pool["asked"] == known["max_huge_pages"]
        assert pool["overcommit"] == known["nr_overcommit_huge_pages"]
        free, reserved = known["free_huge_pages"], known["resv_huge_pages"]
        assert pool["available"] == free - reserved
        left = known["nr_overcommit_huge_pages"] - known["surplus_huge_pages"]
        assert pool["surplus_left"] == left


def pool(**changes: Any) -> Any:
    return {
        "order": 9, "page_bytes": 2 << 20, "total": 8, "free": 3, "surplus": 0,
        "reserved": 1, "available": 2, "asked": 8, "overcommit": 0, "surplus_left": 0,
        "nodes": [], **changes,
    }  # fmt: skip


def said(**changes):
    doc = {"page_size": 4096, "hstates": [pool(**changes)]}
    whole: Any = {"subpools": None, "cgroup_limits": None, **doc}
    lines = list(allocation_lines(whole))
    return lines[0] if lines else None


@pytest.mark.parametrize(
    ("changes", "words", "is_exhausted"),
    [
        ({}, "2 can be had", False),
        ({"surplus_left": 4}, "2 can be had, and 4 more as surplus", False),
        (
            {"free": 0, "available": 0},
            "none can be had: all 8 are in use, and no surplus may be made",
            True,
        ),
        (
            {"free": 3, "available": 0, "overcommit": 2, "surplus_left": 1},
            "all 3 that are free are reserved, but 1 more may be made as surplus",
            False,
        ),
        (
            {"free": 1, "available": 0, "overcommit": 2},
            "the free one is reserved, and all 2 surplus ones are made",
            True,
        ),
        ({"total": 1, "free": 0, "available": 0}, "the only one is in use", True),
        ({"asked": 10}, "2 of 10 that were asked for are not there", False),
        ({"available": None}, "how many can be had is not known", False),
        ({"available": 0, "free": 0, "surplus_left": None}, "is not known", False),
    ],
)
def test_words(changes, words, is_exhausted):
    assert words in said(**changes)
    assert exhausted(pool(**changes)) == is_exhausted


def test_an_empty_pool_that_nobody_asked_for_is_not_mentioned():
    assert said(total=0, free=0, available=0, asked=0) is None


def test_limits():
    subpool = {"device": "0:24", "order": 9, "used": 2, "limit": 2, "minimum": None,
               "reserved": 0}  # fmt: skip
    promised = {**subpool, "limit": None, "minimum": 4, "reserved": 3}
    cgroup = {"path": "/a/b", "order": 9, "limit": 3, "used": 3,
              "of_reservations": True}  # fmt: skip
    doc: Any = {
        "page_size": 4096,
        "hstates": [],
        "subpools": [subpool, promised],
        "cgroup_limits": [cgroup],
    }
    assert list(allocation_lines(doc)) == [
        "Mount 0:24 (2 MiB): 2 of 2 in use (size=), none can be had",
        "Mount 0:24 (2 MiB): at least 4 (min_size=), 3 of them reserved",
        "Cgroup /a/b (2 MiB): 3 of 3 reserved, none can be had by its processes",
    ]


def test_unknown_limits_are_unknown():
    """An extract has neither mounts nor cgroups; a core without them has none."""
    for core, known in (
        (SAMPLES / "debian-7.2.kdump", None),
        (core_path("6.12-mix"), ()),
    ):
        found = limits_of(hvo_of(open_target(str(core))))
        assert (found.subpools, found.cgroups) == (known, known)
        assert len(found.unread) == (2 if known is None else 0)


@pytest.mark.parametrize("what", ["mount", "cgroup"])
def test_limits_that_read_as_zeros_are_not_absent(what):
    """A page of zeros was left out, and does not say that there is no limit."""
    base = open_core("6.12-mix")
    install(base)
    if what == "mount":
        address = next(
            block.s_fs_info.value_()
            for block in list_for_each_entry(
                "struct super_block", base["super_blocks"].address_of_(), "s_list"
            )
            if block.s_type.name.string_() == b"hugetlbfs"
        )
        physical = virt_to_phys(base, address).value_()
    else:
        physical = image_to_phys(base, base.symbol("root_h_cgroup").address)
    page = {physical & -4096: bytes(4096)}
    prog = Overlay(base, patches=page).prog
    install(prog)
    found = limits_of(hvo_of(prog))
    assert (found.subpools is None, found.cgroups is None) == (
        what == "mount",
        what == "cgroup",
    )
    assert "reads as zeros" in found.unread[0]
