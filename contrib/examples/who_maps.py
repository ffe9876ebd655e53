#!/usr/bin/env drgn
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Which tasks map the huge page behind this tail?

::

    drgn -c vmcore contrib/examples/who_maps.py PAGE

*PAGE* is what ``drgn-hvo page`` takes: the PFN of any page of the huge page, or
``page:0xADDR`` with the address of a struct page. The page tables of every process are
walked, so that it does not matter whether the dump still has its VMAs, and so is the
list of processes, since dumps lose the tree of PIDs more easily.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
import sys
from typing import Optional

from drgn import FaultError, Object, get_default_prog
from drgn.helpers.common.format import escape_ascii_string, print_table
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import virt_to_phys

from drgn_hvo.commands.page import page_document
from drgn_hvo.errors import HvoError, UnavailableError, UsageError
from drgn_hvo.kernel.pagetables import Walk, walk
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec


@dataclass(frozen=True)
class User:
    """A range of a process's memory that is the huge page, or a part of it."""

    pid: int
    comm: str
    start: int
    end: int
    writable: bool


@dataclass(frozen=True)
class Found:
    """All users, and what could not be looked at."""

    users: list[User]
    problems: list[str]


def processes(hvo: Hvo, problems: list[str]) -> Iterator[Object]:
    """Every process once (not every thread), as far as the list is in the dump."""
    prog = hvo.kernel.prog
    try:
        tasks = prog["init_task"].tasks.address_of_()
    except LookupError as e:
        raise UnavailableError(f"there is no list of processes: {e}") from None
    try:
        yield from list_for_each_entry("struct task_struct", tasks, "tasks")
    except FaultError as e:
        problems.append(f"the list of processes breaks off: {e}")


def user_page_tables(hvo: Hvo, mm: Object) -> Walk:
    """What the page tables of a process map below the kernel."""
    kernel = hvo.kernel
    page_table = kernel.page_table_format
    if page_table is None:
        raise UnavailableError(f"the page tables of {kernel.arch} cannot be walked")
    root = virt_to_phys(mm.pgd).value_()
    # Half of what the top table reaches is the kernel's.
    end = 1 << (page_table.reach_shift - 1)
    return walk(kernel.reader, replace(page_table, root=root), 0, end)


def users_of(hvo: Hvo, head_pfn: int, order: int) -> Found:
    """The users of a huge page."""
    users: list[User] = []
    problems: list[str] = []
    end_pfn = head_pfn + (1 << order)
    shift = hvo.kernel.geometry.page_shift
    for task in processes(hvo, problems):
        who = f"the process of task_struct {task.value_():#x}"
        try:
            pid = task.pid.value_()
            comm = escape_ascii_string(task.comm.string_())
            who = f"process {pid} ({comm})"
            mm = task.mm.read_()
            if not mm:
                continue
            tables = user_page_tables(hvo, mm)
        except FaultError as e:
            problems.append(f"{who} cannot be looked at: {e}")
            continue
        if tables.missing:
            problems.append(
                f"{len(tables.missing)} page tables of {who} are not in this dump, or "
                "damaged"
            )
        runs = tables.runs
        inside = (runs.pfn < end_pfn) & (runs.pfn + runs.count > head_pfn)
        for i in inside.nonzero()[0].tolist():
            first = max(int(runs.pfn[i]), head_pfn)
            last = min(int(runs.pfn[i] + runs.count[i]), end_pfn)
            start = int(runs.va[i]) + (first - int(runs.pfn[i]) << shift)
            end = start + (last - first << shift)
            users.append(User(pid, comm, start, end, bool(runs.writable[i])))
    return Found(users, problems)


def mapcount(hvo: Hvo, head_pfn: int) -> Optional[int]:
    """How many mappings the kernel counts; ``None`` if it has no such counter."""
    folio = hvo.kernel.type("struct folio")
    if folio is None or not folio.has_member("_entire_mapcount"):
        return None
    address = hvo.vmemmap.page_address(head_pfn)
    head = Object(hvo.kernel.prog, "struct folio *", address)
    return int(head._entire_mapcount.counter.value_()) + 1


def main(text: str) -> None:
    """Print a table of users."""
    hvo = hvo_of(get_default_prog())
    page = page_document(hvo, "", [parse_page_spec(text)])["pages"][0]
    if not hvo.has_hugetlb:
        raise UnavailableError("finding processes needs types")
    head_pfn, order = page["head_pfn"], page["order"]
    if page["folio"] is None or head_pfn is None or order is None:
        raise UsageError(f"{text}: no huge page, but {page['kind']}")
    result = users_of(hvo, head_pfn, order)
    print(f"PFN {page['pfn']} is in the huge page of PFN {head_pfn}, order {order}")
    rows: list[tuple[object, ...]] = [("PID", "COMM", "START", "END", "ACCESS")]
    rows += [
        (
            user.pid,
            user.comm,
            f"{user.start:x}",
            f"{user.end:x}",
            "rw" if user.writable else "ro",
        )
        for user in result.users
    ]
    if result.users:
        print_table(rows)
    else:
        print("No process that could be looked at maps it")
    counted = mapcount(hvo, head_pfn)
    if counted is not None and counted != len(result.users):
        result.problems.append(f"the kernel counts {counted} mappings of it")
    for problem in result.problems:
        print(f"Note: {problem}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: drgn -c CORE who_maps.py PAGE")
    try:
        main(sys.argv[1])
    except (HvoError, FaultError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
