# SPDX-License-Identifier: LGPL-2.1-or-later

"""
From an oops to the folio
-------------------------

The texts are made here from the kernel's own format strings; addresses and frames
are those of the ground truth or of the description of a synthetic core.
"""

import io
import json
import os
from pathlib import Path
import re
import subprocess
import sys
from types import SimpleNamespace

import drgn
from drgn.helpers.linux.printk import get_dmesg
from hypothesis import given, strategies as st
import jsonschema
import pytest

from drgn_hvo.errors import FormatError, HvoError, UsageError
from drgn_hvo.hvo import hvo
from drgn_hvo.oops import Oops, parse_log, read_log
from drgn_hvo.report.oops import VERDICTS, Facts, Place, oops_document, print_oopses
from drgn_hvo.schema import load_schema
from drgn_hvo.synth.containers import program
from drgn_hvo.synth.faults import make_machine
from drgn_hvo.synth.generations import GENERATIONS
from drgn_hvo.tails import SharedTail
from drgn_hvo.target import open_target
from drgn_hvo.vmemmap import Mapping
from tests.cores import CORES, core_path, open_core, truth
from tests.overlay import Overlay, vmcoreinfo_text
from tests.synth_support import ALL, describe

ROOT = Path(__file__).resolve().parents[1]

PROT, WRITE, USER, RSVD, FETCH = 1, 2, 4, 8, 16

RELEASE = "7.2.13+deb14-cloud-amd64"


def levels(entries):
    """As dump_pagetable() prints them: pr_info("PGD %lx "), pr_cont("P4D %lx ")…"""
    names = ("PGD", "P4D", "PUD", "PMD", "PTE")
    return " ".join(f"{n} {v:x}" for n, v in zip(names, entries))


def oops_lines(address, code, entries=(0x1067, 0x1067, 0x2067, 0x3063), **changes):
    """show_fault_oops(), __die_header(), dump_stack_print_info(), show_ip()."""
    say = {"release": RELEASE, "comm": "memhog", "pid": 412, "words": code, **changes}
    words = say["words"]
    if address < 4096:
        yield f"BUG: kernel NULL pointer dereference, address: {address:016x}"
    else:
        yield f"BUG: unable to handle page fault for address: {address:016x}"
    yield "#PF: {} {} in {} mode".format(
        "user" if words & USER else "supervisor",
        "instruction fetch"
        if words & FETCH
        else "write access"
        if words & WRITE
        else "read access",
        "kernel",
    )
    yield "#PF: error_code(0x{:04x}) - {}".format(
        code,
        "not-present page"
        if not code & PROT
        else "reserved bit violation"
        if code & RSVD
        else "permissions violation",
    )
    yield levels(entries) + " "
    yield f"Oops: Oops: {code & 0xFFFF:04x} [#1] SMP NOPTI"
    yield (
        f"CPU: 1 UID: 0 PID: {say['pid']} Comm: {say['comm']:.20s} Kdump: loaded "
        f"Not tainted {say['release']} #1 PREEMPT(lazy)  Debian 7.2.13-1"
    )
    yield "Hardware name: QEMU Standard PC (i440FX + PIIX, 1996)"
    yield "RIP: 0010:folio_try_get+0x1c/0x60 [badmod]"
    yield "Code: 0f 1f 44 00 00 48 8b 47 08 <f0> 0f c1 07"
    yield "RSP: 0018:ffffc90000123d50 EFLAGS: 00010286"
    yield "Call Trace:"
    yield " <TASK>"
    yield " do_syscall_64+0x5f/0x130"
    yield "RIP: 0033:0x7f0a12345678"
    yield f"CR2: {address:016x}"
    yield "---[ end trace 0000000000000000 ]---"


def text(address, code, **changes):
    return "\n".join(oops_lines(address, code, **changes)) + "\n"


def parse(log):
    return parse_log(log.splitlines())


# The parser


def test_what_is_read():
    (oops,) = parse(text(0xFFEA000001234574, 3)).oopses
    assert oops.line == 1
    assert oops.address == 0xFFEA000001234574
    assert oops.error_code == 3
    assert oops.entries == (
        ("PGD", 0x1067),
        ("P4D", 0x1067),
        ("PUD", 0x2067),
        ("PMD", 0x3063),
    )
    assert oops.ip == "folio_try_get+0x1c/0x60 [badmod]"
    assert (oops.pid, oops.comm, oops.release) == (412, "memhog", RELEASE)
    assert oops.kernel_offset is None
    assert not oops.is_garbled


