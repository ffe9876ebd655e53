# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Which sources tell what of a page
---------------------------------

The word of a struct page, the page tables of vmemmap, the lists of the pools and the
head each say which huge page a page belongs to. Where they disagree, one of them is
believed, and :data:`REASONS` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np

from drgn_hvo.audit.one_page import PageAudit
from drgn_hvo.formats.tail_words import is_tail
from drgn_hvo.kernel.arrays import distinct_index
from drgn_hvo.memmap.covering import Covering
from drgn_hvo.memmap.heads import Head
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.pools import LIST_NAMES

__all__ = (
    "COPY",
    "REASONS",
    "Answer",
    "Disagreement",
    "Word",
    "answers",
    "disagreements",
    "former_head",
)

#: What is called a copy of a head.
COPY = "copy of a head"

#: Why one source is believed and another is not, by the one that is not.
REASONS = {
    "word": "{sources}, from many words that would all have to be wrong in the same "
    "way; this is one",
    "entry": "the other slices of this huge page map {others}",
    "head": "{sources}, and need no head for that",
    "copy": "a head is aligned to its order, and PFN {pfn} is not to order {order}",
    "nothing": "there is no huge page, neither by lists nor by its head; the page "
    "table entry leads to tails of others",
    "lost": "the page that it leads to is no head of one that reaches here",
}


@dataclass(frozen=True)
class Answer:
    """
    What one source says of a page.

    :param head_pfn: The head of the huge page; ``None`` if it says none.
    """

    head_pfn: Optional[int]
    order: Optional[int]
    says: str


@dataclass(frozen=True)
class Word:
    """
    What the word of a struct page leads to.

    :param info: The word.
    :param head_pfn: The head that it leads to, ``None`` if that is no struct page.
    :param mask_order: The order of the mask, if it holds one.
    """

    info: int
    head_pfn: Optional[int]
    mask_order: Optional[int]
    head: Optional[Head]


@dataclass(frozen=True)
class Disagreement:
    """
    A source that says something else than the others.

    :param source: ``word``, ``entry`` (its page table entry) or ``head``.
    :param believed: The sources that are.
    """

    source: Literal["word", "entry", "head"]
    says: str
    believed: tuple[str, ...]
    why: str


def _word_answer(pfn: int, word: Word) -> Answer:
    head = word.head
    order = None if head is None else head.order
    if not is_tail(word.info) and word.head_pfn == pfn:
        what = "a head" if head is not None and head.PG_head else "no compound page"
        return Answer(pfn, order, what)
    mask = "" if word.mask_order is None else f" of order {word.mask_order}"
    where = "no struct page" if word.head_pfn is None else f"PFN {word.head_pfn}"
    return Answer(
        word.head_pfn,
        order if word.mask_order is None else word.mask_order,
        f"a tail{mask} whose head is {where}",
    )


def _tables_answer(hvo: Hvo, one: Covering, pfn: int) -> Optional[Answer]:
    if not one.by_page_tables:
        return None
    size, page_size = hvo.vmemmap.size, hvo.vmemmap.page_size
    index = pfn * size // page_size - one.head_pfn * size // page_size
    return Answer(
        one.head_pfn,
        one.order,
        f"slice {index} of the huge page of PFN {one.head_pfn}, by the frames that its "
        "slices share",
    )


def _list_answer(one: Covering) -> Optional[Answer]:
    place = one.place
    if place.kind is None or not place.is_on_list:
        return None
    node = "" if place.nid is None else f" of node {place.nid}"
    return Answer(
        one.head_pfn,
        one.order,
        f"the huge page of PFN {one.head_pfn} is on the {LIST_NAMES[place.kind]} "
        f"list{node}",
    )


def answers(
    hvo: Hvo, pfn: int, word: Optional[Word], one: Optional[Covering]
) -> dict[str, Optional[Answer]]:
    """What each source says; ``None`` for one that says nothing, or was not read."""
    return {
        "word": None if word is None else _word_answer(pfn, word),
        "page_tables": None if one is None else _tables_answer(hvo, one, pfn),
        "lists": None if one is None else _list_answer(one),
    }


def former_head(hvo: Hvo, pfn: int, word: Word) -> Optional[int]:
    """
    The head that a struct page which looks like one, but is not aligned to its order,
    is a copy of: what lies behind it leads there.

    :return: ``None`` if it is aligned, or no head at all.
    """
    head = word.head
    if word.head_pfn != pfn or head is None or not head.PG_head or not head.order:
        return None
    if not pfn % (1 << min(head.order, 63)):
        return None
    behind = hvo.vmemmap.read_pages(np.array([pfn + 1], dtype=np.int64))
    info = int(hvo.vmemmap.tail_words(behind)[0])
    heads = hvo.heads.of_tails(
        np.array([pfn + 1], dtype=np.int64), np.array([info], dtype=np.uint64)
    )
    found = hvo.vmemmap.page_pfn(int(heads[0])) if behind.present[0] else None
    if found is not None and found < pfn < found + (1 << head.order):
        return found
    return pfn >> head.order << head.order


