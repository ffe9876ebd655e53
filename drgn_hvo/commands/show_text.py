# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Text of ``show``
----------------

What ``show`` prints for people, made from its document alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from drgn.helpers.common.format import CellFormat, print_table

from drgn_hvo.commands.allocation_text import allocation_lines
from drgn_hvo.commands.document import (
    dump_problems,
    human_size,
    hwpoison_text,
    known,
)

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import (
        DeviceEntry,
        FolioEntry,
        HstateEntry,
        HwpoisonedEntry,
        SavedEntry,
        SharedTailEntry,
        ShowReport,
    )

__all__ = ("print_show",)


def _text(value: Optional[str]) -> str:
    return "unknown" if value is None else value


def print_show(doc: ShowReport, *, evidence: bool = False) -> None:
    """
    Print a document of :func:`show_document()` for people.

    :param evidence: Whether to print how things were decided, too.
    """
    for line in [f"Dump         {problem}" for problem in dump_problems(doc)]:
        print(line)
    print(*doc["conclusions"], "", sep="\n")
    _print_kernel(doc, evidence=evidence)
    if doc["shared_tails"]:
        print("\nShared tail pages")
        _print_shared_tails(doc["shared_tails"])
    if doc["hstates"] is not None:
        print("\nHuge pages")
        _print_hstates(doc["hstates"])
    _print_below_pools(doc)
    if doc["saved"] is not None:
        print()
        _print_saved(doc["saved"], doc["page_size"])
    _print_devices(doc["devices"])
    _print_hwpoisoned(doc["hwpoisoned"])
    folios = doc.get("folios")
    if folios:
        print("\nFolios")
        _print_folios(folios)
    if doc["properties"]:
        print("\nProperties")
        for one in doc["properties"]:
            print(f"  {one['text']} (known kernel defect: {one['name']})")
    if doc["notes"]:
        print("\nNotes")
        for note in doc["notes"]:
            print(f"  {note}")


def _print_below_pools(doc: ShowReport) -> None:
    for one in doc["not_optimized"] or ():
        size = human_size(doc["page_size"] << one["order"])
        node = "" if one["nid"] is None else f" of node {one['nid']}"
        print(f"  {one['count']} of {size}{node} not optimized: {one['reason']}")
    for line in allocation_lines(doc):
        print(f"  {line}")


def _print_hwpoisoned(poisoned: Optional[list[HwpoisonedEntry]]) -> None:
    if not poisoned:
        return
    print(f"\nHardware-poisoned huge pages: {len(poisoned)}")
    for one in poisoned:
        text = hwpoison_text(one["raw_pages"], one["unknown"])
        print(f"  PFN {one['head_pfn']}: {text}")


def _print_kernel(doc: ShowReport, *, evidence: bool) -> None:
    page, tails, vmemmap = doc["struct_page"], doc["tail_layout"], doc["vmemmap"]
    enabled = {True: "on", False: "off", None: "unknown"}[doc["hvo_enabled"]]
    if doc["hvo_built"] is False:
        enabled = "this kernel was built without it"
    kind = known(tails["kind"])
    if tails["where"] is not None:
        kind = f"shared, vmemmap_tails of struct {tails['where']} ({tails['element']})"
    alignment = ""
    required = vmemmap["required_alignment"]
    if required is not None:
        size = human_size(required)
        alignment = f", {'' if vmemmap['aligned'] else 'NOT '}aligned to {size}"
    print(f"Kernel       {_text(doc['release'])} {doc['arch']}")
    print(f"Types        {doc['types_from']}, symbols from {doc['symbols_from']}")
    print(f"HVO          {enabled}")
    if evidence:
        print(f"             - {_switch_text(doc)}")
    print(
        f"struct page  {page['size']} bytes, tails in {page['member']} at offset "
        f"{page['offset']}"
    )
    print(f"vmemmap      {vmemmap['base']}{alignment}")
    print(f"Encoding     {doc['encoding']['kind']}")
    for line in doc["encoding"]["evidence"] if evidence else ():
        print(f"             - {line}")
    print(f"Tail layout  {kind}")
    for line in tails["evidence"] if evidence else ():
        print(f"             - {line}")


