# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Cores made to hang whoever reads them, or to eat their memory
-------------------------------------------------------------

A few frames, mapped many times, look like terabytes; counts claim millions. Each
command ends within five seconds of processor time and 500 MiB, and with a result or a
line.
"""

from multiprocessing import get_context
import resource
import time

import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.failures import failure
from drgn_hvo.commands.show import show_document
from drgn_hvo.memmap.hvo import hvo_of
from tests.hostile_support import HOSTILE, Hostile

_SECONDS = 5
_MEMORY = 500 << 20


def _work(make, pipe):
    hostile = Hostile()
    make(hostile)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    start = time.process_time()
    try:
        found = hvo_of(hostile.program())
        show_document(found, "core", folios=True)
        said: str = check_document(found, "core", CheckScope(deep=True))["status"]
    except Exception as e:
        said = failure(e) or f"bug: {type(e).__name__}: {e}"
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    pipe.send((said, time.process_time() - start, memory))


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_it_ends_soon_and_says_something(make):
    context = get_context("fork")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=_work, args=(make, sender))
    process.start()
    try:
        assert receiver.poll(60), "hangs"
        said, seconds, memory = receiver.recv()
    finally:
        process.kill()
        process.join()
    assert not said.startswith("bug"), said
    assert "\n" not in said
    assert len(said) < 1000
    assert seconds < _SECONDS, said
    assert memory < _MEMORY, said
