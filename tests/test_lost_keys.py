# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Cores whose VMCOREINFO lost the keys that name kallsyms and BTF say what they said, of
every whole core there is: extracts have no kernel image that could be searched.
"""

from pathlib import Path
import tempfile

import pytest

from drgn_hvo.kernel.target import open_target
from drgn_hvo.synth.described.description_file import load_toml
from tests.cores import CORES, core_path
from tools.lost_keys import answers, without_keys

SAMPLES = Path(__file__).resolve().parent.parent / "sample_vmcores"
SYNTHETIC = sorted(load_toml((SAMPLES / "samples.toml").read_text(), "samples.toml"))


def both(path):
    """What is said with the keys, and without them."""
    note = open_target(str(path), (), None)["VMCOREINFO"].string_()
    lost = without_keys(note)
    assert lost != note
    with tempfile.NamedTemporaryFile() as file:
        file.write(lost)
        file.flush()
        return answers(str(path)), answers(str(path), file.name)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_sample_says_the_same(name):
    right, found = both(SAMPLES / f"{name}.kdump")
    assert "error" not in right
    assert {**found, "check": told(found)} == {**right, "check": told(right)}


@pytest.mark.parametrize("name", [*CORES, "7.3-dax", "7.3-poison"])
def test_a_core_says_the_same(name):
    right, found = both(core_path(name))
    assert "error" not in right
    assert {**found, "check": told(found)} == {**right, "check": told(right)}


def told(answer):
    """What ``check`` says, but for how long it took."""
    return {k: v for k, v in answer["check"].items() if k != "duration_s"}
