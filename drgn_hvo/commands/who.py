# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``who``
-------

All who have a huge page: files, shared memory, processes, and what is left over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional

from drgn.helpers.common.format import print_table

from drgn_hvo.commands.document import document, human_size, known
from drgn_hvo.errors import NotInDumpError, UnavailableError, UsageError
from drgn_hvo.memmap.holders import Holders, holders_of
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec, resolve_page
from drgn_hvo.memmap.pools import LIST_NAMES

if TYPE_CHECKING:
    from drgn_hvo.commands.holder_reports import FileEntry, WhoReport

__all__ = ("print_who", "who_document")

# How many processes are named in a sentence; the table has all.
_PROCESSES_NAMED = 3


def who_document(hvo: Hvo, target: str, spec: PageSpec) -> WhoReport:
    """
    What ``who --json`` prints.

    :raises UsageError: if no huge page covers the page.
    :raises NotInDumpError: if none was found, but not all that would tell was read.
    :raises UnavailableError: if huge pages cannot be looked at.
    """
    if not hvo.has_hugetlb:
        raise UnavailableError(
            f"finding who has a huge page needs types: {hvo.kernel.no_types_reason}"
        )
    pfn = resolve_page(hvo.vmemmap, spec)
    one = hvo.covering.of(pfn)
    if one is None:
        unread = [*hvo.covering.unread(pfn), *map(str, hvo.tail_slots.unread)]
        if unread:
            raise NotInDumpError(
                f"{spec.text}: whether a huge page covers PFN {pfn} is not known: "
                f"{unread[0]}"
            )
        raise UsageError(f"{spec.text}: no huge page covers PFN {pfn}")
    found = holders_of(hvo, one.head_pfn, one.order)
    kind = one.place.kind
    doc: WhoReport = {
        **document(target, hvo.kernel.release),
        "spec": spec.text,
        "read_as": spec.read_as,
        "pfn": pfn,
        "conclusions": [],
        "head_pfn": one.head_pfn,
        "order": one.order,
        "page_bytes": hvo.kernel.geometry.page_size << one.order,
        "list": None if kind is None else LIST_NAMES[kind],
        "refcount": found.refcount,
        "mapcount": found.mapcount,
        "pincount": found.pincount,
        "anonymous": found.anonymous,
        "file": _file(found),
        "mappings": [
            {
                "pid": mapping.pid,
                "comm": mapping.comm,
                "start": f"{mapping.start:#x}",
                "end": f"{mapping.end:#x}",
                "writable": mapping.writable,
            }
            for mapping in found.mappings
        ],
        "left_over": found.left_over,
        "unread": list(found.unread),
    }
    doc["conclusions"] = list(_conclusions(doc))
    return doc


def _file(found: Holders) -> Optional[FileEntry]:
    file = found.file
    if file is None:
        return None
    return {
        "address": f"{file.address:#x}",
        "kind": file.kind,
        "name": file.name,
        "inode": file.inode,
        "index": file.index,
        "references": found.file_references,
    }


def _conclusions(doc: WhoReport) -> Iterator[str]:
    size, index = human_size(doc["page_bytes"]), doc["pfn"] - doc["head_pfn"]
    page = f"page {index}" if index else "the first page"
    yield (
        f"PFN {doc['pfn']} is {page} of the huge page of {size} at PFN "
        f"{doc['head_pfn']}."
    )
    if doc["list"] == "free" and not doc["mappings"] and doc["file"] is None:
        yield "It is free: nobody has it."
    else:
        yield from _holders(doc)
        yield from _rest(doc)
    if doc["unread"]:
        yield f"Not all of that is sure: {doc['unread'][0]}."


def _holders(doc: WhoReport) -> Iterator[str]:
    file = doc["file"]
    if file is not None:
        what = file["kind"] or "a file whose name was not read"
        what = f"{what[0].upper()}{what[1:]}"
        name = "" if file["name"] is None else f" {file['name']!r}"
        yield f"{what}{name} has it, and keeps it when no process maps it."
    who = dict.fromkeys(f"{one['pid']} ({one['comm']})" for one in doc["mappings"])
    named = ", ".join(list(who)[:_PROCESSES_NAMED])
    if len(who) > _PROCESSES_NAMED:
        named += f" and {len(who) - _PROCESSES_NAMED} more"
    if len(who) == 1:
        yield f"Process {named} maps it."
    elif who:
        yield f"{len(who)} processes map it: {named}."
    elif doc["mapcount"]:
        yield "It is mapped, but the processes that map it were not found."
    elif doc["mapcount"] is None and doc["unread"]:
        yield "Whether processes map it is not known."
    elif file is not None:
        yield "No process maps it."
    elif doc["refcount"] and doc["anonymous"] is not None:
        yield "It is in use, but mapped by nobody, and in no file."
    if doc["anonymous"] is None:
        yield "Whether a file has it is not known."


def _rest(doc: WhoReport) -> Iterator[str]:
    """What references are for that nobody of those has."""
    left, pins = doc["left_over"], doc["pincount"]
    if left is None:
        yield "How many references are left over is not known."
    elif left < 0:
        yield (
            "It has fewer references than holders: one was given back that should not "
            "have been, or this moment is in the middle of a change."
        )
    elif not left:
        if doc["refcount"]:
            yield f"That accounts for all of its {_references(doc['refcount'])}."
    else:
        counted = "" if pins is None else f"; the kernel counts {pins} pins"
        yield (
            f"{_references(left)} left over{counted}: who pins memory for devices "
            "(io_uring, RDMA, VFIO), is using it at this moment, or never gave it back."
        )


def _references(count: int) -> str:
    return "1 reference" if count == 1 else f"{count} references"


def print_who(doc: WhoReport) -> None:
    """Print a document of :func:`who_document()` for people."""
    print(*doc["conclusions"], "", sep="\n")
    if doc["mappings"]:
        rows: list[list[object]] = [["PID", "COMM", "START", "END", "ACCESS"]]
        for one in doc["mappings"]:
            access = "rw" if one["writable"] else "ro"
            start, end = one["start"][2:], one["end"][2:]
            rows.append([one["pid"], one["comm"], start, end, access])
        print_table(rows)
        print()
    file = doc["file"]
    if file is not None:
        inode, index = known(file["inode"]), known(file["index"])
        print(f"File         inode {inode}, index {index} of it")
    of_file = None if doc["anonymous"] is None else 0
    if file is not None:
        of_file = file["references"]
    print(
        f"References   {known(doc['refcount'])}: {known(of_file)} of the file, "
        f"{known(doc['mapcount'])} of mappings, {known(doc['left_over'])} left over; "
        f"pins {known(doc['pincount'])}"
    )
    for one_unread in doc["unread"]:
        print(f"Note: {one_unread}")
