# SPDX-License-Identifier: LGPL-2.1-or-later

"""
dump_page() in a log
--------------------

What ``dump_page()`` in :linux:`mm/debug.c` prints of one page, in all its forms since
v5.14: the address of the page went, the line about the head changed twice, and
``page_type:`` came.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import re
from typing import Any, Optional

__all__ = ("PageDump", "PageDumpReading")

_PAGE = re.compile(
    r"\bpage:(\S{0,40}) ?refcount:(-?\d{1,10}) mapcount:(-?\d{1,10}) "
    r"mapping:(\S{1,40}) "
    r"index:(?:0x)?([0-9a-f]{1,16}) pfn:(?:0x)?([0-9a-f]{1,16})(?![0-9a-f])"
)
_POISONED = re.compile(r"\bpage:(\S{1,40}) is uninitialized and poisoned")
# "head:%px order:%u compound_mapcount:%d compound_pincount:%d" up to v6.6; since then
# "entire_mapcount:%d nr_pages_mapped:%d pincount:%d", and without the address.
_HEAD = re.compile(r"\bhead:(\S{0,40}) ?order:(\d{1,3})((?: \w{1,40}:-?\d{1,10}){0,9})")
_COUNT = re.compile(r"(\w+):(-?\d+)")
_FLAGS = re.compile(r"(?:\b(anon|ksm) )?\bflags: 0x([0-9a-f]{1,16})\(([^()]*)\)( CMA)?")
_PAGE_TYPE = re.compile(r"\bpage_type: (?:0x)?([0-9a-f]{1,8})\(([^()]*)\)")
_MEMCG = re.compile(r"\bmemcg:([0-9a-f]{1,16})(?![0-9a-f])")
# print_hex_dump() with rows of 32 bytes and words of 8.
_WORDS = re.compile(r"\b(raw|head): ((?:[0-9a-f]{16}(?: |$))+)")
_BECAUSE = re.compile(r"page dumped because: (.*)")

# Words of a row.
_ROW = 4

# sizeof(struct page) is 80 bytes with KMSAN; of the head, two are printed.
_MAX_WORDS = 32

# 56 bytes, without CONFIG_MEMCG.
_FEWEST_WORDS = 7


@dataclass(frozen=True)
class PageDump:
    """
    What was printed of one page. ``None`` is what the text does not say.

    :param address: Of the struct page, if it was printed and is no hash.
    :param counts: ``mapcount``, ``entire_mapcount``, ``pincount`` and others that the
        line about the head has, by name.
    :param flags: The word of the head's flags.
    :param flag_names: Its flags by name.
    :param positions: ``node``, ``zone`` and so on, which the kernel decoded from it.
    :param page_type: The name, such as ``hugetlb``.
    :param words: The struct page itself, in words of eight bytes; all of it unless
        the text breaks off.
    :param head_words: The head, and its first tail since v6.9.
    """

    pfn: Optional[int] = None
    address: Optional[int] = None
    refcount: Optional[int] = None
    mapcount: Optional[int] = None
    index: Optional[int] = None
    order: Optional[int] = None
    counts: tuple[tuple[str, int], ...] = ()
    memcg: Optional[int] = None
    flags: Optional[int] = None
    flag_names: Optional[tuple[str, ...]] = None
    positions: tuple[tuple[str, int], ...] = ()
    page_type: Optional[str] = None
    words: tuple[int, ...] = ()
    head_words: tuple[int, ...] = ()
    because: Optional[str] = None
    is_poisoned: bool = False

    @property
    def struct_page_size(self) -> Optional[int]:
        """``sizeof(struct page)`` in bytes, if all of it was printed."""
        return 8 * len(self.words) if len(self.words) >= _FEWEST_WORDS else None

    @property
    def info(self) -> Optional[int]:
        """The word that makes a tail, the second one in every kernel so far."""
        return self.words[1] if len(self.words) > 1 else None


@dataclass
class PageDumpReading:
    """A dump as far as it was read; what is there first stays."""

    found: dict[str, Any] = field(default_factory=dict)
    words: list[int] = field(default_factory=list)
    head_words: list[int] = field(default_factory=list)

    @staticmethod
    def begins(text: str) -> bool:
        """Whether a line is the first one of a dump."""
        return bool(_PAGE.search(text) or _POISONED.search(text))

    @property
    def is_begun(self) -> bool:
        """Whether there is anything of a page in it."""
        return "refcount" in self.found or "is_poisoned" in self.found

    @property
    def is_ended(self) -> bool:
        """Whether the line was read that ends a dump with a reason."""
        return "because" in self.found

    def take(self, text: str) -> None:
        """Take what a line says."""
        page, poisoned = _PAGE.search(text), _POISONED.search(text)
        if page:
            self._take_page(page)
        elif poisoned:
            self._set(address=_pointer(poisoned[1]), is_poisoned=True)
        head, flags = _HEAD.search(text), _FLAGS.search(text)
        if head:
            counts = tuple((name, int(n)) for name, n in _COUNT.findall(head[3]))
            self._set(order=int(head[2]), counts=counts)
        if flags:
            self._take_flags(flags)
        # In a mail, several lines can have become one.
        for name, row in _WORDS.findall(text):
            self._take_words(name, row.split())
        self._take_others(text)

    def _take_page(self, page: re.Match[str]) -> None:
        self._set(
            address=_pointer(page[1]),
            refcount=int(page[2]),
            mapcount=int(page[3]),
            index=int(page[5], 16),
            pfn=int(page[6], 16),
        )

    def _take_words(self, name: str, row: list[str]) -> None:
        words = self.words if name == "raw" else self.head_words
        # Behind a row that broke off, nobody knows where the next one belongs.
        if len(words) % _ROW == 0 and len(words) < _MAX_WORDS:
            words += (int(word, 16) for word in row[:_ROW])

    def _take_flags(self, flags: re.Match[str]) -> None:
        names, positions = [], []
        for part in flags[3].split("|"):
            name, equals, value = part.partition("=")
            if not equals:
                names += [name] if name else []
                continue
            try:
                positions.append((name, int(value, 0)))
            except ValueError:
                continue
        self._set(
            flags=int(flags[2], 16),
            flag_names=tuple(names),
            positions=tuple(positions),
        )

    def _take_others(self, text: str) -> None:
        kind, memcg, because = (p.search(text) for p in (_PAGE_TYPE, _MEMCG, _BECAUSE))
        if kind and kind[2]:
            self._set(page_type=kind[2])
        if memcg:
            self._set(memcg=int(memcg[1], 16))
        if because:
            self._set(because=because[1].strip())

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            self.found.setdefault(name, value)

    def finish(self) -> PageDump:
        """What was read."""
        words = tuple(self.words)
        # If the text goes on behind them, lines got lost: which words are these?
        if self.is_ended and len(words) < _FEWEST_WORDS:
            words = ()
        return PageDump(
            **self.found,
            words=words,
            head_words=tuple(self.head_words),
        )


def _pointer(text: str) -> Optional[int]:
    """
    An address that ``%px`` printed, or ``%p`` with ``no_hash_pointers``.

    :return: ``None`` for a hash, which has 32 bits, and for ``(____ptrval____)``.
    """
    if not re.fullmatch("[0-9a-f]{16}", text) or text.startswith("00000000"):
        return None
    return int(text, 16)
