# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports about pages in logs
---------------------------

Texts are made from the kernel's format strings, or are real ones.
"""

from pathlib import Path
import time

import jsonschema
import pytest

from drgn_hvo.audit.page_faults import TELLING_TEXTS
from drgn_hvo.audit.page_reports import PAGE_VERDICTS
from drgn_hvo.commands.oops import oops_document
from drgn_hvo.commands.oops_text import print_oopses
from drgn_hvo.commands.schema import load_schema
from drgn_hvo.errors import FormatError
from drgn_hvo.formats.fault_text import PF_INSTR, PF_USER, PF_WRITE
from drgn_hvo.formats.oops_log import parse_log
from tests.log_support import (
    GPF_HINTS,
    HEAD,
    MASK_9,
    TAIL,
    TAIL_MAPPING,
    arm64_fault,
    bad_page_map,
    bad_page_state,
    dump_page,
    general_protection_fault,
    riscv_fault,
    struct_page_words,
)

ROOT = Path(__file__).resolve().parents[1]

PREFIXES = [
    "",
    "[   12.345678] ",
    "<4>[   12.345678] ",
    "[   12.345678][  T412] ",
    "Nov 23 06:42:01 host kernel: ",
    "2026-11-23T06:42:01,123456+00:00 host kernel: [   12.345678] ",
    "[Mon Nov 23 06:42:01 2026] ",
    "kern  :warn  : [   12.345678] ",
    "> > [   12.345678] ",
    "\x1b[33m[   12.345678] ",
]


def explain(lines, bound=None, **options):
    document = oops_document(bound, "log", parse_log(lines), **options)
    jsonschema.validate(document, load_schema("page"))
    print_oopses(document)
    return document


def only(lines, bound=None):
    document = explain(lines, bound)
    (report,) = document["reports"]
    return report


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("end", ["", "\r\n", "\x1b[0m\n"])
def test_bad_page_state_behind_any_prefix(prefix, end):
    lines = bad_page_state(
        0x4B40, TAIL, "corrupted mapping in tail page",
        calls=["free_unref_page"], order=9,
    )  # fmt: skip
    report = only([prefix + line + end for line in lines])
    assert report["form"] == "bad-page-state"
    assert report["pfn"] == 0x4B40
    assert report["reason"] == "corrupted mapping in tail page"
    assert (report["comm"], report["pid"]) == ("init", 1)
    assert report["release"] == "6.12.117+deb12-cloud-amd64"
    # Registers of user space and what was only found on the stack are not the kernel's.
    assert (report["ip"], report["pointers"]) == (None, [])
    assert report["calls"] == ["free_unref_page"]
    dump = report["dump"]
    assert [int(word, 16) for word in dump["words"]] == list(TAIL)
    assert [int(word, 16) for word in dump["head_words"]] == list(TAIL)
    assert (dump["kind"], dump["encoding"], dump["mask_order"]) == ("tail", "mask", 9)
    assert dump["head_pfn"] == 0x4A00
    assert dump["tail_mapping"] is True
    assert dump["order"] == 9
    assert dump["counts"]["pincount"] == 3
    assert dump["positions"] == {"node": 0, "zone": 2, "lastcpupid": 0x1FFFFF}


@pytest.mark.parametrize("form", ["new", "old", "6.7"])
def test_dump_page(form):
    lines = list(
        dump_page(
            0x12345, HEAD, form=form, order=9, refcount=3, mapcount=-1,
            names="locked|head|", kind="anon ", page_type="f4(hugetlb)",
            memcg=0xFF11000001234567, because="just so",
        )
    )  # fmt: skip
    report = only(lines)
    assert (report["form"], report["reason"]) == ("page-dump", "just so")
    assert report["pfn"] == 0x12345
    # What %p prints is a hash.
    assert report["address"] is None
    dump = report["dump"]
    assert (dump["refcount"], dump["mapcount"], dump["order"]) == (3, -1, 9)
    assert dump["flag_names"] == ["locked", "head"]
    assert dump["page_type"] == "hugetlb"
    assert dump["kind"] == "head"
    pins = [n for name, n in dump["counts"].items() if "pincount" in name]
    assert pins == [3]


def test_address_that_was_not_hashed():
    lines = [
        line.replace("page:000000003a1b2c3d", "page:ffffea0000114040")
        for line in dump_page(5, TAIL, form="old")
    ]
    assert only(lines)["address"] == "0xffffea0000114040"


def test_struct_page_of_another_size():
    """80 bytes, with KMSAN: no masks can be, and what looks as one is a pointer."""
    words = (*TAIL, 0, 0)
    (report,) = parse_log(dump_page(0x4B41, words)).reports
    assert report.dump is not None
    assert report.dump.struct_page_size == 80
    assert only(dump_page(0x4B41, words))["dump"]["mask_order"] is None


@pytest.mark.parametrize("kept", range(1, 16))
def test_truncated(kept):
    """A log that ends in the middle of a report, at any line, or within one."""
    lines = list(bad_page_state(0x4B40, TAIL, "nonzero mapcount", order=9))[:kept]
    report = only(lines)
    assert report["pfn"] == 0x4B40
    if kept > 1:
        lines[-1] = lines[-1][: len(lines[-1]) * 2 // 3]
    dump = only(lines)["dump"]
    words = [] if dump is None else [int(word, 16) for word in dump["words"]]
    assert words == list(TAIL[: len(words)])


def test_spaces_that_got_lost():
    """As web pages and mails show logs."""
    lines = bad_page_state(0x4B40, TAIL, "nonzero mapcount", order=9)
    report = only([" ".join(line.split()) for line in lines])
    assert (report["comm"], report["pfn"]) == ("init", 0x4B40)
    report = only([" ".join(line.split()) for line in bad_page_map(0x45A2, TAIL)])
    assert (report["comm"], report["pfn"]) == ("memhog", 0x45A2)


def test_lines_that_became_one():
    lines = list(bad_page_state(0x4B40, TAIL, "nonzero mapcount", order=9))
    first = next(i for i, line in enumerate(lines) if line.startswith("raw: "))
    lines[first : first + 4] = [" ".join(lines[first : first + 4])]
    dump = only(lines)["dump"]
    assert [int(word, 16) for word in dump["words"]] == list(TAIL)
    assert [int(word, 16) for word in dump["head_words"]] == list(TAIL)


def test_struct_page_without_memcg():
    report = only(bad_page_state(0x4B45, TAIL[:7], "nonzero mapcount"))
    assert len(report["dump"]["words"]) == 7
    assert report["verdict"] == "still-in-use"


def test_vm_bug_on():
    condition = "VM_BUG_ON_FOLIO(!folio_test_locked(folio))"
    lines = [
        *dump_page(0x4B41, TAIL, because=condition),
        "------------[ cut here ]------------",
        "kernel BUG at mm/filemap.c:1502!",
        "Oops: invalid opcode: 0000 [#1] SMP NOPTI",
        "CPU: 0 UID: 0 PID: 5 Comm: kswapd0 Not tainted 7.3.4 #1",
        "RIP: 0010:folio_unlock+0x3a/0x40",
        "RAX: 0000000000000000 RBX: ffffffffffff8001 RCX: 0000000000000000",
        "RDX: dead000000000400 RSI: ffffffffffe00000 RDI: fffffffffffff000",
        "Call Trace:",
        " shrink_folio_list+0x1/0x2",
    ]
    report = only(lines)
    assert (report["form"], report["verdict"]) == ("vm-bug-on", "debug-check")
    assert report["reason"] == condition
    assert report["check"].endswith("!folio_test_locked(folio)")
    assert report["ip"] == "folio_unlock+0x3a/0x40"
    # PAGE_MASK and PMD_MASK are no masks of tails.
    assert [(p["where"], p["text"]) for p in report["pointers"]] == [
        ("RBX", "the mask of a tail of order 9"),
        ("RDX", "TAIL_MAPPING, which mapping of a tail holds"),
    ]


@pytest.mark.parametrize("new", [False, True])
def test_bad_page_map(new):
    report = only(bad_page_map(0x45A2, TAIL, new=new))
    assert (report["form"], report["verdict"]) == ("bad-page-map", "bad-mapping")
    assert report["entry"] == {"level": "PTE", "value": "0x80000000045a2025"}
    assert report["pfn"] == 0x45A2
    assert report["comm"] == "memhog"


@pytest.mark.parametrize(
    ("line", "pfn", "reason"),
    [
        (
            "Memory failure: 0x3c05: recovery action for huge page: Recovered",
            0x3C05,
            "recovery action for huge page: Recovered",
        ),
        (
            "Memory failure: 0x3c05: Sending SIGBUS to init:1 due to hardware memory "
            "corruption",
            0x3C05,
            "Sending SIGBUS to init:1 due to hardware memory corruption",
        ),
        ("Injecting memory failure for pfn 0x3c05 at process virtual address "
         "0x7f0000000000", 0x3C05, "at process virtual address 0x7f0000000000"),
        ("soft offline: 0x3c05: thp split failed", 0x3C05, "thp split failed"),
        ("Soft offlining pfn 0x3c05 at process virtual address 0x7f0000000000",
         0x3C05, "at process virtual address 0x7f0000000000"),
        ("Unpoison: Software-unpoisoned page 0x3c05", 0x3C05, None),
        ("Unpoison: 0x3c05: software-unpoisoned page", 0x3C05,
         "software-unpoisoned page"),
    ],
)  # fmt: skip
def test_memory_failure(line, pfn, reason):
    report = only([f"[   13.045515] {line}"])
    assert (report["form"], report["verdict"]) == ("memory-failure", "memory-failure")
    assert (report["pfn"], report["reason"]) == (pfn, reason)


@pytest.mark.parametrize(
    ("line", "name", "pfn"),
    [
        # This one is printed in decimal.
        ("HugeTLB: unexpected refcount on PFN 19200", "unexpected-refcount", 19200),
        ("HugeTLB page can not be used due to unexpected inflated ref count",
         "inflated-refcount", None),
        ("HugeTLB unexpected inflated folio ref count", "inflated-refcount", None),
        ("hugetlb: Huge Page Reserved count may go negative.", "reserve-negative",
         None),
        ("HugeTLB: allocating 64 of page size 2.00 MiB failed.  Only allocated 3 "
         "hugepages.", "pool-not-filled", None),
        ("HugeTLB: freed 2 cross-zone hugepages of size 1.00 GiB on node 0.",
         "cross-zone", None),
        ("swapper/0: vmemmap alloc failure: order:0, mode:0xcc0", "vmemmap-allocation",
         None),
        ("[ffffea0000000000-ffffea0000000fff] potential offnode page_structs",
         "vmemmap-offnode", None),
        ("sparse_init_nid: node[0] memory map backing failed. Some memory will not be "
         "available.", "section-without-memmap", None),
    ],
)  # fmt: skip
def test_messages(line, name, pfn):
    report = only(["Linux version 7.3.4", f"[    1.045515] {line}"])
    assert (report["form"], report["verdict"], report["pfn"]) == (
        "hugetlb-warning",
        name,
        pfn,
    )


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: CPU: 0 PID: 1 at mm/hugetlb_vmemmap.c:210 vmemmap_remap+0x1/0x2",
        "WARNING: mm/hugetlb_vmemmap.c:210 at vmemmap_remap+0x1/0x2, CPU#0: init/1",
    ],
)
def test_warning(line):
    lines = [
        line,
        "RIP: 0010:vmemmap_remap_range+0x10/0x20",
        "RAX: 0000000000000000 RBX: ffffffffffff8001 RCX: 0000000000000000",
    ]
    report = only(lines)
    assert (report["form"], report["verdict"]) == ("kernel-warning", "check-failed")
    assert report["reason"] == "mm/hugetlb_vmemmap.c:210"
    assert [p["where"] for p in report["pointers"]] == ["RBX"]


@pytest.mark.parametrize("hint", GPF_HINTS)
@pytest.mark.parametrize(
    ("address", "verdict"),
    [
        (TAIL_MAPPING, "tail-mapping"),
        (TAIL_MAPPING + 0x68, "tail-mapping"),
        (0xDEAD000000000100, "list-poison"),
        (0xDEAD000000000108, "list-poison"),
        (0xDEAD000000000122, "list-poison"),
        (0xDEAD000000000600, "non-canonical"),
        (0xDEAD0000000003F8, "non-canonical"),
        (0x4141414141414141, "non-canonical"),
    ],
)
def test_general_protection_fault(hint, address, verdict):
    report = only(general_protection_fault(address, hint))
    assert (report["form"], report["verdict"]) == ("general-protection-fault", verdict)
    assert int(report["address"], 16) == address
    assert report["ip"] == "page_mapping+0x1c/0x60"


def test_general_protection_fault_without_an_address():
    report = only(general_protection_fault(None, registers=[("RAX", MASK_9)]))
    assert (report["verdict"], report["address"]) == ("non-canonical", None)
    assert [p["where"] for p in report["pointers"]] == ["RAX"]


def fault(lines):
    (report,) = parse_log(lines).reports
    return report.fault, report.crash


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_arm64(write, mapped):
    entries = (0x10000000424BB403, 0x424BA403, 0x424B9403, 0x424B8403, 0x60000043ACF783)
    lines = arm64_fault(0xFFFFFDFFC0072134, write=write, mapped=mapped, entries=entries)
    found, crash = fault(lines)
    assert found.address == 0xFFFFFDFFC0072134
    assert found.attempt == (PF_WRITE if write else 0)
    assert found.is_mapped is mapped
    assert tuple(value for _, value in found.entries) == entries
    assert crash.ip == "folio_try_get+0x1c/0x60"
    assert dict(crash.registers)["x28"] == 0xFFFFFDFFC0072100
    assert crash.release == "7.2.13+deb14-arm64"


@pytest.mark.parametrize(
    ("cause", "attempt"), [(12, PF_INSTR), (13, 0), (15, PF_WRITE), (7, PF_WRITE)]
)
@pytest.mark.parametrize("entries", [(), (0x20EFFC01, 0x20EFFC01, 0x20EFF801)])
def test_riscv64(cause, attempt, entries):
    lines = riscv_fault(0xFF1C000000072134, cause=cause, entries=entries)
    found, crash = fault(lines)
    assert found.address == 0xFF1C000000072134
    assert (found.error_code, found.attempt) == (cause, attempt)
    # Its cause does not say whether there was a page.
    assert found.is_mapped is None
    assert tuple(value for _, value in found.entries) == entries
    assert crash.ip == "folio_try_get+0x1c/0x60"
    assert dict(crash.registers)["t0"] == 0xFF1C000000072100


def test_arm64_user_and_fetch():
    lines = [
        "Unable to handle kernel execution of user memory at virtual address "
        "0000aaaaaaab0000",
        f"  ESR = 0x{0x20 << 26 | 0xF:016x}",
    ]
    found, _ = fault(lines)
    assert found.attempt == PF_INSTR | PF_USER
    assert found.is_mapped is True


def test_ppc64():
    found, _ = fault(
        ["BUG: Unable to handle kernel data access on write at 0xc00c000000072134"]
    )
    assert found.address == 0xC00C000000072134
    assert found.attempt == PF_WRITE


# A mask that was taken for a pointer


@pytest.mark.parametrize(
    ("address", "order"),
    [
        (0xFFFFFFFFFFFF8008, 9),
        (0xFFFFFFFFFFFF8000, 9),
        (0xFFFFFFFFFF000034, 18),
        (0xFFFFFFFFFFFFE008, 7),
    ],
)
def test_mask_taken_for_a_pointer(address, order):
    """Not a word about other boots: this is what it is on any."""
    lines = [
        f"BUG: unable to handle page fault for address: {address:016x}",
        "#PF: supervisor read access in kernel mode",
        "#PF: error_code(0x0000) - not-present page",
        "RIP: 0010:compound_head+0x3/0x20 [badmod]",
    ]
    (oops,) = explain(lines)["oopses"]
    assert oops["verdict"] == "mask-used"
    assert "not rebuilt" in oops["explanation"]
    assert f"of order {order}" in oops["explanation"]


@pytest.mark.parametrize(
    "address",
    [
        (1 << 64) - 12,  # ERR_PTR(-ENOMEM)
        (1 << 64) - 4095,
        (1 << 64) - 4096 + 8,
        0xFFFFFFFFFFFF9008,
        0xFFFFFFFFA0008008,
        0xFFFFFFFF00000008,
        8,
    ],
)
def test_no_mask(address):
    lines = [
        f"BUG: unable to handle page fault for address: {address:016x}",
        "#PF: error_code(0x0000) - not-present page",
    ]
    (oops,) = explain(lines)["oopses"]
    assert oops["verdict"] == "no-core"


# Stories


def test_reports_of_one_cause_are_one_story():
    fake_head = {"order": 9, "head_words": HEAD}
    first_tail = struct_page_words(0xFF9D324140128001, mapping=0)
    lines = [
        *bad_page_state(0x4B40, HEAD, "nonzero mapcount", **fake_head),
        *bad_page_state(0x4B42, first_tail, "corrupted mapping in tail page"),
        *bad_page_state(0x4B80, HEAD, "nonzero mapcount", **fake_head),
        "Memory failure: 0x3c05: recovery action for huge page: Recovered",
        "BUG: Bad page state: 17 messages suppressed",
    ]
    document = explain(lines)
    assert [r["defect"] for r in document["reports"]] == [
        "restored-fake-heads", "restored-fake-heads", "restored-fake-heads", None,
    ]  # fmt: skip
    story, other = document["stories"]
    assert (story["count"], story["reports"]) == (3, [0, 1, 2])
    assert story["reasons"] == {
        "nonzero mapcount": 2,
        "corrupted mapping in tail page": 1,
    }
    assert (other["count"], other["verdict"]) == (1, "memory-failure")
    assert document["suppressed"] == 17


@pytest.mark.parametrize(
    ("pfn", "words", "reason", "defect"),
    [
        # An aligned head, in its own place.
        (0x4A00, HEAD, "nonzero mapcount", None),
        # The first tails hold fields of the folio, and are not asked for this.
        (0x4A44, struct_page_words(0xFF9D324140128001, mapping=0),
         "corrupted mapping in tail page", None),
        (0x4A42, struct_page_words(0xFF9D324140128001, mapping=0),
         "corrupted mapping in tail page", "restored-fake-heads"),
        # As memmap_init() left it: F.1 and the fifth version of the series.
        (0x100041, (0x17FFFFC0000000, 0, 0xFFFFEA00041FF008, 0, 0, 0, 0x1FFFFFFFF, 0),
         "nonzero _refcount", "boot-tail-refcount"),
        # Its own, as an ordinary page has it from boot.
        (0x100041, (0x17FFFFC0000000, 0, 0xFFFFEA0004001048, 0, 0, 0, 0x1FFFFFFFF, 0),
         "nonzero _refcount", None),
        (0x100041, (0x17FFFFC0000000, 0, 0, 0, 0, 0, 0x1FFFFFFFF, 0),
         "nonzero _refcount", None),
        (0x100041, (0x17FFFFC0000000, 0, 0xFFFFEA00041FF010, 0, 0, 0, 0x1FFFFFFFF, 0),
         "nonzero _refcount", None),
        (0x100041, (0x17FFFFC0000000, 0xFFFFEA00041FF008, 0xFFFFEA00041FF008, 0, 0, 0,
                    0x1FFFFFFFF, 0),
         "corrupted mapping in tail page", "memmap-init-overwrite"),
        (0x4B45, TAIL, "page still charged to cgroup", None),
    ],
)  # fmt: skip
def test_known_defects(pfn, words, reason, defect):
    order = 9 if words is HEAD else 0
    fake = defect == "restored-fake-heads"
    ours, other = ("6.12.117", "7.3.4") if fake else ("7.3.4", "6.12.117")
    for release, expected in ((ours, defect), (other, None), ("", defect)):
        lines = [
            line.replace("6.12.117+deb12-cloud-amd64 #1", f"{release} #1")
            for line in bad_page_state(pfn, words, reason, order=order)
            # Without the line that has it, the release is not known.
            if release or not line.startswith("CPU: ")
        ]
        # What the words alone are is known of no kernel that cannot have it.
        assert only(lines)["defect"] == expected


def test_interleaved():
    """A line of another processor within a report, and a dump within a fault."""
    lines = list(bad_page_state(0x4B40, TAIL, "nonzero mapcount", order=9))
    lines.insert(3, "Memory failure: 0x3c05: recovery action for huge page: Recovered")
    document = explain(lines)
    by_form = {report["form"]: report for report in document["reports"]}
    assert set(by_form) == {"memory-failure", "bad-page-state"}
    dump = by_form["bad-page-state"]["dump"]
    assert [int(word, 16) for word in dump["words"]] == list(TAIL)


def test_two_at_once():
    """Lines of two processors in turn; the log names who printed each."""
    one = [*bad_page_state(0x4B40, TAIL, "nonzero mapcount", order=9)]
    other = [*bad_page_state(0x5B45, HEAD, "non-NULL mapping", comm="other")]
    lines = [
        f"[   12.345678][{caller:>6}] {line}"
        for pair in zip(one, other)
        for caller, line in zip(("T1", "C1"), pair)
    ]
    reports = explain(lines)["reports"]
    assert [r["pfn"] for r in reports] == [0x4B40, 0x5B45]
    assert [r["reason"] for r in reports] == ["nonzero mapcount", "non-NULL mapping"]
    assert [int(word, 16) for word in reports[0]["dump"]["words"]] == list(TAIL)
    assert [int(word, 16) for word in reports[1]["dump"]["words"]] == list(HEAD)


def test_nothing_of_control_characters(capsys):
    """H1: what a log holds must not reach a terminal as it is."""
    lines = [
        "BUG: Bad page state in process \x1b[31mevil\x1b]0;x\x07  pfn:04b40",
        "page dumped because: \x1b[2Jnonzero mapcount\x9b",
        "page: refcount:0 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x4b40",
        "flags: 0x1(\x1b[31m|node=0)",
    ]
    explain(lines)
    shown = capsys.readouterr().out
    assert all(c == "\n" or c.isprintable() for c in shown)


@pytest.mark.parametrize(
    "line",
    [
        "traps: foo[123] general protection fault ip:4010 sp:7ffd error:0 in foo",
        "init[1]: segfault at 8 ip 0000000000401000 sp 00007ffd",
        "BUG: workqueue lockup - pool cpus=0",
        "WARNING: CPU: 0 PID: 1 at arch/x86/kernel/smpboot.c:432 topology_sane+0x1/0x2",
        "WARNING: arch/x86/kernel/smpboot.c:329 at topology_sane+0x1/0x2, CPU#1: s/0",
        "HugeTLB: registered 2.00 MiB page size, pre-allocated 64 pages",
        "HugeTLB: 28 KiB vmemmap can be freed for a 2.00 MiB page",
        "memory offlining [mem 0x100000000-0x107ffffff] failed",
    ],
)
def test_what_is_no_report(line):
    with pytest.raises(FormatError):
        parse_log([line])


def test_every_verdict_is_in_the_guide():
    guide = (ROOT / "docs" / "oops.md").read_text()
    for verdict in PAGE_VERDICTS:
        assert f"`{verdict.name}`" in guide
    assert set(TELLING_TEXTS) < {verdict.name for verdict in PAGE_VERDICTS}


@pytest.mark.parametrize(
    "unit",
    [
        "page:", "head:", "raw: ", "Unpoison", "Memory failure: ", "PID: 1 Comm: ",
        "PID: 1 Comm: a #", "RIP: 0010:", "x0: ", "a+0x1", "HugeTLB ", "flags: 0x1(",
        "BUG: Bad page state in process ", "Unable to handle kernel ",
        "general protection fault, ", "WARNING: mm/", "mapcount:1 ", "Stack:", "a",
        "0123456789abcdef ", "Call Trace:", "kernel BUG at mm/", "? a", "pgd=",
    ],
)  # fmt: skip
def test_hostile_lines_are_read_in_time(unit):
    """As long as a line can be, within a report: no pattern goes back and forth."""
    line = unit * (8192 // len(unit))
    lines = ["BUG: Bad page state in process init  pfn:04b40", *[line] * 20]
    start = time.monotonic()
    parse_log(lines)
    assert time.monotonic() - start < 2


def test_rows_that_got_lost():
    """What stands where is not known then, and nothing is made up."""
    lines = list(bad_page_state(0x4B40, TAIL, "nonzero mapcount", order=9))
    first = next(i for i, line in enumerate(lines) if line.startswith("raw: "))
    assert only([*lines[:first], *lines[first + 1 :]])["dump"]["words"] == []
    cut = [*lines[:first], lines[first][:60], *lines[first + 1 :]]
    assert only(cut)["dump"]["words"] == []


def test_what_follows_a_report_is_not_of_it():
    lines = [
        "BUG: Bad page state in process init  pfn:04b40",
        *["nothing"] * 400,
        "CPU: 0 UID: 0 PID: 77 Comm: other Not tainted 7.3.4 #1",
    ]
    report = only(lines)
    assert (report["pid"], report["comm"]) == (None, "init")
