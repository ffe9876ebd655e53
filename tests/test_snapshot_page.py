# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Snapshots of pages
------------------
"""

import drgn
import pytest

from drgn_hvo import (
    snapshot_page,
)
from drgn_hvo.errors import HvoError
from drgn_hvo.helpers._struct_page import StructPage
from drgn_hvo.kernel.finders import install
from drgn_hvo.synth.containers.elf import program
from tests.helpers_support import Case, changed, has_folios
from tests.synth_support import (
    ALL,
    describe,
    machine_and_program,
)


@pytest.fixture(scope="module", params=ALL)
def case(request):
    return Case(request.param)


def test_snapshot_page(case):
    if not has_folios(case.prog):
        with pytest.raises(HvoError, match="no struct folio"):
            snapshot_page(case.page(case.sample()[0]))
        return
    size = case.generation.struct_page_size
    for pfn in case.sample():
        page = case.page(pfn)
        head, order = case.heads.get(pfn, (pfn, 0))
        snapshot = snapshot_page(page)
        assert snapshot[2:] == (pfn, pfn - head, True)
        assert snapshot.page_snapshot.type_.type_name() == "struct page"
        assert snapshot.page_snapshot.to_bytes_() == case.prog.read(page, size)
        folio = snapshot.folio_snapshot
        assert folio.type_.type_name() == "struct folio"
        count = min(folio.type_.size, size << order)
        copied = folio.to_bytes_()
        assert copied[:count] == case.prog.read(case.page(head), count)
        assert not any(copied[count:])


def test_a_snapshot_of_what_does_not_fit_is_not_faithful():
    machine, prog = machine_and_program(describe("shared-7.3"))
    plan = machine.plan
    pair = next(p for p in plan.pages if p.group.kind == "compound")
    single = pair.end_pfn
    # A tail behind its folio, of an order too small, without a head, far away.
    words = (
        plan.space.page_address(pair.first_pfn) | 1,
        0xFFFFFFFFFFFFFE01,
        0xFFFFFFFFFFFF8001,
        0x8001,
    )
    at = plan.structures.page.offset("compound_info")
    for word in words:
        address, old = changed(machine, single, "compound_info", word)
        page = drgn.Object(prog, "struct page *", plan.space.page_address(single))
        snapshot = snapshot_page(page)
        assert snapshot[2:] == (single, 0, False), hex(word)
        copied = snapshot.page_snapshot.to_bytes_()
        assert copied[at : at + 8] == bytes(8)
        assert snapshot.folio_snapshot.to_bytes_()[:64] == copied
        machine.image.write(address, old)


def test_a_folio_that_is_being_split_is_copied_again(monkeypatch):
    """The page is copied as a tail, its folio is gone, and then both are single."""
    machine = machine_and_program(describe("shared-7.3"))[0]
    prog = program(machine, is_live=True)
    install(prog)
    plan = machine.plan
    pair = next(p for p in plan.pages if p.group.kind == "compound")
    tail = drgn.Object(
        prog, "struct page *", plan.space.page_address(pair.first_pfn + 1)
    )
    assert snapshot_page(tail)[2:] == (pair.first_pfn + 1, 1, True)
    reads = []
    order = StructPage.order

    def split(self):
        reads.append(self.address)
        if len(reads) == 1:
            changed(machine, pair.first_pfn, "flags", 0)
        else:
            changed(machine, pair.first_pfn + 1, "compound_info", 0)
        return order(self) if len(reads) > 1 else 0

    monkeypatch.setattr(StructPage, "order", split)
    assert snapshot_page(tail)[2:] == (pair.first_pfn + 1, 0, True)
    assert len(reads) == 2
