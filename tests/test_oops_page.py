# SPDX-License-Identifier: LGPL-2.1-or-later

"""
From an oops to the folio
-------------------------

Addresses and frames are those of the ground truth or of the description of a synthetic
core.
"""

from functools import cache
import json
import os
from pathlib import Path
import re
import subprocess
import sys
from typing import Any

import drgn
from drgn.helpers.linux.printk import get_dmesg
from hypothesis import given, strategies as st
import jsonschema
import pytest

from drgn_hvo.audit.page_faults import VERDICTS, Facts, PlaceInFolio
from drgn_hvo.commands.oops import oops_document
from drgn_hvo.commands.oops_text import print_oopses
from drgn_hvo.commands.schema import load_schema
from drgn_hvo.formats.fault_text import FailedAccess
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.mapping import SliceMapping
from drgn_hvo.memmap.shared_tails import SharedTail
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.cores import CORES, core_path, open_core, truth
from tests.oops_support import PROT, WRITE, parse, text
from tests.overlay import without_symbols
from tests.synth_support import ALL, describe

ROOT = Path(__file__).resolve().parents[1]

# Verdicts


@cache
def page_schema():
    """Checked once; jsonschema.validate() checks the schema itself each time."""
    schema = load_schema("page")
    found = jsonschema.validators.validator_for(schema)
    found.check_schema(schema)
    return found(schema)


def explain(bound, *oopses, **changes):
    release = changes.pop("release", bound.kernel.release)
    log = "".join(text(a, c, release=release, **changes) for a, c in oopses)
    document = oops_document(bound, "core", parse(log))
    page_schema().validate(document)
    print_oopses(document)
    return document


def explain_one(bound, address, code, **changes):
    return explain(bound, (address, code), **changes)["oopses"][0]


HVO_GENERATIONS = [g for g in GENERATIONS if g.can_optimize]
FAKE = [g.name for g in HVO_GENERATIONS if g.fake_heads]
SHARED = [g.name for g in HVO_GENERATIONS if g.shared]


class Synthetic:
    """A synthetic core, and where it put things."""

    def __init__(self, name, faults=()):
        self.machine, _ = make_machine(describe(name), faults)
        self.prog = program(self.machine)
        self.bound = hvo_of(self.prog)
        self.size = self.machine.plan.generation.struct_page_size

    def address(self, pfn, byte=0):
        return self.machine.plan.space.page_address(pfn) + byte

    def folios(self, **group):
        """The first folio of each group of huge pages that is so."""
        return [
            placed.first_pfn
            for placed in self.machine.plan.huge
            if all(getattr(placed.group, k) == v for k, v in group.items())
        ]

    def optimized(self):
        return next(p.first_pfn for p in self.machine.plan.huge if p.optimized)

    def entry(self, pfn, slice_=0):
        """The entry of a slice of a folio, straight from memory."""
        return self.prog.read_u64(self.machine.slice_entry(pfn, slice_), physical=True)

    def tail_frames(self):
        return {tail.pfn for tail in self.machine.vmemmap.tails}


@cache
def healthy(name):
    """One that nobody changes."""
    return Synthetic(name)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("slice_", [1, 2, 7])
def test_write_to_a_shared_tail(name, slice_):
    core = healthy(name)
    head = core.optimized()
    pfn = head + 64 * slice_ + 5
    entry = core.entry(head, slice_)
    oops = explain_one(core.bound, core.address(pfn, 8), 3, entries=(1, 2, 3, 4, entry))
    assert (oops["verdict"], oops["signature"]) == ("shared-tail-write", True)
    assert (oops["pfn"], oops["offset"]) == (pfn, 8)
    assert oops["words"][0] == core.machine.plan.generation.tail_word
    assert oops["head_pfn"] == head
    assert oops["order"] == 9
    assert oops["slice"]["index_in_folio"] == slice_
    assert oops["slice"]["writable"] is False
    assert oops["tail"]["pfn"] in core.tail_frames()
    assert oops["tail"]["pfn"] == oops["slice"]["frame"] == oops["entry"]["frame"]
    assert oops["entry"]["same"] is True


@pytest.mark.parametrize("name", FAKE)
@pytest.mark.parametrize("slice_", [1, 7])
def test_write_to_a_copy_of_the_head(name, slice_):
    core = healthy(name)
    head = core.optimized()
    pfn = head + 64 * slice_ + 1
    oops = explain_one(core.bound, core.address(pfn, 52), 3)
    assert (oops["verdict"], oops["signature"]) == ("head-copy-write", True)
    assert oops["head_pfn"] == head
    assert oops["slice"]["index_in_folio"] == slice_
    assert oops["tail"] is None
    assert oops["words"][0] == "_refcount"
    frame = core.machine.page_physical(head) >> 12
    assert oops["slice"]["frame"] == frame


