# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Helpers on synthetic cores of every generation
----------------------------------------------

What was described is the truth; where drgn has a helper of the same name, it has to
agree, except on kernels that it is known to misread.
"""

import inspect

import drgn
from drgn.helpers import ValidationError
from drgn.helpers.linux import mm
from drgn.helpers.linux.hugetlb import for_each_hstate
import numpy as np
import pytest

import drgn_hvo
from drgn_hvo import (
    PageHead,
    PageHuge,
    PageTail,
    compound_head,
    compound_heads,
    compound_info_has_mask,
    compound_order,
    folio_vmemmap_frames,
    for_each_hugetlb_folio,
    for_each_vmemmap_tail,
    hugetlb_vmemmap_optimized,
    page_folio,
    page_slab,
    page_to_nid,
    page_zone,
    page_zonenum,
    snapshot_page,
    validate_hugetlb_folio,
    validate_shared_tail,
    vmemmap_saved,
    vmemmap_tails,
)
from drgn_hvo.errors import HvoError
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.helpers._struct_page import StructPage
from drgn_hvo.kernel.finders import install
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.described.generations import GENERATIONS, generation
from drgn_hvo.synth.machine.structures import ZONE_NAMES
from tests.synth_support import (
    ALL,
    describe,
    expected_folios,
    expected_heads,
    machine_and_program,
)

# drgn takes the masks of these kernels for pointers.
DRGN_IS_WRONG = [
    entry.name for entry in GENERATIONS if entry.has_mask and entry.array != "zone"
]
OFFSETS = (0, 1, 2, 3, 5, 63, 64, 65, 128, 320, 448, 510, 511)


class Case:
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


@pytest.fixture(scope="module", params=ALL)
def case(request):
    return Case(request.param)


def test_the_kernels_that_drgn_misreads():
    assert DRGN_IS_WRONG == ["mask-6.18-stable", "seed-v5", "seed-v6"]


def test_compound_info_has_mask(case):
    assert compound_info_has_mask(case.prog) == case.generation.has_mask


def test_compound_head(case):
    for pfn in case.sample():
        page = case.page(pfn)
        head = compound_head(page)
        assert case.pfn(head) == case.heads.get(pfn, (pfn, 0))[0]
        assert head.type_.type_name() == "struct page *"
        if case.drgn_is_right:
            assert head == mm.compound_head(page)


def test_head_and_tail(case):
    kinds = set()
    for pfn in case.sample():
        page = case.page(pfn)
        head, order = case.heads.get(pfn, (None, 0))
        answer = PageHead(page), PageTail(page), compound_order(page).value_()
        is_head = pfn == head
        assert answer == (is_head, head is not None and not is_head, order * is_head)
        kinds.add(answer)
        if case.drgn_is_right:
            theirs = mm.PageHead(page), mm.PageTail(page), mm.compound_order(page)
            assert answer == theirs
    assert len(kinds) > 4


def test_page_folio(case):
    for pfn in case.sample():
        folio = page_folio(case.page(pfn))
        assert folio.type_.type_name() == "struct folio *"
        assert case.pfn(folio) == case.heads.get(pfn, (pfn, 0))[0]


def test_compound_heads_of_a_range(case):
    end = case.plan.max_pfn
    heads = compound_heads(case.prog, range(end))
    assert heads.dtype == np.uint64
    assert heads.shape == (end,)
    for pfn, (head, _) in case.heads.items():
        assert heads[pfn] == head
    known = heads != np.uint64(ALL_ONES)
    compound = np.zeros(end, dtype=np.bool_)
    compound[list(case.heads)] = True
    single = np.flatnonzero(known & ~compound)
    assert len(single) > 1000
    assert (heads[single] == single.astype(np.uint64)).all()


def test_compound_heads_of_some(case):
    rng = np.random.default_rng(7)
    end = case.plan.max_pfn
    pfns = rng.integers(0, end, (100, 170))
    heads = compound_heads(case.prog, range(end))
    assert (compound_heads(case.prog, pfns) == heads[pfns]).all()
    assert (compound_heads(case.prog, pfns.astype(np.uint32)) == heads[pfns]).all()
    every = rng.permutation(list(case.heads))
    assert (compound_heads(case.prog, every.tolist()) == heads[every]).all()
    assert compound_heads(case.prog, []).shape == (0,)
    assert (compound_heads(case.prog, range(20, 10, -3)) == heads[20:10:-3]).all()


def test_compound_heads_where_there_is_none(case):
    none = np.uint64(ALL_ONES)
    far = np.array([-1, -(1 << 62), 1 << 35, (1 << 63) - 1])
    assert (compound_heads(case.prog, far) == none).all()
    large = np.array([(1 << 64) - 1, 1 << 63], dtype=np.uint64)
    assert (compound_heads(case.prog, large) == none).all()
    poisoned = next(p for p in case.plan.pages if p.group.kind == "poisoned").first_pfn
    assert (compound_heads(case.prog, range(poisoned, poisoned + 64)) == none).all()
    assert (compound_heads(case.prog, [poisoned, poisoned + 1]) == none).all()
    behind = case.plan.max_pfn + (1 << 20)
    assert (compound_heads(case.prog, range(behind, behind + 3)) == none).all()
    assert (compound_heads(case.prog, [behind]) == none).all()


@pytest.mark.parametrize(
    "pfns",
    [range(-1, 5), range(1 << 60, (1 << 60) + 5), ["a"], [1.5], [None], [1 << 70]],
    ids=str,
)
def test_compound_heads_of_nonsense(case, pfns):
    with pytest.raises(HvoError, match="PFNs"):
        compound_heads(case.prog, pfns)


def test_a_struct_page_that_was_never_initialised(case):
    poisoned = next(p for p in case.plan.pages if p.group.kind == "poisoned")
    page = case.page(poisoned.first_pfn)
    assert compound_head(page) == page
    kinds = PageHead(page), PageTail(page), PageHuge(page), compound_order(page)
    assert kinds == (False, False, False, 0)
    assert not page_slab(page)
    for helper in (page_to_nid, page_zonenum, page_zone):
        with pytest.raises(HvoError, match="never initialised"):
            helper(page)


def test_node_and_zone(case):
    zones = set()
    for pfn in case.sample():
        page, span = case.page(pfn), case.plan.zone_of(pfn)
        if mm.PageReserved(page) and not page.flags:
            continue
        assert (page_to_nid(page), page_zonenum(page)) == (span.nid, span.index)
        zone = page_zone(page)
        assert zone.type_.type_name() == "struct zone *"
        assert zone.name.string_().decode() == ZONE_NAMES[span.index]
        assert zone.zone_start_pfn.value_() <= pfn
        assert pfn < zone.zone_start_pfn.value_() + zone.spanned_pages.value_()
        zones.add((span.nid, span.index))
    assert len(zones) == 4


def test_page_slab(case):
    slabs = {
        pfn: head
        for placed in case.plan.pages
        if placed.group.kind == "slab"
        for head in placed.heads()
        for pfn in range(head, head + (1 << placed.group.order))
    }
    assert len(slabs) == 40
    for pfn in [*slabs, *case.sample()]:
        slab = page_slab(case.page(pfn))
        assert bool(slab) == (pfn in slabs)
        if slab:
            assert case.pfn(slab) == slabs[pfn]


def test_PageHuge(case):
    for pfn in case.sample():
        head, _ = case.heads.get(pfn, (None, 0))
        assert PageHuge(case.page(pfn)) == (head in case.folios)


def test_for_each_hugetlb_folio(case):
    folios = list(for_each_hugetlb_folio(case.prog))
    assert [case.pfn(folio) for folio in folios] == sorted(case.found)
    assert {folio.type_.type_name() for folio in folios} == {"struct folio *"}
    for hstate in for_each_hstate(case.prog):
        mine = [case.pfn(folio) for folio in for_each_hugetlb_folio(hstate)]
        order = hstate.order.value_()
        assert mine == sorted(p for p, f in case.found.items() if f.order == order)
    drgn.set_default_prog(case.prog)
    try:
        assert len(list(for_each_hugetlb_folio())) == len(folios)
    finally:
        drgn.set_default_prog(None)


def test_optimized_flag(case):
    answers = set()
    for pfn, expected in case.folios.items():
        folio = page_folio(case.page(pfn))
        assert hugetlb_vmemmap_optimized(folio) == expected.optimized
        answers.add(expected.optimized)
    assert answers == ({True, False} if case.generation.can_optimize else {False})
    for pfn in case.sample():
        if case.heads.get(pfn, (None, 0))[0] not in case.folios:
            with pytest.raises(HvoError, match="is not"):
                hugetlb_vmemmap_optimized(case.page(pfn))


def mapped(case, pfn, order):
    """Frames of a folio's pages of vmemmap, by drgn's own page table walk."""
    init_mm = case.prog["init_mm"].address_of_()
    size = case.generation.struct_page_size
    first = (case.base + pfn * size) & -4096
    last = (case.base + (pfn + (1 << order)) * size - 1) & -4096
    return [
        mm.follow_phys(init_mm, address).value_() >> 12
        for address in range(first, last + 1, 4096)
    ]


def test_folio_vmemmap_frames(case):
    users: dict[int, int] = {}
    for pfn, expected in case.folios.items():
        for frame in mapped(case, pfn, expected.order):
            users[frame] = users.get(frame, 0) + 1
    for pfn, expected in case.folios.items():
        frames = folio_vmemmap_frames(page_folio(case.page(pfn)))
        assert frames.pfn.tolist() == mapped(case, pfn, expected.order)
        if case.generation.geometry.power_of_2:
            assert frames.users.tolist() == [users[f] for f in frames.pfn.tolist()]
        private = case.generation.private_slices
        behind = len(frames.pfn) - private
        writable = [True] * private + [not expected.optimized] * behind
        assert frames.writable.tolist() == writable
    for pfn, (head, order) in case.heads.items():
        if pfn == head and pfn not in case.folios:
            other = folio_vmemmap_frames(page_folio(case.page(pfn)))
            assert other.pfn.tolist() == mapped(case, pfn, order)
            assert other.writable.all()


def test_vmemmap_saved(case):
    saved: dict[tuple[int, int], int] = {}
    for expected in case.folios.values():
        if expected.optimized:
            key = expected.nid, expected.order
            slices = case.generation.geometry.slices(expected.order)
            saved[key] = saved.get(key, 0) + slices - case.generation.private_slices
    assert vmemmap_saved(case.prog) == saved
    assert bool(saved) == case.generation.can_optimize


def test_without_huge_pages():
    _, prog = machine_and_program(describe("shared-7.3", huge_pages=(), reserved={}))
    assert list(for_each_hugetlb_folio(prog)) == []
    assert list(for_each_vmemmap_tail(prog)) == []
    assert vmemmap_saved(prog) == {}


def test_vmemmap_tails(case):
    tails = {
        (tail.nid, tail.zone, tail.order): tail.pfn
        for tail in case.machine.vmemmap.tails
    }
    if case.generation.array is None:
        with pytest.raises(HvoError, match="no vmemmap_tails"):
            list(for_each_vmemmap_tail(case.prog))
        with pytest.raises(HvoError, match="no vmemmap_tails"):
            vmemmap_tails(page_zone(case.page(0x1000)))
        return
    found = {}
    for tail in for_each_vmemmap_tail(case.prog):
        zone = None
        if tail.zone is not None:
            zone = ZONE_NAMES.index(tail.zone.name.string_().decode())
        found[tail.nid, zone, tail.order] = case.pfn(tail.page)
        assert (zone is None) == (case.generation.array == "pglist_data")
        validate_shared_tail(tail.page, strict=True)
    assert found == tails
    assert list(found) == sorted(found, key=str)
    for pfn in case.folios:
        zone = page_zone(case.page(pfn))
        array = vmemmap_tails(zone)
        assert array.type_.length == case.generation.slots
        span = case.plan.zone_of(pfn)
        index = span.index if case.generation.array == "zone" else None
        for order, value in enumerate(array, case.generation.min_order):
            named = tails.get((span.nid, index, order), 0)
            if named and not case.generation.element_is_pfn:
                named = case.page(named).value_()
            assert value.value_() == named


def test_validators_pass_on_a_healthy_machine(case):
    for folio in for_each_hugetlb_folio(case.prog):
        validate_hugetlb_folio(folio)


def test_validators_of_what_is_none(case):
    slab = next(p for p in case.plan.pages if p.group.kind == "slab").first_pfn
    for pfn in (slab, next(iter(case.found)) + 5):
        with pytest.raises(ValidationError, match="not a hugetlb folio"):
            validate_hugetlb_folio(case.page(pfn))
    for pfn in case.folios:
        if pfn not in case.found:
            with pytest.raises(HvoError, match="on no list"):
                validate_hugetlb_folio(case.page(pfn))
    if case.generation.array is not None:
        with pytest.raises(ValidationError, match="no slot"):
            validate_shared_tail(case.page(slab))


def raised(case_prog):
    """What validators say, by the rule that a message begins with."""
    rules: dict[str, list[int]] = {}
    pages = [(validate_hugetlb_folio, f) for f in for_each_hugetlb_folio(case_prog)]
    try:
        tails = [tail.page for tail in for_each_vmemmap_tail(case_prog)]
    except HvoError:
        tails = []
    for tail in tails:
        try:
            validate_shared_tail(tail, strict=True)
        except ValidationError as e:
            rules.setdefault(str(e).split(":")[0], []).append(tail.value_())
    for validate, folio in pages:
        try:
            validate(folio)
        except ValidationError as e:
            rules.setdefault(str(e).split(":")[0], []).append(folio.value_())
    return rules


# The rules of validators.
SEEN = ("shared-tail-", "folio-", "vmemmap-tail-", "vmemmap-head-")
CASES = [
    (fault, entry.name)
    for fault in FAULTS
    for entry in GENERATIONS
    if fault.possible(entry) and (fault.rule or "").startswith(SEEN)
]


@pytest.mark.parametrize(
    ("fault", "name"), CASES, ids=lambda value: getattr(value, "name", value)
)
def test_validators_name_the_rule(fault, name):
    machine, _ = make_machine(describe(name), [fault.name])
    rules = raised(program(machine))
    assert fault.rule in rules
    assert set(rules) <= {fault.rule, *fault.consequences}
    # Damage to one folio is not held against others.
    if not fault.name.startswith(("slot", "tail", "two-slots", "boot")):
        assert all(len(pages) <= 2 for pages in rules.values())


def test_lists_and_strays_are_not_held_against_folios():
    for name in ("list-loop", "counter-free", "stray-shared-tail", "stray-PG_head"):
        machine, _ = make_machine(describe("shared-7.3"), [name])
        assert raised(program(machine)) == {}


def test_more_damage_than_an_audit_lists():
    """The audit folds what breaks a rule more often than 16 times; each folio tells."""
    machine = machine_and_program(describe("shared-7.3"))[0]
    heads = [p for p, f in expected_folios(machine).items() if f.list is not None]
    assert len(heads) > 16
    offset = machine.plan.structures.page.offset("flags")
    for pfn in heads:
        address = machine.page_physical(pfn) + offset
        word = int.from_bytes(machine.image.read(address, 8), "little")
        word &= ~machine.plan.structures.page_flag("head")
        machine.image.write(address, word.to_bytes(8, "little"))
    prog = program(machine)
    folios = list(for_each_hugetlb_folio(prog))
    assert len(folios) >= len(heads)
    for pfn in heads:
        folio = next(
            f for f in folios if f.value_() == machine.plan.space.page_address(pfn)
        )
        with pytest.raises(ValidationError, match=r"folio-head: .* has no PG_head"):
            validate_hugetlb_folio(folio)


def test_a_warning_raises_only_if_strict():
    machine, _ = make_machine(describe("shared-7.3"), ["tail-refcount"])
    tails = [tail.page for tail in for_each_vmemmap_tail(program(machine))]
    wrong = []
    for page in tails:
        validate_shared_tail(page)
        try:
            validate_shared_tail(page, strict=True)
        except ValidationError as e:
            wrong.append(str(e))
    (message,) = wrong
    assert message.startswith("shared-tail-refcount: _refcount of struct page")


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_in_the_dump(name):
    machine, _ = make_machine(describe(name), ["page-missing"])
    prog = program(machine)
    (frame,) = machine.image.missing
    lost = [
        folio
        for folio in for_each_hugetlb_folio(prog)
        if machine.page_physical(
            (folio.value_() - machine.plan.space.vmemmap)
            // machine.plan.generation.struct_page_size
        )
        >> 12
        == frame
    ]
    assert lost
    for folio in lost:
        page = drgn.cast("struct page *", folio)
        for helper in (
            compound_head,
            PageHead,
            PageTail,
            PageHuge,
            compound_order,
            page_folio,
            page_slab,
            page_to_nid,
            page_zone,
            page_zonenum,
            snapshot_page,
            hugetlb_vmemmap_optimized,
            folio_vmemmap_frames,
            validate_hugetlb_folio,
        ):
            with pytest.raises(drgn.FaultError):
                helper(page)


def test_a_missing_shared_tail_page_is_not_corruption():
    machine, _ = make_machine(describe("shared-7.3"))
    tail = machine.vmemmap.tails[0]
    machine.image.missing.add(tail.pfn)
    prog = program(machine)
    install(prog)
    page = drgn.Object(prog, "struct page *", machine.plan.space.page_address(tail.pfn))
    with pytest.raises(drgn.FaultError):
        validate_shared_tail(page)


NOWHERE = [0, 8, 0x7FFF00000000, ALL_ONES, ALL_ONES - 31, 0xFFFF000000000000]


@pytest.mark.parametrize("address", NOWHERE, ids=hex)
def test_addresses_that_are_no_struct_page(case, address):
    page = drgn.Object(case.prog, "struct page *", address)
    for name in drgn_hvo.__all__:
        helper = getattr(drgn_hvo, name)
        parameters = inspect.signature(helper).parameters if callable(helper) else {}
        if next(iter(parameters), None) not in ("page", "folio"):
            continue
        with pytest.raises((drgn.FaultError, HvoError, ValidationError)) as raised:
            helper(page)
        assert "\n" not in str(raised.value)


def test_snapshot_page(case):
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


def changed(machine, pfn, member, value, prog=None):
    offset = machine.plan.structures.page.offset(member)
    address = machine.page_physical(pfn) + offset
    old = machine.image.read(address, 8)
    machine.image.write(address, value.to_bytes(8, "little"))
    return address, old


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


@pytest.mark.parametrize("fault", ["pte-writable", "tail-rest"])
@pytest.mark.parametrize("reads", [1, 2])
def test_validators_read_a_running_kernel_again(monkeypatch, fault, reads):
    machine, (applied,) = make_machine(describe("shared-7.3"), [fault])
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == reads:
            for change, old in applied.changes:
                machine.image.write(change.address, old)

    monkeypatch.setattr("time.sleep", pause)
    assert raised(program(machine, is_live=True)) == {}
    assert len(pauses) == reads


def test_what_stays_wrong_in_a_running_kernel_is_raised(monkeypatch):
    machine, _ = make_machine(describe("shared-7.3"), ["pte-writable"])
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    rules = raised(program(machine, is_live=True))
    assert {rule: len(pages) for rule, pages in rules.items()} == {
        "vmemmap-tail-writable": 1
    }
    assert len(pauses) == 2


def test_a_running_kernel_is_not_remembered():
    machine = machine_and_program(describe("shared-7.3"))[0]
    prog = program(machine, is_live=True)
    before = vmemmap_saved(prog)
    folio = next(for_each_hugetlb_folio(prog))
    head = (folio.value_() - machine.plan.space.vmemmap) // 64
    frames = folio_vmemmap_frames(folio)
    assert frames.users[1] > 7
    private = 0x7000
    entry = machine.slice_entry(head, 7)
    old = int.from_bytes(machine.image.read(entry, 8), "little")
    new = old & ~((1 << 52) - (1 << 12)) | private << 12
    machine.image.write(entry, new.to_bytes(8, "little"))
    assert folio_vmemmap_frames(folio).pfn[7] == private
    assert vmemmap_saved(prog)[0, 9] == before[0, 9] - 1
