# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Captures of other architectures, against what the guests said of themselves and what a
page table walk of its own found.
"""

from contextlib import suppress
from functools import cache
import re
import shutil
import struct
from typing import Any

from drgn import FaultError
from drgn.helpers.linux.mm import PageHead, compound_head, page_to_pfn, pfn_to_page
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.printk import get_dmesg
import numpy as np
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.extract.command import extract_document
from drgn_hvo.helpers.compound import compound_heads
from drgn_hvo.kernel import finders
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.plugin import drgn_prog_set
from tests.cores import core_path, open_core, truth

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
    return hvo_of(open_target(str(core_path(f"arch/{name}"))))


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


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", CORES)
def test_extracts_answer_the_same(name, small, tmp_path):
    path, core = tmp_path / "extract", str(core_path(f"arch/{name}"))
    extract_document(open_target(core), core, path, small=small)
    again = hvo_of(open_target(str(path)))
    assert show_document(again, name, folios=True) == shown(name)
    scope = CheckScope()
    audits = [check_document(of, name, scope) for of in (again, bound(name))]
    assert audits[0] == audits[1]
    assert audits[0]["status"] == "clean"


# The first struct pages of a section that every one of these machines has.
PROBES = {
    "arm64": 0xFFFFC1FFC0000000,
    "loong64-nokf": 0xFFFFFEFFFE000000,
    "ppc64el": 0xC00C000000000000,
    "riscv64-1g": 0xFF1C000002000000,
    "riscv64-612": 0xFF1C000000000000,
    "riscv64-sv39": 0xFFFFFFC502000000,
    "s390x": 0x37200000000,
}


@pytest.mark.parametrize("name", CORES)
def test_a_read_as_the_first_act(name):
    """What drgn reads without the plugin it reads with it, whatever comes first."""
    prog = open_core(f"arch/{name}")
    drgn_prog_set(prog)
    found = prog.read(PROBES[name], 4096)
    try:
        assert open_core(f"arch/{name}").read(PROBES[name], 4096) == found
    except FaultError:
        assert name in WITH_HVO
    physical, _ = bound(name).kernel.translation.physical(PROBES[name]) or (0, 0)
    assert prog.read(physical, 4096, physical=True) == found


def test_a_lookup_while_drgn_sets_up_translation(monkeypatch):
    """On ppc64, drgn asks the finders for a symbol before it can read anything."""
    monkeypatch.setattr(finders, "add_memory_segments", lambda prog: None)
    prog = open_core("arch/ppc64el")
    finders.install(prog)
    found = prog.read(PROBES["ppc64el"], 4096)
    assert found == open_core("arch/ppc64el").read(PROBES["ppc64el"], 4096)
    assert prog["init_uts_ns"].name.sysname.string_() == b"Linux"


@pytest.mark.parametrize("name", CORES)
def test_a_session(name):
    prog = open_core(f"arch/{name}")
    drgn_prog_set(prog)
    tasks = {task.pid.value_(): task.comm.string_() for task in for_each_task(prog)}
    assert (tasks[1], tasks[2]) == (b"init", b"kthreadd")
    assert b"Linux version" in get_dmesg(prog)
    address = prog.symbol("schedule").address
    assert prog.symbol(address + 4).name == "schedule"
    for head, pages in truth_of(name)["huge"][:3]:
        page = pfn_to_page(prog, head)
        if name != "riscv64-612":
            # drgn takes fake heads into account only where it knows the generation.
            assert compound_head(page + pages - 1) == page
        assert page_to_pfn(page).value_() == head
        assert PageHead(page)
    with suppress(FaultError):
        assert prog.read(find_task(prog, 1).stack.value_(), 8) != bytes(8)


@pytest.mark.parametrize("name", ["ppc64el", "s390x"])
def test_qemu_dumps_without_a_note(name, tmp_path):
    """QEMU cannot add VMCOREINFO on these; then drgn takes p_paddr 0 for none."""
    whole = core_path(f"arch/{name}")
    with open(whole, "rb") as f:
        start = f.read(8192)
        at = start.index(b"VMCOREINFO\0")
        order = "<" if name == "ppc64el" else ">"
        (size,) = struct.unpack_from(f"{order}I", start, at - 8)
        note = tmp_path / "vmcoreinfo"
        note.write_bytes(start[at + 12 : at + 12 + size])
        bare = tmp_path / "core"
        with open(bare, "wb") as copy:
            copy.write(start.replace(b"VMCOREINFO\0", b"SOMETHING \0"))
            shutil.copyfileobj(f, copy, 1 << 24)
    found = hvo_of(open_target(str(bare), vmcoreinfo=str(note)))
    assert show_document(found, name, folios=True) == shown(name)
