# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What the documents of check have for those who run it over many cores: identity,
duration, and a signature that groups equal damage.
"""

import json
from pathlib import Path

from drgn import Program

from drgn_hvo.cli import main
from drgn_hvo.kernel.bound import kernel
from drgn_hvo.kernel.identity import identity_of
from drgn_hvo.kernel.target import open_target
from tests.command_support import run

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
CLEAN = SAMPLES / "shared-7.3.kdump"


def check(core, *args):
    return json.loads(run("check", core, "--json", *args).stdout)


def damaged(tmp_path, fault, seed):
    described = tmp_path / "machine.toml"
    text = (SAMPLES / "shared-7.3.toml").read_text()
    lines = [f"seed = {seed}", *(x for x in text.split("\n") if x[:4] != "seed")]
    described.write_text("\n".join(lines))
    core = tmp_path / f"{fault}-{seed}"
    assert main(["synth", str(described), "-o", str(core), "--fault", fault]) == 0
    return core


def test_equal_damage_has_one_signature_on_any_machine(tmp_path):
    by_fault = {
        fault: {check(damaged(tmp_path, fault, n))["signature"] for n in (1, 2)}
        for fault in ("tail-bit-cleared", "pte-writable", "two-slots")
    }
    assert all(len(signatures) == 1 for signatures in by_fault.values())
    clean = check(CLEAN)["signature"]
    assert len(set.union(*by_fault.values(), {clean})) == len(by_fault) + 1


def test_it_took_some_time():
    assert 0 < check(CLEAN)["duration_s"] < 60
    assert check(SAMPLES / "README.md")["duration_s"] < 60


class _Changed:
    """Memory of a core in which something else stands in places."""

    def __init__(self, prog, words):
        self._prog, self._words = prog, words

    def __getattr__(self, name):
        return getattr(self._prog, name)

    def __getitem__(self, name):
        return self._prog[name]

    def read(self, address, size, physical=False):
        found = bytearray(self._prog.read(address, size, physical))
        for at, data in self._words.items():
            if address <= at < address + size:
                found[at - address : at - address + len(data)] = data
        return bytes(found)


def test_names_of_the_machine():
    """Extracts have none of its own; here is one."""
    prog = open_target(str(CLEAN), (), None)
    found = kernel(prog)
    names = found.vmcoreinfo.address("init_uts_ns")
    offset = found.vmcoreinfo.offset("uts_namespace.name")
    assert names is not None
    assert offset is not None
    at = names + offset
    assert isinstance(found.prog, Program)
    found.prog = _Changed(prog, {at + 65: b"host\x1b[31m\0", at + 195: b"#1 SMP\0"})
    identity = identity_of(found)
    assert identity.nodename == "host\x1b[31m"
    assert identity.version == "#1 SMP"
    assert identity.release == found.release
    assert identity.panic is None


def test_a_dump_of_which_nothing_is_known():
    found = check(SAMPLES / "debian-7.2.kdump")["identity"]
    assert found.pop("release") == "7.2.13+deb14-cloud-amd64"
    assert found.pop("version").startswith("#1 SMP PREEMPT_DYNAMIC Debian")
    assert set(found.values()) == {None}
