# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Machines for tests of helpers
-----------------------------
"""

import drgn
import pytest

from drgn_hvo import compound_head, for_each_hugetlb_folio, page_folio
from drgn_hvo.errors import HvoError
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.described.generations import GENERATIONS, generation
from tests.synth_support import (
    describe,
    expected_folios,
    expected_heads,
    machine_and_program,
)

__all__ = ("DRGN_IS_WRONG", "Case", "changed", "folio_at", "folios_of", "has_folios")

# drgn takes the masks of these kernels for pointers.
DRGN_IS_WRONG = [
    entry.name for entry in GENERATIONS if entry.has_mask and entry.array != "zone"
]
OFFSETS = (0, 1, 2, 3, 5, 63, 64, 65, 128, 320, 448, 510, 511)


class Case:
    """A machine, and what is known of its pages."""

    def __init__(self, name):
        self.generation = generation(name)
        self.machine, self.prog = machine_and_program(describe(name))
        self.plan = self.machine.plan
        self.base = self.plan.space.vmemmap
        self.heads = expected_heads(self.machine)
        self.folios = expected_folios(self.machine)
        # Nothing leads to what is on no list and not optimized.
        self.found = {
            pfn: folio
            for pfn, folio in self.folios.items()
            if folio.list is not None or folio.optimized
        }

    @property
    def drgn_is_right(self):
        return self.generation.name not in DRGN_IS_WRONG

    def page(self, pfn):
        # A struct page by arithmetic, so that no helper is its own oracle.
        address = self.base + pfn * self.generation.struct_page_size
        return drgn.Object(self.prog, "struct page *", address)

    def pfn(self, page):
        pfn, rest = divmod(page.value_() - self.base, self.generation.struct_page_size)
        assert not rest
        return pfn

    def sample(self):
        """Pages of folios and of other compound pages, and single ones."""
        pfns: set[int] = set()
        for head, order in set(self.heads.values()):
            pfns.update(head + offset for offset in OFFSETS if offset < 1 << order)
            pfns.add(head + (1 << order) - 1)
        singles = [pfn for pfn in range(0x100, 0x8000, 37) if pfn not in self.heads]
        return sorted(pfns) + singles[:100]


def changed(machine, pfn, member, value):
    """Change a word of a struct page; its address, and what it was."""
    offset = machine.plan.structures.page.offset(member)
    address = machine.page_physical(pfn) + offset
    old = machine.image.read(address, 8)
    machine.image.write(address, value.to_bytes(8, "little"))
    return address, old


def has_folios(prog):
    """Whether there is ``struct folio``, which came with v5.16."""
    hvo_of(prog)  # offers types
    try:
        prog.type("struct folio")
    except LookupError:
        return False
    return True


def folios_of(prog):
    """Hugetlb folios, as what the kernel has for them."""
    if has_folios(prog):
        return list(for_each_hugetlb_folio(prog))
    with pytest.raises(HvoError, match="no struct folio"):
        next(for_each_hugetlb_folio(prog))
    known = hvo_of(prog)
    return [
        drgn.Object(prog, "struct page *", known.vmemmap.page_address(pfn))
        for pfn in known.hugetlb.folios.head_pfn.tolist()
    ]


def folio_at(page):
    """As :func:`page_folio()`, or the head where there are no folios."""
    return page_folio(page) if has_folios(page.prog_) else compound_head(page)
