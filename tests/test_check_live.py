# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The audit of a running kernel
-----------------------------

Its memory changes from one reading to the next. Only what every reading finds, in the
same words, is a finding, and the number of readings is bounded.
"""

from functools import cache

from drgn import Architecture, Object, Platform, Program
from drgn.helpers import ValidationError
import pytest

from drgn_hvo import validate_hugetlb_folio, validate_shared_tail
from drgn_hvo.audit import run as checks
from drgn_hvo.memmap.hvo import hvo_of
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
        return checks.confirmed_audit(hvo_of(self.prog))


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
    dead = checks.run_audit(hvo_of(kernel.prog))
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


def _folio(kernel):
    """The folio that faults of synth are in, and how to validate it."""
    pfn = 5632
    address = hvo_of(kernel.prog).vmemmap.page_address(pfn)
    return validate_hugetlb_folio, Object(kernel.prog, "struct folio *", address)


def _tail(kernel):
    tail = hvo_of(kernel.prog).shared_tails[0]
    return validate_shared_tail, Object(kernel.prog, "struct page *", tail.value)


# Faults that the validator of a subject names, each in another word of memory.
_FAULTS_OF = {
    _folio: ("pte-writable", "private-tail", "head-without-PG_head"),
    _tail: ("tail-bit-cleared", "tail-rest", "tail-mapping"),
}


def _accusation(kernel, subject):
    validate, of = subject(kernel)
    try:
        validate(of)
    except ValidationError as e:
        return str(e)
    return None


@pytest.mark.parametrize("subject", [_folio, _tail])
def test_validators_accuse_of_what_every_reading_shows(subject, monkeypatch):
    """Something else each time is no damage: the kernel was at work."""
    said = set()
    for fault in _FAULTS_OF[subject]:
        said.add(_accusation(_Kernel(monkeypatch, (fault,)), subject))
        kernel = _Kernel(monkeypatch, (fault,), HEALTHY, (fault,))
        assert _accusation(kernel, subject) is None, fault
    assert len(said) == len(_FAULTS_OF[subject])
    assert None not in said
    kernel = _Kernel(monkeypatch, *((fault,) for fault in _FAULTS_OF[subject]))
    assert _accusation(kernel, subject) is None


def test_a_subject_that_comes_back_is_not_accused(monkeypatch):
    """A slot that names the page, does not, and does again."""
    kernel = _Kernel(monkeypatch, HEALTHY)
    validate, page = _tail(kernel)
    emptied, (applied,) = make_machine(describe("shared-7.3"), ["slot-out-of-range"])
    for change, old in applied.changes:
        emptied.image.write(change.address, bytes(len(old)))
    kernel._images[:] = [emptied, kernel._images[0]]
    assert page.value_() not in [
        tail.value for tail in hvo_of(kernel.prog).shared_tails
    ]
    validate(page)
    kernel._images[:] = [emptied]
    kernel._state = 0
    with pytest.raises(ValidationError, match="no slot"):
        validate(page)
