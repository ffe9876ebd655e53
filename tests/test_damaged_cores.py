# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Real cores, damaged by hand
---------------------------

One word of a stock kernel's core is changed: a private tail, a pool, a page table entry
or a head. The first finding is that word, at its address.
"""

from dataclasses import dataclass
from functools import cache

from drgn import Object, sizeof
import pytest

from drgn_hvo.kernel.translation import entries_to
from drgn_hvo.memmap.pools import ACTIVE_LIST, FREE_LIST
from tests.cores import open_core
from tools.bitflips import Machine

CORES = ["6.1-2node", "6.12-2node", "7.2-2node", "7.2-mix", "seed5-2node"]


@cache
def machine(name):
    return Machine(open_core(name))


@dataclass(frozen=True)
class Damage:
    """Other bits in a word: what the first finding is."""

    what: str
    address: int
    size: int
    flip: int
    rule: str


def physical(bound, pfn, offset=0):
    address = bound.vmemmap.page_address(pfn) + offset
    slice_, rest = divmod(address - bound.vmemmap.base, bound.vmemmap.page_size)
    mapping = bound.vmemmap.mapping(slice_)
    assert mapping is not None
    return mapping.pfn * bound.vmemmap.page_size + rest


def heads(bound):
    """A free folio and one in use, where there are any."""
    folios = bound.hugetlb.folios
    for kind in (FREE_LIST, ACTIVE_LIST):
        found = folios.head_pfn[(folios.on_list == kind) & (folios.slices > 1)]
        if len(found):
            yield int(found[len(found) // 2])


def tails(bound):
    """Private tails: reference count, mapping, flags, _mapcount and the rest."""
    page, layout = bound.kernel.struct_page, bound.mmzone.flags_layout
    node = 1 << layout.node_shift
    dirty = 1 << bound.kernel.constant("PG_dirty")
    for head in heads(bound):
        for index in (1, 2, 3, 4, 5, 31, 63):
            at = physical(bound, head + index)
            where = f"tail {index} of {head}"
            for name, offset, size, flip, rule in (
                ("_refcount", page.refcount, 4, 1, "refcount"),
                ("_mapcount", page.mapcount, 4, 1 << 7, "mapcount"),
                ("node", page.flags, 8, node, "flags"),
                ("mapping", page.mapping, 8, 1 << 10, "mapping"),
                ("PG_dirty", page.flags, 8, dirty, "flags"),
                ("private", page.private, 8, 1 << 9, "rest"),
                ("memcg_data", page.size - 8, 8, 1 << 40, "rest"),
            ):
                # The first tails hold fields of the folio there.
                if index < 5 and name in ("mapping", "PG_dirty", "private"):
                    continue
                if index == 1 and name == "memcg_data":
                    continue
                rule = f"folio-tail-{rule}"
                yield Damage(f"{name}, {where}", at + offset, size, flip, rule)


def pools(bound):
    """What pools say of their size, and how many there are."""
    prog = bound.kernel.prog

    def word(value, flip, what):
        address = value.address_of_().value_()
        found = bound.kernel.translation.physical(address)
        assert found is not None
        size = min(sizeof(value), 8)
        return Damage(what, found[0], size, flip, "hstate-identity")

    for hstate in bound.hugetlb.hstates:
        pool = Object(prog, "struct hstate *", hstate.address)
        for bit in (0, 1, 4, 5, 30):
            what = f"order {hstate.order}, bit {bit}"
            yield word(pool.order, 1 << bit, what)
            yield word(pool.demote_order, 1 << (bit or 2), f"demotion of {what}")
            yield word(pool.mask, 1 << bit + 12, f"mask of {what}")
        yield word(pool.name, 1 << 81 % 64, f"name of order {hstate.order}")
    count = prog["hugetlb_max_hstate"]
    for other in (0, 1, 3, 99):
        yield word(count, count.value_() ^ other, f"{other} pools")


def entries(bound):
    """Bits for user, cache and global, at every level and of each kind of slice."""
    kernel, vmemmap = bound.kernel, bound.vmemmap
    reader, page_table = kernel.reader, kernel.page_table_format
    seen = set()
    for head in heads(bound):
        for slice_ in (0, 1, 7):
            va = vmemmap.page_address(head) + slice_ * vmemmap.page_size
            way = entries_to(reader.read_bytes, page_table, reader.byteorder, va)
            for entry in way:
                if entry is None or entry.address in seen:
                    continue
                seen.add(entry.address)
                # Bit 7 makes a mapping of what leads to a table.
                for bit in (2, 3, 4, 7, 8) if not entry.level else (2, 3, 4, 8):
                    what = (
                        f"level {entry.level} for slice {slice_} of {head}, bit {bit}"
                    )
                    rule = "vmemmap-entry-bits"
                    yield Damage(what, entry.address, 8, 1 << bit, rule)


def words_of_heads(bound):
    """Node and zone, HPG_ flags that mean nothing, low bits of the type."""
    page, layout = bound.kernel.struct_page, bound.mmzone.flags_layout
    for head in heads(bound):
        at = physical(bound, head)
        flags = at + page.flags
        yield Damage(f"node of {head}", flags, 8, 1 << layout.node_shift, "folio-node")
        yield Damage(f"zone of {head}", flags, 8, 1 << layout.zone_shift, "folio-node")
        bits = [9, 20, 63]
        if "cma" in bound.hugetlb.hpg_flags:
            bits.append(bound.hugetlb.hpg_flags["cma"])
        for bit in bits:
            what = f"HPG bit {bit} of {head}"
            yield Damage(what, at + page.private, 8, 1 << bit, "folio-head")
        for bit in (0, 7, 23):
            what = f"bit {bit} of the type of {head}"
            yield Damage(what, at + page.mapcount, 4, 1 << bit, "folio-head")


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("kind", [tails, pools, entries, words_of_heads])
def test_the_first_finding_is_the_wrong_word(name, kind):
    damaged = machine(name)
    bound, wrong, count = damaged.healthy, [], 0
    for damage in list(kind(bound)):
        count += 1
        old = bound.kernel.prog.read(damage.address, damage.size, True)
        value = int.from_bytes(old, "little") ^ damage.flip
        new = value.to_bytes(damage.size, "little")
        audit = damaged.changed(damage.address, new)
        assert audit is not None, damage
        found = damaged.new_findings(audit)
        if not found or found[0].rule != damage.rule:
            wrong.append((damage, found[:2]))
            continue
        at = found[0].place.physical_address
        if at is None or not 0 <= at - damage.address < damage.size:
            wrong.append((damage, found[:2]))
    assert wrong == []
    assert count >= 8
