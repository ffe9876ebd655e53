# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The command line through the shell
----------------------------------

Exit statuses, one line on stderr, and output files that are whole or not there.
"""

import contextlib
import json
import logging
import os
from pathlib import Path
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from drgn_hvo.cli import EXIT_STATUSES
from tests.command_support import COMMAND, check_refused, run
from tests.cores import core_path, truth

SMALL = "seed5-2node"


@pytest.fixture(scope="module")
def core():
    return core_path(SMALL)


def elf_core(notes=b""):
    """An ELF core with nothing but notes, as a process leaves it."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    return ident + header + segment + notes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not an ELF core file"]),
        (b"\0" * 5000, ["not an ELF core file"]),
        (b"hello\n" * 100, ["not an ELF core file"]),
        (b"\x7fELF", []),
        (elf_core(), ["not a Linux kernel core"]),
        (elf_core()[:100], []),
        (b"KDUMP   ", ["cut off"]),
        (b"KDUMP   " + b"\xff" * 5000, ["damaged"]),
        (b"makedumpfile\0\0\0\0" + b"\0" * 5000, ["cut off"]),
    ],
)
def test_not_a_kernel_core(tmp_path, content, words):
    path = tmp_path / "core"
    path.write_bytes(content)
    check_refused(run("show", path), str(path), *words)


def test_no_such_file(tmp_path):
    check_refused(run("show", tmp_path / "none"), "No such file")


def test_directory(tmp_path):
    check_refused(run("show", tmp_path), "directory")


def test_qemu_without_a_socket(tmp_path):
    check_refused(run("show", f"qemu:{tmp_path}/socket"), "No such file")


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["show"],
        ["page", "core"],
        ["heads", "core"],
        ["show", "core", "--assume", "encoding"],
        ["show", "core", "--nonsense"],
    ],
)
def test_usage(args):
    check_refused(run(*args), "--help")


@pytest.mark.parametrize("name", [SMALL, "7.2-2node"])
def test_truncated_anywhere(name, tmp_path):
    """kdump-compressed and ELF: libkdumpfile would die of SIGBUS."""
    whole = core_path(name).read_bytes()
    path = tmp_path / "core"
    sizes = [10, 63, 64, 4000, 4096, 6000, 9000, 45056, 10**5, 10**6, 10**7]
    sizes += [len(whole) // 4 * k for k in (1, 2, 3)]
    path.write_bytes(whole)
    for size in sorted(sizes, reverse=True):
        os.truncate(path, size)
        result = run("show", path)
        if result.returncode:
            check_refused(result)
        else:
            # What is left is shown, and first that it is not all.
            assert result.stdout.startswith("Dump         cut off: ")
            assert "not in this dump" in result.stdout


def test_damaged_page_descriptor(core, tmp_path):
    data = bytearray(core.read_bytes())
    block, sub, bitmaps = struct.unpack_from("<iiI", data, 428)
    descriptors = (1 + sub + bitmaps) * block
    struct.pack_into("<Q", data, descriptors + 24 * 1000, 1 << 40)
    path = tmp_path / "core"
    path.write_bytes(data)
    check_refused(run("show", path), "cut off or damaged")


def test_kdump_file_as_qemu_writes_it(core, tmp_path):
    """It names the machine alone, of which libkdumpfile takes no notice."""
    data = bytearray(core.read_bytes())
    data[12 : 12 + 6 * 65] = bytes(6 * 65)
    path = tmp_path / "core"
    path.write_bytes(data)
    check_refused(run("show", path), "architecture")
    data[12 + 4 * 65 : 12 + 4 * 65 + 6] = b"x86_64"
    path.write_bytes(data)
    shown, expected = (
        json.loads(run("show", name, "--json").stdout) for name in (path, core)
    )
    for document in (shown, expected):
        for key in ("target", "dump"):
            del document[key]
    assert shown == expected


def test_wrong_symbols(core):
    check_refused(run("show", core, "-s", sys.executable), "not the debuginfo")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense\n",
        "OSRELEASE=7.2\n",
        "OSRELEASE=7.2\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=1\n",
        "OSRELEASE=7.2\nPAGESIZE=4096\nNUMBER(phys_base)=99999999999999999999\n",
        "OSRELEASE=7.2\nPAGESIZE=5000\nSYMBOL(swapper_pg_dir)=ffffffff82000000\n",
    ],
)
def test_wrong_vmcoreinfo(core, tmp_path, text):
    path = tmp_path / "vmcoreinfo"
    path.write_text(text)
    check_refused(run("show", core, "--vmcoreinfo", path), "VMCOREINFO")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("nonsense", ["names no page"]),
        ("page:123", ["not in vmemmap", "hash"]),
        ("99999999", ["out of range"]),
        ("pfn:0x20000", ["out of range"]),
        ("0xffff888000000000", ["out of range", "virt:"]),
        ("phys:0xffffffffffff", ["out of range"]),
        ("page:0xffffffff81000000", ["not in vmemmap"]),
        ("virt:0x1000", ["not a kernel address"]),
        ("virt:0xfffffffffffff000", ["not mapped"]),
        ("task:99999999:0x1000", []),
    ],
)
def test_page_that_is_none(core, page, words):
    check_refused(run("page", core, page), page, *words)


