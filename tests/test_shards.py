# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One core read by several processes: the same answer, byte for byte, whatever the core;
none at all if one of them is lost; and none of them outlives the command.
"""

from functools import partial
import json
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from drgn_hvo.commands import check_targets, shards
from drgn_hvo.commands.workers import Limits
from drgn_hvo.kernel import pagetables
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap import folio_heads
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.containers.output import write_machine
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.generations import generation
from tests.command_support import is_running, run
from tests.cores import CORES, core_path
from tests.synth_support import describe
from tools.holes import HOLES, Dump

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"
HEALTHY = SAMPLES / "shared-7.3.kdump"


@pytest.fixture
def shared(monkeypatch):
    """What is small is shared as well, in small pieces; gives what was shared."""
    monkeypatch.setattr(pagetables, "_FEW_BATCHES", 1)
    monkeypatch.setattr(pagetables, "_TABLES_PER_BATCH", 1)
    monkeypatch.setattr(folio_heads, "_FEW_FRAMES", 1)
    monkeypatch.setattr(folio_heads, "_FRAMES_PER_SHARE", 3)
    works = []
    mapped = shards.CoreShards.map

    def noted(self, work, pieces, reader):
        works.append((work.__name__, len(pieces)))
        return mapped(self, work, pieces, reader)

    monkeypatch.setattr(shards.CoreShards, "map", noted)
    return works


def answer(core, jobs):
    """What some processes say, without how long it took."""
    result = run("check", "--json", core, "-j", jobs)
    text = re.sub(r'"duration_s": [0-9.]+', "", result.stdout)
    return result.returncode, text, result.stderr


def check_same(core, jobs=2):
    assert answer(core, jobs) == answer(core, 1)


def use(monkeypatch, opened):
    """Let all processes open something in memory, whatever the name of the core."""
    for module in (shards, check_targets):
        monkeypatch.setattr(module, "open_target", lambda *_: opened())


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.kdump")), ids=lambda p: p.stem)
def test_samples(shared, path):
    check_same(path)


def test_that_something_was_shared(shared):
    check_same(HEALTHY, 3)
    assert {name for name, _ in shared} == {"_look_at_batch", "_read_share"}
    assert max(pieces for _, pieces in shared) > 3


def test_a_small_core_is_not_worth_it(monkeypatch):
    monkeypatch.setattr(shards, "_begin", None)
    assert run("check", HEALTHY, "-j", 2).returncode == 0


@pytest.mark.parametrize("container", ["elf", "flattened"])
def test_other_containers(shared, tmp_path, container):
    machine, _ = make_machine(describe("shared-7.3"), [])
    path = tmp_path / "core"
    write_machine(machine, path, container)
    check_same(path)
    assert shared


@pytest.mark.parametrize("name", CORES)
def test_real_cores(shared, name):
    check_same(core_path(name))
    assert shared


@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
def test_faults(shared, monkeypatch, name):
    tried = 0
    for fault in FAULTS:
        if not fault.possible(generation(name)) or fault.name == "truncated":
            continue
        machine, _ = make_machine(describe(name), [fault.name])
        use(monkeypatch, partial(program, machine))
        check_same(HEALTHY)
        tried += 1
    assert tried > 30


@pytest.mark.parametrize("name", ["debian-7.2", "shared-7.3", "fake-head-6.12"])
def test_holes(shared, monkeypatch, name):
    dump = Dump(str(SAMPLES / f"{name}.kdump"))
    for pfn in sorted(dump.pages)[::211]:
        for hole in HOLES:
            use(monkeypatch, partial(dump.program, pfn, hole))
            check_same(HEALTHY)


# A process that helps does what a hostile core would let it do.
DRIVER = """
import os, signal, sys, time
from drgn_hvo.commands import check_targets, shards
from drgn_hvo.commands.workers import Limits
from drgn_hvo.kernel import pagetables
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap import folio_heads
from drgn_hvo.memmap.hvo import hvo_of
pagetables._FEW_BATCHES = folio_heads._FEW_FRAMES = 1
pagetables._TABLES_PER_BATCH = folio_heads._FRAMES_PER_SHARE = 1
what, worked = sys.argv.pop(1), shards._work

def work(*args):
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "memory":
        hog = [bytearray(1 << 20) for _ in range(1 << 12)]
    if what == "hang":
        os.write(2, b"hanging %d\\n" % os.getpid())
        time.sleep(600)
    return worked(*args)

shards._work = work
from drgn_hvo.cli import main
sys.exit(main(sys.argv[1:]))
"""


def driver(what, *args):
    return [sys.executable, "-c", DRIVER, what, "check", "--json", *map(str, args)]


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        ("killed", 2, "a process that read a part of this target was killed"),
        ("crash", 70, "a process that read a part of this target ended by SIGSEGV"),
        ("memory", 2, "not enough memory"),
        ("hang", 2, "not done after 3 seconds"),
        ("nothing", 0, None),
    ],
    ids=["killed", "crash", "memory", "hang", "nothing"],
)
@pytest.mark.parametrize("targets", [1, 2])
def test_a_lost_part_is_no_pass(what, status, words, targets, tmp_path):
    paths = [tmp_path / f"core{i}" for i in range(targets)]
    for path in paths:
        path.symlink_to(HEALTHY)
    seconds = 3 if what == "hang" else 100
    command = driver(what, *paths, "-j", 4, "--memory", 1, "--timeout", seconds)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        out, said = process.communicate(timeout=120)
    assert process.returncode == status
    documents = [json.loads(line) for line in out.splitlines()]
    assert len(documents) == targets
    for document in documents:
        assert document["complete"] is (words is None)
        assert (
            document.get("error") is None
            if words is None
            else (words in document["error"])
        )
    check_gone([int(found) for found in re.findall(r"hanging (\d+)", said)])


def check_gone(pids):
    """None of these processes is there for long."""
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def descendants(pid):
    """The children of a process, theirs, and so on."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from descendants(child)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("options", [(), ("--timeout", 600)])
def test_no_process_outlives_its_parent(end, options):
    """Those of a process of a target, which --timeout makes of it, neither."""
    with subprocess.Popen(
        driver("hang", HEALTHY, "-j", 3, *options),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        process.stderr.readline()
        pids = list(descendants(process.pid))
        process.send_signal(end)
        process.wait(timeout=30)
    assert len(pids) == (3 if options else 2)
    check_gone(pids)


class _Piece:
    """Work that knows in which thread it was packed."""

    packed: list[threading.Thread] = []  # noqa: RUF012

    def __reduce__(self):
        self.packed.append(threading.current_thread())
        return _Piece, ()


def _nothing(_reader, _piece):
    return None


def test_work_is_packed_by_the_thread_that_uses_it_too():
    """Another one would meet objects to which this one just adds what it computed."""
    reader = hvo_of(open_target(str(HEALTHY))).kernel.reader
    _Piece.packed.clear()
    with shards.shards_of(str(HEALTHY), None, Limits(2)) as some:
        assert some is not None
        assert len(list(some.map(_nothing, [_Piece() for _ in range(8)], reader))) == 8
    assert set(_Piece.packed) == {threading.main_thread()}
