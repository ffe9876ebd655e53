# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Page fault reports in logs
--------------------------

The texts are made from the kernel's own format strings, or are real ones.
"""

import io
import sys
from types import SimpleNamespace

from hypothesis import given, strategies as st
import pytest

from drgn_hvo.errors import FormatError, HvoError, UsageError
from drgn_hvo.formats.crash_text import Crash
from drgn_hvo.formats.fault_text import FailedAccess
from drgn_hvo.formats.oops_log import LoggedReport, parse_log, read_log
from tests.oops_support import (
    RELEASE,
    WRITE,
    oops_lines,
    parse,
    text,
)


def test_what_is_read():
    (oops,) = parse(text(0xFFEA000001234574, 3)).reports
    assert (oops.form, oops.line) == ("page-fault", 1)
    assert oops.fault.address == 0xFFEA000001234574
    assert oops.fault.error_code == 3
    assert oops.fault.is_mapped is True
    assert oops.fault.entries == (
        ("PGD", 0x1067),
        ("P4D", 0x1067),
        ("PUD", 0x2067),
        ("PMD", 0x3063),
    )
    crash = oops.crash
    assert crash.ip == "folio_try_get+0x1c/0x60 [badmod]"
    assert (crash.pid, crash.comm, crash.release) == (412, "memhog", RELEASE)
    assert crash.kernel_offset is None
    assert crash.calls == ("do_syscall_64",)
    assert not oops.fault.is_garbled


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
    (oops,) = parse(REAL).reports
    assert oops == LoggedReport(
        form="page-fault",
        line=1,
        title="BUG: unable to handle page fault for address: ffffea0000152174",
        crash=Crash(
            ip="__do_sys_getpid+0x0/0x30",
            pid=94,
            comm="init",
            release=RELEASE,
            registers=(
                ("RAX", 0xFFFFFFFFFFFFFFFF),
                ("RBX", 0xFFFF888007924600),
                ("RCX", 0x539F5AF8),
            ),
            calls=("do_syscall_64",),
        ),
        fault=FailedAccess(
            address=0xFFFFEA0000152174,
            error_code=3,
            attempt=WRITE,
            spelled=WRITE,
            is_mapped=True,
            entries=(
                ("PGD", 0x1FF4E067),
                ("P4D", 0x1FF4E067),
                ("PUD", 0x1FF4D067),
                ("PMD", 0x477E067),
                ("PTE", 0x800000000477F121),
            ),
        ),
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
    (oops,) = read_log(str(path)).reports
    assert oops.fault is not None
    assert oops.fault.address == 0xFFFFEA0004057FF4
    assert oops.fault.error_code == 3
    assert dict(oops.fault.entries)["PTE"] == 0x8000000001D5F161
    assert oops.crash.pid == 412
    assert oops.crash.comm == "memhog"
    assert oops.crash.release == RELEASE


def test_pieces_of_a_line_apart():
    """pr_cont() of one processor, and lines of another in between."""
    first, access, code, tables, *rest = oops_lines(
        0xFFEA000000000034, 3, entries=(1, 2, 3, 4, 5)
    )
    pieces = tables.split(" ")
    pairs = [" ".join(pair) for pair in zip(pieces[::2], pieces[1::2])]
    noise = "usb 1-1: new device, PTEs 12"
    lines = [first, noise, access, code, pairs[0], noise, *pairs[1:], *rest]
    (oops,) = parse_log(lines).reports
    assert oops.fault is not None
    assert [value for _, value in oops.fault.entries] == [1, 2, 3, 4, 5]


def test_several_in_one_log():
    addresses = [0xFFEA000000000034, 0x8, 0xFFEA000000100008]
    codes = [3, 0, 0x10]
    noise = "systemd[1]: Started something.\n"
    log = noise.join(text(a, c) for a, c in zip(addresses, codes))
    oopses = parse(log).reports
    assert [o.fault.address for o in oopses] == addresses
    assert [o.fault.error_code for o in oopses] == codes
    lines = log.splitlines()
    assert ["BUG:" in lines[o.line - 1] for o in oopses] == [True] * 3


def test_nothing_is_taken_from_behind_the_end():
    log = text(0xFFEA000000000034, 3).split("RIP: 0010")[0]
    log += "---[ end trace 0000000000000000 ]---\nRIP: 0010:other+0x0/0x10\n"
    assert parse(log).reports[0].crash.ip is None


def test_error_code_of_the_die_line():
    log = text(0xFFEA000000000034, 3)
    log = "\n".join(line for line in log.splitlines() if "error_code" not in line)
    assert parse(log).reports[0].fault.error_code == 3


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 7, 9, 0xB, 0x10, 0x11, 0x13, 0x15])
def test_words_and_code_agree(code):
    assert not parse(text(0xFFEA000000000034, code)).reports[0].fault.is_garbled


@pytest.mark.parametrize(("code", "words"), [(3, 0), (1, 2), (3, 16), (16, 2), (3, 6)])
def test_words_and_code_contradict(code, words):
    assert (
        parse(text(0xFFEA000000000034, code, words=words)).reports[0].fault.is_garbled
    )


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
    offsets = [oops.crash.kernel_offset for oops in parse(log).reports]
    assert offsets == [0x1F000000, 0x1F000000, 0x3000000, None, 0]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "no 'BUG"),
        ("hello\n" * 10, "no 'BUG"),
        ("Unable to handle kernel paging request at virtual address 0\n", "16"),
        ("BUG: unable to handle kernel paging request at ffff893e40000000\n", "5.2"),
        ("BUG: unable to handle page fault for address: ffea00\n", "16"),
        ("BUG: unable to handle page fault for address: 00000000f0001234f\n", "16"),
        (
            # Cut off: this need not be all of the address.
            "Oops: general protection fault, probably for non-canonical address 0xdead",
            "no 'BUG",
        ),
    ],
)
def test_not_understood(log, words):
    with pytest.raises(FormatError, match=words):
        parse(log)


def test_not_understood_beside_others():
    log = "BUG: unable to handle kernel paging request at ffff893e40000000\n"
    log += text(0xFFEA000000000034, 3)
    parsed = parse(log)
    assert len(parsed.reports) == 1
    assert parsed.reports[0].line == 2
    assert len(parsed.not_understood) == 1
    assert "line 1" in parsed.not_understood[0]


LINES = [
    *oops_lines(0xFFEA000000000034, 3),
    "Linux version 7.2.13",
    "Kernel Offset: 0x1 from 0x2",
    "Unable to handle kernel paging request at virtual address ffff000012345678",
    "BUG: Bad page state in process init  pfn:04b00",
    "page: refcount:0 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x4b00",
    "head: order:9 mapcount:0 entire_mapcount:0 nr_pages_mapped:0 pincount:0",
    "flags: 0xfffffc0000040(head|node=0|zone=1|lastcpupid=0x1fffff)",
    "raw: 000fffffc0000040 0000000000000000 ff5b8481000139b8 0000000000000000",
    "page dumped because: nonzero mapcount",
    "Memory failure: 0x3c05: recovery action for huge page: Recovered",
    "HugeTLB: unexpected refcount on PFN 512",
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
    assert log.reports
    for report in log.reports:
        assert report.title.isprintable()
        assert report.title[:4] in lines[report.line - 1]
        if report.fault is not None:
            assert 0 <= report.fault.address < 1 << 64
        crash = report.crash
        for said in (crash.ip, crash.comm, crash.release, report.reason):
            assert said is None or said.isprintable()
    numbers = [report.line for report in log.reports]
    assert len(numbers) == len(set(numbers))


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
