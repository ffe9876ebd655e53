# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Words to flip
-------------

The words of a machine that HVO lives on, with what they are called: struct pages of
heads, of private and of shared tails, page table entries, slots and pools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from drgn import Object, Type, TypeKind, sizeof

from drgn_hvo.formats.byteorder import ByteOrder
from drgn_hvo.kernel.translation import entries_to
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.pools import ACTIVE_LIST, FREE_LIST

__all__ = ("Word", "words_of")

#: Of struct pages that are all alike, these stand for the others.
_SOME = (0, 1, 2, 3, 4, 5, 6, 7, 31, -2, -1)


@dataclass(frozen=True)
class Word:
    """
    A word, or the part of one that has a name.

    :param kind: Such as ``"free head"``: what it is in.
    :param name: As the kernel calls it.
    :param address: Physical.
    :param value: What it holds.
    """

    kind: str
    name: str
    address: int
    size: int
    value: int
    byteorder: ByteOrder


def _members(
    struct: Type, base: int = 0, prefix: str = ""
) -> Iterator[tuple[str, int, int]]:
    """Members of a structure that are no structures themselves: name, offset, size."""
    for member in struct.members or ():
        found, offset = member.type, base + member.bit_offset // 8
        name = prefix + (member.name or "")
        while found.kind is TypeKind.TYPEDEF:
            found = found.type
        if found.kind in (TypeKind.STRUCT, TypeKind.UNION) and found.is_complete():
            inner = prefix if member.name is None else f"{name}."
            yield from _members(found, offset, inner)
        elif found.kind is not TypeKind.ARRAY or found.length:
            yield name, offset, sizeof(found)


