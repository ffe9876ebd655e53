# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Basic types
-----------

Numbers, lists and locks that structures of all generations are made of.
"""

from __future__ import annotations

from typing import Optional

from drgn_hvo.synth.machine.ctype import (
    INT,
    ULONG,
    Base,
    Typedef,
    pointer,
    struct,
    typedef,
)

__all__ = (
    "ATOMIC_LONG_T",
    "ATOMIC_T",
    "CALLBACK_HEAD",
    "LIST_HEAD",
    "LLIST_NODE",
    "MEMDESC_FLAGS_T",
    "PGD_T",
    "PHYS_ADDR_T",
    "RAW_HWP_PAGE",
    "SPINLOCKS",
    "SPINLOCK_T",
    "STATIC_KEY",
    "STATIC_KEY_FALSE",
    "SUBPAGE_INDEX",
)

ATOMIC_T = typedef("atomic_t", struct(None, ("counter", INT)))
ATOMIC_LONG_T = typedef("atomic_long_t", struct(None, ("counter", ULONG)))
LIST_HEAD = struct(
    "list_head",
    ("next", pointer("struct list_head")),
    ("prev", pointer("struct list_head")),
)
LLIST_NODE = struct("llist_node", ("next", pointer("struct llist_node")))
CALLBACK_HEAD = struct(
    "callback_head", ("next", pointer("struct callback_head")), ("func", pointer())
)
_QSPINLOCK = struct("qspinlock", ("val", ATOMIC_T))
_RAW_SPINLOCK = struct(
    "raw_spinlock", ("raw_lock", typedef("arch_spinlock_t", _QSPINLOCK))
)
SPINLOCK_T = typedef("spinlock_t", struct("spinlock", ("rlock", _RAW_SPINLOCK)))
PGD_T = typedef("pgd_t", struct(None, ("pgd", typedef("pgdval_t", ULONG))))
MEMDESC_FLAGS_T = typedef("memdesc_flags_t", struct(None, ("f", ULONG)))
# PREEMPT_RT: include/linux/spinlock_types.h, include/linux/rtmutex.h.
_RT_MUTEX_BASE = struct(
    "rt_mutex_base",
    ("wait_lock", typedef("raw_spinlock_t", _RAW_SPINLOCK)),
    (
        "waiters",
        struct(
            "rb_root_cached",
            ("rb_root", struct("rb_root", ("rb_node", pointer("struct rb_node")))),
            ("rb_leftmost", pointer("struct rb_node")),
        ),
    ),
    ("owner", pointer("struct task_struct")),
)
#: ``spinlock_t``, by what a description calls it; ``None`` where types lack it.
SPINLOCKS: dict[str, Optional[Typedef]] = {
    "queued": SPINLOCK_T,
    "rt-mutex": typedef("spinlock_t", struct("spinlock", ("lock", _RT_MUTEX_BASE))),
    "unknown": None,
}
RAW_HWP_PAGE = struct(
    "raw_hwp_page", ("node", LLIST_NODE), ("page", pointer("struct page"))
)
#: Of the enumeration in :linux:`include/linux/hugetlb.h`, before v6.2.
SUBPAGE_INDEX = {
    "SUBPAGE_INDEX_SUBPOOL": 1,
    "SUBPAGE_INDEX_CGROUP": 2,
    "SUBPAGE_INDEX_CGROUP_RSVD": 3,
    "SUBPAGE_INDEX_HWPOISON": 4,
    "__NR_USED_SUBPAGE": 5,
}
PHYS_ADDR_T = typedef("phys_addr_t", typedef("u64", Base("long long unsigned int", 8)))
STATIC_KEY = struct("static_key", ("enabled", ATOMIC_T), ("type", ULONG))
STATIC_KEY_FALSE = struct("static_key_false", ("key", STATIC_KEY))
