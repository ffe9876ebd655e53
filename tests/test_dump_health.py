# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is wrong with a dump is said first
---------------------------------------

Dumps that were not finished, were cut, or are pieces: made from samples by changing
what makedumpfile would have written otherwise, and by makedumpfile itself.
"""

from contextlib import suppress
import io
import json
from pathlib import Path
import random
import shutil
import struct
import subprocess
import sys

from drgn import FaultError
import jsonschema
import numpy as np
import pytest

from drgn_hvo.cli import main
from drgn_hvo.commands.schema import load_schema
from drgn_hvo.errors import FormatError, TargetError
from drgn_hvo.formats.dump_health import Piece, Truncated, read_dump_health
from drgn_hvo.formats.kdump import (
    disk_dump_header,
    kdump_sub_header,
    read_kdump_frame,
)
from drgn_hvo.kernel.dump import dump_of
from drgn_hvo.kernel.kdump_program import libkdumpfile_fault
from drgn_hvo.kernel.target import open_target
from drgn_hvo.synth.containers.output import write_machine
from drgn_hvo.synth.machine.machine import build_machine
from tests.command_support import run
from tests.cores import core_path
from tests.synth_support import describe

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
KDUMP = SAMPLES / "shared-7.3.kdump"
BLOCK = 4096

needs_makedumpfile = pytest.mark.skipif(
    shutil.which("makedumpfile") is None, reason="makedumpfile is not installed"
)


@pytest.fixture(scope="module")
def cores(tmp_path_factory):
    """The same machine in each container."""
    directory = tmp_path_factory.mktemp("cores")
    machine = build_machine(describe("shared-7.3"))
    paths = {}
    for container in ("elf", "kdump", "flattened"):
        paths[container] = directory / container
        write_machine(machine, paths[container], container)
    return paths


def health(data):
    return read_dump_health(io.BytesIO(data))


def patched(data, dtype, offset, **values):
    """A file with other values in a structure."""
    changed = bytearray(data)
    record = np.frombuffer(data, dtype=dtype, count=1, offset=offset).copy()
    for name, value in values.items():
        record[name] = value
    changed[offset : offset + dtype.itemsize] = record.tobytes()
    return bytes(changed)


def with_header(data, **values):
    return patched(data, disk_dump_header("little"), 0, **values)


def with_sub_header(data, **values):
    return patched(data, kdump_sub_header("little"), BLOCK, **values)


def descriptors(data):
    """Where they begin, and how many there are."""
    _, sub, bitmaps = struct.unpack_from("<iiI", data, 428)
    start = (1 + sub + bitmaps) * BLOCK
    second = np.frombuffer(
        data, np.uint8, count=bitmaps // 2 * BLOCK, offset=start - bitmaps // 2 * BLOCK
    )
    return start, int(np.unpackbits(second).sum())


@pytest.mark.parametrize("container", ["elf", "kdump", "flattened"])
def test_healthy(cores, container):
    data = cores[container].read_bytes()
    found = health(data)
    assert found is not None
    assert (found.format, found.size) == (container, len(data))
    assert found.complaints() == []
    assert found.incomplete_flag is False
    assert found.filtered == (None if container == "elf" else 30)


def test_what_is_no_dump():
    assert health(b"") is None
    assert health(b"hello" * 1000) is None


@pytest.mark.parametrize("machine", [22, 62, 183])
def test_incomplete_flag_of_elf(cores, machine):
    data = bytearray(cores["elf"].read_bytes()[:BLOCK])
    struct.pack_into("<HI", data, 18, machine, 1)
    struct.pack_into("<I", data, 48, 1)
    assert health(bytes(data)).incomplete_flag is True


@pytest.mark.parametrize("machine", [21, 243, 258])
def test_flags_of_other_machines_mean_something_else(cores, machine):
    data = bytearray(cores["elf"].read_bytes())
    struct.pack_into("<H", data, 18, machine)
    struct.pack_into("<I", data, 48, 1)
    found = health(bytes(data))
    assert found.incomplete_flag is None
    assert found.complaints() == []


def test_incomplete_kdump_counts_what_was_not_written(cores):
    """As makedumpfile leaves it: the status, and descriptors that are all zeros."""
    data = cores["kdump"].read_bytes()
    start, count = descriptors(data)
    lost = count // 3
    data = with_header(data, status=9)
    begin, end = start + 24 * (count - lost), start + 24 * count
    data = data[:begin] + bytes(end - begin) + data[end:]
    found = health(data)
    assert (found.incomplete_flag, found.unwritten) == (True, lost)
    (said,) = found.complaints()
    assert said.startswith("incomplete: makedumpfile could not write all of it")
    assert f"({lost} pages are missing)" in said


@pytest.mark.parametrize("version", [2, 6])
def test_piece_of_a_split_dump(cores, version):
    data = with_header(cores["kdump"].read_bytes(), header_version=version)
    suffix = "_64" if version == 6 else ""
    changes = {f"start_pfn{suffix}": 0, f"end_pfn{suffix}": 6000}
    found = health(with_sub_header(data, split=1, **changes))
    assert found.split == Piece(0, 6000)
    # A piece that has all pages of the dump is all of it.
    pages = [pfn for pfn in dumped(data) if pfn >= 6000]
    assert found.elsewhere == len(pages) > 0
    assert not found.is_whole
    changes[f"end_pfn{suffix}"] = pages[-1] + 1
    assert health(with_sub_header(data, split=1, **changes)).is_whole
    (said,) = found.complaints()
    assert "PFN 0 to 5999" in said
    assert "makedumpfile --reassemble" in said


@pytest.mark.parametrize("tenth", [1, 5, 9])
def test_cut_elf(cores, tenth, tmp_path, capsys):
    """Open as far as it goes, with both lengths said before anything else."""
    data = cores["elf"].read_bytes()
    size = len(data) * tenth // 10
    found = health(data[:size])
    assert found.truncated == Truncated(len(data), size)
    path = tmp_path / "core"
    path.write_bytes(data[:size])
    status = main(["check", str(path)])
    out, _ = capsys.readouterr()
    first = out.splitlines()[0]
    assert f"cut off: the file has {size} bytes" in first
    assert f"name {len(data)}" in first
    assert status != 1 or "1 error" in out
    main(["show", str(path)])
    out, err = capsys.readouterr()
    assert "cut off" in (out or err).splitlines()[0]


@pytest.mark.parametrize("container", ["kdump", "flattened"])
def test_kdump_without_its_tables_is_refused(cores, container, tmp_path):
    data = cores[container].read_bytes()
    for size in (20, 500, 5000, 12000):
        with pytest.raises(FormatError, match="cut off"):
            health(data[:size])
        path = tmp_path / "core"
        path.write_bytes(data[:size])
        with pytest.raises(TargetError, match="copy it again"):
            open_target(str(path))


@pytest.mark.parametrize("tenth", [3, 6, 9])
def test_cut_kdump(cores, tenth, tmp_path, capsys):
    """libkdumpfile would die of SIGBUS; what is there is read without it."""
    data = cores["kdump"].read_bytes()
    start, count = descriptors(data)
    first = start + 24 * count
    size = first + (len(data) - first) * tenth // 10
    found = health(data[:size])
    assert found.truncated == Truncated(len(data), size)
    path = tmp_path / "core"
    path.write_bytes(data[:size])
    whole, cut = (open_target(str(name)) for name in (cores["kdump"], path))
    dump = dump_of(cut)
    assert dump is not None
    assert dump.health == found
    same = missing = 0
    for pfn in dumped(data)[::3]:
        expected, there = (content(prog, pfn) for prog in (whole, cut))
        same += there is not None
        missing += there is None and expected is not None
        assert there in (None, expected), pfn
    assert same
    assert missing
    status = main(["check", str(path)])
    out, err = capsys.readouterr()
    assert f"cut off: the file has {size} bytes" in (out or err).splitlines()[0]
    assert status in (1, 2, 3)


def dumped(data):
    """PFNs of the pages that a file has."""
    start, _ = descriptors(data)
    bitmap = data[start - struct.unpack_from("<I", data, 436)[0] // 2 * BLOCK : start]
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def content(prog, pfn):
    try:
        return prog.read(pfn * BLOCK, BLOCK, physical=True)
    except FaultError:
        return None


def test_json_and_text_begin_with_it(cores, tmp_path, capsys):
    path = tmp_path / "core"
    path.write_bytes(with_header(cores["kdump"].read_bytes(), status=9))
    for command in (["show", "--json"], ["check", "--format", "json"]):
        main([command[0], str(path), *command[1:]])
        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, load_schema(command[0]))
        dump = document["dump"]
        assert dump["incomplete_flag"] is True
        assert dump["size"] == path.stat().st_size
        assert dump["mtime"] == path.stat().st_mtime
        assert dump["problems"]
    main(["show", str(path)])
    assert capsys.readouterr().out.startswith("Dump         incomplete: ")
    assert main(["check", str(path)]) == 3
    out = capsys.readouterr().out
    assert "the dump is incomplete" in out.splitlines()[0]
    # All was decided here, so no list of what was not is announced.
    assert "could not be decided" not in out
    assert "one that is whole would tell" in out
    main(["check", "--format", "ktap", str(path)])
    assert "\n# the dump is incomplete" in capsys.readouterr().out
    main(["page", str(path), "pfn:4608"])
    assert "warning: the dump is incomplete" in capsys.readouterr().err


def test_a_running_kernel_is_no_dump(cores):
    from drgn_hvo.synth.containers.elf import program

    assert dump_of(program(build_machine(describe("shared-7.3")))) is None


# Structures of hostile files.


@pytest.mark.parametrize("container", ["kdump", "flattened"])
def test_damaged_tables_are_refused(cores, container, tmp_path):
    """
    More pages than descriptors, a page outside of the file, one larger than a page: in
    a flattened file, too, of which libkdumpfile made gigabytes or hung.
    """
    data = cores[container].read_bytes()
    plain = cores["kdump"].read_bytes()
    start, _ = descriptors(plain)
    second = start - BLOCK
    if container == "flattened":
        # The records of header, sub-header and tables come in order, from 4096 on.
        def place(offset):
            at = 4096
            while True:
                where, size = struct.unpack_from(">qq", data, at)
                if where <= offset < where + size:
                    return at + 16 + offset - where
                at += 16 + size
    else:

        def place(offset):
            return offset

    changes = [
        (place(second), b"\xff" * 1024),
        (place(start + 24 * 5), struct.pack("<Q", 1 << 40)),
        (place(start + 24 * 5), struct.pack("<Q", (1 << 64) - 1)),
        (place(start + 24 * 5 + 8), struct.pack("<I", 1 << 31)),
        (place(start + 24 * 5 + 8), struct.pack("<I", BLOCK + 1)),
    ]
    for at, new in changes:
        damaged = data[:at] + new + data[at + len(new) :]
        with pytest.raises(FormatError):
            health(damaged)
        path = tmp_path / "core"
        path.write_bytes(damaged)
        with pytest.raises(TargetError):
            open_target(str(path))


@pytest.mark.parametrize("container", ["elf", "kdump", "flattened"])
def test_random_damage_is_a_format_error_and_nothing_else(cores, container):
    data = cores[container].read_bytes()[: 9000 if container == "elf" else None]
    chance = random.Random(container)
    for _ in range(200):
        damaged = bytearray(data[: chance.choice((len(data), 8192, 600))])
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(min(len(damaged), 9000))
            damaged[at] = chance.choice((0, 0xFF, chance.randrange(256)))
        with suppress(FormatError):
            health(bytes(damaged))


# Made by makedumpfile.


@needs_makedumpfile
def test_pieces_of_makedumpfile_and_the_advice(tmp_path, capsys):
    """Each piece says what it is, and what is advised makes them whole."""
    whole = core_path("7.2-2node")
    pieces = [str(tmp_path / name) for name in ("one", "two")]
    options = "-c", "-d", "31", "--split", str(whole), *pieces
    subprocess.run(["makedumpfile", *options], check=True, capture_output=True)
    for piece in pieces:
        main(["show", piece])
        out, err = capsys.readouterr()
        assert "--reassemble" in (out or err).splitlines()[0]
    new = str(tmp_path / "new")
    advised = ["makedumpfile", "--reassemble", *pieces, new]
    subprocess.run(advised, check=True, capture_output=True)
    assert main(["check", new]) == 0
    assert ": clean" in capsys.readouterr().out.splitlines()[0]


_OPEN = """
import sys
from drgn import Program
try:
    Program().set_core_dump(sys.argv[1])