class _Words:
    def __init__(self, hvo: Hvo, per_slice: Sequence[int]) -> None:
        self._hvo = hvo
        self._kernel = hvo.kernel
        self._byteorder = hvo.kernel.sources.byteorder
        self._some = per_slice
        self._size = hvo.kernel.geometry.struct_page_size
        self._page = list(self._names_of_a_page())

    def _word(self, kind: str, name: str, address: int, size: int) -> Iterator[Word]:
        data = self._kernel.reader.read_bytes(address, size)
        if data is not None:
            value = int.from_bytes(data, self._byteorder)
            yield Word(kind, name, address, size, value, self._byteorder)

    def _names_of_a_page(self) -> Iterator[tuple[str, int, int]]:
        """The words of a struct page, as a tail or head of hugetlb has them."""
        page = self._kernel.struct_page
        known: dict[Optional[int], tuple[str, int]] = {
            page.flags: ("flags", 8),
            page.offset: ("tail word", 8),
            page.mapping: ("mapping", 8),
            page.private: ("private", 8),
            page.mapcount: ("_mapcount", 4),
            page.refcount: ("_refcount", 4),
        }
        if page.lru is not None:
            known[page.lru + 8] = ("lru.prev", 8)
        if page.mapping is not None:
            known.setdefault(page.mapping + 8, ("index", 8))
        memcg = next(
            (at for name, at, _ in _members(self._kernel.prog.type("struct page"))
             if name == "memcg_data"),
            None,
        )  # fmt: skip
        known[memcg] = ("memcg_data", 8)
        at = 0
        while at < self._size:
            name, size = known.get(at, (f"+{at}", 8))
            yield name, at, size
            at += size

    def _folio_names(self, index: int) -> list[tuple[str, int, int]]:
        """The words of one of the first tails: those of the folio go first."""
        folio = self._kernel.type("struct folio")
        start = index * self._size
        mine = [
            (name, at - start, size)
            for name, at, size in ([] if folio is None else _members(folio))
            if start <= at < start + self._size
            and not name.startswith(("__page_", "_usable_", "__head", "_mm_id["))
            and name != "_mm_id"
            and not name.startswith(("_flags_", "_head_"))
        ]
        covered = {at + i for _, at, size in mine for i in range(size)}
        left = []
        for name, at, size in self._page:
            free = [i for i in range(at, at + size) if i not in covered]
            if len(free) == size:
                left.append((name, at, size))
            else:
                left += [(f"{name}, byte {i - at}", i, 1) for i in free]
        return mine + left

    def struct_page(self, kind: str, physical: int, index: int) -> Iterator[Word]:
        """All words of a struct page."""
        names = self._page
        if index and "tail" in kind and "shared" not in kind and index < 4:
            names = self._folio_names(index)
        for name, at, size in names:
            if not index and name == "tail word":
                name = "lru.next"
            if index in (1, 2, 3, 4) and "shared" not in kind and name == "private":
                name = f"private of tail {index}"
            yield from self._word(kind, name, physical + at, size)

    def folios(self) -> Iterator[Word]:
        """Heads and private tails of one folio of each kind, and its entries."""
        hvo = self._hvo
        folios, per_slice = hvo.hugetlb.folios, self._kernel.geometry.pages_per_slice
        seen = set()
        for i in range(len(folios)):
            state = {FREE_LIST: "free", ACTIVE_LIST: "used"}.get(
                int(folios.on_list[i]), "unlisted"
            )
            key = state, bool(hvo.hugetlb.optimized_mapping[i])
            if key in seen or not folios.present[i]:
                continue
            seen.add(key)
            head = int(folios.head_pfn[i])
            count = min(1 << int(folios.order[i]), per_slice)
            for index in sorted({at % count for at in self._some}):
                where = hvo.vmemmap.page_address(head + index)
                physical = self._physical(where)
                kind = f"{state} head" if not index else f"{state} tail"
                yield from self.struct_page(kind, physical, index)
            yield from self.entries(head, int(folios.slices[i]), key[1])

    def _physical(self, address: int) -> int:
        vmemmap = self._hvo.vmemmap
        slice_, rest = divmod(address - vmemmap.base, vmemmap.page_size)
        mapping = vmemmap.mapping(slice_)
        assert mapping is not None
        return mapping.pfn * vmemmap.page_size + rest

    def entries(self, head: int, slices: int, optimized: bool) -> Iterator[Word]:
        """The page table entries of a folio, at all levels."""
        kernel, vmemmap = self._kernel, self._hvo.vmemmap
        page_table = kernel.page_table_format
        if page_table is None:
            return
        reader, seen = kernel.reader, set()
        for slice_ in range(min(slices, 8)):
            va = vmemmap.page_address(head) + slice_ * vmemmap.page_size
            for entry in entries_to(
                reader.read_bytes, page_table, reader.byteorder, va
            ):
                if entry is None or entry.address in seen:
                    continue
                seen.add(entry.address)
                what = "table" if entry.level else "head" if not slice_ else "tail"
                if not entry.level and not optimized:
                    what = "plain"
                order = page_table.entry_byteorder or self._byteorder
                yield Word(
                    f"{what} entry", f"level {entry.level}", entry.address, 8,
                    entry.value, order,
                )  # fmt: skip

    def tails(self) -> Iterator[Word]:
        """The struct pages of shared tail pages, and slots."""
        hvo, per_slice = self._hvo, self._kernel.geometry.pages_per_slice
        for tail in hvo.shared_tails:
            if tail.pfn is None:
                continue
            kind = "boot shared tail" if tail.boot else "shared tail"
            for index in sorted({at % per_slice for at in self._some}):
                physical = tail.pfn * hvo.vmemmap.page_size + index * self._size
                yield from self.struct_page(kind, physical, index + 1)
        array = hvo.layout.tails.array
        if array is None:
            return
        used = {tail.slot for tail in hvo.shared_tails}
        for owner in array.arrays(hvo.mmzone.pgdats):
            slots = owner.array(self._kernel.known_words)
            for index in range(0 if slots is None else array.slots):
                assert slots is not None
                slot = slots[index].address_of_().value_()
                kind = "used slot" if slot in used else "empty slot"
                yield from self._virtual(kind, "vmemmap_tails", slot, 8)

    def _virtual(self, kind: str, name: str, address: int, size: int) -> Iterator[Word]:
        found = self._kernel.translation.physical(address)
        if found is not None:
            yield from self._word(kind, name, found[0], size)

    def pools(self) -> Iterator[Word]:
        """All of ``hstates[]`` that is in use, and how many that are."""
        prog, nids = self._kernel.prog, self._hvo.mmzone.nids
        for hstate in self._hvo.hugetlb.hstates:
            pool = Object(prog, "struct hstate *", hstate.address)
            for member in prog.type("struct hstate").members or ():
                if member.name is None:
                    continue
                value = pool.member_(member.name)
                by_node = member.type.kind is TypeKind.ARRAY and member.name != "name"
                parts = [value[nid] for nid in nids] if by_node else [value]
                for part in parts:
                    address = part.address_of_().value_()
                    yield from self._part(member.name, address, sizeof(part))
        count = prog["hugetlb_max_hstate"].address_of_().value_()
        yield from self._virtual("pool", "hugetlb_max_hstate", count, 4)

    def _part(self, name: str, address: int, size: int) -> Iterator[Word]:
        step = min(size, 8)
        for at in range(0, size - step + 1, step):
            yield from self._virtual("pool", name, address + at, step)


def words_of(hvo: Hvo, *, every: bool = False) -> list[Word]:
    """
    All words of a machine.

    :param every: Take all struct pages, not some of those that are alike.
    """
    per_slice = hvo.kernel.geometry.pages_per_slice
    words = _Words(hvo, range(per_slice) if every else _SOME)
    found = [*words.folios(), *words.tails(), *words.pools()]
    # Folios share tables.
    return list({word.address: word for word in found[::-1]}.values())[::-1]
