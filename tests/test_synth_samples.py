# SPDX-License-Identifier: LGPL-2.1-or-later

"""
sample_vmcores/
---------------

The samples are what their descriptions give, small, and complete.
"""

from pathlib import Path
import re
import subprocess
import sys

import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.described.description_file import load_description, load_toml
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.cores import core_path
from tests.extract_support import answers
from tests.synth_support import expected_folios, loaded

SAMPLES = Path(__file__).resolve().parent.parent / "sample_vmcores"
TABLE = load_toml((SAMPLES / "samples.toml").read_text(), "samples.toml")
REAL = load_toml((SAMPLES / "real.toml").read_text(), "real.toml")


def test_rebuilt_bit_for_bit():
    result = subprocess.run(
        [sys.executable, str(SAMPLES / "rebuild.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(SAMPLES.parent)},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_sizes_and_completeness():
    cores = {path.stem: path.stat().st_size for path in SAMPLES.glob("*.kdump")}
    assert sorted(cores) == sorted([*TABLE, *REAL])
    assert max(cores.values()) < 1 << 20
    assert sum(cores.values()) < 12_000_000
    described = {load_description(path).generation for path in descriptions()}
    assert described == {entry.name for entry in GENERATIONS}
    readme = (SAMPLES / "README.md").read_text()
    named = set(re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE))
    assert named == {*TABLE, *REAL}
    for name, real in REAL.items():
        assert "log" not in real or (SAMPLES / real["log"]).is_file()
        row = f"| `{name}` | {real['package']} | {real['version']} | `{real['boot']}` |"
        assert row in readme


def descriptions():
    tables = ("samples", "real")
    return [path for path in SAMPLES.glob("*.toml") if path.stem not in tables]


@pytest.mark.parametrize("name", TABLE)
def test_sample(name):
    sample = TABLE[name]
    description = load_description(SAMPLES / sample["description"])
    machine, applied = make_machine(description, sample.get("faults", ()))
    known = hvo_of(open_target(str(SAMPLES / f"{name}.kdump")))
    assert known.kernel.release == description.release_string
    assert known.kernel.arch == description.architecture
    for fault in applied:
        for change, _ in fault.changes:
            data = known.kernel.prog.read(change.address, len(change.new), True)
            assert data == change.new
    found = set(known.hugetlb.folios.head_pfn.tolist())
    assert found <= set(expected_folios(machine))
    if not applied:
        assert found == set(expected_folios(machine))
        assert known.unread == ()


@pytest.mark.parametrize("name", REAL)
def test_real_sample(name):
    """What provenance says is what the core itself says, and the audit of it."""
    real = REAL[name]
    known = hvo_of(loaded(SAMPLES / f"{name}.kdump"))
    assert known.kernel.release == real["release"] == real["package"].split("-", 2)[2]
    namespace = known.kernel.vmcoreinfo.address("init_uts_ns")
    offset = known.kernel.vmcoreinfo.offset("uts_namespace.name")
    assert namespace is not None
    assert offset is not None
    version = known.kernel.prog.read(namespace + offset + 3 * 65, 65)
    assert f" {real['version']} ".encode() in version
    audit = check_document(known, name, CheckScope())
    findings = audit["findings"]
    assert audit["complete"]
    assert {finding["rule"] for finding in findings} == set(real.get("rules", ()))
    defects = {finding["defect"] for finding in findings}
    assert defects == set(real.get("defects", ()))
    sizes = dict(re.findall(r"hugepagesz=(\S+) hugepages=(\d+)", real["boot"]))
    orders = {"2M": 9, "1G": 18}
    for hstate in known.hugetlb.hstates:
        at_boot = {orders[size]: int(count) for size, count in sizes.items()}
        assert hstate.total is not None
        assert hstate.total >= at_boot.get(hstate.order, 0)


@pytest.mark.parametrize("name", [name for name in REAL if "core" in REAL[name]])
def test_real_sample_answers_as_its_core(name):
    core = loaded(core_path(REAL[name]["core"]))
    assert answers(loaded(SAMPLES / f"{name}.kdump")) == answers(core)
