# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What could not be read
----------------------

Dumps have holes: the disk was full, the copy was cut, makedumpfile left a page out.
What was not read is unknown, which is a value here like any other: a reader gives what
it read and an :class:`Unread` for each thing that it could not, and whoever draws
conclusions names the :class:`Need` that they rest on.
"""

from __future__ import annotations

from dataclasses import dataclass
import enum
from typing import Optional

from drgn import FaultError, Object, Program, ProgramFlags

__all__ = (
    "NOT_ALL_ZONES",
    "NOT_IN_DUMP",
    "READS_AS_ZEROS",
    "RECURSION",
    "KnownWords",
    "Need",
    "Unread",
    "why",
)

NOT_IN_DUMP = "not in this dump"

#: Why it is not known whose a page is.
NOT_ALL_ZONES = "not all zones could be read"

#: On ppc64, drgn looks for a symbol while it sets up the translation of addresses. What
#: is read then fails with this; it is no fact about the dump.
RECURSION = "recursive address translation"

#: What an ELF core does not hold reads as zeros, and so does what a file system filled
#: up when it lost it. No page of the structures that we read is all zeros.
READS_AS_ZEROS = "reads as zeros: left out of the dump?"


class Need(enum.Enum):
    """What has to be read to decide a rule; what is not there leaves it undecided."""

    NODES = "which nodes there are"
    SLOTS = "slots of vmemmap_tails[]"
    TAIL_STRUCT_PAGES = "the own struct pages of shared tail pages"
    TAIL_FRAMES = "the content of shared tail pages"
    PAGE_TABLES = "page tables of vmemmap"
    SECTIONS = "sections of mem_section"
    POOLS = "which pools there are"
    POOL_IDENTITY = "what pools say of the size of their huge pages"
    COUNTERS = "counters of the pools"
    LISTS = "lists of the pools"
    FOLIO_HEADS = "the first struct pages of folios"
    FOLIO_ZONES = "nodes and zones of folios"
    FOLIO_TAILS = "struct pages that a folio has to itself"
    SPLIT_STRUCT_PAGES = "struct pages where HVO split vmemmap"
    ALL_STRUCT_PAGES = "all struct pages"


@dataclass(frozen=True)
class Unread:
    """
    Something that could not be read.

    :param need: What it is a part of; ``None`` for what only names things.
    :param what: Names it for people.
    :param why: Such as :data:`NOT_IN_DUMP`.
    """

    need: Optional[Need]
    what: str
    why: str = NOT_IN_DUMP
    count: int = 1

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


def why(fault: FaultError) -> str:
    """Why something could not be read, as one reason for all of its kind."""
    return READS_AS_ZEROS if READS_AS_ZEROS in str(fault) else NOT_IN_DUMP


class KnownWords:
    """
    Reads numbers that are surely in the dump: zero is one only if not all of its page
    is zeros.
    """

    def __init__(self, prog: Program, page_size: int) -> None:
        self._prog = prog
        self._page_size = page_size
        # A running kernel has no pages that were left out.
        self._is_live = bool(prog.flags & ProgramFlags.IS_LIVE)
        self._blank: dict[int, bool] = {}

    def is_blank(self, address: int) -> bool:
        """Whether the page behind a virtual address can be read and is all zeros."""
        start = address & -self._page_size
        if start not in self._blank:
            self._blank[start] = not self._is_live and self._read_blank(start)
        return self._blank[start]

    def _read_blank(self, start: int) -> bool:
        try:
            return not any(self._prog.read(start, self._page_size))
        except (FaultError, OverflowError, ValueError):
            return False

    def check(self, value: int, address: int) -> int:
        """
        Pass a value on.

        :param address: Where it was read.
        :raises FaultError: if it is zero, as all of its page.
        """
        if not value and self.is_blank(address):
            raise FaultError(READS_AS_ZEROS, address)
        return value

    def value(self, reference: Object) -> int:
        """
        The value of a number or pointer in memory.

        :raises FaultError: if it is not in the dump.
        """
        value: int = reference.value_()
        return self.check(value, reference.address_ or 0)

    def find(self, reference: Object) -> Optional[int]:
        """As :meth:`value()`; ``None`` if it is not in the dump."""
        try:
            return self.value(reference)
        except FaultError:
            return None
