# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A log against a dump
--------------------

Whether a report can be of the boot that a dump is of, and what became of the words
that it printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from drgn import Type, TypeKind, sizeof
import numpy as np

from drgn_hvo.formats.crash_text import Crash
from drgn_hvo.formats.printed_page import PrintedPage
from drgn_hvo.formats.telling_words import telling_register
from drgn_hvo.memmap.hvo import Hvo

__all__ = (
    "Comparison",
    "LoggedPointer",
    "compare_words",
    "member_names",
    "not_this_boot",
    "pointers_of",
)


def not_this_boot(hvo: Hvo, crash: Crash) -> Optional[str]:
    """Why a report cannot be of the boot of this kernel, if so."""
    release = hvo.kernel.release
    if None not in (crash.release, release) and crash.release != release:
        return f"the oops is of kernel {crash.release}, this core of {release}"
    offset = hvo.kernel.vmcoreinfo.integer("KERNELOFFSET", 16)
    if None not in (crash.kernel_offset, offset) and crash.kernel_offset != offset:
        return (
            f"the kernel was at offset {crash.kernel_offset:#x}, and is at {offset:#x} "
            "in this core"
        )
    return None


@dataclass(frozen=True)
class Comparison:
    """
    The words of a struct page in a log, and in the dump.

    :param state: ``unchanged``, ``changed``, ``other-page`` (of another boot or
        machine, then) or ``not-in-dump``.
    :param members: The names of what is different.
    """

    state: Literal["unchanged", "changed", "other-page", "not-in-dump"]
    members: tuple[str, ...] = ()


def compare_words(hvo: Hvo, page: PrintedPage) -> Optional[Comparison]:
    """
    Hold a page that a log printed against the dump.

    :return: ``None`` if its words or its PFN were not printed.
    """
    words, pfn = page.dump.words, page.pfn
    if not words or pfn is None:
        return None
    vmemmap = hvo.vmemmap
    if pfn >= vmemmap.end_pfn:
        return Comparison("other-page")
    rows = vmemmap.read_pages(np.array([pfn], dtype=np.int64))
    # What some dumps leave out reads as zeros.
    if not rows.present[0] or not rows.data.any():
        return Comparison("not-in-dump")
    found = rows.data[0].view(hvo.kernel.reader.u64).tolist()
    different = [i for i, word in enumerate(words[: len(found)]) if word != found[i]]
    if not different:
        return Comparison("unchanged")
    if _is_other_page(hvo, page, found[0]):
        return Comparison("other-page")
    names: dict[str, None] = {}
    for i in different:
        changed = words[i] ^ found[i]
        for byte in range(0, 8, 4):
            shift = 8 * byte if hvo.kernel.reader.u64.str[0] != ">" else 32 - 8 * byte
            if changed >> shift & 0xFFFFFFFF:
                names[_first_name(hvo, 8 * i + byte)] = None
    return Comparison("changed", tuple(names))


def _is_other_page(hvo: Hvo, page: PrintedPage, flags: int) -> bool:
    """Whether what never changes while a kernel runs is different."""
    pointer = page.head_pointer
    if pointer is not None and not hvo.layout.encoding.has_mask:
        return hvo.vmemmap.page_pfn(pointer) is None
    layout = hvo.mmzone.flags_layout if hvo.has_hugetlb else None
    if layout is None:
        return False
    both = np.array([page.dump.words[0], flags], dtype=np.uint64)
    nids, zones = layout.nids(both), layout.zonenums(both)
    return bool(nids[0] != nids[1] or zones[0] != zones[1])


def _members(type_: Type, offset: int) -> list[str]:
    """Names of the members at a byte of a structure, whatever union they are in."""
    names = []
    for member in type_.members or ():
        first = member.bit_offset // 8
        size = sizeof(member.type)
        if not first <= offset < first + size:
            continue
        if member.name is not None:
            names.append(member.name)
        elif member.type.kind in (TypeKind.STRUCT, TypeKind.UNION):
            names += _members(member.type, offset - first)
    return names


def member_names(hvo: Hvo, offset: int) -> list[str]:
    """What lies at a byte of ``struct page``; the word that makes tails comes first."""
    struct_page = hvo.kernel.struct_page
    page = hvo.kernel.type("struct page")
    if page is not None:
        names = list(dict.fromkeys(_members(page, offset)))
    else:
        known = {
            "flags": (struct_page.flags, 8),
            "_refcount": (struct_page.refcount, 4),
            "_mapcount": (struct_page.mapcount, 4),
            "mapping": (struct_page.mapping, 8),
            "private": (struct_page.private, 8),
            struct_page.member: (struct_page.offset, 8),
        }
        names = [
            name
            for name, (first, size) in known.items()
            if first is not None and first <= offset < first + size
        ]
    return sorted(names, key=lambda name: name != struct_page.member)


def _first_name(hvo: Hvo, offset: int) -> str:
    return next(iter(member_names(hvo, offset)), f"byte {offset}")


@dataclass(frozen=True)
class LoggedPointer:
    """
    A register or word of the stack that is about struct pages.

    :param where: The name of the register, or ``stack``.
    :param pfn: Of the struct page that it points to, if it does.
    :param text: What it is.
    """

    where: str
    value: int
    pfn: Optional[int]
    text: str


def pointers_of(hvo: Optional[Hvo], crash: Crash) -> list[LoggedPointer]:
    """
    What the registers and the stack of a crash say about struct pages.

    :param hvo: Without one, only words that tell by themselves what they are.
    """
    from drgn_hvo.formats.tail_words import Geometry

    geometry = Geometry(4096, 64) if hvo is None else hvo.kernel.geometry
    words = [*crash.registers, *(("stack", word) for word in crash.stack)]
    found = []
    for where, value in words:
        telling = telling_register(geometry, value)
        if telling is not None:
            found.append(LoggedPointer(where, value, None, telling.text))
        elif hvo is not None:
            offset = value - hvo.vmemmap.base
            if 0 <= offset < hvo.vmemmap.end_pfn * hvo.vmemmap.size:
                pfn, byte = divmod(offset, hvo.vmemmap.size)
                behind = f", byte {byte}" if byte else ""
                text = f"struct page of PFN {pfn}{behind}"
                found.append(LoggedPointer(where, value, pfn, text))
    return found
