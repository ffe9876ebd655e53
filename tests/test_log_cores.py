# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Logs against cores
------------------

What a log printed of a page, held against the words that the core has at the address
that the description or the truth gives.
"""

import json
from pathlib import Path
import struct
from typing import Any

import jsonschema
import pytest

from drgn_hvo.commands.oops import oops_document
from drgn_hvo.commands.oops_text import print_oopses
from drgn_hvo.commands.schema import load_schema
from drgn_hvo.formats.oops_log import parse_log, read_log
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from tests.command_support import check_refused, run
from tests.cores import core_path, truth
from tests.log_support import (
    arm64_fault,
    bad_page_state,
    dump_page,
    general_protection_fault,
    riscv_fault,
)
from tests.synth_support import describe

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"


def explain(bound, lines, **options):
    document = oops_document(bound, "core", parse_log(lines), **options)
    jsonschema.validate(document, load_schema("page"))
    print_oopses(document)
    return document


class Synthetic:
    """A synthetic core, and the words that it has."""

    def __init__(self, name, faults=()):
        self.machine, _ = make_machine(describe(name), faults)
        self.prog = program(self.machine)
        self.bound = hvo_of(self.prog)
        self.head = next(p.first_pfn for p in self.machine.plan.huge if p.optimized)

    def address(self, pfn):
        return self.machine.plan.space.page_address(pfn)

    def words(self, pfn):
        slice_, within = divmod(pfn - self.head, 64)
        entry = self.machine.slice_entry(self.head, slice_)
        frame = self.prog.read_u64(entry, physical=True) & 0xFFFFFFFFFF000
        data = self.prog.read(frame + 64 * within, 64, physical=True)
        return list(struct.unpack("<8Q", data))


@pytest.fixture(scope="module")
def shared():
    return Synthetic("shared-7.3")


@pytest.fixture(scope="module")
def fake_head():
    return Synthetic("fake-head-6.12")


def against(core, pfn, words, **options):
    (report,) = explain(core.bound, dump_page(pfn, tuple(words)), **options)["reports"]
    return report["against_dump"], report["changed"]


@pytest.mark.parametrize("offset", [0, 1, 5, 70, 300])
def test_unchanged(shared, offset):
    pfn = shared.head + offset
    assert against(shared, pfn, shared.words(pfn)) == ("unchanged", [])


@pytest.mark.parametrize(
    ("word", "bits", "member"),
    [
        (1, 1 << 3, "compound_info"),
        (3, 1 << 20, "mapping"),
        (6, 1, "_mapcount"),
        (6, 1 << 32, "_refcount"),
        (0, 1 << 2, "flags"),
    ],
)
def test_changed(shared, word, bits, member):
    words = shared.words(shared.head + 70)
    words[word] ^= bits
    state, changed = against(shared, shared.head + 70, words)
    assert state == "changed"
    assert changed == [member] or member in changed[0]


def test_another_page(shared, fake_head):
    """Node and zone of a page, and where vmemmap is, stay the same while it runs."""
    words = shared.words(shared.head + 70)
    # The node is in the highest bits that are used.
    words[0] ^= 1 << 63
    assert against(shared, shared.head + 70, words)[0] == "other-page"
    words = fake_head.words(fake_head.head + 5)
    assert words[1] & 1
    words[1] ^= 1 << 40
    assert against(fake_head, fake_head.head + 5, words)[0] == "other-page"
    assert against(shared, 1 << 40, words)[0] == "other-page"


def test_other_boot_is_not_compared(shared):
    lines = bad_page_state(shared.head + 70, tuple(shared.words(shared.head + 70)), "x")
    (report,) = explain(shared.bound, lines)["reports"]
    assert "6.12.117" in report["not_this_boot"]
    assert report["against_dump"] is None
    assert report["page"] is None
    # The log that the core itself holds is of its boot.
    lines = bad_page_state(shared.head + 70, tuple(shared.words(shared.head + 70)), "x")
    (report,) = explain(shared.bound, lines, same_boot=True)["reports"]
    assert report["against_dump"] == "unchanged"


def test_registers(shared):
    lines = general_protection_fault(
        0xDEAD000000000400,
        registers=[
            ("RAX", shared.address(shared.head + 70) + 8),
            ("RBX", 0xFFFFFFFFFFFF8001),
            ("RCX", 0),
            ("RDI", shared.address(0) - 64),
        ],
    )
    release = shared.bound.kernel.release
    lines = [line.replace("7.2.13+deb14-cloud-amd64", release) for line in lines]
    document = explain(shared.bound, lines)
    (report,) = document["reports"]
    assert [(p["where"], p["pfn"]) for p in report["pointers"]] == [
        ("RAX", shared.head + 70),
        ("RBX", None),
    ]
    assert report["verdict"] == "tail-mapping"


@pytest.mark.parametrize("name", ["shared", "fake_head"])
def test_mask_taken_for_a_pointer(name, request):
    """L4: said before anything of boots, and on a kernel of pointers, too."""
    bound = request.getfixturevalue(name).bound
    lines = [
        "BUG: unable to handle page fault for address: ffffffffffff8008",
        "#PF: supervisor read access in kernel mode",
        "#PF: error_code(0x0000) - not-present page",
        "RIP: 0010:compound_head+0x3/0x20 [badmod]",
    ]
    (oops,) = explain(bound, lines)["oopses"]
    assert (oops["verdict"], oops["signature"]) == ("mask-used", False)
    assert "not rebuilt" in oops["explanation"]


def test_page_of_each_story(shared):
    lines = [
        *dump_page(shared.head + 5, tuple(shared.words(shared.head + 5))),
        "Memory failure: 0x1005: recovery action for huge page: Recovered",
        "Memory failure: 0x1006: recovery action for huge page: Recovered",
        "Memory failure: 0xffffffff: recovery action for reserved page: Ignored",
    ]
    document = explain(shared.bound, lines)
    pages = [report["page"] for report in document["reports"]]
    assert pages == [0, 1, None, None]
    assert [page["pfn"] for page in document["pages"]] == [shared.head + 5, 0x1005]


# The sample of 7.1.3 that oopsed at boot


def test_sample_of_a_real_oops():
    """T14: a write to a shared tail page from boot, whose reference counts are 1."""
    log = read_log(str(SAMPLES / "debian-7.1-boot-oops.txt"))
    bound = hvo_of(open_target(str(SAMPLES / "debian-7.1-boot-oops.kdump")))
    document: Any = oops_document(bound, "core", log)
    (oops,) = document["oopses"]
    assert (oops["verdict"], oops["signature"]) == ("shared-tail-write", True)
    assert oops["defect"] == "boot-tail-refcount"
    assert (oops["order"], oops["slice"]["index_in_folio"]) == (18, 2)
    assert oops["words"] == ["_refcount"]
    assert oops["entry"]["same"] is True
    (report,) = document["reports"]
    assert {p["where"] for p in report["pointers"]} == {"RDX", "RDI"}
    assert report["defect"] == "boot-tail-refcount"
    alone = oops_document(None, "log", log)
    (oops,) = alone["oopses"]
    assert (oops["verdict"], oops["signature"]) == ("refcount-write-refused", None)
    (story,) = alone["stories"]
    assert (story["defect"], story["is_certain"]) == ("boot-tail-refcount", False)


# Other architectures


def arch(name):
    return hvo_of(open_target(str(core_path(f"arch/{name}")))), truth(f"arch/{name}")


@pytest.mark.parametrize("mapped", [False, True])
def test_arm64(mapped):
    bound, known = arch("arm64")
    head, count = known["huge"][0]
    address = bound.vmemmap.page_address(head + count - 1)
    lines = arm64_fault(
        address + 52, write=True, mapped=mapped, release=bound.kernel.release
    )
    document = explain(bound, lines)
    (oops,) = document["oopses"]
    assert (oops["pfn"], oops["offset"]) == (head + count - 1, 52)
    assert (oops["access"], oops["protection"]) == ("write", mapped)
    assert oops["words"] == ["_refcount"]
    # This kernel has no HVO: nobody took the right to write there.
    assert oops["signature"] is not True
    (report,) = document["reports"]
    assert report["pointers"][0]["pfn"] == head + count - 1
    assert document["pages"][0]["head_pfn"] == head


def test_riscv64():
    bound, known = arch("riscv64-sv39")
    head, count = known["huge"][0]
    address = bound.vmemmap.page_address(head + count - 1)
    lines = riscv_fault(address + 52, cause=15, release=bound.kernel.release)
    document = explain(bound, lines)
    (oops,) = document["oopses"]
    assert (oops["pfn"], oops["access"]) == (head + count - 1, "write")
    # Its shared tails are writable: no write to them is ever refused.
    assert oops["signature"] is not True
    assert document["pages"][0]["head_pfn"] == head


# The command line


def test_command():
    core = SAMPLES / "debian-7.1-boot-oops.kdump"
    log = core.with_suffix(".txt")
    shown = run("page", core, "--oops", log)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "boot-tail-refcount" in shown.stdout
    document = json.loads(run("page", core, "--oops", log, "--json").stdout)
    jsonschema.validate(document, load_schema("page"))
    assert document["pages"][0]["head_pfn"] == document["oopses"][0]["head_pfn"]


def test_notations():
    """L1 and L2: as the kernel and crash print them, and never another page."""
    sample = SAMPLES / "debian-7.2.kdump"
    shown = run("page", sample, "pfn:04600")
    assert (shown.returncode, shown.stderr) == (0, "")
    (line,) = (x for x in shown.stdout.splitlines() if x.startswith("PFN  "))
    assert line.startswith("PFN          17920 (0x4600)")
    assert "hexadecimal" in line
    check_refused(run("page", sample, "pfn:10840"), "10840", "67648", "pfn:0x10840")
    check_refused(run("map", sample, "pfn:10840"), "10840", "67648")
    pages = json.loads(run("page", sample, "pfn:04600", "17920", "--json").stdout)
    first, second = pages["pages"]
    assert first["read_as"] is not None
    assert second["read_as"] is None
    address = first["page"][2:]
    by_address = json.loads(run("page", sample, f"page:{address}", "--json").stdout)
    assert by_address["pages"][0]["pfn"] == 0x4600
    check_refused(run("page", sample, "page:000000003a1b2c3d"), "hash")