except Exception as e:
    print(e)
"""


# sizeof(struct elf_prstatus), as QEMU and the kernel write it for each architecture.
REGISTERS = {
    "shared-7.3": 336,
    "arm64-4k": 392,
    "ppc64": 504,
    "riscv64-sv39": 376,
    "riscv64-sv57": 376,
}


@pytest.mark.parametrize("missing", [0, 112])
@pytest.mark.parametrize("name", REGISTERS)
def test_libkdumpfile_never_sees_registers_that_are_too_short(name, missing, tmp_path):
    """It ends the process then, if not always: what it frees it uses again."""
    core = tmp_path / "core"
    size = REGISTERS[name]
    whole, short = (struct.pack("<3I", 5, n, 1) for n in (size, size - missing))
    data = (SAMPLES / f"{name}.kdump").read_bytes()
    assert data.count(whole + b"CORE") == 1
    core.write_bytes(data.replace(whole + b"CORE", short + b"CORE"))
    command = [sys.executable, "-c", _OPEN, str(core)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    refuses = told.returncode < 0 or "Wrong PRSTATUS size" in told.stdout
    assert refuses == bool(missing)
    with open(core, "rb") as f:
        frame = read_kdump_frame(f)
        assert frame is not None
        assert (libkdumpfile_fault(frame) is not None) == refuses


def test_registers_that_are_too_short_are_not_needed(tmp_path):
    core = tmp_path / "core"
    data = (SAMPLES / "shared-7.3.kdump").read_bytes()
    note = struct.pack("<3I", 5, 336, 1) + b"CORE\0"
    assert data.count(note) == 1
    core.write_bytes(data.replace(note, struct.pack("<3I", 5, 300, 1) + b"CORE\0"))
    result = run("check", core)
    assert (result.returncode, result.stderr) == (0, "")
