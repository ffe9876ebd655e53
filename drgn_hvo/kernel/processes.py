# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Processes and what they map
---------------------------

Every process by the list of tasks, which dumps lose less easily than the tree of PIDs,
and what its page tables map: so it does not matter whether the dump still has its VMAs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from drgn import FaultError, Object

from drgn_hvo.errors import UnavailableError
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.pagetables import Walk, walk

__all__ = ("Mapping", "Mappings", "mappings_of")

# PID_MAX_LIMIT: a list of more tasks has no end.
_MAX_TASKS = 1 << 22


@dataclass(frozen=True)
class Mapping:
    """
    A range of a process's memory that maps some of the pages that were asked for.

    :param task: Address of its ``struct task_struct``.
    """

    task: int
    pid: int
    comm: str
    start: int
    end: int
    writable: bool


@dataclass(frozen=True)
class Mappings:
    """
    All mappings of some pages.

    :param unread: What could not be looked at, a sentence each.
    """

    found: tuple[Mapping, ...]
    unread: tuple[str, ...]


def mappings_of(kernel: Kernel, start_pfn: int, end_pfn: int) -> Mappings:
    """
    Where processes map pages.

    :param end_pfn: Exclusive.
    :raises UnavailableError: if this kernel's processes cannot be looked at.
    """
    if kernel.page_table_format is None:
        raise UnavailableError(kernel.no_page_tables_reason)
    found: list[Mapping] = []
    unread: list[str] = []
    for task in _tasks(kernel, unread):
        who = f"the process of task_struct {task.value_():#x}"
        try:
            # No process in the list has PID 0, and none is without a name.
            pid = kernel.known_words.value(task.pid)
            comm = task.comm.string_().decode(errors="replace") or "?"
            who = f"process {pid} ({comm})"
            # Threads of the kernel have no memory of their own.
            mm = kernel.known_words.value(task.mm)
            tables = _user_page_tables(kernel, mm) if mm else None
        except FaultError:
            unread.append(f"{who} is not in this dump")
            continue
        if tables is None:
            continue
        if tables.missing:
            unread.append(
                f"{len(tables.missing)} page tables of {who} are not in this dump, or "
                "damaged"
            )
        found += (
            Mapping(task.value_(), pid, comm, *place)
            for place in _inside(kernel, tables, start_pfn, end_pfn)
        )
    return Mappings(tuple(found), tuple(unread))


def _tasks(kernel: Kernel, unread: list[str]) -> Iterator[Object]:
    """
    Every process once, not every thread.

    :raises UnavailableError: if there is no list of them.
    """
    from drgn.helpers.linux.list import list_for_each_entry

    try:
        tasks = kernel.prog["init_task"].tasks.address_of_()
    except (AttributeError, LookupError) as e:
        raise UnavailableError(f"there is no list of processes: {e}") from None
    seen: set[int] = set()
    try:
        for task in list_for_each_entry("struct task_struct", tasks, "tasks"):
            if task.value_() in seen or len(seen) > _MAX_TASKS:
                unread.append("the list of processes leads back into itself")
                return
            seen.add(task.value_())
            yield task
    except FaultError:
        unread.append(f"the list of processes breaks off behind {len(seen)} of them")


def _user_page_tables(kernel: Kernel, mm: int) -> Walk:
    """
    What the page tables of a process map below the kernel.

    :param mm: Address of its ``struct mm_struct``.
    """
    from drgn.helpers.linux.mm import virt_to_phys

    page_table = kernel.page_table_format
    assert page_table is not None
    pgd = Object(kernel.prog, "struct mm_struct *", mm).pgd
    root = virt_to_phys(kernel.prog, kernel.known_words.value(pgd)).value_()
    # Half of what the top table reaches is the kernel's.
    end = 1 << (page_table.reach_shift - 1)
    return walk(kernel.reader, replace(page_table, root=root), 0, end)


def _inside(
    kernel: Kernel, tables: Walk, start_pfn: int, end_pfn: int
) -> Iterator[tuple[int, int, bool]]:
    """Where some pages are mapped: start, end, and whether they can be written to."""
    shift = kernel.geometry.page_shift
    runs = tables.runs
    inside = (runs.pfn < end_pfn) & (runs.pfn + runs.count > start_pfn)
    for i in inside.nonzero()[0].tolist():
        pfn, writable = int(runs.pfn[i]), bool(runs.writable[i])
        first = max(pfn, start_pfn)
        last = min(pfn + int(runs.count[i]), end_pfn)
        start = int(runs.va[i]) + (first - pfn << shift)
        end = start + (last - first << shift)
        yield start, end, writable
