# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Scripts in contrib/
-------------------

Each is run as a user runs it, ``drgn -c CORE SCRIPT``, and what it prints is compared
with the ground truth, with the description of a synthetic core, or with what drgn's own
helpers say.
"""

import argparse
from collections import Counter
import importlib
import json
import os
from pathlib import Path
import runpy
import subprocess
import sys
from types import ModuleType

import drgn
import jsonschema
import pytest

from drgn_hvo.commands.schema import load_schema
from drgn_hvo.kernel.target import open_target
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.described.description_file import load_description
from tests.command_support import captured, check_refused, run as command
from tests.cores import CORES, core_path, truth

ROOT = Path(__file__).resolve().parents[1]
CONTRIB = ROOT / "contrib"
EXAMPLES = CONTRIB / "examples"
SAMPLES = ROOT / "sample_vmcores"
DRGN = [sys.executable, "-m", "drgn"]


def run(script, *args, core=None, target=()):
    """``drgn -q -c CORE SCRIPT``, as drgn.cli runs it, in this process."""
    prog = drgn.Program()
    if core is not None:
        prog.set_core_dump(core)
    else:
        (_, pid) = target
        prog.set_pid(int(pid))
    words = [str(script), *map(str, args)]

    def call():
        # What scripts import from beside them, and argv, as the interpreter has them.
        path, argv = sys.path[:], sys.argv
        sys.path.insert(0, str(Path(script).parent))
        sys.argv = words
        drgn.set_default_prog(prog)
        try:
            runpy.run_path(words[0], {"prog": prog}, "__main__")
        finally:
            drgn.set_default_prog(None)
            sys.path[:], sys.argv = path, argv

    return captured(words, call)


def run_drgn(script, *args, core):
    """A real process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        # What drgn says of debugging symbols is not ours.
        [*DRGN, "-q", "--log-level", "none", "-c", str(core), str(script), *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


def rows(output, first):
    """Of the table whose first column is *first*: dictionaries by column."""
    lines = iter([line.split() for line in output.splitlines()])
    header: list[str] = next((words for words in lines if words[:1] == [first]), [])
    table: list[dict[str, str]] = []
    for words in lines:
        if len(words) != len(header) or not words[0].isdigit():
            break
        table.append(dict(zip(header, words)))
    return table


# hvo_check.py

CHECK = CONTRIB / "hvo_check.py"


@pytest.mark.parametrize(
    ("sample", "args", "status"),
    [
        ("shared-7.3", [], 0),
        ("shared-7.3", ["--deep"], 0),
        ("fake-head-6.12", ["--deep"], 0),
        ("shared-7.3-tail-bit-cleared", [], 1),
        ("shared-7.3-tail-bit-cleared", ["--ignore", "shared-tail-info"], 0),
        ("shared-7.3-tail-bit-cleared", ["--rules", "shared-tail-info"], 1),
        ("shared-7.3-pte-writable", [], 1),
        ("shared-7.3-boot-1g", [], 0),
        ("shared-7.3-boot-1g", ["--strict"], 1),
    ],
)
def test_check_is_the_command(sample, args, status):
    core = SAMPLES / f"{sample}.kdump"
    result = run(CHECK, "--format", "json", *args, core=core)
    expected = command("check", core, "--format", "json", *args)
    assert result.returncode == expected.returncode == status
    document = json.loads(result.stdout)
    jsonschema.validate(document, load_schema("check"))
    # How long it took is never the same.
    assert document.pop("duration_s") > 0
    wanted = json.loads(expected.stdout)
    assert wanted.pop("duration_s") > 0
    assert document == wanted


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        (CHECK, ["--format", "text"], "1 error"),
        (EXAMPLES / "saved_per_node.py", [], "NODE"),
    ],
)
def test_in_a_process_of_drgn(script, args, words):
    """As users run them: the same status and output as in this process."""
    core = SAMPLES / "shared-7.3-tail-bit-cleared.kdump"
    real, called = run_drgn(script, *args, core=core), run(script, *args, core=core)
    assert (real.returncode, real.stdout) == (called.returncode, called.stdout)
    assert real.stderr == called.stderr
    assert words in real.stdout


@pytest.mark.parametrize(
    ("output_format", "words"), [("text", "1 error"), ("ktap", "not ok")]
)
def test_check_formats(output_format, words):
    core = SAMPLES / "shared-7.3-tail-bit-cleared.kdump"
    result = run(CHECK, "--format", output_format, core=core)
    assert result.returncode == 1
    assert words in result.stdout
    assert result.stderr == ""


def test_check_refuses_what_is_no_kernel():
    check_refused(run(CHECK, target=["-p", str(os.getpid())]), "hvo_check: error")


