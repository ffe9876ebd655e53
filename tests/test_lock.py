# SPDX-License-Identifier: LGPL-2.1-or-later

"""
While hugetlb_lock is held
--------------------------

What remove_hugetlb_folio(), enqueue_hugetlb_folio() and dequeue_hugetlb_folio() store
is stored here in copies of real kernels, one word after the other: with the lock held
no instant is damage, with the lock free what is half done is.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import drgn
import pytest

from drgn_hvo.audit.context import Context
from drgn_hvo.audit.findings import Audit
from drgn_hvo.audit.lock import LOCK_FORMS, Lock, hugetlb_lock
from drgn_hvo.audit.rules import RULES
from drgn_hvo.commands.check import CheckScope, check_document, exit_status
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.machine.machine import build_machine
from tests.overlay import Overlay, image_to_phys
from tests.synth_support import ALL, describe

SAMPLES = Path(__file__).resolve().parents[1] / "sample_vmcores"
KERNELS = ("debian-6.1", "debian-6.12", "debian-7.2")

LIST_POISON1, LIST_POISON2 = 0xDEAD000000000100, 0xDEAD000000000122
FREED = 1 << 3  # HPG_freed


class Pool:
    """The words that change when a huge page comes to a pool, or goes."""

    def __init__(self, name):
        self.base = drgn.Program()
        self.base.set_core_dump(SAMPLES / f"{name}.kdump")
        install(self.base)
        self.bound = hvo_of(self.base)
        self.context = Context(self.bound, Audit())
        self.pool = self.base["hstates"][0]
        (self.list,) = (
            a for a in self.bound.hugetlb.lists if a.nid == 0 and len(a.heads)
        )
        self.pfn = self.list.heads[3]
        self.patches = {}
        lock = self.base["hugetlb_lock"].rlock.raw_lock.val.counter
        self.lock = image_to_phys(self.base, lock.address_of_().value_())

    def _field(self, pfn, name):
        page = self.bound.kernel.struct_page
        return self.context.word_spot(pfn, page.require(name)).physical_address

    def lru(self, pfn):
        page = self.bound.kernel.struct_page
        return self.bound.vmemmap.page_address(pfn) + page.require("lru")

    def physical(self, link):
        """Of a list head, in a struct page or in the pool."""
        pfn = self.bound.vmemmap.page_pfn(link - self.bound.kernel.struct_page.lru)
        if pfn is None:
            return image_to_phys(self.base, link)
        return self._field(pfn, "lru")

    def read(self, address, size=8):
        data = self.patches.get(address) or self.base.read(address, size, True)
        return int.from_bytes(data[:size], "little")

    def put(self, address, value, size=8):
        self.patches[address] = (value % (1 << 8 * size)).to_bytes(size, "little")

    def next(self, link):
        return self.read(self.physical(link))

    def set_next(self, link, value):
        self.put(self.physical(link), value)

    def prev(self, link):
        return self.read(self.physical(link) + 8)

    def set_prev(self, link, value):
        self.put(self.physical(link) + 8, value)

    def count(self, name, more):
        """In the total, then in that of the node."""
        for counter in (
            self.pool.member_(name),
            self.pool.member_(f"{name}_node")[0],
        ):
            address = image_to_phys(self.base, counter.address_of_().value_())
            size = counter.type_.size
            self.put(address, self.read(address, size) + more, size)
            yield f"{name} {more:+}"

    def unlink(self):
        """__list_del() stores two words."""
        link = self.lru(self.pfn)
        following, previous = self.next(link), self.prev(link)
        self.set_prev(following, previous)
        yield "next->prev"
        self.set_next(previous, following)
        yield "prev->next"

    def link(self, head):
        """__list_add() stores four words."""
        link, following = self.lru(self.pfn), self.next(head)
        self.set_prev(following, link)
        yield "next->prev"
        self.set_next(link, following)
        yield "new->next"
        self.set_prev(link, head)
        yield "new->prev"
        self.set_next(head, link)
        yield "prev->next"

    def set_freed(self, *, is_set):
        address = self._field(self.pfn, "private")
        self.put(address, self.read(address) & ~FREED | FREED * is_set)
        yield f"HPG_freed {is_set}"

    def set_refcount(self, count):
        self.put(self._field(self.pfn, "refcount"), count, 4)
        yield f"_refcount {count}"

    def head_of(self, counter):
        return counter.address_of_().value_()

    @property
    def free_list(self):
        return self.head_of(self.pool.hugepage_freelists[0])

    def remove(self):
        """remove_hugetlb_folio()."""
        yield from self.unlink()
        self.set_next(self.lru(self.pfn), LIST_POISON1)
        self.set_prev(self.lru(self.pfn), LIST_POISON2)
        yield "poison"
        yield from self.set_freed(is_set=False)
        yield from self.count("free_huge_pages", -1)
        yield from self.count("nr_huge_pages", -1)

    def enqueue(self):
        """enqueue_hugetlb_folio(), of one that was accounted in add_hugetlb_folio()."""
        yield from self.count("nr_huge_pages", 1)
        yield from self.link(self.free_list)
        yield from self.count("free_huge_pages", 1)
        yield from self.set_freed(is_set=True)

    def dequeue(self):
        """dequeue_hugetlb_folio_node_exact()."""
        yield from self.unlink()
        yield from self.link(self.head_of(self.pool.hugepage_activelist))
        yield from self.set_refcount(1)
        yield from self.set_freed(is_set=False)
        yield from self.count("free_huge_pages", -1)

    def check(self, *, is_held):
        held = {self.lock: (1).to_bytes(4, "little")} if is_held else {}
        prog = Overlay(self.base, patches={**self.patches, **held}).prog
        return check_document(hvo_of(prog), "core", CheckScope())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("what", ["remove", "dequeue"])
def test_no_instant_is_damage(name, what):
    pool = Pool(name)
    excused = set()
    for step in getattr(pool, what)():
        found = pool.check(is_held=True)
        assert (found["findings"], found["status"]) == ([], "clean"), step
        excused |= {item["rule"] for item in found["excused"]}
    assert excused >= {"hstate-lists", "hstate-counters"}
    found = pool.check(is_held=False)
    assert (found["findings"], found["excused"]) == ([], [])


@pytest.mark.parametrize("name", KERNELS)
def test_no_instant_of_enqueue_is_damage(name):
    pool = Pool(name)
    for _ in pool.remove():
        pass
    for step in pool.enqueue():
        found = pool.check(is_held=True)
        assert (found["findings"], found["status"]) == ([], "clean"), step
    found = pool.check(is_held=False)
    assert (found["findings"], found["excused"]) == ([], [])


@pytest.mark.parametrize("what", ["remove", "dequeue"])
def test_half_done_without_the_lock(what):
    pool = Pool("debian-7.2")
    seen = []
    for step in getattr(pool, what)():
        found = pool.check(is_held=False)
        assert found["excused"] == []
        seen.append((step, bool(found["findings"])))
    assert seen[0] == ("next->prev", True)
    assert seen[-1][1] is False
    assert sum(is_found for _, is_found in seen) >= len(seen) - 2


def test_only_one_thing_at_a_time():
    """The holder moves one huge page; a second one that is half moved is damage."""
    pool = Pool("debian-7.2")
    other = pool.list.heads[7]
    for step in pool.dequeue():
        if step == "_refcount 1":
            break
    assert pool.check(is_held=True)["findings"] == []
    address = pool._field(other, "private")
    pool.put(address, pool.read(address) ^ FREED)
    (finding,) = pool.check(is_held=True)["findings"]
    assert finding["rule"] == "folio-list"


def lock_of(prog: dict[str, Any]) -> Lock:
    """The lock of a made-up kernel."""
    known_words = SimpleNamespace(value=lambda value: value)
    kernel: Any = SimpleNamespace(prog=prog, known_words=known_words)
    return hugetlb_lock(kernel)


def member(values):
    """A made-up lock: nested members, the last one a number."""
    return SimpleNamespace(
        member_=lambda name: (
            member(values[name]) if isinstance(values[name], dict) else values[name]
        )
    )


@pytest.mark.parametrize(
    ("path", "word", "is_held"),
    [
        (("lock", "owner"), 0, False),
        (("lock", "owner"), 0xFFFF888003A40001, True),
        (("lock", "owner"), 1, False),
        (("rlock", "raw_lock", "val", "counter"), 0, False),
        (("rlock", "raw_lock", "val", "counter"), 1, True),
        (("rlock", "raw_lock", "val", "counter"), 0x40101, True),
        (("rlock", "raw_lock", "counter"), 0x00070007, False),
        (("rlock", "raw_lock", "counter"), 0x00080007, True),
        (("rlock", "raw_lock", "lock"), 0, False),
        (("rlock", "raw_lock", "lock"), 3, True),
        (("rlock", "raw_lock", "slock"), 0, False),
        (("rlock", "raw_lock", "slock"), 0x80000001, True),
        (("rlock", "raw_lock", "val"), 0, False),
        (("rlock", "raw_lock", "val"), 1, True),
    ],
)
def test_every_form_of_lock(path, word, is_held):
    values = word
    for name in reversed(path):
        values = {name: values}
    lock = lock_of({"hugetlb_lock": member(values)})
    assert lock.state == ("held" if is_held else "free")


def test_every_form_is_tested():
    assert len(LOCK_FORMS) == 6


def test_a_lock_of_no_known_form():
    """Then nobody knows, and nobody is accused or believed."""
    for prog in ({}, {"hugetlb_lock": SimpleNamespace(type_="spinlock_t")}):
        lock = lock_of(prog)
        assert (lock.state, bool(lock.why)) == ("unknown", True)


def test_rules_on_what_the_lock_protects_say_what_is_excused():
    locked = {rule.id for rule in RULES if rule.locked is not None}
    assert locked == {
        "folio-list",
        "hstate-lists",
        "hstate-counters",
        "hstate-reserve",
    }


# What hugetlb_lock is in a made-up kernel, whether it is held, and what is then said of
# a folio on a free list that has no HPG_freed: enqueue_hugetlb_folio() sets that last.
LOCKED = [
    ("queued", True, "excused"),
    ("queued", False, "found"),
    ("rt-mutex", True, "excused"),
    ("rt-mutex", False, "found"),
    ("unknown", True, "undecided"),
    ("unknown", False, "undecided"),
]


@pytest.mark.parametrize("name", ["fake-head-6.1", "fake-head-6.12", "shared-7.3"])
@pytest.mark.parametrize(("locks", "is_held", "said"), LOCKED)
def test_the_lock_of_every_kernel_is_looked_at(name, locks, is_held, said):
    description = describe(name, locks=locks, is_lock_held=is_held)
    machine, _ = make_machine(description, ["head-not-freed"])
    found = check_document(hvo_of(program(machine)), "core", CheckScope())
    excused = [item["rule"] for item in found["excused"]]
    (rule,) = (one for one in found["rules"] if one["id"] == "folio-list")
    assert {
        "excused": (excused == ["folio-list"], rule["result"]) == (True, "pass"),
        "found": (excused, rule["result"]) == ([], "fail"),
        "undecided": (excused, rule["result"]) == ([], "skip"),
    }[said], (excused, rule)
    assert (
        exit_status(found, strict=False)
        == {
            "excused": 0,
            "found": 1,
            "undecided": 3,
        }[said]
    )


@pytest.mark.parametrize("locks", ["queued", "rt-mutex"])
@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_the_lock_of_a_made_up_kernel(name, locks, is_held):
    """With PREEMPT_RT, who waits does not hold it."""
    description = describe(name, locks=locks, is_lock_held=is_held)
    kernel = hvo_of(program(build_machine(description))).kernel
    assert hugetlb_lock(kernel).state == ("held" if is_held else "free")