# Of a stock Debian kernel in QEMU, whose getpid() a debugger had changed to write to a
# tail: the parts of the serial log that concern us, to the letter.
REAL = """\
[   24.533631] BUG: unable to handle page fault for address: ffffea0000152174\r
[   24.537000] #PF: supervisor write access in kernel mode\r
[   24.537209] #PF: error_code(0x0003) - permissions violation\r
[   24.537464] PGD 1ff4e067 P4D 1ff4e067 PUD 1ff4d067 PMD 477e067 PTE 800000000477f121\r
[   24.538432] Oops: Oops: 0003 [#1] SMP NOPTI\r
[   24.539026] CPU: 0 UID: 0 PID: 94 Comm: init Not tainted \
7.2.13+deb14-cloud-amd64 #1 PREEMPT(lazy)  Debian 7.2.13-1 \r
[   24.539807] RIP: 0010:__do_sys_getpid+0x0/0x30\r
[   24.541032] RSP: 0018:ffffc900005e3c60 EFLAGS: 00000202\r
[   24.541146] RAX: ffffffffffffffff RBX: ffff888007924600 RCX: 00000000539f5af8\r
[   24.542162] CR2: ffffea0000152174 CR3: 0000000007b52000 CR4: 0000000000750ef0\r
[   24.542540] Call Trace:\r
[   24.543158]  <TASK>\r
[   24.543334]  do_syscall_64+0xe1/0x610\r
[   24.545956] RIP: 0033:0x444149\r
[   24.547429]  </TASK>\r
[   24.547545] Modules linked in: qemu_fw_cfg\r
[   24.547828] CR2: ffffea0000152174\r
[   24.548088] ---[ end trace 0000000000000000 ]---\r
[   24.548330] RIP: 0010:__do_sys_getpid+0x0/0x30\r
[   24.550049] note: init[94] exited with irqs disabled\r
"""


def test_real_text():
    (oops,) = parse(REAL).oopses
    assert oops == Oops(
        line=1,
        address=0xFFFFEA0000152174,
        error_code=3,
        access=WRITE,
        entries=(
            ("PGD", 0x1FF4E067),
            ("P4D", 0x1FF4E067),
            ("PUD", 0x1FF4D067),
            ("PMD", 0x477E067),
            ("PTE", 0x800000000477F121),
        ),
        ip="__do_sys_getpid+0x0/0x30",
        pid=94,
        comm="init",
        release=RELEASE,
    )


PREFIXES = [
    "[   12.345678] ",
    "<1>[   12.345678] ",
    "[   12.345678][  T412] ",
    "<1>",
    "Nov 23 06:42:01 host kernel: ",
    "2026-11-23T06:42:01,123456+00:00 host kernel: ",
    "[Mon Nov 23 06:42:01 2026] ",
    "\x1b[31m[   12.345678] ",
    "kern  :alert : [   12.345678] ",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\x1b[0m\n"])
def test_prefixes_and_line_ends(tmp_path, prefix, end):
    path = tmp_path / "log"
    lines = oops_lines(0xFFFFEA0004057FF4, 3, entries=(1, 2, 3, 4, 0x8000000001D5F161))
    path.write_bytes("".join(prefix + line + end for line in lines).encode())
    (oops,) = read_log(str(path)).oopses
    assert oops.address == 0xFFFFEA0004057FF4
    assert oops.error_code == 3
    assert dict(oops.entries)["PTE"] == 0x8000000001D5F161
    assert oops.pid == 412
    assert oops.comm == "memhog"
    assert oops.release == RELEASE


def test_pieces_of_a_line_apart():
    """pr_cont() of one processor, and lines of another in between."""
    first, access, code, tables, *rest = oops_lines(
        0xFFEA000000000034, 3, entries=(1, 2, 3, 4, 5)
    )
    pieces = tables.split(" ")
    pairs = [" ".join(pair) for pair in zip(pieces[::2], pieces[1::2])]
    noise = "usb 1-1: new device, PTEs 12"
    lines = [first, noise, access, code, pairs[0], noise, *pairs[1:], *rest]
    (oops,) = parse_log(lines).oopses
    assert [value for _, value in oops.entries] == [1, 2, 3, 4, 5]


def test_several_in_one_log():
    addresses = [0xFFEA000000000034, 0x8, 0xFFEA000000100008]
    codes = [3, 0, 0x10]
    noise = "systemd[1]: Started something.\n"
    log = noise.join(text(a, c) for a, c in zip(addresses, codes))
    oopses = parse(log).oopses
    assert [o.address for o in oopses] == addresses
    assert [o.error_code for o in oopses] == codes
    lines = log.splitlines()
    assert ["BUG:" in lines[o.line - 1] for o in oopses] == [True] * 3


def test_nothing_is_taken_from_behind_the_end():
    log = text(0xFFEA000000000034, 3).split("RIP: 0010")[0]
    log += "---[ end trace 0000000000000000 ]---\nRIP: 0010:other+0x0/0x10\n"
    assert parse(log).oopses[0].ip is None


def test_error_code_of_the_die_line():
    log = text(0xFFEA000000000034, 3)
    log = "\n".join(line for line in log.splitlines() if "error_code" not in line)
    assert parse(log).oopses[0].error_code == 3


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 7, 9, 0xB, 0x10, 0x11, 0x13, 0x15])
def test_words_and_code_agree(code):
    assert not parse(text(0xFFEA000000000034, code)).oopses[0].is_garbled