@pytest.mark.parametrize("name", [*SHARED, *FAKE])
def test_head_is_writable(name):
    """The first slice of an optimized folio: no write to it can have been refused."""
    core = healthy(name)
    oops = explain_one(core.bound, core.address(core.optimized() + 3), 3)
    assert (oops["verdict"], oops["signature"]) == ("writable-now", None)


@pytest.mark.parametrize("name", ALL)
def test_page_without_hvo(name):
    core = healthy(name)
    (head,) = core.folios(node=1, zone="DMA32", optimized=False)
    oops = explain_one(core.bound, core.address(head + 200), 3)
    assert (oops["verdict"], oops["signature"]) == ("writable-now", None)


@pytest.mark.parametrize("name", SHARED)
def test_restored_since(name):
    """Shared tail pages are never freed: the entry in the oops still names one."""
    core = healthy(name)
    (head,) = core.folios(origin="restored")
    tail = next(t for t in core.machine.vmemmap.tails if t.nid == 0 and t.order == 9)
    entry = tail.pfn << 12 | 0x8000000000000121
    oops = explain_one(
        core.bound, core.address(head + 64), 3, entries=(1, 2, 3, 4, entry)
    )
    assert (oops["verdict"], oops["signature"]) == ("shared-tail-write", True)
    assert oops["entry"]["same"] is False
    assert oops["slice"]["writable"] is True
    assert oops["head_pfn"] == head


def test_shared_tail_that_is_writable():
    """Damage: then no write to it faults, and what refused it is not known."""
    core = Synthetic("shared-7.3", ["pte-writable"])
    runs = core.bound.vmemmap.runs
    frames = core.tail_frames()
    damaged = [
        int(va) for va, pfn, w in zip(runs.va, runs.pfn, runs.writable)
        if w and int(pfn) in frames
    ]  # fmt: skip
    oops = explain_one(core.bound, damaged[0] + 8, 3)
    assert (oops["verdict"], oops["signature"]) == ("writable-now", None)


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12", "plain-7.2"])
@pytest.mark.parametrize(
    ("code", "verdict", "signature"),
    [
        (0x00, "mapped-since", False),
        (0x02, "mapped-since", False),
        (0x01, "read-refused", False),
        (0x05, "user-access", False),
        (0x07, "user-access", False),
        (0x09, "reserved-bit", False),
        (0x0B, "reserved-bit", False),
        (0x10, "instruction-fetch", False),
        (0x11, "instruction-fetch", False),
    ],
)
def test_other_faults(name, code, verdict, signature):
    """At the very address where a write would be illegal."""
    core = healthy(name)
    oops = explain_one(core.bound, core.address(core.folios()[0] + 70), code)
    assert (oops["verdict"], oops["signature"]) == (verdict, signature)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("code", "verdict", "signature"),
    [(0, "no-struct-page", False), (2, "no-struct-page", False),
     (3, "unmapped-since", None)],
)  # fmt: skip
def test_no_struct_page(name, code, verdict, signature):
    core = healthy(name)
    # Node 0 of the description ends where node 1 begins; all memory at 512 MiB.
    pfn = 0x1000000
    document = explain(core.bound, (core.address(pfn), code))
    (oops,) = document["oopses"]
    assert (oops["verdict"], oops["signature"]) == (verdict, signature)
    assert oops["pfn"] == pfn
    assert oops["page"] is None
    assert document["pages"] == []


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("code", [0, 2, 3, 0x10])
def test_not_in_vmemmap(name, code):
    core = healthy(name)
    space = core.machine.plan.space
    for address in (8, space.page_offset + 4096, space.vmemmap - 8, (1 << 64) - 8):
        oops = explain_one(core.bound, address, code)
        assert (oops["verdict"], oops["signature"]) == ("not-vmemmap", None)
        assert oops["pfn"] is None
        assert oops["slice"] is None


@pytest.mark.parametrize("name", SHARED)
def test_entry_of_another_frame(name):
    core = healthy(name)
    head = core.optimized()
    entry = 0x3FFF << 12 | 0x8000000000000121
    oops = explain_one(
        core.bound, core.address(head + 64), 3, entries=(1, 2, 3, 4, entry)
    )
    assert (oops["verdict"], oops["signature"]) == ("entry-changed", None)
    assert oops["entry"]["same"] is False


def test_other_boot():
    core = Synthetic("shared-7.3")
    address = core.address(core.optimized() + 64)
    release = core.bound.kernel.release
    oops = explain_one(core.bound, address, 3, release="7.2.12-other")
    assert (oops["verdict"], oops["signature"]) == ("other-boot", None)
    assert "7.2.12-other" in oops["not_this_boot"]
    assert oops["pfn"] is None
    offset = core.bound.kernel.vmcoreinfo.integer("KERNELOFFSET", 16)
    assert offset is not None
    said = "Kernel Offset: 0x{:x} from 0xffffffff81000000 (relocation range: …)\n"
    for at, verdict in ((offset, "shared-tail-write"), (offset + 4096, "other-boot")):
        log = text(address, 3, release=release) + said.format(at)
        document = oops_document(core.bound, "core", parse(log))
        assert document["oopses"][0]["verdict"] == verdict


