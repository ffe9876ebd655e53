# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``check`` over many targets: one that is lost costs one result, no process outlives its
parent, and results come as they are there.
"""

import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import pebble.pool.process
import pytest

from drgn_hvo.commands.workers import Limits, results
from drgn_hvo.kernel.target import open_target
from tests.command_support import is_running, run
from tests.ktap_support import parse_ktap

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"
HEALTHY = SAMPLES / "shared-7.3.kdump"
DAMAGED = SAMPLES / "shared-7.3-two-slots.kdump"

# Targets that do to the process that opens them what a hostile core would.
DRIVER = """
import os, signal, sys, time
from drgn_hvo.commands import check_targets
opened = check_targets.open_target

def open_target(target, *args):
    if "killed" in target:
        os.kill(os.getpid(), signal.SIGKILL)
    if "crash" in target:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "memory" in target:
        hog = [bytearray(1 << 20) for _ in range(1 << 12)]
    if "hang" in target:
        os.write(2, b"hanging %d\\n" % os.getpid())
        time.sleep(600)
    return opened(target, *args)

check_targets.open_target = open_target
from drgn_hvo.cli import main
sys.exit(main(sys.argv[1:]))
"""


def driver(*args):
    return [sys.executable, "-c", DRIVER, "check", *map(str, args)]


def ran(*args):
    command = driver(*args)
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def links(folder, names, to=HEALTHY):
    paths = [folder / name for name in names]
    for path in paths:
        path.symlink_to(to)
    return paths


def test_one_lost_process_costs_one_result(tmp_path):
    good = [f"good{i}" for i in range(12)]
    names = [*good[:5], "killed", *good[5:7], "hang", "memory", *good[7:], "crash"]
    targets = links(tmp_path, names)
    (tmp_path / "garbage").write_bytes(b"\0" * 4096)
    targets.insert(3, tmp_path / "garbage")
    result = ran(*targets, "-j", 2, "--timeout", 10, "--memory", 1, "--format", "json")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [doc["target"] for doc in documents] == [str(path) for path in targets]
    by_name = {Path(doc["target"]).name: doc for doc in documents}
    alone = json.loads(run("check", "--json", targets[0]).stdout)
    for name in good:
        found = {**by_name[name], "target": alone["target"]}
        assert found["rules"] == alone["rules"], name
        assert found["status"] == "clean"
    lost = {
        "killed": "SIGKILL",
        "crash": "SIGSEGV",
        "memory": "not enough memory",
        "hang": "not done after 10 seconds",
        "garbage": "",
    }
    for name, words in lost.items():
        assert by_name[name]["status"] == "error"
        assert words in by_name[name]["error"]
    assert {name for name, doc in by_name.items() if doc.get("timeout")} == {"hang"}
    # A process that broke down by itself is a bug; one that was killed is none.
    assert result.returncode == 70


def test_killed_is_no_bug(tmp_path):
    targets = links(tmp_path, ["killed", "good"])
    assert ran(*targets).returncode == 2


def test_another_way_to_start_processes():
    """What Python 3.14 does unless it is told: the parent is then a server."""
    script = (
        "import multiprocessing\n"
        "from drgn_hvo.commands.workers import Limits, results\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('forkserver')\n"
        "    print(*results(abs, [-1, 2, -3], Limits(jobs=2)))\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "1 2 3\n"


def test_a_process_lost_between_two_targets(monkeypatch):
    """pebble gives the pool up; what is left is done by another one."""
    fetch = pebble.pool.process.fetch_task
    fetched: list[object] = []

    def fetch_once(channel):
        if fetched:
            os.kill(os.getpid(), signal.SIGKILL)
        fetched.append(channel)
        return fetch(channel)

    monkeypatch.setattr(pebble.pool.process, "fetch_task", fetch_once)
    tasks = [-1, 2, -3, 4]
    assert list(results(abs, tasks, Limits(jobs=1))) == [1, 2, 3, 4]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path, end):
    targets = links(tmp_path, ["hang1", "hang2", "good"])
    with subprocess.Popen(
        driver(*targets, "-j", 2), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = process.stderr.readline() + process.stderr.readline()
        process.send_signal(end)
        process.wait(timeout=30)
    pids = [int(found) for found in re.findall(r"hanging (\d+)", said)]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def test_interrupted_in_the_middle(tmp_path):
    """What is done was printed; KTAP says that no more will come."""
    targets = links(tmp_path, ["good1", "good2", "hang"])
    with subprocess.Popen(
        driver(*targets, "-j", 1, "--format", "ktap"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stdout is not None
        process.stderr.readline()
        while not (line := process.stdout.readline()).startswith("ok 2 "):
            assert line
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest == "Bail out! interrupted\n"
    assert "2 of 3 targets were done" in errors


def test_ktap(tmp_path):
    targets = [*links(tmp_path, ["hang", "good"]), DAMAGED, tmp_path / "nowhere"]
    result = ran(*targets, "-j", 2, "--timeout", 8, "--format", "ktap")
    found = parse_ktap(result.stdout)
    assert [ok for ok, *_ in found] == [False, True, False, False]
    assert [directive for _, _, _, directive, _ in found] == [
        "TIMEOUT", None, None, "ERROR",
    ]  # fmt: skip
    assert [name for _, _, name, _, _ in found] == [str(target) for target in targets]
    broken = {name for ok, _, name, _, _ in found[2][4] if not ok}
    assert "shared-tail-unique" in broken
    assert re.search(r"# +nid=0 .*order=\d+ pfn=\d+", result.stdout)


def test_a_target_cannot_forge_lines(tmp_path):
    (path,) = links(tmp_path, ["x\nok 2 y\x1b[31m"])
    for output_format in ("ktap", "text"):
        result = run("check", path, "--format", output_format)
        assert result.returncode == 0
        assert "\x1b" not in result.stdout
        assert "\nok 2" not in result.stdout
    result = run("check", tmp_path / "no\x1b[31mfile")
    assert result.returncode == 2
    assert "\x1b" not in result.stdout + result.stderr


def test_lists_of_targets(tmp_path):
    folder = tmp_path / "cores"
    (folder / "below").mkdir(parents=True)
    cores = [*links(folder, ["b"]), *links(folder / "below", ["a"])]
    (folder / "notes.txt").write_text("no core")
    (folder / "vmlinux").write_bytes(b"\x7fELF\2\1\1".ljust(16, b"\0") + b"\2\0")
    listed = tmp_path / "list"
    listed.write_text(f"{DAMAGED}\n\n{HEALTHY}\n")
    arguments = ("check", "--json", folder, "--targets-from", listed)
    documents = [json.loads(line) for line in run(*arguments).stdout.splitlines()]
    expected = [*sorted(map(str, cores), key=lambda c: "below" in c)]
    assert [doc["target"] for doc in documents] == [
        *expected, str(DAMAGED), str(HEALTHY),
    ]  # fmt: skip
    assert run("check").returncode == 2
    assert run("check", tmp_path / "cores" / "below").returncode == 0
    (tmp_path / "empty").mkdir()
    assert "no core below" in run("check", tmp_path / "empty").stderr


def test_a_pipe_is_no_target(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null"):
        result = run("check", path)
        assert result.returncode == 2
        assert "no regular file" in result.stderr


def test_a_core_that_changes_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "core"
    path.write_bytes(HEALTHY.read_bytes())

    def open_and_grow(target, *args):
        prog = open_target(target, *args)
        with open(target, "ab") as f:
            f.write(b"more")
        return prog

    monkeypatch.setattr("drgn_hvo.commands.check_targets.open_target", open_and_grow)
    result = run("check", path)
    assert result.returncode == 2
    assert "changed while it was read" in result.stderr
