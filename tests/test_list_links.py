# SPDX-License-Identifier: LGPL-2.1-or-later

"""Stretches of lists, followed many links at once, against one step after another."""

import random

import numpy as np

from drgn_hvo.memmap.list_links import ListLinks, Passed
from drgn_hvo.memmap.vmemmap import Vmemmap


class Identity(Vmemmap):
    """A vmemmap where the address of a struct page is its PFN."""

    def __init__(self):
        pass

    def page_pfn(self, address):
        return address


class Rows(ListLinks):
    """Links of folios whose PFN, address and row are one number."""

    def __init__(self, successors):
        self.pfns = np.arange(len(successors), dtype=np.int64)
        self._successors = np.array(successors, dtype=np.int64).data
        self._vmemmap = Identity()
        self._lru = 0


def one_by_one(successors, row, rows, most):
    found: list[int] = []
    while row >= 0 and len(found) < most:
        row = successors[row]
        if row < 0 or rows[row]:
            break
        rows[row] = 1
        found.append(row)
    return found


def test_stretches():
    rnd = random.Random(0)
    for _ in range(20000):
        count = rnd.randint(1, 12)
        successors = [
            rnd.choice(
                (i + 1 if i + 1 < count else -1, i - 1, rnd.randrange(-1, count))
            )
            for i in range(count)
        ]
        links = Rows(successors)
        passed = Passed(links)
        passed.rows = bytearray(rnd.random() < 0.2 for _ in range(count))
        rows, start, most = (
            bytearray(passed.rows),
            rnd.randrange(count),
            rnd.randint(0, 14),
        )
        found = links.stretch(start, passed, most).tolist()
        assert found == one_by_one(successors, start, rows, most)
        assert passed.rows == rows