def test_garbled():
    core = Synthetic("shared-7.3")
    address = core.address(core.optimized() + 64)
    oops = explain_one(core.bound, address, 3, words=0)
    assert (oops["verdict"], oops["signature"]) == ("garbled", None)


def test_without_an_error_code():
    core = Synthetic("shared-7.3")
    address = core.address(core.optimized() + 64)
    log = f"BUG: unable to handle page fault for address: {address:016x}\n"
    document: Any = oops_document(core.bound, "core", parse(log))
    (oops,) = document["oopses"]
    assert (oops["verdict"], oops["signature"]) == ("no-error-code", None)
    assert oops["access"] is oops["error_code"] is oops["protection"] is None
    assert oops["slice"]["writable"] is False


def test_entry_of_a_large_page():
    """The kernel stops at an entry that maps 2 MiB."""
    core = Synthetic("plain-7.2")
    runs = core.bound.vmemmap.runs
    large = next(i for i in range(len(runs)) if runs.level[i] == 1)
    address = int(runs.va[large]) + 5 * 4096 + 8
    entry = core.prog.read_u64(
        core.machine.tables.entry(address & -(2 << 20), 1), physical=True
    )
    oops = explain_one(core.bound, address, 3, entries=(1, 2, 3, entry))
    assert oops["entry"]["level"] == "PMD"
    assert oops["entry"]["same"] is True
    assert oops["entry"]["frame"] == int(runs.pfn[large]) + 5


@pytest.mark.parametrize("name", ALL)
def test_words_are_those_of_the_types(name):
    """Every byte, against the offsets that drgn finds by name."""
    core = healthy(name)
    page = core.prog.type("struct page")
    head = core.folios()[0]
    oopses = [(core.address(head + 1, byte), 2) for byte in range(core.size)]
    for byte, oops in enumerate(explain(core.bound, *oopses)["oopses"]):
        assert oops["offset"] == byte
        for word in oops["words"]:
            first = drgn.offsetof(page, word)
            assert first <= byte < first + drgn.sizeof(page.member(word).type)
    refcount = drgn.offsetof(page, "_refcount")
    assert oopses[refcount][0] == core.address(head + 1) + refcount


def test_every_verdict_is_in_the_guide():
    guide = (ROOT / "docs" / "oops.md").read_text()
    told = re.findall(r"^\| `([a-z-]+)` \| (yes|no|\?) \|", guide, re.MULTILINE)
    words = {True: "yes", False: "no", None: "?"}
    assert dict(told) == {v.name: words[v.signature] for v in VERDICTS}


def test_every_verdict_is_in_the_schema():
    schema = load_schema("page")
    known = schema["properties"]["oopses"]["items"]["properties"]["verdict"]["enum"]
    assert [verdict.name for verdict in VERDICTS] == known


TAIL = SharedTail(
    nid=0, zone_index=1, index=2, order=9, slot=0, value=0, pfn=5, frame_nid=0,
    frame_refcount=1, boot=False, mapped_by=7,
)  # fmt: skip


@given(
    code=st.integers(0, 31),
    mapped=st.sampled_from([None, False, True]),
    writable=st.booleans(),
    index=st.integers(0, 8),
    has_tail=st.booleans(),
)
def test_only_refused_writes_have_the_signature(
    code, mapped, writable, index, has_tail
):
    """The definition, against the whole table."""
    facts = Facts(
        FailedAccess(
            0xFFEA000000000000, code, code & ~PROT, is_mapped=bool(code & PROT)
        ),
        None,
        True,
        mapped,
        SliceMapping(5, writable, 0) if mapped else None,
        None,
        TAIL if has_tail and mapped else None,
        PlaceInFolio(0, 9, index) if mapped else None,
    )
    verdict = next(verdict for verdict in VERDICTS if verdict.holds(facts))
    illegal = code == PROT | WRITE and bool(mapped) and not writable and index >= 1
    assert (verdict.signature is True) == illegal


# Real cores


