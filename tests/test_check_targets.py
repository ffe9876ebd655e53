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

from drgn_hvo.commands.workers import Limits, Lost, how_it_ended, results
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


def test_a_list_of_another_system(tmp_path):
    """Names are bytes; a line ends as on Windows, and the list begins with its mark."""
    odd = os.fsencode(tmp_path) + b"/core\xff"
    os.symlink(os.fsencode(HEALTHY), odd)
    listed = tmp_path / "list"
    listed.write_bytes(b"\xef\xbb\xbf" + odd + b"\r\n\r\n" + bytes(HEALTHY))
    arguments = ("check", "--json", "--targets-from", listed)
    documents = [json.loads(line) for line in run(*arguments).stdout.splitlines()]
    assert [doc["target"] for doc in documents] == [os.fsdecode(odd), str(HEALTHY)]


@pytest.mark.parametrize("option", ["--targets-from", "--resume"])
def test_a_list_that_does_not_end(option):
    command = [sys.executable, "-m", "drgn_hvo", "check", option, "/dev/zero", HEALTHY]
    limit = 'ulimit -v 2000000; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", limit, "sh", *map(str, command)], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "/dev/zero: not " in done.stderr


def test_closed_stdin():
    command = [sys.executable, "-m", "drgn_hvo", "check", "--targets-from", "-"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr


def test_nobody_hears_errors_and_progress():
    """stderr is full: results do not depend on it."""
    command = [
        *(sys.executable, "-m", "drgn_hvo", "check", "--json", "--progress", "json"),
        *("nowhere", HEALTHY),
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=full, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    found = [json.loads(line)["status"] for line in done.stdout.splitlines()]
    assert found == ["error", "clean"]
    assert done.returncode == 2


@pytest.mark.parametrize("memory", ["1e300", "1e200", "1e-12"])
def test_any_limit_of_memory(memory):
    result = run("check", HEALTHY, "--memory", memory)
    assert result.returncode == (2 if memory == "1e-12" else 0)
    assert "Traceback" not in result.stderr


def test_a_directory_that_cannot_be_read(tmp_path, monkeypatch):
    """What may be in it is not missing without a word, and the others are read."""
    locked = tmp_path / "a"
    locked.mkdir()
    links(tmp_path, ["core"])
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path) == str(locked):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    result = run("check", "--json", tmp_path)
    assert result.returncode == 2
    core, unread = map(json.loads, result.stdout.splitlines())
    assert core["status"] == "clean"
    assert unread["error"] == f"{locked}: Permission denied"
    assert "Permission denied" in run("check", locked).stderr


def earlier_run(tmp_path):
    results = tmp_path / "results"
    targets = links(tmp_path, ["a", "b"])
    results.write_text(run("check", "--json", *targets).stdout)
    return results, targets


def test_strange_lines_of_an_earlier_run(tmp_path):
    results, targets = earlier_run(tmp_path)
    values: list[object] = [[], {}, None, "x", 1e999]
    strange = [
        {"target": value, "status": "clean", "dump": {"size": value, "mtime": value}}
        for value in values
    ]
    lines = [*map(json.dumps, strange), "[" * 5000, "null", "\0\xff"]
    results.write_text("\n".join(lines) + "\n" + results.read_text())
    result = run("check", "--json", "--resume", results, *targets)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_what_an_earlier_run_found_is_not_forgotten(tmp_path):
    """Nothing is left to do, and something is wrong."""
    results, healthy = tmp_path / "results", links(tmp_path, ["a"])[0]
    results.write_text(run("check", "--json", healthy, DAMAGED).stdout)
    result = run("check", "--json", "--resume", results, healthy, DAMAGED)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")
    # That one is not among what is asked about now.
    assert run("check", "--json", "--resume", results, healthy).returncode == 0


@pytest.mark.parametrize("keep", [1, 100, -1])
def test_the_last_line_of_an_earlier_run_is_cut(tmp_path, keep):
    """As it is after SIGKILL; what is done then is added to the same file."""
    results, targets = earlier_run(tmp_path)
    first, second = results.read_text().splitlines()
    results.write_text(f"{first}\n{second[:keep]}")
    command = [
        *(sys.executable, "-m", "drgn_hvo", "check", "--json", "--resume", results),
        *targets,
    ]
    with results.open("a") as f:
        subprocess.run(list(map(str, command)), stdout=f, timeout=60, check=True)
    documents = [json.loads(line) for line in results.read_text().splitlines()]
    assert [doc["target"] for doc in documents] == list(map(str, targets))


def test_only_half_a_result_is_dropped(tmp_path):
    results, targets = earlier_run(tmp_path)
    results.write_text(results.read_text() + "a note")
    command = [
        *(sys.executable, "-m", "drgn_hvo", "check", "--json", "--resume", results),
        *(*targets, DAMAGED),
    ]
    with results.open("a") as f:
        subprocess.run(list(map(str, command)), stdout=f, timeout=60, check=False)
    assert results.read_text().splitlines()[2] == "a note"
    assert json.loads(results.read_text().splitlines()[3])["status"] == "findings"


def test_killed_with_the_lock_of_its_pool(tmp_path, monkeypatch):
    """Others do not wait for what the dead one had."""
    transaction = pebble.pool.process.task_transaction

    def killed_once(channel):
        with channel.lock(timeout=600):
            try:
                (tmp_path / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return transaction(channel)

    monkeypatch.setattr(pebble.pool.process, "task_transaction", killed_once)
    start = time.monotonic()
    assert list(results(abs, range(8), Limits(jobs=2))) == list(range(8))
    assert (tmp_path / "killed").exists()
    assert time.monotonic() - start < 20


def test_no_process_can_live(monkeypatch):
    monkeypatch.setattr(
        pebble.pool.process,
        "fetch_task",
        lambda _: os.kill(os.getpid(), signal.SIGKILL),
    )
    reason = "the process to read this target was lost"
    found = list(results(abs, [1, 2], Limits(jobs=2)))
    assert found == [Lost(task, reason) for task in (1, 2)]


def test_what_a_process_prints_goes_nowhere(capfd):
    assert list(results(os.system, ["echo x"], Limits())) == [0]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("number", "crashed"), [
    (signal.SIGBUS, False), (signal.SIGKILL, False), (signal.SIGQUIT, False),
    (signal.SIGXCPU, False), (signal.SIGSEGV, True), (signal.SIGABRT, True),
])  # fmt: skip
def test_who_is_to_blame(number, crashed):
    """A file that is cut while it is mapped, or a limit of the shell, is no bug."""
    how, is_crash = how_it_ended(-number)
    assert number.name in how
    assert is_crash == crashed
