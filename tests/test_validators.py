# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Validators of folios and of shared tail pages
---------------------------------------------

They say of one folio or page what the audit says of all.
"""

import drgn
from drgn.helpers import ValidationError
import pytest

from drgn_hvo import (
    for_each_hugetlb_folio,
    for_each_vmemmap_tail,
    validate_hugetlb_folio,
    validate_shared_tail,
)
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.finders import install
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, make_machine
from drgn_hvo.synth.damage.targets import Targets
from drgn_hvo.synth.described.generations import GENERATIONS
from tests.damage_support import mending_pause
from tests.helpers_support import Case, folios_of
from tests.synth_support import (
    ALL,
    FEW,
    describe,
    expected_folios,
    machine_and_program,
)


@pytest.fixture(scope="module", params=ALL)
def case(request):
    return Case(request.param)


def test_validators_pass_on_a_healthy_machine(case):
    for folio in folios_of(case.prog):
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
    pages = [(validate_hugetlb_folio, f) for f in folios_of(case_prog)]
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
    if entry.name in FEW
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


def test_all_that_is_wrong_is_counted():
    faults = ["head-with-PG_lru", "private-tail-refcount"]
    machine, _ = make_machine(describe("shared-7.3"), faults)
    first = machine.plan.space.page_address(machine.plan.huge[0].first_pfn)
    prog = program(machine)
    (wrong,) = (f for f in for_each_hugetlb_folio(prog) if f.value_() == first)
    with pytest.raises(ValidationError, match=r"^folio-head: .* \(and 1 more\)$"):
        validate_hugetlb_folio(wrong)


def test_a_folio_on_a_list_that_was_not_read():
    """Its neighbours on the list are not in the dump, and nothing else leads there."""
    machine, _ = make_machine(describe("shared-7.3"))
    before, lost = (
        placed
        for placed in machine.plan.huge
        if (placed.group.node, placed.group.list) == (1, "free")
    )
    assert not lost.optimized
    for neighbour in (before.heads()[-1], lost.heads()[1]):
        machine.image.missing.add(machine.page_physical(neighbour) >> 12)
    prog = program(machine)
    install(prog)
    address = machine.plan.space.page_address(lost.first_pfn)
    folio = drgn.Object(prog, "struct folio *", address)
    with pytest.raises(drgn.FaultError, match="on no list that was read"):
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


def test_a_missing_shared_tail_page_is_not_corruption():
    machine, _ = make_machine(describe("shared-7.3"))
    tail = machine.vmemmap.tails[0]
    machine.image.missing.add(tail.pfn)
    prog = program(machine)
    install(prog)
    page = drgn.Object(prog, "struct page *", machine.plan.space.page_address(tail.pfn))
    with pytest.raises(drgn.FaultError):
        validate_shared_tail(page)


@pytest.mark.parametrize("fault", ["pte-writable", "tail-rest"])
@pytest.mark.parametrize("reads", [1, 2])
def test_validators_read_a_running_kernel_again(monkeypatch, fault, reads):
    machine, (applied,) = make_machine(describe("shared-7.3"), [fault])
    pauses, pause = mending_pause(machine, applied, reads)
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


def test_a_folio_that_was_none_for_a_moment(monkeypatch):
    """Two readings that accuse of different things do not agree."""
    machine, (applied,) = make_machine(describe("shared-7.3"), ["tail-rest"])
    prog = program(machine, is_live=True)
    slot = Targets(machine).slot()
    page = next(iter(for_each_vmemmap_tail(prog))).page

    def pause(_):
        for change, old in applied.changes:
            machine.image.write(change.address, old)
        machine.image.write(slot, bytes(8))

    monkeypatch.setattr("time.sleep", pause)
    validate_shared_tail(page)
    with pytest.raises(ValidationError, match="no slot of vmemmap_tails"):
        validate_shared_tail(page)