def _agreed(found: dict[str, Optional[Answer]]) -> tuple[str, ...]:
    return tuple(
        name for name, one in found.items() if one is not None and name != "word"
    )


_NAMES = {
    "page_tables": "the page tables",
    "lists": "the lists of the pools",
    "head": "the head",
}


def _named(sources: tuple[str, ...]) -> str:
    return " and ".join(_NAMES.get(name, name) for name in sources)


def disagreements(
    hvo: Hvo, audit: PageAudit, word: Optional[Word], found: dict[str, Optional[Answer]]
) -> list[Disagreement]:
    """Which sources do not say what the others do."""
    one = audit.covering
    wrong: list[Disagreement] = []
    if one is None:
        return [] if word is None else _without_folio(hvo, audit, word)
    sources = _agreed(found) or ("head",)
    show = "shows" if sources == ("head",) else "show"
    why = f"{_named(sources)} {show} the huge page of PFN {one.head_pfn}"
    said = found["word"]
    if (said is not None and said.head_pfn != one.head_pfn) or (
        said is not None
        and said.order not in (None, one.order)
        and (word is not None and word.mask_order is not None)
    ):
        text = REASONS["word"].format(sources=why)
        wrong.append(Disagreement("word", said.says, sources, text))
    wrong += _entry(hvo, audit, one)
    if one.head_says is False:
        text = REASONS["head"].format(sources=why)
        says = f"PFN {one.head_pfn} is no head of a hugetlb folio of order {one.order}"
        wrong.append(Disagreement("head", says, sources, text))
    return wrong


def _entry(hvo: Hvo, audit: PageAudit, one: Covering) -> list[Disagreement]:
    """The page table entry of a page, held against those of its huge page."""
    vmemmap, pfn = hvo.vmemmap, audit.pfn
    size, page_size = vmemmap.size, vmemmap.page_size
    if not one.by_page_tables:
        return []
    first = one.head_pfn * size // page_size
    slices = np.arange(first, first + max(hvo.kernel.geometry.slices(one.order), 1))
    frames, mapped = vmemmap.frames(slices)
    behind = frames[hvo.layout.tails.private_slices :]
    index = pfn * size // page_size - first
    if index < hvo.layout.tails.private_slices or not len(behind):
        return []
    values, which = distinct_index(behind)
    counts = np.bincount(which)
    usual = int(values[int(np.argmax(counts))])
    if frames[index] == usual or (len(behind) < 3 and len(values) > 1):
        return []
    if not mapped[index] and vmemmap.unread_table(int(slices[index])) is not None:
        return []
    if mapped[index] and _may_differ(hvo, audit):
        return []
    says = f"maps PFN {int(frames[index])}" if mapped[index] else "maps nothing"
    others = f"PFN {usual}"
    return [
        Disagreement(
            "entry",
            f"the page table entry of slice {index} {says}",
            ("page_tables",),
            REASONS["entry"].format(others=others),
        )
    ]


def _may_differ(hvo: Hvo, audit: PageAudit) -> bool:
    """
    Whether slices of a huge page need not all map one frame: some kernels leave huge
    pages partly optimized for good, and then the rules do not object.
    """
    array = hvo.layout.tails.array
    if array is None or not array.is_allocated:
        return False
    return all(finding.rule != "vmemmap-tail-frame" for finding in audit.findings)


def _without_folio(hvo: Hvo, audit: PageAudit, word: Word) -> list[Disagreement]:
    """A word that leads to a huge page where there is none."""
    pfn = audit.pfn
    says = _word_answer(pfn, word).says
    former = former_head(hvo, pfn, word)
    if former is not None and word.head is not None:
        text = REASONS["copy"].format(pfn=pfn, order=word.head.order)
        return [Disagreement("word", says, ("head",), text)]
    if any(f.rule == "stray-shared-tail" for f in audit.findings):
        text = REASONS["nothing"].format(
            n="this slice maps a shared tail page by mistake"
        )
        return [Disagreement("word", says, ("page_tables", "lists"), text)]
    head = word.head
    if is_tail(word.info) and not _covers(word.head_pfn, head, pfn):
        return [Disagreement("word", says, ("head",), REASONS["lost"])]
    return []


def _covers(head_pfn: Optional[int], head: Optional[Head], pfn: int) -> bool:
    """Whether a head reaches to a page; true if it was not read."""
    if head_pfn is None:
        return False
    if head is None or head.order is None:
        return True
    return head.PG_head and head_pfn <= pfn < head_pfn + (1 << min(head.order, 63))
