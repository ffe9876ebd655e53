# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Wherever a word leads, no byte of somebody's page gets into an extract
----------------------------------------------------------------------

Each pointer that commands follow is made to lead to each kind of somebody's page, one
at a time. All memory that is not the kernel's own is marked; no mark may be in the
extract, and a page that was read must be counted as left out.
"""

import random

import pytest

from drgn_hvo.errors import HvoError
from drgn_hvo.synth.machine.machine import build_machine
from tests.extract_support import extract, marks
from tests.pointers_support import KINDS, WAYS, Watched, described, lead, pointers

_GENERATIONS = ("shared-7.3", "fake-head-6.12")
_OPTIONS: tuple[dict[str, bool], ...] = (
    {},
    {"small": True},
    {"all_struct_pages": True},
)

# Of each way and kind, in each generation.
_EACH = 9


def test_there_are_five_hundred():
    assert _EACH * len(KINDS) * len(WAYS) * len(_GENERATIONS) >= 500


@pytest.fixture(scope="module")
def found():
    machines = {name: build_machine(described(name)) for name in _GENERATIONS}
    return {name: pointers(machine) for name, machine in machines.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", _GENERATIONS)
def test_no_pointer_leads_out_of_the_kernel(name, way, kind, found, tmp_path):
    noise = random.Random(f"{name} {way} {kind}")
    every = found[name][way]
    assert every
    for number in range(_EACH):
        pointer = noise.choice(every)
        machine = build_machine(described(name))
        lead(machine, pointer, Watched(machine, kind).victim)
        marked = Watched(machine, kind)
        path = tmp_path / str(number)
        options = _OPTIONS[number % len(_OPTIONS)]
        try:
            _, document = extract(marked.prog, path, **options)
        except HvoError:
            # What cannot be opened is not extracted either.
            assert not path.exists()
            continue
        assert marks(path) == [], (pointer, options)
        assert document["left_out"] or not marked.was_read, (pointer, options)
