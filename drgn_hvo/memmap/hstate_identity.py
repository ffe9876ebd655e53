# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What pools are
--------------

``hugetlb_add_hstate()`` says three times of which size the huge pages of a pool are:
``order``, ``mask`` and ``name``. Of three, two decide which one is wrong.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
import re
from typing import Optional

from drgn import FaultError, Object

from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.unread import Need, Unread, why

__all__ = ("PoolIdentities", "PoolIdentity", "WrongWord", "read_identities")

_ALL_BITS = (1 << 64) - 1
_NAME = re.compile(rb"hugepages-(\d{1,12})kB\0*")


@dataclass(frozen=True)
class WrongWord:
    """
    A word that contradicts others.

    :param index: Of the pool, ``None`` for what is said of all.
    :param what: Names it and says what is wrong.
    :param expected: ``None`` if that is not one number.
    """

    index: Optional[int]
    order: Optional[int]
    address: int
    what: str
    expected: Optional[int]
    actual: int


@dataclass(frozen=True)
class PoolIdentity:
    """
    An element of ``hstates[]`` that is in use.

    :param order: Of its huge pages, by most of what says so; ``None`` if nothing does.
    """

    index: int
    order: Optional[int]


@dataclass(frozen=True)
class PoolIdentities:
    """
    Which elements of ``hstates[]`` are in use.

    :param pools: Those that are, or can be if :attr:`unread` has pools.
    :param wrong: Words that contradict the others.
    :param unread: What could not be read.
    """

    pools: tuple[PoolIdentity, ...]
    wrong: tuple[WrongWord, ...]
    unread: tuple[Unread, ...]


@dataclass(frozen=True)
class _Words:
    """What an element of ``hstates[]`` says of itself; ``None`` is unread."""

    index: int
    order: Optional[int]
    mask: Optional[int]
    name: Optional[bytes]

    @property
    def is_used(self) -> Optional[bool]:
        """Whether two words say that it is in use, or is not; else ``None``."""
        words = (self.order, self.mask, self.name)
        known = [bool(word) for word in words if word is not None]
        used = sum(known)
        if max(used, len(known) - used) < 2:
            return None
        return used >= 2


class _IdentityReader:
    def __init__(self, kernel: Kernel, hstates: Object) -> None:
        self._kernel = kernel
        self._hstates = hstates
        self._page_shift = kernel.geometry.page_shift
        # By index of the element.
        self._unread: list[tuple[int, Unread]] = []
        self.wrong: list[WrongWord] = []

    def _number(self, index: int, member: str) -> Optional[int]:
        try:
            return self._kernel.known_words.value(self._hstates[index].member_(member))
        except FaultError as e:
            self._miss(index, member, e)
            return None

    def _miss(self, index: int, member: str, fault: FaultError) -> None:
        what = f"{member} of hstates[{index}]"
        unread = Unread(Need.POOL_IDENTITY, what, why(fault))
        self._unread.append((index, unread))

    def unread(self, used: int) -> list[Unread]:
        """What of the elements that are in use could not be read."""
        return [unread for index, unread in self._unread if index < used]

    def reason(self, index: int) -> str:
        """Why an element could not be read."""
        return next(u.why for i, u in self._unread if i == index)

    def _address(self, index: int, member: str) -> int:
        return self._hstates[index].member_(member).address_ or 0

    def _name(self, index: int) -> Optional[bytes]:
        array = self._hstates[index].member_("name")
        try:
            address, length = array.address_ or 0, array.type_.length or 0
            name: bytes = self._kernel.prog.read(address, length)
            self._kernel.known_words.check(any(name), address)
        except FaultError as e:
            self._miss(index, "name", e)
            return None
        return name if any(name) else b""

    def words(self, index: int) -> _Words:
        """What an element says."""
        return _Words(
            index,
            self._number(index, "order"),
            self._number(index, "mask"),
            self._name(index),
        )

    def _order_of_size(self, size: int) -> Optional[int]:
        order = size.bit_length() - 1 - self._page_shift
        if size <= 0 or size & (size - 1) or not self._is_order(order):
            return None
        return order

    def _is_order(self, order: int) -> bool:
        return 0 < order <= self._kernel.geometry.largest_order

    def order(self, words: _Words) -> Optional[int]:
        """The order that most words say; the first of them if none agree."""
        votes: list[Optional[int]] = []
        if words.order is not None and self._is_order(words.order):
            votes.append(words.order)
        if words.mask:
            votes.append(self._order_of_size(-words.mask & _ALL_BITS))
        found = _NAME.fullmatch(words.name or b"")
        if found is not None:
            votes.append(self._order_of_size(int(found.group(1)) << 10))
        valid = [vote for vote in votes if vote is not None]
        return Counter(valid).most_common(1)[0][0] if valid else None

    def judge(self, words: _Words, order: int) -> None:
        """Note which words do not say an order."""
        index = words.index
        size = 1 << order + self._page_shift
        mask = -size & _ALL_BITS
        if words.order not in (None, order):
            self._add(index, order, "order", f"is {words.order}", order, words.order)
        if words.mask not in (None, mask):
            self._add(index, order, "mask", f"is {words.mask:#x}", mask, words.mask)
        if words.name is not None:
            self._judge_name(words, order, size)

    def _judge_name(self, words: _Words, order: int, size: int) -> None:
        name = words.name or b""
        length = self._hstates[words.index].member_("name").type_.length or 0
        right = f"hugepages-{size >> 10}kB".encode().ljust(length, b"\0")
        name = name.ljust(length, b"\0")
        if name == right:
            return
        at = next(i for i in range(length) if name[i] != right[i])
        shown = name.rstrip(b"\0")[:32]
        self.wrong.append(
            WrongWord(
                words.index,
                order,
                self._address(words.index, "name") + at,
                f"the name of the pool of order {order} is {shown!r}",
                right[at],
                name[at],
            )
        )

    def _add(
        self,
        index: int,
        order: int,
        member: str,
        what: str,
        expected: Optional[int],
        actual: Optional[int],
    ) -> None:
        self.wrong.append(
            WrongWord(
                index,
                order,
                self._address(index, member),
                f"{member} of the pool of order {order} {what}",
                expected,
                actual or 0,
            )
        )

    def judge_demotion(self, index: int, order: int, orders: set[int]) -> None:
        """hugetlb_init_hstates() and demote_size_store(): a smaller pool, or none."""
        if not hasattr(self._hstates[index], "demote_order"):
            return  # before v5.16
        target = self._number(index, "demote_order")
        if target and not (target < order and target in orders):
            what = f"is {target}, which no smaller pool has"
            self._add(index, order, "demote_order", what, None, target)

    def judge_count(self, count: int, used: int) -> None:
        """Note that the number of pools is not that of the elements in use."""
        self.wrong.append(
            WrongWord(
                None,
                None,
                self._kernel.prog["hugetlb_max_hstate"].address_ or 0,
                f"hugetlb_max_hstate is {count}, but hstates[] has {used} pools",
                used,
                count,
            )
        )

    def judge_unused(self, words: _Words) -> None:
        """Note words of an element that nobody uses."""
        for member, value in (("order", words.order), ("mask", words.mask)):
            if value:
                self.wrong.append(
                    WrongWord(
                        words.index,
                        None,
                        self._address(words.index, member),
                        f"hstates[{words.index}] is not in use, but its {member} is "
                        f"{value:#x}",
                        0,
                        value,
                    )
                )
        if words.name:
            at = next(i for i, byte in enumerate(words.name) if byte)
            self.wrong.append(
                WrongWord(
                    words.index,
                    None,
                    self._address(words.index, "name") + at,
                    f"hstates[{words.index}] is not in use, but has a name",
                    0,
                    words.name[at],
                )
            )


