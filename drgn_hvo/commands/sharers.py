# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``sharers``
-----------

The huge pages whose tails lie in one frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from drgn.helpers.common.format import print_table

from drgn_hvo.commands.document import document, known
from drgn_hvo.errors import NotInDumpError, UnavailableError, UsageError
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.page_spec import PageSpec
from drgn_hvo.memmap.pools import LIST_NAMES
from drgn_hvo.memmap.sharers import Sharers, frame_of_spec, sharers_of

if TYPE_CHECKING:
    from drgn_hvo.commands.holder_reports import (
        SharerEntry,
        SharersReport,
        TailOfEntry,
    )

__all__ = ("print_sharers", "sharers_document")


def sharers_document(hvo: Hvo, target: str, spec: PageSpec) -> SharersReport:
    """
    What ``sharers --json`` prints.

    :raises UsageError: if no huge page has its tails there.
    :raises UnavailableError: if huge pages or page tables cannot be read.
    :raises NotInDumpError: if none was found, but not all could be read.
    """
    if not hvo.has_hugetlb or not hvo.vmemmap.has_mappings:
        why = hvo.vmemmap.no_mappings_reason or hvo.kernel.no_types_reason
        raise UnavailableError(f"who shares a page of tails is not known: {why}")
    frame, pfn = frame_of_spec(hvo, spec)
    found = sharers_of(hvo, frame)
    if not len(found.folios) and found.tail is None:
        if found.unread:
            raise NotInDumpError(
                f"{spec.text}: whether huge pages have their tails on PFN {frame} is "
                f"not known: {found.unread[0]}"
            )
        raise UsageError(f"{spec.text}: no huge page has its tails on PFN {frame}")
    return {
        **document(target, hvo.kernel.release),
        "spec": spec.text,
        "read_as": spec.read_as,
        "pfn": pfn,
        "frame": frame,
        "tail": _tail(hvo, found),
        "mapped_by": (
            hvo.vmemmap.mapped_by(frame) if hvo.vmemmap.has_all_mappings else None
        ),
        "others": found.others,
        "huge_pages": _huge_pages(hvo, found),
        "unread": list(found.unread),
    }


def _tail(hvo: Hvo, found: Sharers) -> Optional[TailOfEntry]:
    tail = found.tail
    if tail is None:
        return None
    zone = None
    if tail.zone_index is not None:
        zone = hvo.mmzone.zone_name(tail.nid, tail.zone_index)
    return {"nid": tail.nid, "zone": zone, "order": tail.order}


def _huge_pages(hvo: Hvo, found: Sharers) -> list[SharerEntry]:
    folios, nids, zones = hvo.hugetlb.folios, hvo.folio_nids, hvo.folio_zones
    entries: list[SharerEntry] = []
    for i, slices in zip(found.folios.tolist(), found.slices.tolist()):
        nid, zone = int(nids[i]), int(zones[i])
        known = nid >= 0
        entries.append(
            {
                "head_pfn": int(folios.head_pfn[i]),
                "order": int(folios.order[i]),
                "nid": nid if known else None,
                "zone": hvo.mmzone.zone_name(nid, zone) if known else None,
                "list": LIST_NAMES[folios.on_list[i]],
                "refcount": int(folios.refcount[i]) if folios.present[i] else None,
                "slices": slices,
            }
        )
    return entries


def print_sharers(doc: SharersReport) -> None:
    """Print a document of :func:`sharers_document()` for people."""
    if doc["pfn"] is not None:
        print(f"The struct page of PFN {doc['pfn']} lies in PFN {doc['frame']}")
    rows: list[list[object]] = [
        ["PFN", "ORDER", "NODE", "ZONE", "LIST", "REFCOUNT", "SLICES"]
    ]
    for one in doc["huge_pages"]:
        rows.append(
            [
                one["head_pfn"],
                one["order"],
                known(one["nid"]),
                one["zone"] or "?",
                one["list"] or ("?" if doc["unread"] else "none"),
                known(one["refcount"]),
                one["slices"],
            ]
        )
    if doc["huge_pages"]:
        print_table(rows)
    print(_summary(doc))
    if doc["others"]:
        print(
            f"{doc['others']} more pages of vmemmap are mapped to it, of no huge page"
        )
    for one_unread in doc["unread"]:
        print(f"Note: {one_unread}")


def _summary(doc: SharersReport) -> str:
    tail, count = doc["tail"], len(doc["huge_pages"])
    pages = "1 huge page has its" if count == 1 else f"{count} huge pages have their"
    least = "At least " if doc["unread"] else ""
    text = f"{least}{pages} tails on PFN {doc['frame']}"
    if tail is None:
        return text
    zone = "" if tail["zone"] is None else f" zone {tail['zone']}"
    return f"{text}, the shared tail page of node {tail['nid']}{zone} order " + str(
        tail["order"]
    )
