# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Logs for people
---------------

The text of ``page --oops`` and ``oops``, made from their document.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.commands.page_text import page_lines, print_lines

if TYPE_CHECKING:
    from drgn_hvo.commands.log_reports import (
        FaultEntry,
        FaultSliceEntry,
        LogReportEntry,
        OopsReport,
        PageTableEntry,
        PrintedPageEntry,
        StoryEntry,
    )

__all__ = ("print_oopses",)

Lines = list[tuple[str, str]]

# At most this many pages of a story are named.
_MAX_PFNS = 12


def print_oopses(doc: OopsReport) -> None:
    """Print a document of :func:`~drgn_hvo.commands.oops.oops_document()`."""
    for i, story in enumerate(doc["stories"]):
        if i:
            print()
        _print_story(doc, story)
    if not doc["stories"]:
        print("The log that the core holds has no report about a page.")
    if doc["suppressed"]:
        print()
        print(f"Suppressed: the kernel says it left out {doc['suppressed']} more")
    if doc["not_understood"]:
        print()
    for line in doc["not_understood"]:
        print(f"Not understood: {line}")


def _print_story(doc: OopsReport, story: StoryEntry) -> None:
    first = doc["reports"][story["reports"][0]]
    if first["oops"] is None:
        lines = _report_lines(first)
    else:
        oops = doc["oopses"][first["oops"]]
        lines = _oops_lines(oops, f"{first['oops'] + 1} of {len(doc['oopses'])}")
        lines += _pointer_lines(first)
    lines += _defect_lines(story)
    if story["count"] > 1:
        lines += _count_lines(doc, story)
    print_lines(lines)
    if first["page"] is not None:
        print()
        print_lines(page_lines(doc["pages"][first["page"]]))


def _wrapped(name: str, text: str) -> Lines:
    rows = textwrap.wrap(text, _WIDTH)
    return list(zip((name, *("",) * len(rows)), rows))


def _count_lines(doc: OopsReport, story: StoryEntry) -> Lines:
    lines = [doc["reports"][i]["line"] for i in story["reports"]]
    what = ", ".join(f"{n} {reason}" for reason, n in story["reasons"].items())
    text = (
        f"{story['count']} reports have this cause, from line {lines[0]} to line "
        f"{lines[-1]}"
    )
    rows = _wrapped("Count", f"{text}: {what}" if what else text)
    if len(story["pfns"]) > 1:
        told = ", ".join(f"{pfn:#x}" for pfn in story["pfns"][:_MAX_PFNS])
        more = len(story["pfns"]) - _MAX_PFNS
        others = f" and {more} more" if more > 0 else ""
        rows += _wrapped("PFNs", f"{told}{others}")
    return rows


def _defect_lines(story: StoryEntry) -> Lines:
    if story["defect"] is None:
        return []
    defect = DEFECTS[story["defect"]]
    perhaps = "" if story["is_certain"] else "perhaps "
    text = f"{perhaps}{defect.name}, of kernels {defect.kernels}; {defect.leads_to}"
    return _wrapped("Defect", text)


def _report_lines(report: LogReportEntry) -> Lines:
    lines: Lines = [("Report", f"line {report['line']}: {report['title']}")]
    if report["reason"] is not None:
        lines += _wrapped("Reason", _reason(report))
    if report["ip"] is not None:
        lines.append(("At", report["ip"]))
    if report["comm"] is not None:
        pid = "" if report["pid"] is None else f", PID {report['pid']}"
        release = "" if report["release"] is None else f", on {report['release']}"
        lines.append(("Task", f"{report['comm']}{pid}{release}"))
    if report["calls"]:
        lines += _wrapped("Called by", ", ".join(report["calls"]))
    if report["dump"] is not None:
        lines += _dump_lines(report["dump"])
    lines += _against_lines(report) + _pointer_lines(report)
    if report["not_this_boot"] is not None:
        lines.append(("Boot", report["not_this_boot"]))
    return lines + _wrapped("Verdict", f"{report['verdict']}: {report['explanation']}")


def _reason(report: LogReportEntry) -> str:
    if report["check"] is None:
        return str(report["reason"])
    return f"{report['reason']}: {report['check']}, says {report['check_in']}"


_KINDS = {
    "tail": "tail",
    "head": "head",
    "page": "neither head nor tail",
    None: "words not printed",
}


