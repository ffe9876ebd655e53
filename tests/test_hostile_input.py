# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Names that paint a terminal or forge results, types that lie, tables that lead anywhere:
each command answers, or says in one line why it does not.
"""

from functools import lru_cache
from pathlib import Path
import random
import re
import signal
import struct
import subprocess
import sys

import pytest

from drgn_hvo import files
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.damage.faults import make_machine
from tests.command_support import run
from tests.hostile_support import (
    Hostile,
    direct_map_as_vmemmap,
    large_leaves,
    physical_of,
    same_table_everywhere,
    tables_of_nothing,
)
from tests.ktap_support import parse_ktap
from tests.synth_support import describe
from tools.holes import Dump
from tools.mutate_qmp import monitor
from tools.mutate_run import judge, limits, opened_as

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

# include/uapi/linux/btf.h
INT, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST = 1, 3, 4, 5, 6, 8, 9, 10
FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 13, 14, 15, 17, 19

# Colours, the title of a window, a bell, backspace, and C1 controls in UTF-8.
EVIL = b"\x1b[31mA\x1b]0;B\x07\x08\xc2\x9bC"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

COMMANDS = (
    *(("show",), ("show", "--folios"), ("show", "--json", "--folios"), ("check",)),
    *(("check", "--deep"), ("check", "--json"), ("check", "--format", "ktap")),
    *(("page", "0x4600"), ("page", "0x4600", "--json"), ("map", "0x4600")),
)


def evil_zone(hostile, name):
    """Let all zones have another name."""
    address = hostile.region(name + bytes(4096 - len(name)))
    prog = hostile.program()
    for pgdat in hvo_of(prog).mmzone.pgdats.values():
        for zone in pgdat.node_zones:
            at = physical_of(hostile, zone.name.address_of_().value_())
            hostile.write(at, address)


def evil_hstate(hostile, name):
    prog = hostile.program()
    hvo_of(prog)
    for hstate in prog["hstates"]:
        at = physical_of(hostile, hstate.name.address_of_().value_())
        hostile.machine.image.write(at, name)


def evil_release(hostile, name):
    """In VMCOREINFO and in memory."""
    before = hostile.machine.vmcoreinfo
    old = re.search(rb"OSRELEASE=(.*)", before)
    assert old is not None
    text = before.replace(old[0], b"OSRELEASE=" + name)
    object.__setattr__(hostile.machine, "vmcoreinfo", text)
    start = hostile.physical("init_uts_ns")
    for at in range(start, start + 4096):
        if hostile.machine.image.read(at, len(old[1])) == old[1]:
            hostile.machine.image.write(at, name + b"\0")


class Damaged(Hostile):
    """With findings, which name what they are about."""

    def __init__(self):
        super().__init__()
        faults = ["tail-wrong-order", "list-loop"]
        self.machine, _ = make_machine(describe("shared-7.3", paging_levels=4), faults)


def said(hostile, *words):
    """What a command writes."""
    command, *rest = words
    with opened_as(hostile.program):
        result = run(command, "TARGET", *rest)
    assert result.returncode != 70, result.stderr
    return result.stdout, result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("make", [evil_zone, evil_hstate, evil_release])
def test_h1_no_name_reaches_the_terminal_as_it_is(make, command):
    hostile = Damaged()
    make(hostile, EVIL)
    assert CONTROL.search("".join(said(hostile, *command))) is None


@pytest.mark.parametrize("make", [evil_zone, evil_release])
def test_h1_names_are_shown_escaped(make):
    """So the test above is about something."""
    hostile = Damaged()
    make(hostile, EVIL)
    assert "\\x1b[31mA" in "".join(said(hostile, "show", "--folios"))


def test_h1_what_a_monitor_says(tmp_path):
    socket = tmp_path / "qmp"
    greeting = b'{"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": []}}\r\n'
    error = b'{"error": {"class": "E", "desc": "\\u001b[31mred\\u0007\\n2"}}\n'
    with monitor(socket, [(greeting, False), (error, False)]):
        result = run("show", f"qemu:{socket}")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert CONTROL.search(result.stdout + result.stderr) is None


@pytest.mark.parametrize("name", [b"x\nok 2 y", b"x\n    ok 1 folio-head", b"x\r# y"])
def test_h9_a_zone_forges_no_line(name):
    hostile, honest = Damaged(), Damaged()
    evil_zone(hostile, name)
    (out, _), (right, _) = (
        said(h, "check", "--format", "ktap") for h in (hostile, honest)
    )
    assert [one[:2] for one in parse_ktap(out)] == [
        one[:2] for one in parse_ktap(right)
    ]
    results = re.compile(r"^ *(?:not )?ok \d+ \S+", re.MULTILINE)
    assert results.findall(out) == results.findall(right)
    for options in ((), ("--deep",)):
        text, _ = said(hostile, "check", *options)
        assert name.decode() not in text
        assert not re.search(r"^ *(ok|#) ?\d? [y1f]", text, re.MULTILINE)


# How many words follow the first three of a record; each time that vlen says.
_BEHIND = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_EACH = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}


class Btf:
    """The BTF of a machine, to be changed where it is."""

    def __init__(self, machine):
        self.image = machine.image
        start = machine.kernel.physical("__start_BTF")
        header = self.image.read(start, 24)
        self.length, types, size, strings, _ = struct.unpack("<5I", header[4:])
        #: Where the record of each type is.
        self.places = [0]
        at, end = start + self.length + types, start + self.length + types + size
        self.strings = start + self.length + strings
        while at < end:
            self.places.append(at)
            kind, vlen = self.kind(at), self.word(at + 4) & 0xFFFF
            at += 12 + 4 * (_BEHIND.get(kind, 0) + vlen * _EACH.get(kind, 0))

    def word(self, at):
        return int.from_bytes(self.image.read(at, 4), "little")

    def write(self, at, value):
        self.image.write(at, value.to_bytes(4, "little"))

    def kind(self, at):
        return self.word(at + 4) >> 24 & 0x1F

    def of_kind(self, *kinds):
        """Types of some kinds: number and place."""
        for number, at in enumerate(self.places[1:], 1):
            if self.kind(at) in kinds:
                yield number, at

    def struct(self, name):
        wanted = name.encode() + b"\0"
        for _, at in self.of_kind(STRUCT):
            text = self.image.read(self.strings + self.word(at), len(wanted))
            if text == wanted:
                return at
        raise LookupError(name)


def cyclic(btf):
    """Modifiers of themselves, structs that have themselves as members."""
    for number, at in btf.of_kind(TYPEDEF, CONST, VOLATILE):
        btf.write(at + 8, number)
    for number, at in btf.of_kind(STRUCT):
        if btf.word(at + 4) & 0xFFFF:
            btf.write(at + 16, number)


def nested(btf):
    """Each struct in the next one, each modifier of the next one."""
    for kinds, behind in (((TYPEDEF, CONST, VOLATILE), 8), ((STRUCT,), 16)):
        found = [
            n for n in btf.of_kind(*kinds) if btf.word(n[1] + 4) & 0xFFFF or behind == 8
        ]
        for (_, at), (following, _) in zip(found, found[1:]):
            btf.write(at + behind, following)


def many_members(btf):
    at = btf.struct("page")
    btf.write(at + 4, btf.word(at + 4) | 0xFFFF)


def huge_arrays(btf):
    for _, at in btf.of_kind(ARRAY):
        btf.write(at + 20, 0xFFFFFFFF)


def moved_members(btf):
    """All members of struct page but the flags, by 8 bytes."""
    at = btf.struct("page")
    for i in range(1, btf.word(at + 4) & 0xFFFF):
        place = at + 12 + 12 * i + 8
        btf.write(place, btf.word(place) + 64)


def larger(btf):
    """struct page, by 8 bytes."""
    at = btf.struct("page")
    btf.write(at + 8, btf.word(at + 8) + 8)


@pytest.mark.parametrize(
    "change",
    [cyclic, nested, many_members, huge_arrays, moved_members, larger],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_h6_types_that_lie(change, command):
    hostile = Hostile()
    change(Btf(hostile.machine))
    with opened_as(hostile.program):
        result = run(command[0], "TARGET", *command[1:])
    assert result.returncode in (0, 2, 3)
    if result.returncode == 2:
        assert result.stderr.count("\n") == 1
        assert len(result.stderr) < 1000


@pytest.mark.parametrize("change", [moved_members, larger], ids=lambda c: c.__name__)
def test_h6_vmcoreinfo_is_asked_as_well(change):
    hostile = Hostile()
    change(Btf(hostile.machine))
    _, errors = said(hostile, "show")
    assert "VMCOREINFO" in errors, errors


@pytest.mark.parametrize("command", [["check"], ["show"], ["page", "4608"]])
def test_h11_what_is_said_of_vmcoreinfo_is_no_text(tmp_path, command):
    """libkdumpfile quotes the release of a kernel."""
    core = tmp_path / "core"
    data = (SAMPLES / "shared-7.3.kdump").read_bytes()
    core.write_bytes(data.replace(b"OSRELEASE=7.3", b"OSRELEASE=\xff\xff\xff"))
    verb, *arguments = command
    result = run(verb, core, *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "VMCOREINFO" in result.stderr


# A word of each kind that the walk and the audit follow, changed at random.
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["debian-7.2", "debian-6.12", "shared-7.3"])
def test_h11_twenty_random_changes(name, seed):
    """Of any words of a core; ``python -m tools.mutate_inputs`` tries more."""
    dump, noise = whole(name), random.Random(seed)
    pages = dict(dump.pages)
    for _ in range(20):
        pfn = noise.choice(sorted(pages))
        data = bytearray(pages[pfn])
        at = noise.randrange(len(data) // 8) * 8
        old = int.from_bytes(data[at : at + 8], "little")
        new = noise.choice((old ^ 1 << noise.randrange(64), noise.getrandbits(64)))
        data[at : at + 8] = new.to_bytes(8, "little")
        pages[pfn] = bytes(data)
    changed = object.__new__(Dump)
    vars(changed).update(vars(dump), pages=pages)
    with limits(), opened_as(changed.program):
        for command, *rest in COMMANDS[::2]:
            assert judge([command, "TARGET", *rest]) is None


@lru_cache(maxsize=1)
def whole(name):
    return Dump(str(SAMPLES / f"{name}.kdump"))


@pytest.mark.parametrize(
    "make",
    [large_leaves, tables_of_nothing, same_table_everywhere, direct_map_as_vmemmap],
    ids=lambda make: make.__name__,
)
def test_h12_heads_believe_in_no_terabytes(make, tmp_path):
    hostile = Hostile()
    make(hostile)
    with limits(), opened_as(hostile.program):
        assert judge(["heads", "TARGET", "-o", str(tmp_path / "heads")]) is None
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) < 64 << 20


@pytest.mark.parametrize("word", ["spanned_pages", "zone_start_pfn"])
def test_h12_a_zone_of_terabytes(word, tmp_path):
    hostile = Hostile()
    prog = hostile.program()
    for zone in hvo_of(prog).mmzone.pgdats[0].node_zones:
        at = physical_of(hostile, getattr(zone, word).address_of_().value_())
        hostile.write(at, 1 << 40)
    with limits(), opened_as(hostile.program):
        assert judge(["heads", "TARGET", "-o", str(tmp_path / "heads")]) is None
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) < 64 << 20


KILLED = """
import os, signal, sys
from drgn_hvo.commands import heads
count_unread = heads.count_unread
def killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)
heads.count_unread = killed
from drgn_hvo.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_h12_nothing_stays_behind(tmp_path):
    """Of a file that was begun when the process is killed."""
    with files._unnamed(tmp_path) as file:
        if file is None:
            pytest.skip("this file system has no files without a name")
    command = [sys.executable, "-c", KILLED, "heads", str(SAMPLES / "shared-7.3.kdump")]
    done = subprocess.run([*command, "-o", str(tmp_path / "heads")], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
