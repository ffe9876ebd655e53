# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A real oops
-----------

A stock kernel with HVO runs in QEMU. Through QEMU's debugger stub its ``getpid()`` is
made to raise the reference count of a tail of a huge page, as get_page() would. What
the kernel prints then, and a dump of it, go through the command; the huge page is the
one that the guest itself names.

In another guest, words are overwritten as a stray write would, and pages are freed: the
kernel says what it finds in forms of its own.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import re

import pytest

from tests.guest_support import Guest, command, connect, running

# lock incl (%rdi); ret
_INSTRUCTIONS = bytes.fromhex("f0ff07c3")
# mov 24(%rdi),%rax; mov 8(%rax),%rax; ret
_USE_MAPPING = bytes.fromhex("488b4718488b4008c3")
_RDI = 5
_REFCOUNT = 52
_SLICE = 2

_INIT = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned long long pfn(void *page)
{
    uint64_t entry;

    pread(open("/proc/self/pagemap", O_RDONLY), &entry, 8,
          (uintptr_t)page / 4096 * 8);
    return entry & ((1ULL << 55) - 1);
}

int main(void)
{
    char line[512], *huge, *small;
    FILE *kallsyms;

    mount("proc", "/proc", "proc", 0, 0);
    /* Without its driver, QEMU's dump has no VMCOREINFO. */
    syscall(SYS_finit_module, open("/qemu_fw_cfg.ko", O_RDONLY), "", 0);
    kallsyms = fopen("/proc/kallsyms", "r");
    while (kallsyms && fgets(line, sizeof(line), kallsyms))
        if (strstr(line, " __x64_sys_getpid\n") ||
            strstr(line, " vmemmap_base\n"))
            printf("GUEST %s", line);
    huge = mmap(0, 2 << 20, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    memset(huge, 1, 2 << 20);
    small = mmap(0, 8192, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(small, 1, 8192);
    printf("GUEST %llx pfn\nGUEST %lx user\n", pfn(huge), (long)huge);
    printf("GUEST %llx mapped\nGUEST %llx poisoned\nGUEST 0 ready\n",
           pfn(small), pfn(small + 4096));
    fflush(stdout);
    if (!fork())
        for (;;) {
            syscall(SYS_getpid);
            usleep(50000);
        }
    wait(0);
    printf("GUEST 0 died\n");
    fflush(stdout);
    /* Of the command line, what the kernel does not know is in the environment. */
    if (getenv("reports")) {
        /* The kernel kills who has the page. */
        if (!fork())
            exit(madvise(small + 4096, 4096, MADV_HWPOISON));
        wait(0);
        munmap(small, 4096);
        munmap(huge, 2 << 20);
        write(open("/proc/sys/vm/nr_hugepages", O_WRONLY), "0\n", 2);
        sleep(1);
        printf("GUEST 0 freed\n");
        fflush(stdout);
    }
    for (;;)
        pause();
}
"""


class Debugger:
    """The little of GDB's remote protocol that this needs."""

    def __init__(self, path: Path) -> None:
        self._file = connect(path).makefile("rwb", buffering=0)

    def _answer(self) -> str:
        while self._file.read(1) != b"$":
            pass
        answer = b""
        while not answer.endswith(b"#"):
            byte = self._file.read(1)
            assert byte, "QEMU closed the connection"
            answer += byte
        self._file.read(2)
        self._file.write(b"+")
        return answer[:-1].decode()

    def ask(self, command: str, expected: str) -> str:
        """Send a command; QEMU may tell of a stop before it answers."""
        data = command.encode()
        self._file.write(b"$%s#%02x" % (data, sum(data) & 0xFF))
        answer = self._answer()
        if answer.startswith("T") and expected != "T05":
            answer = self._answer()
        assert re.match(expected, answer), f"QEMU answers {answer!r} to {command!r}"
        return answer


@pytest.fixture(params=[""])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    with running(tmp_path, _INIT, f"hugepages=4 {request.param}") as found:
        yield found


def stopped_in_getpid(guest: Guest, told: dict[str, int]) -> tuple[Debugger, int]:
    """
    Stop a guest where a process of its calls getpid().

    :param told: Addresses that the guest told.
    :return: A debugger, and the address of vmemmap.
    """
    getpid = told["__x64_sys_getpid"]
    debugger = Debugger(guest.directory / "gdb")
    # QEMU takes single registers only from those who know its description of them.
    debugger.ask("qXfer:features:read:target.xml:0,ffb", "[lm]")
    debugger.ask(f"Z1,{getpid:x},1", "OK")
    debugger.ask("c", "T05")
    memory = bytes.fromhex(
        debugger.ask(f"m{told['vmemmap_base']:x},8", "[0-9a-f]{16}$")
    )
    return debugger, int.from_bytes(memory, "little")


def test_write_to_a_tail(guest: Guest) -> None:
    told = guest.wait_for("ready")
    getpid = told["__x64_sys_getpid"]
    debugger, base = stopped_in_getpid(guest, told)
    tail = told["pfn"] + 64 * _SLICE + 5
    address = base + 64 * tail + _REFCOUNT
    debugger.ask(f"P{_RDI}={address.to_bytes(8, 'little').hex()}", "OK")
    code = _INSTRUCTIONS
    debugger.ask(f"M{getpid:x},{len(code):x}:{code.hex()}", "OK")
    debugger.ask(f"z1,{getpid:x},1", "OK")
    debugger.ask("D", "OK")
    guest.wait_for("died")

    core = guest.dump()
    document = json.loads(command("page", core, "--oops", guest.serial, "--json"))
    (oops,) = document["oopses"]
    assert oops["verdict"] == "shared-tail-write"
    assert oops["signature"] is True
    assert oops["address"] == f"{address:#x}"
    assert oops["pfn"] == tail
    assert oops["words"] == ["_refcount"]
    assert oops["head_pfn"] == told["pfn"]
    assert oops["slice"]["index_in_folio"] == _SLICE
    assert oops["entry"]["same"] is True
    assert oops["entry"]["level"] == "PTE"
    assert "getpid" in oops["ip"]
    assert document["pages"][0]["folio"]["refcount"] == 1
    # The write was refused, so that nothing is wrong.
    assert json.loads(command("check", core, "--format", "json"))["findings"] == []
    who = json.loads(command("who", core, tail, "--json"))
    (mapping,) = who["mappings"]
    assert (mapping["pid"], mapping["start"]) == (1, f"{told['user']:#x}")
    assert who["left_over"] == 0


def _write(debugger: Debugger, address: int, data: bytes) -> None:
    debugger.ask(f"M{address:x},{len(data):x}:{data.hex()}", "OK")


@pytest.mark.parametrize("guest", ["reports=1"], indirect=True)
def test_other_reports(guest: Guest) -> None:
    told = guest.wait_for("ready")
    getpid = told["__x64_sys_getpid"]
    debugger, base = stopped_in_getpid(guest, told)
    # mapping of a tail in the huge page's own frame, _mapcount of an ordinary page.
    _write(debugger, base + 64 * (told["pfn"] + 5) + 24, bytes(8))
    _write(debugger, base + 64 * told["mapped"] + 48, b"\xff" * 4)
    # Who takes a tail for a page of its own, and asks for its mapping.
    tail = base + 64 * (told["pfn"] + 64 * _SLICE + 5)
    debugger.ask(f"P{_RDI}={tail.to_bytes(8, 'little').hex()}", "OK")
    _write(debugger, getpid, _USE_MAPPING)
    debugger.ask(f"z1,{getpid:x},1", "OK")
    debugger.ask("D", "OK")
    guest.wait_for("freed")

    core = guest.dump()
    document = json.loads(command("page", core, "--oops", "@core", "--json"))
    reports = {report["form"]: report for report in document["reports"]}
    assert set(reports) == {
        "general-protection-fault", "memory-failure", "bad-page-map", "bad-page-state",
    }  # fmt: skip
    fault = reports["general-protection-fault"]
    assert fault["verdict"] == "tail-mapping"
    assert fault["address"] == "0xdead000000000408"
    assert "getpid" in fault["ip"]
    pointers = {p["where"]: p["pfn"] for p in fault["pointers"]}
    assert pointers["RDI"] == told["pfn"] + 64 * _SLICE + 5
    assert reports["memory-failure"]["pfn"] == told["poisoned"]
    assert reports["bad-page-map"]["pfn"] == told["mapped"]
    assert reports["bad-page-map"]["entry"]["level"] == "PTE"
    states = {
        report["pfn"]: report
        for report in document["reports"]
        if report["form"] == "bad-page-state"
    }
    assert set(states) == {told["mapped"], told["pfn"] + 5}
    assert states[told["mapped"]]["reason"] == "nonzero mapcount"
    assert states[told["mapped"]]["verdict"] == "still-in-use"
    state = states[told["pfn"] + 5]
    assert state["reason"] == "corrupted mapping in tail page"
    assert state["verdict"] == "tail-damaged"
    # The kernel leaves such pages as they are.
    assert state["against_dump"] == "unchanged"
    words = [int(word, 16) for word in state["dump"]["words"]]
    assert words[3] == 0
    assert {report["defect"] for report in document["reports"]} == {None}
    # The console has the same.
    serial = json.loads(command("oops", guest.serial, "--json"))
    assert [r["title"] for r in serial["reports"]] == [
        r["title"] for r in document["reports"]
    ]