def test_check_outside_of_drgn():
    result = subprocess.run(
        [sys.executable, str(CHECK)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    check_refused(result, "drgn -c CORE")


def test_check_refuses_a_rule_that_does_not_exist():
    core = SAMPLES / "shared-7.3.kdump"
    check_refused(run(CHECK, "--rules", "no-such-rule", core=core), "no-such-rule")


# corelens_hvo.py


class StubModule:
    """The parts of drgn_tools.corelens.CorelensModule that concern a module."""

    need_dwarf = False
    live_ok = True
    run_when = "always"
    default_args = ()


def parse(module, *args):
    """As CorelensModule._parse_args() does it."""
    parser = argparse.ArgumentParser(prog=module.name, description=module.__doc__)
    module.add_args(parser)
    return parser.parse_args(args)


@pytest.fixture
def corelens(monkeypatch):
    """corelens_hvo beside a drgn-tools that is none."""
    package, module = ModuleType("drgn_tools"), ModuleType("drgn_tools.corelens")
    monkeypatch.setattr(module, "CorelensModule", StubModule, raising=False)
    monkeypatch.setitem(sys.modules, "drgn_tools", package)
    monkeypatch.setitem(sys.modules, "drgn_tools.corelens", module)
    monkeypatch.syspath_prepend(str(CONTRIB))
    monkeypatch.delitem(sys.modules, "corelens_hvo", raising=False)
    yield importlib.import_module("corelens_hvo")
    sys.modules.pop("corelens_hvo", None)


def test_corelens_finds_the_module(corelens):
    """all_corelens_modules() makes one of each leaf of the tree of subclasses."""
    (found,) = (c for c in StubModule.__subclasses__() if c is corelens.Hvo)
    module = found()
    assert module.name == "hvo"
    assert not found.__subclasses__()
    assert module.need_dwarf is False
    assert module.run_when in ("always", "verbose", "never")


@pytest.mark.parametrize(
    ("sample", "args", "words"),
    [
        ("shared-7.3", [], ["Shared tail pages", "clean"]),
        ("shared-7.3", ["--folios"], ["REFCOUNT", "HEAD"]),
        ("shared-7.3-tail-bit-cleared", [], ["shared-tail-info", "1 error"]),
        ("fake-head-6.12", ["--deep"], ["fake-head", "clean"]),
    ],
)
def test_corelens_report(corelens, capsys, sample, args, words):
    module = corelens.Hvo()
    prog = open_target(str(SAMPLES / f"{sample}.kdump"))
    module.run(prog, parse(module, *args))
    output = capsys.readouterr().out
    for word in words:
        assert word in output


def test_corelens_with_what_is_no_kernel(corelens, capsys):
    module = corelens.Hvo()
    prog = drgn.Program()
    prog.set_pid(os.getpid())
    module.run(prog, parse(module))
    output = capsys.readouterr().out
    assert output.startswith("hvo: ")
    assert output.count("\n") == 1


def test_corelens_without_drgn_tools(monkeypatch):
    monkeypatch.setitem(sys.modules, "drgn_tools", None)
    monkeypatch.syspath_prepend(str(CONTRIB))
    monkeypatch.delitem(sys.modules, "corelens_hvo", raising=False)
    module = importlib.import_module("corelens_hvo")
    sys.modules.pop("corelens_hvo")
    assert module.Hvo.name == "hvo"


# saved_per_node.py

SAVED = EXAMPLES / "saved_per_node.py"


@pytest.mark.parametrize("name", CORES)
def test_saved_of_real_cores(name):
    known = truth(name)
    result = run(SAVED, core=core_path(name))
    assert result.returncode == 0, result.stderr
    table = rows(result.stdout, "NODE")
    saved: Counter[int] = Counter()
    count: Counter[int] = Counter()
    for folio in known["folios"]:
        if folio["optimized_mapping"]:
            saved[folio["nid"]] += folio["saved"]
            count[folio["nid"]] += 1
    assert [int(row["NODE"]) for row in table] == [n["nid"] for n in known["nodes"]]
    for row in table:
        nid = int(row["NODE"])
        assert int(row["OPTIMIZED"]) == count[nid]
        assert int(row["SAVED"]) == saved[nid]
    total = sum(int(row["SAVED"]) for row in table)
    assert total == known["totals"]["saved_vmemmap_pages"]
    tails = sum(int(row["TAILS"]) for row in table)
    assert tails == known["totals"].get("shared_tail_frames", 0)


@pytest.mark.parametrize("sample", ["shared-7.3", "fake-head-6.12", "plain-7.2"])
def test_saved_of_samples(sample):
    description = load_description(SAMPLES / f"{sample}.toml")
    machine, _ = make_machine(description)
    saved: Counter[int] = Counter()
    for placed in machine.plan.huge:
        if placed.optimized:
            slices = (64 << placed.group.order) // 4096
            saved[placed.group.node] += (slices - 1) * placed.group.count
    table = rows(run(SAVED, core=SAMPLES / f"{sample}.kdump").stdout, "NODE")
    assert {int(row["NODE"]): int(row["SAVED"]) for row in table} == {
        node.id: saved[node.id] for node in description.nodes
    }


def test_examples_refuse_what_is_no_kernel():
    check_refused(run(SAVED, target=["-p", str(os.getpid())]), "error: ")
