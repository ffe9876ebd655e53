# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One bit at a time
-----------------

The pages of a core in memory, in which a word is changed, audited and put back: types,
symbols and layout are found out once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import drgn

from drgn_hvo.audit.findings import Audit, Finding
from drgn_hvo.audit.run import run_audit
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.unread import KnownWords
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from tools.bitflips.words import Word

__all__ = ("Flip", "Machine")

_END = 1 << 46


@dataclass(frozen=True)
class Flip:
    """
    What became of one bit.

    :param bit: In the word, 0 the least significant.
    :param rule: Of the first finding that the whole core does not have; ``"(unread)"``
        if something is undecided that was not, ``"(refused)"`` if there is no audit at
        all; ``None`` if nothing is noticed.
    :param is_there: Whether the first finding is at the word.
    """

    word: Word
    bit: int
    rule: Optional[str]
    is_there: bool


class _Memory:
    """The pages of a program, read when they are needed, that can be changed."""

    def __init__(self, base: drgn.Program, page_size: int) -> None:
        self._base = base
        self._pages: dict[int, Optional[bytearray]] = {}
        self._size = page_size

    def _page(self, pfn: int) -> bytearray:
        if pfn not in self._pages:
            try:
                data = self._base.read(pfn * self._size, self._size, physical=True)
                self._pages[pfn] = bytearray(data)
            except drgn.FaultError:
                self._pages[pfn] = None
        page = self._pages[pfn]
        if page is None:
            raise drgn.FaultError("not in this dump", pfn * self._size)
        return page

    def read(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        """As a memory segment of drgn is read."""
        size = self._size
        first, last = address // size, (address + count - 1) // size
        begin = address - first * size
        if first == last:
            return bytes(self._page(first)[begin : begin + count])
        data = b"".join([self._page(pfn) for pfn in range(first, last + 1)])
        return data[begin : begin + count]

    def swap(self, address: int, data: bytes) -> bytes:
        """Change bytes of one page; give what they were."""
        page, at = self._page(address // self._size), address % self._size
        old = bytes(page[at : at + len(data)])
        page[at : at + len(data)] = data
        return old


class Machine:
    """
    A core in which words can be changed.

    :param base: Its program.
    """

    def __init__(self, base: drgn.Program) -> None:
        self._memory = _Memory(base, hvo_of(base).kernel.geometry.page_size)
        prog = drgn.Program(base.platform)
        prog.add_memory_segment(0, _END, self._memory.read, True)
        prog.set_linux_kernel_custom(base["VMCOREINFO"].string_(), False)
        self._kernel = Kernel(prog, {})
        #: The whole core.
        self.healthy = Hvo(self._kernel)
        audit = run_audit(self.healthy)
        self._known = {_about(finding) for finding in audit.findings}
        self._undecided = _reasons(audit)

    def changed(self, address: int, data: bytes) -> Optional[Audit]:
        """
        Audit the core with other bytes somewhere; they are put back.

        :param address: Physical; *data* does not cross the end of a page.
        :return: ``None`` if that core cannot be audited.
        """
        kernel = self._kernel
        kernel.reader = FrameReader(kernel.prog, kernel.geometry.page_size)
        kernel.known_words = KnownWords(kernel.prog, kernel.geometry.page_size)
        old = self._memory.swap(address, data)
        try:
            return run_audit(Hvo(kernel, self.healthy))
        except HvoError:
            return None
        finally:
            self._memory.swap(address, old)

    def new_findings(self, audit: Audit) -> list[Finding]:
        """The findings of an audit that the whole core does not have, in order."""
        found = (finding for finding, _ in audit.ordered())
        return [finding for finding in found if _about(finding) not in self._known]

    def flip(self, word: Word) -> Iterator[Flip]:
        """Flip all bits of a word."""
        for bit in range(8 * word.size):
            yield self.flip_bit(word, bit)

    def flip_bit(self, word: Word, bit: int) -> Flip:
        """Flip one bit."""
        changed = (word.value ^ 1 << bit).to_bytes(word.size, word.byteorder)
        audit = self.changed(word.address, changed)
        if audit is None:
            return Flip(word, bit, "(refused)", False)
        for finding in self.new_findings(audit):
            address = finding.place.physical_address
            is_there = address is not None and 0 <= address - word.address < word.size
            return Flip(word, bit, finding.rule, is_there)
        is_unread = bool(_reasons(audit) - self._undecided)
        return Flip(word, bit, "(unread)" if is_unread else None, False)


def _about(finding: Finding) -> tuple[object, ...]:
    return finding.rule, finding.place.physical_address, finding.actual


def _reasons(audit: Audit) -> set[tuple[str, str]]:
    return {(rule, why) for rule, whys in audit.undecided.items() for why in whys}