@pytest.mark.parametrize(("code", "words"), [(3, 0), (1, 2), (3, 16), (16, 2), (3, 6)])
def test_words_and_code_contradict(code, words):
    assert parse(text(0xFFEA000000000034, code, words=words)).oopses[0].is_garbled


def test_offset_belongs_to_its_boot():
    boot = "Linux version 7.2.13+deb14-cloud-amd64 (debian-kernel@lists.debian.org)\n"
    one = text(0xFFEA000000000034, 3)
    panic = (
        "Kernel panic - not syncing: Fatal exception\n"
        "Kernel Offset: 0x{:x} from 0xffffffff81000000 (relocation range: "
        "0xffffffff80000000-0xffffffffbfffffff)\n"
    )
    log = boot + one + one + panic.format(0x1F000000)
    log += boot + one + panic.format(0x3000000)
    log += boot + one + boot + one + "Kernel Offset: disabled\n"
    offsets = [oops.kernel_offset for oops in parse(log).oopses]
    assert offsets == [0x1F000000, 0x1F000000, 0x3000000, None, 0]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "no 'BUG"),
        ("hello\n" * 10, "no 'BUG"),
        (
            "Unable to handle kernel paging request at virtual address "
            "ffffc1ffc0072134\n",
            "x86-64",
        ),
        ("BUG: unable to handle kernel paging request at ffff893e40000000\n", "5.2"),
        ("BUG: unable to handle page fault for address: ffea00\n", "16"),
        ("BUG: unable to handle page fault for address: 00000000f0001234f\n", "16"),
        (
            "Oops: general protection fault, probably for non-canonical address 0xdead",
            "no 'BUG",
        ),
    ],
)
def test_not_understood(log, words):
    with pytest.raises(FormatError, match=words):
        parse(log)


def test_not_understood_beside_others():
    log = "Unable to handle kernel paging request at virtual address 0\n"
    log += text(0xFFEA000000000034, 3)
    parsed = parse(log)
    assert len(parsed.oopses) == 1
    assert parsed.oopses[0].line == 2
    assert len(parsed.not_understood) == 1
    assert "line 1" in parsed.not_understood[0]


LINES = [
    *oops_lines(0xFFEA000000000034, 3),
    "Linux version 7.2.13",
    "Kernel Offset: 0x1 from 0x2",
    "Unable to handle kernel paging request",
]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(LINES),
            st.text(max_size=40),
            st.builds(
                lambda line, at, new: line[: at % len(line)] + new + line[at:],
                st.sampled_from(LINES),
                st.integers(0, 100),
                st.text(max_size=5),
            ),
        ),
        max_size=30,
    )
)
def test_garbage(lines):
    """Whatever a log holds: reports that make sense, or one line that says why not."""
    try:
        log = parse_log(lines)
    except FormatError as e:
        error = str(e)
    else:
        error = ""
    assert "\n" not in error
    if error:
        return
    assert log.oopses
    for oops in log.oopses:
        assert 0 <= oops.address < 1 << 64
        assert "BUG:" in lines[oops.line - 1]
        for said in (oops.ip, oops.comm, oops.release):
            assert said is None or said.isprintable()
    numbers = [oops.line for oops in log.oopses]
    assert numbers == sorted(set(numbers))


