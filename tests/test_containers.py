# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Files that people have instead of cores
---------------------------------------

What a file is, and a command that helps: each command that is printed runs here, where
its tool is installed.
"""

import re
import shlex
import shutil
import struct
import subprocess
import sys

import pytest

from drgn_hvo.cli import main
from drgn_hvo.errors import TargetError
from drgn_hvo.formats.unreadable import UNREADABLE
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.output import write_machine
from drgn_hvo.synth.machine.machine import build_machine
from tests.synth_support import describe


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    path = tmp_path_factory.mktemp("core") / "core"
    write_machine(build_machine(describe("shared-7.3")), path, "kdump")
    return path


def refused(path):
    with pytest.raises(TargetError) as e:
        open_target(str(path))
    message = str(e.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", UNREADABLE, ids=lambda k: f"{k.name} {k.magic.hex()}")
def test_each_is_named(kind, tmp_path):
    path = tmp_path / "a file"
    path.write_bytes(bytes(kind.offset) + kind.magic + b"rest" * 1000)
    message = refused(path)
    assert kind.name in message
    assert "{" not in message
    for command in re.findall("'([^']*(?:'[^']*'[^']*)?)'", kind.advice):
        assert command.split()[0] in message


# How each of these tools packs; the advice says how to unpack.
_PACKERS = {
    "zstd": ["zstd", "-q", "-c"],
    "xz": ["xz", "-0", "-c"],
    "gzip": ["gzip", "-1", "-c"],
    "bzip2": ["bzip2", "-1", "-c"],
    "lz4": ["lz4", "-q", "-c"],
    "lzop": ["lzop", "-1", "-c"],
}


@pytest.mark.parametrize("tool", _PACKERS)
def test_what_is_advised_for_a_compressed_core_opens_it(tool, core, tmp_path):
    """Whatever the file is called: with a blank and without a suffix."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    packed = tmp_path / "my core"
    with open(core, "rb") as source, open(packed, "wb") as to:
        subprocess.run(_PACKERS[tool], stdin=source, stdout=to, check=True)
    message = refused(packed)
    new = tmp_path / "unpacked"
    # Between the outer quotes of the advice.
    command = message.partition(f": '{tool}")[2].rpartition("'")[0]
    assert "NEW" in command
    advised = f"{tool}{command.replace('NEW', shlex.quote(str(new)))}"
    subprocess.run(["sh", "-c", advised], check=True, timeout=60)
    assert main(["check", str(new)]) == 0


def test_what_is_advised_for_an_archive(core, tmp_path):
    archive = tmp_path / "archive"
    subprocess.run(["tar", "-cf", archive, "-C", core.parent, core.name], check=True)
    message = refused(archive)
    command = message.partition(": '")[2].rpartition("'")[0]
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path, timeout=60)
    assert main(["check", str(tmp_path / core.name)]) == 0


def test_what_is_no_core_but_elf(tmp_path):
    assert "-s" in refused(shutil.which("sh"))


def test_what_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo")
    assert "no regular file" in refused(tmp_path / "fifo")


# VMCOREINFO without a note.


def without_note(path, to):
    """A core whose note has another name; and its text."""
    data = bytearray(path.read_bytes())
    place = data.index(b"VMCOREINFO\0", 0, 1 << 16)
    data[place : place + 10] = b"NOTHING\0\0\0"
    to.write_bytes(data)
    return data


@pytest.fixture(scope="module")
def elf(tmp_path_factory):
    path = tmp_path_factory.mktemp("elf") / "core"
    write_machine(build_machine(describe("shared-7.3")), path)
    return path


def text_of(path):
    return open_target(str(path))["VMCOREINFO"].string_()


def load_places(data):
    """Where pages of physical memory are in an ELF file: address, place, size."""
    (start,), (count,) = (
        struct.unpack_from(code, data, at) for code, at in (("<Q", 32), ("<H", 56))
    )
    for i in range(count):
        kind, _, offset, _, paddr, size, _, _ = struct.unpack_from(
            "<IIQQQQQQ", data, start + 56 * i
        )
        if kind == 1 and size:
            yield paddr, offset, size


def with_texts(elf, to, *texts):
    """A core without a note, with texts where pages begin that were empty."""
    data = without_note(elf, to)
    free = (
        offset + at
        for paddr, offset, size in load_places(data)
        for at in range(-paddr % 4096, size - 8192, 4096)
        if not any(data[offset + at : offset + at + 8192])
    )
    for text in texts:
        place = next(free)
        data[place : place + len(text)] = text
        next(free)
    to.write_bytes(data)


def test_text_in_memory_is_found(elf, tmp_path):
    text, path = text_of(elf), tmp_path / "core"
    with_texts(elf, path, text)
    prog = open_target(str(path))
    assert prog["VMCOREINFO"].string_() == text
    assert len(hvo_of(prog).hugetlb.folios) == len(
        hvo_of(open_target(str(elf))).hugetlb.folios
    )


def test_a_copy_that_a_crash_leaves_is_the_same(elf, tmp_path):
    text, path = text_of(elf), tmp_path / "core"
    with_texts(elf, path, text, text + b"CRASHTIME=1795677907\n")
    assert open_target(str(path))["VMCOREINFO"].string_() == text


def test_two_texts_are_said_and_not_chosen_from(elf, tmp_path):
    text, path = text_of(elf), tmp_path / "core"
    other = text.replace(b"OSRELEASE=", b"OSRELEASE=other-")
    with_texts(elf, path, text, other)
    message = refused(path)
    assert "2 texts in memory" in message
    assert "--vmcoreinfo" in message
    note = tmp_path / "note"
    note.write_bytes(text)
    assert open_target(str(path), vmcoreinfo=str(note))["VMCOREINFO"].string_() == text


@pytest.mark.parametrize(
    "text", [b"OSRELEASE=7.2\nPAGESIZE=4096\n", b"OSRELEASE=%s\n\0", b"OSRELEASE="]
)
def test_what_only_looks_like_it(elf, tmp_path, text):
    """A log that quotes it, the format string of the kernel."""
    path = tmp_path / "core"
    with_texts(elf, path, text)
    assert "--vmcoreinfo" in refused(path)


def elf_of(kind, count, size, data):
    """An ELF core of *count* segments with *size* bytes, which are the same ones."""
    header = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", kind, 7, 0, 0, 0, size, size, 0)
    return header + segment * count + data


@pytest.mark.parametrize(
    ("kind", "count", "size", "said"),
    [
        (1, 1, (1 << 63) - 1, "no VMCOREINFO note"),
        (1, 60_000, 1 << 40, "no VMCOREINFO note"),
        (4, 60_000, 1 << 20, "62914560000 bytes of notes, which are more"),
    ],
    ids=["larger-than-its-file", "loads-of-the-same", "notes-of-the-same"],
)
def test_headers_that_name_more_than_there_is(tmp_path, kind, count, size, said):
    path = tmp_path / "core"
    path.write_bytes(elf_of(kind, count, size, b"OSRELEASE=" * 200_000))
    command = [sys.executable, "-m", "drgn_hvo", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert said in done.stderr
