# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A stock kernel under QEMU, inspected from outside and from inside.

The truth is what the guest's own ``/sys`` says. Skips with the reason where there is no
QEMU, or no kernel beside the repository.
"""

import gc
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time

import pytest

from contrib.vmtest.errors import GuestError, MissingError
from contrib.vmtest.guest import Guest, Machine
from contrib.vmtest.initramfs import (
    Initramfs,
    base_files,
    python_files,
)
from contrib.vmtest.kernels import find_kernel
from contrib.vmtest.scenario import (
    BOOT,
    Pools,
    compare,
    guest_pools,
    inspect,
    make_mix,
)
from drgn_hvo.cli import main

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT.parent / "shared" / "kernels"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64 on this host")
    for vmlinuz in sorted(KERNELS.glob("*/vmlinuz")):
        return find_kernel(str(vmlinuz.parent), tmp_path_factory.mktemp("kernel"))
    pytest.skip("no kernel in ../shared/kernels")


@pytest.fixture(scope="module")
def image(kernel, tmp_path_factory):
    """An initramfs with Python."""
    work = tmp_path_factory.mktemp("image")
    try:
        made = base_files(kernel, work)
    except MissingError as e:
        pytest.skip(str(e))
    scripts = ROOT / "contrib"
    python_files(
        made,
        [
            scripts / "live_checks.py",
            scripts / "selftest" / "hvo_selftest.py",
            scripts / "vmtest" / "churn.sh",
        ],
    )
    path = work / "initrd"
    made.write(path)
    return path


@pytest.fixture(scope="module")
def guest(kernel, image, tmp_path_factory):
    """A guest with two nodes and the mix of huge pages."""
    booted = Guest(
        kernel,
        image,
        tmp_path_factory.mktemp("guest"),
        append=BOOT.format(gigantic="0"),
        machine=Machine((1280, 1024)),
    )
    with booted:
        make_mix(booted, gigantic=False, log=lambda line: None)
        yield booted


def test_over_qmp(guest):
    """``show`` counts what the guest counts, and ``check`` finds nothing."""
    pools = guest_pools(guest)
    seen = inspect(f"qemu:{guest.qmp_path}")
    assert compare(pools, seen.shown) == []
    # The mix is there, so that the comparison means something.
    two_mib = pools.totals[2 << 20]
    assert 0 < two_mib["surplus"] < two_mib["nr"]
    assert 0 < two_mib["free"] < two_mib["nr"]
    assert len(pools.nodes) == 4
    assert seen.checked["findings"] == []
    assert seen.checked["complete"]
    assert 0 < seen.checked["checked"]["optimized_folios"] < two_mib["nr"]


@pytest.mark.parametrize("form", ["kdump-zlib", "kdump-lzo", "kdump-snappy"])
def test_kdump_files_of_qemu(guest, tmp_path, form):
    """What ``virsh dump --memory-only --format`` writes: it names just the machine."""
    core = tmp_path / "core"
    try:
        guest.qmp.execute(
            "dump-guest-memory",
            timeout=300,
            paging=False,
            protocol=f"file:{core}",
            format=form,
        )
    except GuestError as e:
        pytest.skip(str(e))
    seen = inspect(str(core))
    assert compare(guest_pools(guest), seen.shown) == []
    assert seen.checked["findings"] == []
    assert seen.checked["complete"]


def test_extract_of_a_running_guest(guest, tmp_path, capsys):
    """Over QMP and from inside: what is kept counts and checks as the guest does."""
    pools = guest_pools(guest)
    core = tmp_path / "core"
    # QEMU talks to one at a time: an earlier program must be gone.
    gc.collect()
    assert main(["extract", f"qemu:{guest.qmp_path}", "-o", str(core), "--small"]) == 0
    seen = inspect(str(core))
    assert compare(pools, seen.shown) == []
    assert seen.checked["findings"] == []
    assert seen.checked["complete"]
    hvo = "guest-python -m drgn_hvo"
    output, status = guest.status(f"{hvo} extract live -o /tmp/core", timeout=120)
    assert status == 0, output
    output, status = guest.status(f"{hvo} check /tmp/core", timeout=60)
    assert (status, "/tmp/core: clean" in output) == (0, True), output
    folios = seen.checked["checked"]["folios"]
    assert f" {folios} huge pages" in output


def test_from_inside(guest):
    """Live checks in one process, while huge pages come and go: nothing is found."""
    churn = guest.run("sh /scripts/churn.sh 2048 >/tmp/churn.log 2>&1 & echo $!")
    try:
        output, status = guest.status(
            "guest-python /scripts/live_checks.py -n 4", timeout=150
        )
    finally:
        guest.run(f"kill {churn.strip()}")
    assert status == 0, output
    assert "4 checks" in output
    assert " 0 findings, 0 of known defects" in output
    assert int(guest.run("cat /tmp/churn.turn")) > 4


class _LossyPort:
    """Loses the beginning of what is sent, some times."""

    def __init__(self, port, losses):
        self.port, self.losses = port, losses

    def sendall(self, data):
        lost = self.losses.pop(0) if self.losses else 0
        self.port.sendall(data[lost:])

    def __getattr__(self, name):
        return getattr(self.port, name)


def test_a_command_that_arrives_in_part_is_sent_again(guest, monkeypatch):
    port = _LossyPort(guest._agent, [1, 3, 16, 5])
    monkeypatch.setattr(guest, "_agent", port)
    assert guest.run("echo  a command of some length") == "a command of some length\n"
    port.losses = [6] * 9
    with pytest.raises(GuestError, match="never got all of it"):
        guest.run("echo another one")


def test_selftest_refuses_to_starve_the_guest(guest):
    """It touches nothing then."""
    pool = "/proc/sys/vm/nr_hugepages"
    free = int(guest.run("awk '/MemAvailable/ { print $2 }' /proc/meminfo")) << 10
    usual = int(guest.run(f"cat {pool}"))
    # At least 512 MiB must be left, whatever is tested.
    guest.run(f"echo {usual + (free - (400 << 20)) // (2 << 20)} >{pool}")
    before = guest_pools(guest)
    try:
        output, status = guest.status(
            "guest-python /scripts/hvo_selftest.py", timeout=60
        )
        assert guest_pools(guest) == before
    finally:
        guest.run(f"echo {usual} >{pool}")
    assert status == 2, output
    assert "Bail out! refused: " in output
    assert "must be left" in output


def test_selftest_restores_what_it_found_when_interrupted(guest):
    """Ctrl-C, once pools are not as they were."""
    # Pools with surplus pages are left alone, and then nothing would change.
    guest.run("rm -f /huge2m/*; echo 0 >/proc/sys/vm/nr_overcommit_hugepages")
    assert guest_pools(guest).totals[2 << 20]["surplus"] == 0
    switch = "cat /proc/sys/vm/hugetlb_optimize_vmemmap"
    before = guest_pools(guest), guest.run(switch)
    pid = guest.run(
        "guest-python /scripts/hvo_selftest.py >/tmp/selftest.log 2>&1 & echo $!"
    ).strip()
    changed = _within(60, lambda: guest_pools(guest) != before[0])
    assert changed, guest.run("cat /tmp/selftest.log; cat /proc/meminfo")
    guest.run(f"kill -INT {pid}")
    assert _within(60, lambda: "Bail out" in guest.run("cat /tmp/selftest.log"))
    log = guest.run("cat /tmp/selftest.log")
    assert "# settings restored\nBail out! interrupted" in log
    assert (guest_pools(guest), guest.run(switch)) == before


def _within(seconds, condition):
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
    return True


def test_a_guest_that_does_not_answer_in_time_ends(kernel, image, tmp_path):
    """And QEMU with it."""
    started = time.monotonic()
    guest = Guest(kernel, image, tmp_path, boot_timeout=1)
    with pytest.raises(GuestError, match="not done in 1 s"), guest:
        pass
    assert time.monotonic() - started < 20
    assert (
        str(tmp_path)
        not in subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
    )


def _vmtest(*arguments, path=None):
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, "-m", "contrib.vmtest", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/none/vmlinuz", "no such file"),
        ("none.deb", "no such file"),
        ("{tmp}", "has no vmlinuz"),
        ("{tmp}/kernel/vmlinuz", "no qemu_fw_cfg.ko"),
    ],
)
def test_what_is_missing_is_said_in_one_line(name, says, tmp_path):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "vmlinuz").touch()
    done = _vmtest(name.format(tmp=tmp_path))
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert line.startswith("vmtest: error: ")
    assert says in line


def test_host_without_apt(tmp_path):
    done = _vmtest("linux-image-none-unsigned", path=str(tmp_path))
    assert done.returncode == 2
    assert "there is no apt-get on this host" in done.stderr


def test_image_is_what_the_kernel_unpacks(tmp_path):
    """busybox or the host's cpio would do; bsdtar and Python's have no newc."""
    image = Initramfs()
    image.add("/b/two", b"12345")
    image.add("/a", b"", 0o755)
    image.add_link("/c", "b/two")
    image.write(tmp_path / "one")
    image.write(tmp_path / "two")
    written = (tmp_path / "one").read_bytes()
    assert written == (tmp_path / "two").read_bytes()
    assert _read_newc(written) == {
        "b": (0o40755, b""),
        "a": (0o100755, b""),
        "b/two": (0o100644, b"12345"),
        "c": (0o120777, b"b/two"),
    }


def _read_newc(data):
    """As Documentation/driver-api/early-userspace/buffer-format.rst describes it."""
    entries: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        assert data[at : at + 6] == b"070701"
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            return entries
        entries[name[:-1].decode()] = (mode, data[start : start + size])
        at = (start + size + 3) // 4 * 4


def _shown(total, free):
    node = {"nid": 0, "total": total, "free": free, "surplus": 0, "folios": total}
    return {
        "hstates": [
            {
                "page_bytes": 2 << 20,
                "total": total,
                "free": free,
                "surplus": 0,
                "reserved": 0,
                "nodes": [node],
            }
        ]
    }


def test_compare_notices_a_difference():
    of = {"nr": 8, "free": 3, "surplus": 0, "resv": 0}
    pools = Pools({(0, 2 << 20): of}, {2 << 20: of})
    assert compare(pools, _shown(8, 3)) == []
    assert len(compare(pools, _shown(8, 4))) == 2
    assert len(compare(pools, _shown(7, 3))) == 3
    assert len(compare(Pools({}, {1 << 30: of}), _shown(8, 3))) == 1