def _switch_text(doc: ShowReport) -> str:
    if doc["hvo_enabled"] is None:
        return "no vmemmap_optimize_enabled was found, the switch of v5.18 and later"
    return f"vmemmap_optimize_enabled is {int(doc['hvo_enabled'])}"


def _print_shared_tails(tails: list[SharedTailEntry]) -> None:
    rows: list[list[object]] = [
        ["NODE", "ZONE", "ORDER", "PFN", "ON NODE", "REFCOUNT", "BOOT", "MAPPED BY"]
    ]
    for tail in tails:
        boot = {True: "yes", False: "no", None: "?"}[tail["boot"]]
        rows.append(
            [
                tail["nid"],
                "(all)" if tail["zone"] is None else _text(tail["zone"]),
                tail["order"],
                known(tail["pfn"]),
                known(tail["frame_nid"]),
                known(tail["frame_refcount"]),
                boot,
                known(tail["mapped_by"]),
            ]
        )
    print_table(rows)


def _print_hstates(hstates: list[HstateEntry]) -> None:
    rows: list[list[object]] = [
        ["SIZE", "NODE", "TOTAL", "FREE", "RESERVED", "SURPLUS", "FOUND", "OPTIMIZED"]
    ]
    for hstate in hstates:
        # Reserved are huge pages of any node.
        reserved = known(hstate["reserved"])
        for node in hstate["nodes"]:
            rows.append(
                [
                    human_size(hstate["page_bytes"]),
                    node["nid"],
                    known(node["total"]),
                    known(node["free"]),
                    reserved,
                    known(node["surplus"]),
                    known(node["folios"]),
                    known(node["optimized"]),
                ]
            )
            reserved = ""
        if not hstate["nodes"]:
            total, free = known(hstate["total"]), known(hstate["free"])
            surplus, size = known(hstate["surplus"]), human_size(hstate["page_bytes"])
            rows.append([size, "?", total, free, reserved, surplus, "?", "?"])
    print_table(rows)


def _print_saved(saved: SavedEntry, page_size: int) -> None:
    pages, shared = known(saved["pages"]), known(saved["shared_tail_pages"])
    net = saved["net_pages"]
    size = "?" if net is None else f"{net * page_size / (1 << 20):.1f}"
    print(
        f"Saved        {pages} pages of vmemmap, less {shared} shared tail pages: "
        f"{known(net)} pages, {size} MiB"
    )


def _print_devices(devices: Optional[list[DeviceEntry]]) -> None:
    for one in devices or ():
        print(
            f"Devices      node {one['nid']}, PFN {one['first_pfn']} to "
            f"{one['last_pfn']}: {one['slices']} pages of vmemmap on {one['frames']} "
            f"frames, {one['saved_pages']} saved"
        )


def _print_folios(folios: list[FolioEntry]) -> None:
    rows: list[list[object]] = [
        ["PFN", "ORDER", "NODE", "ZONE", "LIST", "REFCOUNT", "HEAD", "TAILS", "SHARED",
         "FLAGS"]
    ]  # fmt: skip
    for folio in folios:
        tails = folio["tail_frames"]
        rows.append(
            [
                CellFormat(folio["head_pfn"], ">"),
                folio["order"],
                known(folio["nid"]),
                _text(folio["zone"]),
                folio["list"] or ("?" if folio["in_transition"] is None else "(none)"),
                known(folio["refcount"]),
                known(folio["head_frame"]),
                ",".join(map(str, tails[:2])) + (",…" if len(tails) > 2 else ""),
                folio["shared_ptes"],
                "?" if folio["flags"] is None else "|".join(folio["flags"]),
            ]
        )
    print_table(rows)
