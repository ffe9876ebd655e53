# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Whether hugetlb_lock was held
-----------------------------

Whoever holds the lock is changing pools, lists and flags of folios, which then need not
agree. A spinlock says that it is held in one of a few forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from drgn import FaultError, Object

from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.unread import why

__all__ = ("LOCK_FORMS", "Lock", "hugetlb_lock")


@dataclass(frozen=True)
class Lock:
    """
    The state of a lock.

    :param why: Why it is not known, if it is not.
    """

    state: Literal["held", "free", "unknown"]
    why: str = ""


@dataclass(frozen=True)
class _Form:
    """
    A form of spinlock.

    :param path: The members that lead to the word.
    :param is_held: Whether the value of the word says that it is held.
    """

    source: str
    path: tuple[str, ...]
    is_held: Callable[[int], bool]


def _is_set(word: int) -> bool:
    return word != 0


def _has_owner(word: int) -> bool:
    # Bit 0 is RT_MUTEX_HAS_WAITERS.
    return word & ~1 != 0


def _has_ticket(word: int) -> bool:
    """Whether the last ticket that was drawn is not the one that is served."""
    return (word >> 16 & 0xFFFF) != (word & 0xFFFF)


#: In this order: the first whose members are there is taken.
LOCK_FORMS = (
    _Form(
        "PREEMPT_RT: struct rt_mutex_base, include/linux/rtmutex.h",
        ("lock", "owner"),
        _has_owner,
    ),
    # What is not 0 but has no owner yet, a waiter, is about to be held.
    _Form(
        "queued: include/asm-generic/qspinlock_types.h",
        ("rlock", "raw_lock", "val", "counter"),
        _is_set,
    ),
    _Form(
        "ticket: include/asm-generic/ticket_spinlock.h; riscv until v6.13",
        ("rlock", "raw_lock", "counter"),
        _has_ticket,
    ),
    _Form(
        "arch/s390/include/asm/spinlock_types.h",
        ("rlock", "raw_lock", "lock"),
        _is_set,
    ),
    _Form(
        "arch/powerpc/include/asm/simple_spinlock_types.h",
        ("rlock", "raw_lock", "slock"),
        _is_set,
    ),
    # A union of an atomic and a plain word: arch/powerpc/include/asm/qspinlock_types.h.
    _Form("queued on powerpc", ("rlock", "raw_lock", "val"), _is_set),
)


def _word(lock: Object, path: tuple[str, ...]) -> Object:
    for name in path:
        lock = lock.member_(name)
    return lock


def hugetlb_lock(kernel: Kernel) -> Lock:
    """Whether hugetlb_lock (:linux:`mm/hugetlb.c`) was held."""
    try:
        lock = kernel.prog["hugetlb_lock"]
    except LookupError:
        return Lock("unknown", "nothing says where hugetlb_lock is")
    for form in LOCK_FORMS:
        try:
            word = _word(lock, form.path)
            value = kernel.known_words.value(word)
            held = form.is_held(value)
        except (AttributeError, LookupError, TypeError):
            continue
        except FaultError as e:
            return Lock("unknown", f"hugetlb_lock {why(e)}")
        return Lock("held" if held else "free")
    return Lock("unknown", f"hugetlb_lock is a {lock.type_}, of no known form")
