# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Chance
------

Random healthy machines give no finding. Random damage to what the audit reads gives
findings or none, but never another exception, and never goes unnoticed where every
bit matters.
"""

import random
import re
import resource
import time
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.random_machines import machines
from tests.synth_support import ALL, describe

# One case takes milliseconds; this is for a machine that does other things too.
_TOO_LONG = 20.0


@pytest.mark.parametrize("name", ALL)
@settings(
    max_examples=10,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_nothing_in_a_random_healthy_machine(name, data):
    machine = data.draw(machines(name))
    doc = check_document(hvo_of(program(machine)), "core", CheckScope(deep=True))
    # Boot-time tails have the defect of the kernels that they imitate.
    assert {f["defect"] for f in doc["findings"]} <= {"boot-tail-refcount"}
    assert doc["complete"] is True


def opened(machine):
    """A program of a healthy machine that knows its symbols and types already."""
    prog = program(machine)
    sources = install(prog)
    sources.kallsyms()
    sources.types()
    return prog


def outcome(prog, **options):
    """
    The document, or the one-line error, of memory as it is now; symbols and types stay,
    which test_damage.py damages.
    """
    started = time.monotonic()
    result: Any
    try:
        bound = Hvo(Kernel(prog, {}))
        result = check_document(bound, "core", CheckScope(**options))
    except HvoError as e:
        result = e
    assert not isinstance(result, HvoError) or re.fullmatch(".+", str(result))
    assert time.monotonic() - started < _TOO_LONG
    return result


class Damage:
    """Random changes of a machine that can be undone."""

    def __init__(self, machine, rng):
        self.machine = machine
        self.rng = rng
        self.old = []
        vmemmap = machine.vmemmap
        frames = {tail.pfn for tail in vmemmap.tails}
        heads = [pfn for h in vmemmap.heads for pfn in h.placed.heads()]
        for placed in machine.plan.huge:
            heads += placed.heads()
        frames |= {machine.page_physical(pfn) >> 12 for pfn in heads}
        for pfn in heads:
            try:
                frames.add(machine.slice_entry(pfn) >> 12)
            except KeyError:
                continue  # mapped by a large page
        for name in ("hstates", "node_data", "node_states", "vmemmap_base"):
            frames.add(machine.kernel.physical(name) >> 12)
        self.frames = sorted(frames)

    def do(self, count):
        for _ in range(count):
            frame = self.rng.choice(self.frames) << 12
            size = self.rng.choice((1, 2, 8))
            address = frame + self.rng.randrange(4096 - size)
            self.old.append((address, self.machine.image.read(address, size)))
            self.machine.image.write(address, self.rng.randbytes(size))

    def undo(self):
        for address, old in reversed(self.old):
            self.machine.image.write(address, old)
        self.old.clear()


def test_random_damage(pytestconfig):
    cases = pytestconfig.getoption("--damage-cases")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k, name in enumerate(ALL):
        machine = build_machine(describe(name))
        prog = opened(machine)
        damage = Damage(machine, random.Random(k))
        for _ in range(-(-cases // len(ALL))):
            damage.do(damage.rng.choice((1, 1, 3, 20, 200)))
            outcome(prog, deep=damage.rng.random() < 0.2)
            damage.undo()
        assert outcome(prog)["findings"] == []
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20  # KiB


SHARED = [name for name in ALL if build_machine(describe(name)).vmemmap.tails]


@pytest.mark.parametrize("name", SHARED)
def test_no_bit_of_a_shared_tail_changes_unnoticed(name):
    """Bits of last_cpupid and KASAN in flags apart, and lru.prev of boot tails."""
    machine = build_machine(describe(name))
    prog = opened(machine)
    rng = random.Random(name)
    bound = hvo_of(prog)
    layout, count = bound.mmzone.flags_layout, bound.kernel.constant("__NR_PAGEFLAGS")
    assert layout
    assert count
    exempt = range(count, layout.zone_shift)
    for tail in machine.vmemmap.tails:
        for _ in range(40):
            entry, bit = rng.randrange(64), rng.randrange(512)
            if bit in exempt:
                continue
            address = (tail.pfn << 12) + entry * 64 + bit // 8
            old = machine.image.read(address, 1)
            machine.image.write(address, bytes([old[0] ^ 1 << bit % 8]))
            doc = outcome(prog)
            (finding,) = doc["findings"]
            assert finding["rule"].startswith("shared-tail-")
            at = int(finding["physical_address"], 0)
            assert at & ~7 == address & ~7
            machine.image.write(address, old)


OPTIMIZED = [name for name in ALL if build_machine(describe(name)).vmemmap.heads]


@pytest.mark.parametrize("name", OPTIMIZED)
def test_no_entry_of_an_optimized_folio_changes_unnoticed(name):
    """Presence, the writable bit and the frame."""
    machine = build_machine(describe(name))
    prog = opened(machine)
    rng = random.Random(name)
    head = machine.vmemmap.heads[0].placed.heads()[0]
    for _ in range(30):
        entry = machine.slice_entry(head, rng.randrange(8))
        bit = rng.choice((0, 1, *range(12, 30)))
        old = machine.image.read(entry, 8)
        new = int.from_bytes(old, "little") ^ 1 << bit
        machine.image.write(entry, new.to_bytes(8, "little"))
        doc = outcome(prog)
        assert doc["findings"] or not doc["complete"]
        machine.image.write(entry, old)
