# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Containers
----------

The same machine in every container, to the reader and to the tools that read cores
every day; and files that are whole or not there.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import drgn
import pytest

from drgn_hvo import files
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import UsageError
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.containers.output import CONTAINERS, write_core, write_machine
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.described.generations import generation
from drgn_hvo.synth.machine.btf_writer import write_btf
from drgn_hvo.synth.machine.machine import build_machine
from drgn_hvo.synth.machine.structures import structures
from tests.synth_support import ALL, describe, loaded


def shown(prog):
    return show_document(hvo_of(prog), "x", folios=True)


def needs(tool):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return tool


def run(*args):
    return subprocess.run(
        list(map(str, args)), capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ALL)
def test_containers_show_the_same(name, tmp_path):
    machine = build_machine(describe(name))
    in_memory = shown(program(machine))
    assert in_memory["folios"]
    for container in CONTAINERS:
        path = tmp_path / container
        write_machine(machine, path, container)
        assert shown(loaded(path)) == in_memory, container
        path.unlink()


def test_same_bytes_every_time(tmp_path):
    """
    A digest that was noted once: other machines, Python and NumPy versions must
    give it, too. A deliberate change of the content changes it.
    """
    digests = {}
    for container in ("elf", "vmcore"):
        path = tmp_path / container
        write_core(describe("shared-7.3"), path, container)
        digests[container] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.unlink()
    assert digests == DIGESTS


DIGESTS = {
    "elf": "7ba7c35f22191eb76a39609234e7813ec383a0943809c135bd7ca90bd7f8c78b",
    "vmcore": "07cc1cd9f329682a1870b886bfdca0db494602dee532420ef06b9406afc34007",
}


def test_the_seed_decides_where_frames_are(tmp_path):
    one, two, again = (build_machine(describe("shared-7.3", seed=s)) for s in (1, 2, 1))
    head = one.plan.huge[0].first_pfn
    frames = [
        [machine.page_physical(head + 512 * i) for i in range(6)]
        for machine in (one, two, again)
    ]
    assert frames[0] == frames[2] != frames[1]
    assert sorted(frames[0]) == sorted(frames[1])


def test_readelf(tmp_path):
    readelf = needs("readelf")
    for container in ("elf", "vmcore"):
        path = tmp_path / container
        write_core(describe("shared-7.3"), path, container)
        result = run(readelf, "-hlnW", path)
        assert result.returncode == 0
        assert result.stderr == ""
        assert "CORE (Core file)" in result.stdout
        assert "VMCOREINFO" in result.stdout
        virtual = "0xffff888000000000" in result.stdout
        assert virtual == (container == "vmcore")


@pytest.mark.parametrize("name", ALL)
def test_pahole(name, tmp_path):
    pahole = needs("pahole")
    entry = generation(name)
    types = structures(entry)
    path = tmp_path / "vmlinux.btf"
    path.write_bytes(write_btf(types.all, "little", ["vmemmap_populate"]))
    for compound in (types.page, types.zone, types.pglist_data, types.hstate):
        result = run(pahole, "-F", "btf", "-C", compound.name, path)
        assert result.returncode == 0, result.stderr
        assert f"size: {compound.size}," in result.stdout
    result = run(pahole, "-F", "btf", "-C", "page", path)
    assert entry.tail_word in result.stdout


def makedumpfile():
    tool = needs("makedumpfile")
    if not os.path.exists("/proc/self/mounts"):
        pytest.skip("makedumpfile waits forever where /proc is not mounted")
    return tool


# makedumpfile 1.7.2, "-c -d 31": zlib, everything that can be excluded. It says "The
# kernel version is not supported" from v5.20 on and filters all the same; of the
# kernels here it can know the fields of those up to 6.1 only.
@pytest.mark.parametrize("container", ["vmcore", "elf", "kdump"])
def test_makedumpfile(container, tmp_path):
    tool = makedumpfile()
    path, filtered = tmp_path / "in", tmp_path / "out"
    description = describe("fake-head-6.1")
    write_core(description, path, container)
    result = run(tool, "-c", "-d", "31", path, filtered)
    assert result.returncode == 0, result.stderr
    assert "makedumpfile Completed" in result.stdout + result.stderr
    before, after = shown(loaded(path)), shown(loaded(filtered))
    assert after["folios"] == before["folios"]
    assert after["hstates"] == before["hstates"]