def _dump_lines(dump: PrintedPageEntry) -> Lines:
    text = _KINDS[dump["kind"]]
    if dump["mask_order"] is not None:
        text += f" by the mask of order {dump['mask_order']}"
    elif dump["encoding"] == "pointer":
        text += " by a pointer to its head"
    elif dump["order"] is not None:
        text += f", order {dump['order']}"
    if dump["head_pfn"] is not None and dump["kind"] == "tail":
        text += f" (head PFN {dump['head_pfn']})"
    if dump["kind"] == "tail" and dump["tail_mapping"] is not None:
        text += f", mapping is {'' if dump['tail_mapping'] else 'not '}TAIL_MAPPING"
    lines = _wrapped("Printed", text)
    counts = {"reference count": dump["refcount"], "mapcount": dump["mapcount"]}
    counts.update((k, v) for k, v in dump["counts"].items() if k != "mapcount")
    told = [f"{name} {n}" for name, n in counts.items() if n is not None]
    if told:
        lines += _wrapped("", ", ".join(told))
    if dump["flag_names"] is not None:
        flags = " ".join(dump["flag_names"]) or "none"
        kind = "" if dump["page_type"] is None else f", type {dump['page_type']}"
        lines += _wrapped("", f"flags {flags}{kind}")
    return lines


_AGAINST = {
    "unchanged": "the dump has the same words",
    "other-page": "the dump has another page there: it is of another boot or machine",
    "not-in-dump": "the dump does not have this struct page",
}


def _against_lines(report: LogReportEntry) -> Lines:
    state = report["against_dump"]
    if state is None:
        return []
    if state == "changed":
        text = f"changed since the report: {', '.join(report['changed'])}"
    else:
        text = _AGAINST[state]
    return _wrapped("In the dump", text)


def _pointer_lines(report: LogReportEntry) -> Lines:
    texts = [f"{p['where']} {p['value']}: {p['text']}" for p in report["pointers"]]
    return list(zip(("Registers", *("",) * len(texts)), texts))


# Of the text of a verdict.
_WIDTH = 75

_ACCESS_NAMES = {"fetch": "instruction fetch", "write": "write", "read": "read"}
_MAPPED_NAMES = {True: ", protection violation", False: ", nothing mapped", None: ""}
_SIGNATURE_NAMES = {True: "yes", False: "no", None: "cannot be told"}


def _oops_lines(oops: FaultEntry, number: str) -> Lines:
    lines: Lines = [
        ("Oops", f"{number}, line {oops['line']}"),
        ("Fault", _fault(oops)),
        ("Address", _address(oops)),
    ]
    if oops["ip"] is not None:
        task = "" if oops["pid"] is None else f", PID {oops['pid']} ({oops['comm']})"
        lines.append(("At", oops["ip"] + task))
    if oops["slice"] is not None:
        lines.append(("Slice", _slice(oops, oops["slice"])))
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
    lines.append(("Signature", f"of an illegal write to tails: {signature}"))
    return lines + _wrapped("Verdict", f"{oops['verdict']}: {oops['explanation']}")


def _fault(oops: FaultEntry) -> str:
    if oops["access"] is None:
        return "no error code"
    mode = "supervisor" if oops["supervisor"] else "user"
    why = _MAPPED_NAMES[oops["protection"]]
    code = oops["error_code"]
    number = "" if code is None else f" (error code {code})"
    return f"{mode} {_ACCESS_NAMES[oops['access']]}{why}{number}"


def _address(oops: FaultEntry) -> str:
    if oops["pfn"] is None:
        return str(oops["address"])
    where = f"byte {oops['offset']} of the struct page of PFN {oops['pfn']}"
    if not oops["words"]:
        return f"{oops['address']}, {where}"
    first, *others = oops["words"]
    also = f" (or {', '.join(others)})" if others else ""
    return f"{oops['address']}, {where}: {first}{also}"


def _slice(oops: FaultEntry, slice_: FaultSliceEntry) -> str:
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


def _entry_text(entry: PageTableEntry) -> str:
    text = f"{entry['level']} {entry['value']} in the oops"
    if entry["frame"] is not None:
        access = "writable" if entry["writable"] else "read-only"
        text += f" (PFN {entry['frame']}, {access})"
    if entry["same"] is None:
        return f"{text}, not in this dump"
    if entry["same"]:
        return f"{text}, the same in this dump"
    return f"{text}, but {entry['in_dump']} in this dump"
