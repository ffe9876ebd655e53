# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The audit of a running kernel
-----------------------------

Its memory changes from one reading to the next. Only what every reading finds, in the
same words, is a finding, and the number of readings is bounded.
"""

from functools import cache

from drgn import Architecture, Platform, Program
import pytest

from drgn_hvo.audit import run as checks
from drgn_hvo.memmap.hvo import hvo
from drgn_hvo.synth.damage.faults import make_machine
from tests.synth_support import describe

HEALTHY: tuple[str, ...] = ()


@cache
def _machine(faults):
    machine, _ = make_machine(describe("shared-7.3"), list(faults))
    return machine


class _Kernel:
    """
    A running kernel that goes from one state to the next between two readings.

    :param states: Faults that each state has; the last one stays.
    """

    def __init__(self, monkeypatch, *states):
        self._images = [_machine(faults) for faults in states]
        self._state = 0
        self.pauses = 0
        monkeypatch.setattr("time.sleep", self._sleep)
        self.prog = Program(Platform(Architecture.X86_64))
        self.prog.add_memory_segment(0, 1 << 46, self._read, True)
        self.prog.set_linux_kernel_custom(self._images[0].vmcoreinfo, True)

    def _sleep(self, seconds):
        assert 0 < seconds < 1
        self.pauses += 1
        self._state = min(self._state + 1, len(self._images) - 1)

    def _read(self, address, count, offset, physical):
        return self._images[self._state].image.read(address, count)

    def audit(self):
        return checks.confirmed_audit(hvo(self.prog))


def _rules(audit):
    return {finding.rule for finding in audit.findings}


def test_healthy(monkeypatch):
    kernel = _Kernel(monkeypatch, HEALTHY)
    assert kernel.audit().findings == []
    assert kernel.pauses == 0


@pytest.mark.parametrize("fault", ["tail-bit-cleared", "pte-writable", "counter-total"])
def test_what_stays_wrong_is_found(monkeypatch, fault):
    """Three readings are enough, as the pools stand still."""
    kernel = _Kernel(monkeypatch, (fault,))
    dead = checks.run_audit(hvo(kernel.prog))
    assert dead.findings
    assert kernel.audit().findings == dead.findings
    assert kernel.pauses == 2


@pytest.mark.parametrize("readings", [1, 2])
def test_what_goes_away_is_not(monkeypatch, readings):
    states = [("pte-writable",)] * readings
    kernel = _Kernel(monkeypatch, *states, HEALTHY)
    assert kernel.audit().findings == []


def test_something_else_each_time_is_not(monkeypatch):
    faults = "pte-writable", "tail-bit-cleared", "pte-writable", "counter-total"
    kernel = _Kernel(monkeypatch, *((fault,) for fault in faults))
    assert kernel.audit().findings == []


def test_what_stays_is_kept_among_what_goes(monkeypatch):
    stays = "tail-bit-cleared"
    kernel = _Kernel(monkeypatch, (stays, "pte-writable"), (stays,))
    assert _rules(kernel.audit()) == {"shared-tail-info"}


def test_readings_are_bounded(monkeypatch):
    """Pools that never stand still, and something that is always wrong."""
    changing = [("tail-bit-cleared",), ("tail-bit-cleared", "counter-total")] * 50
    kernel = _Kernel(monkeypatch, *changing)
    assert _rules(kernel.audit()) == {"shared-tail-info"}
    assert kernel.pauses < 20
