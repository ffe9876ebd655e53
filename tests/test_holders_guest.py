# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A stock kernel in QEMU whose first process takes huge pages in all ways that there are:
a file that two processes map, a memfd that none maps, System V shared memory, private
memory that io_uring pins, and the share of a cgroup. What the guest says of itself is
what ``who`` and ``show`` have to find in a dump of it.
"""

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

import pytest

from tests.guest_support import Guest, command, running

_INIT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SIZE (2 << 20)

static void tell(unsigned long value, const char *name)
{
    printf("GUEST %lx %s\n", value, name);
    fflush(stdout);
}

static unsigned long pfn(void *page)
{
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY);

    pread(fd, &entry, 8, (uintptr_t)page / 4096 * 8);
    close(fd);
    return entry & ((1ULL << 55) - 1);
}

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);

    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        printf("cannot write %s\n", path);
    close(fd);
}

static unsigned long number(const char *path, const char *key)
{
    char line[256];
    unsigned long value = 0;
    FILE *file = fopen(path, "r");

    while (file && fgets(line, sizeof(line), file))
        if (!strncmp(line, key, strlen(key)))
            value = strtoul(line + strlen(key), 0, 10);
    if (file)
        fclose(file);
    return value;
}

static void *huge(int flags, int fd)
{
    void *page = mmap(0, SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);

    memset(page, 1, SIZE);
    return page;
}

int main(void)
{
    char *page;
    int fd, pid, params[64] = { 0 };
    struct iovec buffer;
    struct statfs fs;

    mount("proc", "/proc", "proc", 0, 0);
    syscall(SYS_finit_module, open("/qemu_fw_cfg.ko", O_RDONLY), "", 0);
    mkdir("/h", 0755);
    mkdir("/cg", 0755);
    mount("none", "/h", "hugetlbfs", 0, "pagesize=2M,size=6M,min_size=4M");
    mount("none", "/cg", "cgroup2", 0, 0);
    put("/cg/cgroup.subtree_control", "+hugetlb");
    mkdir("/cg/a", 0755);
    put("/cg/a/hugetlb.2MB.max", "4194304");
    put("/proc/sys/vm/nr_overcommit_hugepages", "2");

    fd = open("/h/shared", O_CREAT | O_RDWR, 0600);
    page = huge(MAP_SHARED, fd);
    tell(pfn(page), "file");
    tell((unsigned long)page, "file_at");
    pid = fork();
    if (!pid) {
        *(volatile char *)page;
        tell(getpid(), "second");
        for (;;)
            pause();
    }

    fd = memfd_create("mine", MFD_HUGETLB);
    ftruncate(fd, SIZE);
    page = huge(MAP_SHARED, fd);
    tell(pfn(page), "memfd");
    munmap(page, SIZE);

    page = shmat(shmget(IPC_PRIVATE, SIZE, SHM_HUGETLB | IPC_CREAT | 0600), 0, 0);
    memset(page, 1, SIZE);
    tell(pfn(page), "sysv");
    tell((unsigned long)page, "sysv_at");

    page = huge(MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
    fd = syscall(SYS_io_uring_setup, 1, params);
    buffer.iov_base = page;
    buffer.iov_len = SIZE;
    /* IORING_REGISTER_BUFFERS */
    tell(syscall(SYS_io_uring_register, fd, 0, &buffer, 1), "registered");
    tell(pfn(page), "pinned");

    if (!fork()) {
        put("/cg/a/cgroup.procs", "0");
        page = huge(MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
        tell(pfn(page), "charged");
        tell(number("/cg/a/hugetlb.2MB.current", ""), "charge");
        tell(number("/proc/meminfo", "HugePages_Free:"), "free");
        tell(number("/proc/meminfo", "HugePages_Rsvd:"), "reserved");
        statfs("/h", &fs);
        tell(fs.f_blocks, "blocks");
        tell(fs.f_bfree, "blocks_free");
        sleep(1);
        tell(0, "ready");
    }
    for (;;)
        pause();
}
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with running(tmp_path_factory.mktemp("g"), _INIT, "hugepages=8") as found:
        yield found


@pytest.fixture(scope="module")
def told(guest: Guest) -> dict[str, int]:
    return guest.wait_for("ready")


@pytest.fixture(scope="module")
def core(guest: Guest, told: dict[str, int]) -> Path:
    assert told["registered"] == 0
    return guest.dump()


def who(core: Path, pfn: int) -> dict[str, Any]:
    doc: dict[str, Any] = json.loads(
        command("who", core, f"pfn:{pfn + 77:#x}", "--json")
    )
    return doc


def test_a_file_that_two_processes_map(core: Path, told: dict[str, int]) -> None:
    doc = who(core, told["file"])
    assert doc["head_pfn"] == told["file"]
    assert (doc["file"]["kind"], doc["file"]["name"]) == ("hugetlbfs file", "shared")
    assert {(m["pid"], m["start"]) for m in doc["mappings"]} == {
        (1, f"{told['file_at']:#x}"),
        (told["second"], f"{told['file_at']:#x}"),
    }
    assert doc["left_over"] == 0
    assert doc["unread"] == []


def test_a_memfd_that_nobody_maps(core: Path, told: dict[str, int]) -> None:
    doc = who(core, told["memfd"])
    assert (doc["file"]["kind"], doc["file"]["name"]) == ("memfd", "memfd:mine")
    assert doc["mappings"] == []
    assert doc["left_over"] == 0
    assert "No process maps it." in doc["conclusions"]


def test_shared_memory(core: Path, told: dict[str, int]) -> None:
    doc = who(core, told["sysv"])
    assert doc["file"]["kind"] == "System V shared memory"
    assert [(m["pid"], m["start"]) for m in doc["mappings"]] == [
        (1, f"{told['sysv_at']:#x}")
    ]
    assert doc["left_over"] == 0


def test_what_io_uring_pins(core: Path, told: dict[str, int]) -> None:
    doc = who(core, told["pinned"])
    assert doc["anonymous"] is True
    assert doc["pincount"] > 0
    assert doc["left_over"] == doc["pincount"]
    assert any("who pins memory" in sentence for sentence in doc["conclusions"])


def test_why_none_can_be_had(core: Path, told: dict[str, int]) -> None:
    doc = json.loads(command("show", core, "--json"))
    (pool,) = (h for h in doc["hstates"] if h["order"] == 9)
    assert pool["available"] == told["free"] - told["reserved"]
    assert (pool["asked"], pool["overcommit"], pool["surplus_left"]) == (8, 2, 2)
    (subpool,) = doc["subpools"]
    assert subpool["limit"] == told["blocks"] == 3
    assert subpool["limit"] - subpool["used"] == told["blocks_free"]
    # The file has one of the two that are promised.
    assert (subpool["minimum"], subpool["reserved"]) == (2, 1)
    (limit,) = doc["cgroup_limits"]
    assert (limit["path"], limit["limit"], limit["of_reservations"]) == ("/a", 2, False)
    assert limit["used"] * (2 << 20) == told["charge"] == 2 << 20
    text = command("show", core)
    assert "Cgroup /a (2 MiB): 1 of 2 in use, 1 can be had by its processes" in text
    assert "(2 MiB): 1 of 3 in use (size=), 2 can be had" in text