def _count(kernel: Kernel) -> tuple[Optional[int], list[Unread]]:
    """``hugetlb_max_hstate``."""
    try:
        return kernel.known_words.value(kernel.prog["hugetlb_max_hstate"]), []
    except FaultError as e:
        return None, [Unread(Need.POOLS, "hugetlb_max_hstate", why(e))]


def _used(uses: list[Optional[bool]], count: Optional[int]) -> tuple[int, bool]:
    """
    How many elements are in use, and whether they say so themselves.

    :param uses: Of each element, see :attr:`_Words.is_used`.
    :param count: What ``hugetlb_max_hstate`` says.
    """
    used = next((i for i, use in enumerate(uses) if use is False), len(uses))
    if None not in uses[:used]:
        return used, True
    if count is None or not 0 <= count <= len(uses):
        return len(uses), False
    return count, False


def read_identities(kernel: Kernel, hstates: Object) -> PoolIdentities:
    """
    Find out which pools there are.

    :param hstates: The array of all that there can be.
    """
    reader = _IdentityReader(kernel, hstates)
    count, unread = _count(kernel)
    most = hstates.type_.length or 0
    found = [reader.words(index) for index in range(most)]
    uses = [words.is_used for words in found]
    used, is_sure = _used(uses, count)
    if is_sure and count is not None and count != used:
        reader.judge_count(count, used)
    elif not is_sure and count is not None and not 0 <= count <= most:
        reason = f"is not of the {most} pools there can be"
        unread.append(Unread(Need.POOLS, "hugetlb_max_hstate", reason))
    orders = {i: reader.order(found[i]) for i in range(used)}
    for i, order in orders.items():
        if order is not None:
            reader.judge(found[i], order)
            reader.judge_demotion(i, order, {o for o in orders.values() if o})
        elif uses[i] is None and count is not None:
            unread.append(Unread(Need.POOLS, f"hstates[{i}]", reader.reason(i)))
        elif uses[i]:
            reason = f"has order {found[i].order}: ignored"
            unread.append(Unread(Need.POOLS, f"hstates[{i}]", reason))
    for i in range(used, most):
        reader.judge_unused(found[i])
    return PoolIdentities(
        tuple(PoolIdentity(i, order) for i, order in orders.items()),
        tuple(reader.wrong),
        (*unread, *reader.unread(used)),
    )