@pytest.mark.parametrize("name", CORES)
def test_real_core(name):
    """Each kind of fault that the ground truth can tell of."""
    known = truth(name)
    bound = hvo_of(open_target(str(core_path(name))))
    base = int(known["vmemmap_base"], 0)
    fake = not any(
        zone_or_node.get("vmemmap_tails")
        for node in known["nodes"]
        for zone_or_node in [node, *node.get("zones", ())]
    )
    for folio in known["folios"][:4] + known["folios"][-4:]:
        run = folio["vmemmap_runs"][1]
        slice_ = run["first"] + run["count"] - 1
        address = base + folio["pfn"] * 64 + slice_ * 4096 + 64 + 52
        prog = bound.kernel.prog
        pte = int(folio["pte_phys"]["second_pte"], 0) + 8 * (slice_ - 1)
        value = prog.read_u64(pte, physical=True) if slice_ < 512 else None
        entries = (1, 2, 3, 4) if value is None else (1, 2, 3, 4, value)
        oops = explain_one(bound, address, 3, entries=entries)
        expected = "head-copy-write" if fake else "shared-tail-write"
        assert oops["verdict"] == expected
        assert oops["signature"] is True
        assert oops["head_pfn"] == folio["pfn"]
        assert oops["order"] == folio["order"]
        assert oops["slice"]["index_in_folio"] == slice_
        assert oops["slice"]["frame"] == run["pfn"]
        assert oops["words"][0] == "_refcount"
        if value is not None:
            assert oops["entry"]["same"] is True
            assert oops["entry"]["frame"] == run["pfn"]
        head = explain_one(bound, base + folio["pfn"] * 64 + 52, 3)
        assert head["verdict"] == "writable-now"
        assert head["slice"]["frame"] == folio["vmemmap_runs"][0]["pfn"]


@pytest.mark.parametrize("name", ["7.2-2node", "6.12-2node"])
def test_without_types(name):
    """What tells tails apart is not known then; what was attempted still is."""
    base = open_core(name)
    bound = hvo_of(without_symbols(base))
    assert not bound.kernel.has_types
    known = truth(name)
    folio = known["folios"][0]
    address = int(known["vmemmap_base"], 0) + folio["pfn"] * 64 + 4096 + 52
    oops = explain_one(bound, address, 3)
    assert oops["signature"] is not False
    assert oops["slice"]["writable"] is False
    assert oops["slice"]["frame"] == folio["vmemmap_runs"][1]["pfn"]
    assert oops["words"] == ["_refcount"]
    assert explain_one(bound, address, 0x10)["verdict"] == "instruction-fetch"


# The command line


def run(*args, **kwargs):
    command = [sys.executable, "-m", "drgn_hvo", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **kwargs
    )


SAMPLE = ROOT / "sample_vmcores" / "shared-7.3.kdump"


def sample_log():
    prog = open_target(str(SAMPLE))
    bound = hvo_of(prog)
    folios = bound.hugetlb.folios
    head = int(folios.head_pfn[bound.hugetlb.optimized_mapping][0])
    address = bound.vmemmap.page_address(head + 100)
    return text(address, 3, release=bound.kernel.release)


def test_command(tmp_path):
    path = tmp_path / "dmesg"
    path.write_text(sample_log())
    shown = run("page", SAMPLE, "--oops", path)
    assert shown.returncode == 0
    assert "shared-tail-write" in shown.stdout
    assert shown.stderr == ""
    from_stdin = run("page", SAMPLE, "--oops", "-", input=sample_log())
    assert from_stdin.stdout == shown.stdout
    document = json.loads(run("page", SAMPLE, "--oops", path, "--json").stdout)
    jsonschema.validate(document, load_schema("page"))
    (oops,) = document["oopses"]
    assert document["pages"][oops["page"]]["pfn"] == oops["pfn"]


def test_pages_json_is_what_the_schema_says():
    document = json.loads(run("page", SAMPLE, "0", "1", "--json").stdout)
    jsonschema.validate(document, load_schema("page"))


@pytest.mark.parametrize(
    "args",
    [
        [SAMPLE, "5", "--json"],
        [SAMPLE, "--json", "5"],
        ["--json", SAMPLE, "5"],
        [SAMPLE, "5", "6", "--json"],
        [SAMPLE, "--json", "5", "6"],
    ],
)
def test_options_may_stand_anywhere(args):
    pages = json.loads(run("page", *args).stdout)["pages"]
    expected = [int(arg) for arg in args if arg in ("5", "6")]
    assert [page["pfn"] for page in pages] == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--help"),
        (["--json"], "--help"),
        (["5", "--oops", "x"], "--help"),
        (["--oops", "no-such-log"], "No such file"),
        (["--oops", "/"], "directory"),
        (["--oops", os.devnull], "unable to handle page fault"),
        (["--oops", SAMPLE], "unable to handle page fault"),
    ],
)
def test_refused(args, words):
    result = run("page", SAMPLE, *args)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


@pytest.mark.parametrize("name", CORES)
def test_log_of_the_core(name):
    """Without debuginfo, drgn's helper finds the log to read an oops from."""
    log = get_dmesg(open_target(str(core_path(name))))
    assert truth(name)["release"].encode() in log