@given(st.binary(max_size=300))
def test_garbage_bytes(data):
    stdin = SimpleNamespace(buffer=io.BytesIO(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        with pytest.raises(HvoError):
            read_log("-")


def test_no_such_log(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_log(str(tmp_path / "none"))


# Verdicts


def explain(bound, *oopses, **changes):
    release = changes.pop("release", bound.kernel.release)
    log = "".join(text(a, c, release=release, **changes) for a, c in oopses)
    document = oops_document(bound, "core", parse(log))
    jsonschema.validate(document, load_schema("page"))
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
        self.bound = hvo(self.prog)
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


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("slice_", [1, 2, 7])
def test_write_to_a_shared_tail(name, slice_):
    core = Synthetic(name)
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
    core = Synthetic(name)
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
    core = Synthetic(name)
    oops = explain_one(core.bound, core.address(core.optimized() + 3), 3)
    assert (oops["verdict"], oops["signature"]) == ("writable-now", None)


@pytest.mark.parametrize("name", ALL)
def test_page_without_hvo(name):
    core = Synthetic(name)
    (head,) = core.folios(node=1, zone="DMA32", optimized=False)
    oops = explain_one(core.bound, core.address(head + 200), 3)
    assert (oops["verdict"], oops["signature"]) == ("writable-now", None)


@pytest.mark.parametrize("name", SHARED)
def test_restored_since(name):
    """Shared tail pages are never freed: the entry in the oops still names one."""
    core = Synthetic(name)
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
    core = Synthetic(name)
    oops = explain_one(core.bound, core.address(core.folios()[0] + 70), code)
    assert (oops["verdict"], oops["signature"]) == (verdict, signature)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("code", "verdict", "signature"),
    [(0, "no-struct-page", False), (2, "no-struct-page", False),
     (3, "unmapped-since", None)],
)  # fmt: skip
def test_no_struct_page(name, code, verdict, signature):
    core = Synthetic(name)
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
    core = Synthetic(name)
    space = core.machine.plan.space
    for address in (8, space.page_offset + 4096, space.vmemmap - 8, (1 << 64) - 8):
        oops = explain_one(core.bound, address, code)
        assert (oops["verdict"], oops["signature"]) == ("not-vmemmap", None)
        assert oops["pfn"] is None
        assert oops["slice"] is None


@pytest.mark.parametrize("name", SHARED)
def test_entry_of_another_frame(name):
    core = Synthetic(name)
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
    (oops,) = oops_document(core.bound, "core", parse(log))["oopses"]
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
    core = Synthetic(name)
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
        Oops(1, 0xFFEA000000000000, code),
        None,
        True,
        mapped,
        Mapping(5, writable, 0) if mapped else None,
        None,
        TAIL if has_tail and mapped else None,
        Place(0, 9, index) if mapped else None,
    )
    verdict = next(verdict for verdict in VERDICTS if verdict.holds(facts))
    illegal = code == PROT | WRITE and bool(mapped) and not writable and index >= 1
    assert (verdict.signature is True) == illegal


# Real cores


@pytest.mark.parametrize("name", CORES)
def test_real_core(name):
    """Each kind of fault that the ground truth can tell of."""
    known = truth(name)
    bound = hvo(open_target(str(core_path(name))))
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
    lines = vmcoreinfo_text(base).splitlines(keepends=True)
    note = "".join(line for line in lines if "kallsyms" not in line)
    bound = hvo(Overlay(base, note.encode()).prog)
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
    command = [sys.executable, "-m", "drgn_hvo.cli", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **kwargs
    )


SAMPLE = ROOT / "sample_vmcores" / "shared-7.3.kdump"


def sample_log():
    prog = open_target(str(SAMPLE))
    bound = hvo(prog)
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
