# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Flipped bits
------------

A fixed part of what ``python -m tools.bitflips`` does: every bit that the kernel fixes
is noticed, and what is free is in the table with its reason.
"""

from collections import Counter
from functools import cache
from pathlib import Path
import re

import pytest

from drgn_hvo.kernel.target import open_target
from tools.bitflips import EXEMPTIONS, Machine, exempt_bits, words_of

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
NAMES = [
    *("shared-7.3", "fake-head-6.12", "seed-v5", "fake-head-6.1"),
    "shared-7.3-boot-1g",
]


@cache
def machine(name):
    return Machine(open_target(str(SAMPLES / f"{name}.kdump")))


@cache
def words(name):
    return words_of(machine(name).healthy)


@pytest.mark.parametrize("name", NAMES)
def test_bits_that_the_kernel_fixes(name):
    """Three bits of one word of each name, others for each of them."""
    flipped, missed = machine(name), []
    first = {(word.kind, word.name): word for word in reversed(words(name))}
    noticed: Counter[str] = Counter()
    for place, word in enumerate(first.values()):
        free = exempt_bits(flipped.healthy, word)
        fixed = [bit for bit in range(8 * word.size) if not free >> bit & 1]
        for third in range(3):
            if not fixed:
                break
            bit = fixed[(place * 7 + third * len(fixed) // 3) % len(fixed)]
            flip = flipped.flip_bit(word, bit)
            if flip.rule is None:
                missed.append((word, bit))
            noticed[flip.rule or ""] += 1
    assert missed == []
    assert sum(noticed.values()) > 100
    assert len(noticed) > 8


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_is_as_before(name):
    """What is flipped is put back."""
    flipped = machine(name)
    word = words(name)[0]
    value = word.value.to_bytes(word.size, word.byteorder)
    before = flipped.healthy.kernel.prog.read(word.address, word.size, True)
    assert before == value
    flipped.flip_bit(word, 6)
    assert flipped.healthy.kernel.prog.read(word.address, word.size, True) == value
    audit = flipped.changed(word.address, value)
    assert audit is not None
    assert flipped.new_findings(audit) == []


def test_each_exemption_is_about_something_and_says_why():
    kinds = {(word.kind, word.name) for name in NAMES for word in words(name)}
    for exemption in EXEMPTIONS:
        assert len(exemption.reason) > 20
        assert re.search(r"\(\)|[A-Z_]{6,}", exemption.source)
        if not exemption.kind.startswith("boot"):
            assert any(
                re.fullmatch(exemption.kind, kind)
                and re.fullmatch(exemption.name, name)
                for kind, name in kinds
            ), exemption