def test_page_inside_a_struct_page(core):
    base = int(truth(SMALL)["vmemmap_base"], 0)
    check_refused(
        run("page", core, f"page:{base + 7 * 64 + 8:#x}"), f"page:{base + 7 * 64:#x}"
    )


@pytest.fixture(scope="module")
def folio():
    return truth(SMALL)["folios"][0]


def pages(core, *specs):
    result = run("page", core, "--json", *specs)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)["pages"]


def test_one_page_by_all_its_names(core, folio):
    expected = truth(SMALL)
    pfn = folio["pfn"] + 300
    address = int(expected["vmemmap_base"], 0) + 64 * pfn
    direct = int(expected["page_offset_base"], 0) + 4096 * pfn
    names = [
        str(pfn),
        f"pfn:0d{pfn}",
        f"pfn:{pfn:#x}",
        f"page:{address:#x}",
        f"phys:{4096 * pfn + 123:#x}",
        f"virt:{direct + 5:#x}",
    ]
    found = pages(core, *names)
    assert [page.pop("spec") for page in found] == names
    assert all(page == found[0] for page in found)
    page = found[0]
    run_of_tails = folio["vmemmap_runs"][1]
    assert page["pfn"] == pfn
    assert page["page"] == f"{address:#x}"
    assert page["kind"] == "tail"
    assert page["word"] == "0xffffffffffff8001"
    assert page["mask_order"] == 9
    assert (page["head_pfn"], page["order"]) == (folio["pfn"], 9)
    assert page["hugetlb"] is True
    assert page["nid"] == folio["nid"]
    assert page["slice"]["index_in_folio"] == 300 // 64
    assert page["slice"]["frame"] == run_of_tails["pfn"]
    assert page["slice"]["writable"] is False
    assert page["slice"]["shared"] is True
    assert page["folio"]["list"] == folio["where"]
    assert page["folio"]["flags"] == folio["hpg"]


def test_head_page(core, folio):
    (page,) = pages(core, folio["pfn"])
    assert page["kind"] == "head"
    assert page["head_pfn"] == folio["pfn"]
    assert page["slice"]["index_in_folio"] == 0
    assert page["slice"]["frame"] == folio["vmemmap_runs"][0]["pfn"]
    assert page["slice"]["writable"] is True
    assert page["slice"]["shared"] is False


def test_fake_head_page():
    name = "6.12-2node"
    folio = truth(name)["folios"][0]
    (page,) = pages(core_path(name), folio["pfn"] + 64)
    assert "fake head" in page["kind"]
    assert page["head_pfn"] == folio["pfn"]
    assert page["slice"]["mapped_by"] == 8


def test_broken_shared_tail_is_named():
    """seed5-1g-hit: bit 0 is clear, so these pages look like order 0."""
    name = "seed5-1g-hit"
    folio = next(f for f in truth(name)["folios"] if f["order"] == 18)
    (page,) = pages(core_path(name), folio["pfn"] + 1000)
    assert page["kind"].startswith("order-0")
    assert "should be a tail" in page["kind"]


def test_map(core, folio):
    result = run("map", core, folio["pfn"] + 300)
    assert (result.returncode, result.stderr) == (0, "")
    head, tails = folio["vmemmap_runs"]
    lines = result.stdout.splitlines()
    assert sum(f"RO------> | PFN {tails['pfn']}" in line for line in lines) == 7
    assert sum(f"RW------> | PFN {head['pfn']}" in line for line in lines) == 1
    mapped_by = sum(
        run["count"]
        for other in truth(SMALL)["folios"]
        for run in other["vmemmap_runs"]
        if run["pfn"] == tails["pfn"]
    )
    assert f"PFN {tails['pfn']} is mapped by {mapped_by} pages" in result.stdout


def test_map_of_a_gigantic_folio():
    name = "7.2-boot1g"
    folio = truth(name)["folios"][0]
    result = run("map", core_path(name), folio["pfn"])
    assert "1 - 4095" in result.stdout
    assert f"PFN {folio['vmemmap_runs'][1]['pfn']}" in result.stdout


def test_map_of_no_folio(core):
    check_refused(run("map", core, "0"), "no compound page")