def test_makedumpfile_reassembles_flattened(tmp_path):
    """makedumpfile -R makes the very kdump file of it."""
    tool = makedumpfile()
    machine = build_machine(describe("shared-7.3"))
    write_machine(machine, tmp_path / "kdump", "kdump")
    write_machine(machine, tmp_path / "flattened", "flattened")
    with (tmp_path / "flattened").open("rb") as file:
        result = subprocess.run(
            [tool, "-R", str(tmp_path / "out")],
            stdin=file,
            capture_output=True,
            timeout=60,
        )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out").read_bytes() == (tmp_path / "kdump").read_bytes()


def test_excluded_and_zero_pages(tmp_path):
    machine = build_machine(describe("shared-7.3"))
    write_machine(machine, tmp_path / "kdump", "kdump")
    prog = loaded(tmp_path / "kdump")
    head = machine.plan.huge[0].first_pfn
    # What a huge page holds is a user's, and is not dumped.
    with pytest.raises(drgn.FaultError):
        prog.read(head << 12, 8, True)
    # The page of the firmware is the kernel's, and all zeros.
    assert prog.read(8, 8, True) == bytes(8)


def test_output_is_not_overwritten(tmp_path):
    path = tmp_path / "core"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists; use --force"):
        write_core(describe("plain-7.2"), path)
    assert path.read_bytes() == b"precious"
    write_core(describe("plain-7.2"), path, force=True)
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert [p.name for p in tmp_path.iterdir()] == ["core"]


def test_only_files_are_replaced(tmp_path):
    """Not a directory, and not /dev/null, whoever asks."""
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(UsageError, match="is no regular file"):
            write_core(describe("plain-7.2"), path, force=True)


def test_no_such_container(tmp_path):
    with pytest.raises(UsageError, match="there is no container 'zip'"):
        write_core(describe("plain-7.2"), tmp_path / "core", "zip")


@pytest.mark.parametrize("own_files", ["/proc/self/fd", "/nowhere"])
def test_nothing_half_written_on_error(tmp_path, monkeypatch, own_files):
    """Where files cannot be without a name, neither."""
    monkeypatch.setattr(files, "_OWN_FILES", own_files)

    def fail(_):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_core(describe("plain-7.2"), tmp_path / "core", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_no_such_directory(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        write_core(describe("plain-7.2"), tmp_path / "none" / "core")


def test_disk_full(tmp_path):
    """A limit on the size of files stands for a full disk."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from drgn_hvo.synth.containers.output import write_core\n"
        "from drgn_hvo.errors import UsageError\n"
        "from tests.synth_support import describe\n"
        "try:\n"
        "    write_core(describe('plain-7.2'), sys.argv[1], 'kdump')\n"
        "    write_core(describe('plain-7.2'), sys.argv[1] + '2', 'elf')\n"
        "except UsageError as e:\n"
        "    print(e)\n"
    )
    result = run(sys.executable, "-c", script, tmp_path / "core")
    assert "cannot write" in result.stdout
    assert "File too large" in result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["core"]


def test_interrupted(tmp_path):
    script = (
        "import sys, time\n"
        "from drgn_hvo.synth.containers.output import write_core\n"
        "from tests.synth_support import describe\n"
        "def slow(_):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(20)\n"
        "write_core(describe('plain-7.2'), sys.argv[1], progress=slow)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "core")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert tmp_path / "core" not in tmp_path.iterdir()
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.wait(timeout=10) != 0
        assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


def test_truncated(tmp_path):
    machine, applied = make_machine(describe("shared-7.3"), ["truncated"])
    whole = build_machine(describe("shared-7.3"))
    for container in ("elf", "kdump"):
        write_machine(machine, tmp_path / "short", container, force=True)
        write_machine(whole, tmp_path / "whole", container, force=True)
        short = (tmp_path / "short").stat().st_size
        assert short == (tmp_path / "whole").stat().st_size // 2
    assert [fault.fault.name for fault in applied] == ["truncated"]
