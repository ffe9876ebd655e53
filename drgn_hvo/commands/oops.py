# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``page --oops``
---------------

The page faults of a log, explained by a core: which struct page was accessed, how
its page of vmemmap is mapped, and whether such a fault is the signature of an
illegal write to the tails of an optimized huge page.
"""

from __future__ import annotations

import textwrap
from typing import Optional

from drgn import Type, TypeKind, sizeof
import numpy as np

from drgn_hvo.audit.page_faults import Facts, Place, Printed, verdict_of
from drgn_hvo.commands.document import Document
from drgn_hvo.commands.page import page_document, page_lines, print_lines
from drgn_hvo.errors import UnavailableError
from drgn_hvo.formats.oops_log import PF_INSTR, PF_PROT, PF_USER, PF_WRITE, Log, Oops
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.kernel.pagetables import Entry, find_entry
from drgn_hvo.memmap.heads import read_head
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec
from drgn_hvo.memmap.shared_tails import SharedTail

__all__ = ("oops_document", "print_oopses")


def _not_this_boot(hvo: Hvo, oops: Oops) -> Optional[str]:
    release = hvo.kernel.release
    if None not in (oops.release, release) and oops.release != release:
        return f"the oops is of kernel {oops.release}, this core of {release}"
    offset = hvo.kernel.vmcoreinfo.integer("KERNELOFFSET", 16)
    if None not in (oops.kernel_offset, offset) and oops.kernel_offset != offset:
        return (
            f"the kernel was at offset {oops.kernel_offset:#x}, and is at {offset:#x} "
            "in this core"
        )
    return None


def _page_table(hvo: Hvo) -> PageTableFormat:
    page_table = hvo.kernel.page_table_format
    if page_table is None:
        raise UnavailableError(
            f"an oops can be explained on x86_64 only, not on {hvo.kernel.arch}"
        )
    return page_table


def _printed(hvo: Hvo, oops: Oops, in_dump: Optional[Entry]) -> Optional[Printed]:
    if not oops.entries:
        return None
    page_table = _page_table(hvo)
    # dump_pagetable() prints a folded level, too: P4D is PGD then.
    top = len(page_table.levels) - 1
    level_of = {"PTE": 0, "PMD": 1, "PUD": 2, "P4D": 3, "PGD": top}
    name, value = min(oops.entries, key=lambda entry: level_of[entry[0]])
    level = level_of[name]
    decoded = page_table.decode(value, level)
    is_mapping = decoded.present and decoded.is_mapping
    frame = decoded.address >> page_table.page_shift if is_mapping else None
    if frame is not None:
        offset = oops.address >> page_table.page_shift
        frame |= offset & (page_table.pages(level) - 1)
    same = None
    if in_dump is not None:
        # The processor sets these at any time.
        volatile = page_table.accessed | page_table.dirty
        same = in_dump.level == level and not (in_dump.value ^ value) & ~volatile
    return Printed(
        name=name,
        value=value,
        is_mapping=is_mapping,
        writable=decoded.writable,
        frame=frame,
        in_dump=None if in_dump is None else in_dump.value,
        same=same,
    )


def _find_tail(hvo: Hvo, frame: int) -> Optional[SharedTail]:
    if not hvo.has_hugetlb:
        return None
    return next((tail for tail in hvo.shared_tails if tail.pfn == frame), None)


def _place_on_tail(hvo: Hvo, tail: SharedTail, slice_: int) -> Place:
    """A folio is aligned: its order says where it begins, whatever its words hold."""
    slices = hvo.kernel.geometry.slices(tail.order)
    return Place(slice_ // slices << tail.order, tail.order, slice_ % slices)


def _place_on_head(hvo: Hvo, frame: int, slice_: int) -> Optional[Place]:
    """The folio whose own frame stands behind its tails, too."""
    slices = (
        hvo.vmemmap.slices_on(frame) if hvo.layout.tails.has_fake_heads else np.zeros(0)
    )
    if not len(slices):
        return None
    first = int(slices[0])
    geometry = hvo.kernel.geometry
    head_pfn = first * geometry.pages_per_slice
    head = read_head(hvo, head_pfn)
    if head is None or head.order is None or head.order > geometry.largest_order:
        return None
    index = slice_ - first
    if not 0 <= index < geometry.slices(head.order):
        return None
    return Place(head_pfn, head.order, index)


def _facts(hvo: Hvo, oops: Oops) -> Facts:
    vmemmap, kernel = hvo.vmemmap, hvo.kernel
    not_this_boot = _not_this_boot(hvo, oops)
    offset = oops.address - vmemmap.base
    if not 0 <= offset < kernel.max_pfn_limit * vmemmap.size:
        return Facts(oops, not_this_boot, False)
    slice_ = offset // vmemmap.page_size
    mapping = vmemmap.mapping(slice_)
    missing = any(t.start <= oops.address < t.end for t in vmemmap.walk.missing)
    entry = find_entry(kernel.reader, _page_table(hvo), oops.address)
    printed = _printed(hvo, oops, entry)
    frame = None if mapping is None else mapping.pfn
    if printed is not None and printed.frame is not None:
        frame = printed.frame
    tail = None if frame is None else _find_tail(hvo, frame)
    place: Optional[Place] = None
    if tail is not None:
        place = _place_on_tail(hvo, tail, slice_)
    elif frame is not None:
        place = _place_on_head(hvo, frame, slice_)
    return Facts(
        oops=oops,
        not_this_boot=not_this_boot,
        in_vmemmap=True,
        mapped=None if mapping is None and missing else mapping is not None,
        mapping=mapping,
        printed=printed,
        tail=tail,
        place=place,
    )


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


def _words(hvo: Hvo, offset: int) -> list[str]:
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


def _access(oops: Oops) -> Optional[str]:
    if oops.error_code is None:
        return None
    if oops.error_code & PF_INSTR:
        return "fetch"
    return "write" if oops.error_code & PF_WRITE else "read"


def _explain(hvo: Hvo, oops: Oops) -> Document:
    facts = _facts(hvo, oops)
    verdict = verdict_of(facts)
    code = oops.error_code
    result: Document = {
        "line": oops.line,
        "address": f"{oops.address:#x}",
        "access": _access(oops),
        "error_code": None if code is None else f"{code:#06x}",
        "supervisor": None if code is None else not code & PF_USER,
        "protection": None if code is None else bool(code & PF_PROT),
        "ip": oops.ip,
        "pid": oops.pid,
        "comm": oops.comm,
        "in_vmemmap": facts.in_vmemmap,
        "not_this_boot": facts.not_this_boot,
        "entry": None,
        "pfn": None,
        "offset": None,
        "words": [],
        "slice": None,
        "head_pfn": None,
        "order": None,
        "tail": None,
        "verdict": verdict.name,
        "signature": verdict.signature,
        "explanation": verdict.text,
        "page": None,
    }
    if facts.in_vmemmap and facts.not_this_boot is None:
        result.update(_struct_page(hvo, facts))
    return result


def _struct_page(hvo: Hvo, facts: Facts) -> Document:
    vmemmap = hvo.vmemmap
    pfn, offset = divmod(facts.oops.address - vmemmap.base, vmemmap.size)
    address = facts.oops.address & -vmemmap.page_size
    place, mapping, tail = facts.place, facts.mapping, facts.tail
    return {
        "entry": _entry(facts.printed),
        "pfn": pfn,
        "offset": offset,
        "words": _words(hvo, offset),
        "slice": {
            "address": f"{address:#x}",
            "index_in_folio": None if place is None else place.index,
            "frame": None if mapping is None else mapping.pfn,
            "writable": None if mapping is None else mapping.writable,
            "mapped": facts.mapped,
        },
        "head_pfn": None if place is None else place.head_pfn,
        "order": None if place is None else place.order,
        "tail": None if tail is None else _tail(hvo, tail),
    }


def _entry(printed: Optional[Printed]) -> Optional[Document]:
    if printed is None:
        return None
    in_dump = printed.in_dump
    return {
        "level": printed.name,
        "value": f"{printed.value:#x}",
        "frame": printed.frame,
        "writable": printed.writable if printed.is_mapping else None,
        "in_dump": None if in_dump is None else f"{in_dump:#x}",
        "same": printed.same,
    }


def _tail(hvo: Hvo, tail: SharedTail) -> Document:
    index = tail.zone_index
    return {
        "pfn": tail.pfn,
        "order": tail.order,
        "nid": tail.nid,
        "zone": None if index is None else hvo.mmzone.zone_name(tail.nid, index),
    }


def oops_document(hvo: Hvo, target: str, log: Log) -> Document:
    """
    What ``page --oops --json`` prints: ``pages`` as for the pages that the faults
    were about, and ``oopses``, whose ``page`` is an index of it.

    :raises UnavailableError: if this is no x86-64 kernel.
    """
    _page_table(hvo)
    oopses = [_explain(hvo, oops) for oops in log.oopses]
    specs: list[PageSpec] = []
    for oops in oopses:
        # Beyond the end of vmemmap there is no page to explain.
        if oops["pfn"] is not None and oops["pfn"] < hvo.vmemmap.end_pfn:
            oops["page"] = len(specs)
            address = hvo.vmemmap.page_address(oops["pfn"])
            specs.append(PageSpec(f"page:{address:#x}", "page", address))
    result = page_document(hvo, target, specs)
    result["oopses"] = oopses
    result["not_understood"] = list(log.not_understood)
    return result


def print_oopses(doc: Document) -> None:
    """Print a document of :func:`oops_document()` for people."""
    for i, oops in enumerate(doc["oopses"]):
        if i:
            print()
        print_lines(_oops_lines(oops, f"{i + 1} of {len(doc['oopses'])}"))
        if oops["page"] is not None:
            print()
            print_lines(page_lines(doc["pages"][oops["page"]]))
    if doc["not_understood"]:
        print()
    for line in doc["not_understood"]:
        print(f"Not understood: {line}")


# Of the text of a verdict.
_WIDTH = 75

_ACCESS_NAMES = {"fetch": "instruction fetch", "write": "write", "read": "read"}
_SIGNATURE_NAMES = {True: "yes", False: "no", None: "cannot be told"}


def _oops_lines(oops: Document, number: str) -> list[tuple[str, str]]:
    lines = [
        ("Oops", f"{number}, line {oops['line']}"),
        ("Fault", _fault(oops)),
        ("Address", _address(oops)),
    ]
    if oops["ip"] is not None:
        task = "" if oops["pid"] is None else f", PID {oops['pid']} ({oops['comm']})"
        lines.append(("At", oops["ip"] + task))
    if oops["slice"] is not None:
        lines.append(("Slice", _slice(oops)))
    if oops["tail"] is not None:
        tail = oops["tail"]
        zone = "" if tail["zone"] is None else f" zone {tail['zone']}"
        lines.append(
            (
                "Tail",
                f"shared tail page of node {tail['nid']}{zone} order {tail['order']}, "
                f"PFN {tail['pfn']}",
            )
        )
    if oops["entry"] is not None:
        lines.append(("Entry", _entry_text(oops["entry"])))
    if oops["not_this_boot"] is not None:
        lines.append(("Boot", oops["not_this_boot"]))
    signature = _SIGNATURE_NAMES[oops["signature"]]
    verdict = textwrap.wrap(f"{oops['verdict']}: {oops['explanation']}", _WIDTH)
    lines.append(("Signature", f"of an illegal write to tails: {signature}"))
    lines += zip(("Verdict", *("",) * len(verdict)), verdict)
    return lines


def _fault(oops: Document) -> str:
    if oops["error_code"] is None:
        return "no error code"
    mode = "supervisor" if oops["supervisor"] else "user"
    why = "protection violation" if oops["protection"] else "nothing mapped"
    access = _ACCESS_NAMES[oops["access"]]
    return f"{mode} {access}, {why} (error code {oops['error_code']})"


def _address(oops: Document) -> str:
    if oops["pfn"] is None:
        return str(oops["address"])
    where = f"byte {oops['offset']} of the struct page of PFN {oops['pfn']}"
    if not oops["words"]:
        return f"{oops['address']}, {where}"
    first, *others = oops["words"]
    also = f" (or {', '.join(others)})" if others else ""
    return f"{oops['address']}, {where}: {first}{also}"


def _slice(oops: Document) -> str:
    slice_ = oops["slice"]
    text = slice_["address"]
    if oops["head_pfn"] is not None:
        text = (
            f"{slice_['index_in_folio']} of the folio of PFN {oops['head_pfn']}, order "
            f"{oops['order']}: {text}"
        )
    if slice_["frame"] is None:
        unknown = slice_["mapped"] is None
        return f"{text}, {'mapping not in this dump' if unknown else 'not mapped'}"
    access = "writable" if slice_["writable"] else "read-only"
    return f"{text}, {access} on PFN {slice_['frame']} in this dump"


def _entry_text(entry: Document) -> str:
    text = f"{entry['level']} {entry['value']} in the oops"
    if entry["frame"] is not None:
        access = "writable" if entry["writable"] else "read-only"
        text += f" (PFN {entry['frame']}, {access})"
    if entry["same"] is None:
        return f"{text}, not in this dump"
    if entry["same"]:
        return f"{text}, the same in this dump"
    return f"{text}, but {entry['in_dump']} in this dump"