def test_heads(core, folio, tmp_path):
    out = tmp_path / "heads.npy"
    first, last = folio["pfn"] - 1, folio["pfn"] + 511
    result = run("heads", core, "--pfns", f"{first}-{last}", "-o", out)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    heads = np.load(out)
    assert heads.dtype == np.uint64
    assert heads.shape == (513,)
    assert (heads[1:] == folio["pfn"]).all()
    assert os.listdir(tmp_path) == ["heads.npy"]


def test_heads_of_everything(core, tmp_path):
    out = tmp_path / "heads.npy"
    assert run("heads", core, "-o", out).returncode == 0
    end = max(n["start_pfn"] + n["spanned"] for n in truth(SMALL)["nodes"])
    assert len(np.load(out)) >= end


@pytest.mark.parametrize("pfns", ["5", "5-1", "a-b", "0-99999999", "-1-5", ""])
def test_heads_of_a_wrong_range(core, tmp_path, pfns):
    out = tmp_path / "heads.npy"
    check_refused(run("heads", core, f"--pfns={pfns}", "-o", out))
    assert not os.listdir(tmp_path)


def test_heads_into_nowhere(core, tmp_path):
    check_refused(run("heads", core, "-o", tmp_path / "none" / "x"), "No such file")


def test_heads_onto_the_core(core, tmp_path):
    copy = tmp_path / "core"
    copy.write_bytes(core.read_bytes())
    check_refused(run("heads", copy, "-o", copy), "target itself")
    assert copy.read_bytes() == core.read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_full(core):
    """What is written to a full disk fails with one line."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "show", str(core)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert "No space left" in result.stderr
    assert result.stderr.count("\n") == 1


def test_assume(core):
    result = run("show", core, "--json", "--assume", "encoding=pointer")
    encoding = json.loads(result.stdout)["encoding"]
    assert encoding["kind"] == "pointer"
    assert "--assume encoding=pointer" in encoding["evidence"]


@pytest.mark.parametrize("what", ["nonsense=1", "encoding=1", "vmemmap=x"])
def test_assume_nonsense(core, what):
    check_refused(run("show", core, "--assume", what))


def test_text_has_what_json_has(core):
    text = run("show", core, "--folios").stdout
    shown = json.loads(run("show", core, "--folios", "--json").stdout)
    assert shown["release"] in text
    for tail in shown["shared_tails"]:
        assert f" {tail['pfn']} " in text
    for folio in shown["folios"]:
        assert f"{folio['head_pfn']} " in text
    assert f"Saved        {shown['saved']['pages']} pages" in text
    for note in shown["notes"]:
        assert note in text


def test_json_keys(core):
    """What scripts rely on: keys may be added, none is missing."""
    shown = json.loads(run("show", core, "--json", "--folios").stdout)
    wanted = {
        "schema", "tool", "target", "release", "arch", "page_size", "types_from",
        "symbols_from", "struct_page", "encoding", "tail_layout", "hvo_enabled",
        "vmemmap", "shared_tails", "hstates", "saved", "folios",
    }  # fmt: skip
    assert wanted <= set(shown)
    assert shown["schema"] == 1
    assert shown["tool"]["name"] == "drgn-hvo"
    assert shown["target"] == str(core)
    assert {
        "nid", "zone", "index", "order", "pfn", "frame_nid", "frame_refcount", "boot",
        "mapped_by",
    } <= set(shown["shared_tails"][0])  # fmt: skip
    assert "folios" not in json.loads(run("show", core, "--json").stdout)


def test_closed_pipe(core):
    """As with head(1): no traceback."""
    process = subprocess.Popen(
        [*COMMAND, "show", str(core), "--folios"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert stderr == ""
    assert process.returncode in EXIT_STATUSES


def opened_below(directory, pid):
    """What a process has open in a directory, whether it has a name or not."""
    links = Path(f"/proc/{pid}/fd").glob("*")
    with contextlib.suppress(OSError):
        return [a for link in links if (a := os.readlink(link)).startswith(directory)]
    return []


def test_interrupt(tmp_path):
    core = core_path("7.2-boot1g")
    out = tmp_path / "heads.npy"
    process = subprocess.Popen(
        [*COMMAND, "heads", str(core), "-o", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    # The file that it writes, which has no name yet, shows that it is at work.
    deadline = time.monotonic() + 60
    while not opened_below(str(tmp_path), process.pid) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 130
    assert stderr == "drgn-hvo: interrupted\n"
    assert os.listdir(tmp_path) == []


def test_a_bug_is_not_an_error_of_the_user(core, monkeypatch, capsys):
    from drgn_hvo import cli
    from drgn_hvo.commands import show

    def broken(*args, **kwargs):
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(show, "show_document", broken)
    # The command sets it for its process.
    level = logging.getLogger("drgn").level
    try:
        assert cli.main(["show", str(core)]) == 70
    finally:
        logging.getLogger("drgn").setLevel(level)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "ZeroDivisionError" in captured.err
