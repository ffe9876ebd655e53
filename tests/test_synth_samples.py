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

from drgn_hvo.hvo import hvo
from drgn_hvo.synth.description_file import load_description, load_toml
from drgn_hvo.synth.faults import make_machine
from drgn_hvo.synth.generations import GENERATIONS
from tests.synth_support import expected_folios
from tests.test_synth_containers import opened

SAMPLES = Path(__file__).resolve().parent.parent / "sample_vmcores"
TABLE = load_toml((SAMPLES / "samples.toml").read_text(), "samples.toml")


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
    assert sorted(cores) == sorted(TABLE)
    assert max(cores.values()) < 1 << 20
    assert sum(cores.values()) < 6 << 20
    described = {load_description(path).generation for path in descriptions()}
    assert described == {entry.name for entry in GENERATIONS}
    readme = (SAMPLES / "README.md").read_text()
    assert set(re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE)) == set(TABLE)


def descriptions():
    return [path for path in SAMPLES.glob("*.toml") if path.stem != "samples"]


@pytest.mark.parametrize("name", TABLE)
def test_sample(name):
    sample = TABLE[name]
    description = load_description(SAMPLES / sample["description"])
    machine, applied = make_machine(description, sample.get("faults", ()))
    known = hvo(opened(SAMPLES / f"{name}.kdump"))
    assert known.kernel.release == description.release_string
    for fault in applied:
        for change, _ in fault.changes:
            data = known.kernel.prog.read(change.address, len(change.new), True)
            assert data == change.new
    found = set(known.hugetlb.folios.head_pfn.tolist())
    assert found <= set(expected_folios(machine))
    if not applied:
        assert found == set(expected_folios(machine))
        assert known.problems == []
