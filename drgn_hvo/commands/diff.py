# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``diff``
--------

What changed between two dumps of a machine, or two moments of a running kernel: pools,
huge pages, shared tail pages, and what ``check`` finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from drgn.helpers.common.format import print_table

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.document import document, human_size, known
from drgn_hvo.errors import UnavailableError
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.moments import (
    Changes,
    FolioState,
    Moment,
    TailChange,
    changes,
    moment_of,
)
from drgn_hvo.memmap.shared_tails import SharedTail

if TYPE_CHECKING:
    from drgn_hvo.commands.diff_reports import (
        DiffReport,
        FindingChangeEntry,
        FolioChangeEntry,
        FolioStateEntry,
        TailChangeEntry,
        TailStateEntry,
    )
    from drgn_hvo.commands.reports import AuditReport, FindingEntry

__all__ = ("Side", "diff_document", "print_diff", "side_of")

# How many huge pages are listed for people; JSON has all.
_FOLIOS_LISTED = 40


@dataclass(frozen=True)
class Side:
    """
    One of the two that are compared, all of it read.

    :param zones: Names of zones by node and index.
    """

    target: str
    moment: Moment
    audit: AuditReport
    page_size: int
    zones: dict[tuple[int, int], Optional[str]]


def side_of(hvo: Hvo, target: str) -> Side:
    """
    Read all that is compared of a kernel.

    :raises UnavailableError: if its huge pages cannot be read.
    """
    if not hvo.has_hugetlb:
        raise UnavailableError(
            f"{target}: comparing needs types: {hvo.kernel.no_types_reason}"
        )
    zones = {
        (tail.nid, tail.zone_index): hvo.mmzone.zone_name(tail.nid, tail.zone_index)
        for tail in hvo.shared_tails
        if tail.zone_index is not None
    }
    audit = check_document(hvo, target, CheckScope())
    return Side(target, moment_of(hvo), audit, hvo.kernel.geometry.page_size, zones)


def diff_document(before: Side, after: Side) -> DiffReport:
    """What ``diff --json`` prints."""
    found = changes(before.moment, after.moment)
    findings = _finding_changes(before, after, found)
    in_both = len(after.audit["findings"]) - sum(
        one["found_in"] == "after" for one in findings
    )
    zones = {**before.zones, **after.zones}
    doc: DiffReport = {
        **document(before.target, before.moment.release),
        "other": after.target,
        "other_release": after.moment.release,
        "same_boot": found.same_boot,
        "conclusions": [],
        "counters": [
            {
                "order": one.order,
                "nid": one.nid,
                "counter": one.counter,
                "before": one.before,
                "after": one.after,
            }
            for one in found.counters
        ],
        "tails": None
        if found.tails is None
        else [_tail_change(one, zones) for one in found.tails],
        "folios": None if found.folios is None else list(_folio_changes(found)),
        "findings": findings,
        "findings_in_both": in_both,
        "complete": before.audit["complete"] and after.audit["complete"],
    }
    doc["conclusions"] = list(_conclusions(doc, before.page_size))
    return doc


def _tail_change(
    one: TailChange, zones: dict[tuple[int, int], Optional[str]]
) -> TailChangeEntry:
    index = one.slot.zone_index
    return {
        "nid": one.slot.nid,
        "zone": None if index is None else zones.get((one.slot.nid, index)),
        "order": one.slot.order,
        "before": _tail_state(one.before),
        "after": _tail_state(one.after),
        "words": one.words,
    }


def _tail_state(tail: Optional[SharedTail]) -> Optional[TailStateEntry]:
    if tail is None:
        return None
    return {
        "pfn": tail.pfn,
        "frame_refcount": tail.frame_refcount,
        "mapped_by": tail.mapped_by,
    }


def _folio_changes(found: Changes) -> Iterator[FolioChangeEntry]:
    for one in found.folios or ():
        yield {
            "head_pfn": one.head_pfn,
            "before": _folio_state(one.before),
            "after": _folio_state(one.after),
        }


def _folio_state(state: Optional[FolioState]) -> Optional[FolioStateEntry]:
    if state is None:
        return None
    return {
        "order": state.order,
        "list": state.on_list,
        "refcount": state.refcount,
        "flags": None if state.flags is None else list(state.flags),
        "optimized": state.optimized,
        "head_frame": state.head_frame,
        "hwpoison": state.hwpoison,
    }


def _finding_changes(
    before: Side, after: Side, found: Changes
) -> list[FindingChangeEntry]:
    """Findings of one side alone: equal ones are those of one place and one word."""

    def key(finding: FindingEntry) -> tuple[object, ...]:
        what = (finding["rule"], finding["order"])
        if found.same_boot is False:
            return what  # places of another boot say nothing
        return (*what, finding["pfn"], finding["head_pfn"], finding["address"])

    knows_before, knows_after = _decided(before.audit), _decided(after.audit)
    sides = [(key(f), f) for f in before.audit["findings"]]
    others = [(key(f), f) for f in after.audit["findings"]]
    old, new = Counter(k for k, _ in sides), Counter(k for k, _ in others)
    changed: list[FindingChangeEntry] = []
    for k, finding in others:
        if old[k]:
            old[k] -= 1
        else:
            is_new = finding["rule"] in knows_before
            changed.append(
                {
                    "change": "new" if is_new else None,
                    "found_in": "after",
                    "finding": finding,
                }
            )
    for k, finding in sides:
        if new[k]:
            new[k] -= 1
        else:
            is_gone = finding["rule"] in knows_after
            changed.append(
                {
                    "change": "gone" if is_gone else None,
                    "found_in": "before",
                    "finding": finding,
                }
            )
    return changed


def _decided(audit: AuditReport) -> set[str]:
    """The rules that would have found whatever breaks them."""
    undecided = {one["rule"] for one in audit["undecided"]}
    ran = (one["id"] for one in audit["rules"] if one["result"] != "skip")
    return {rule for rule in ran if rule not in undecided}


def _conclusions(doc: DiffReport, page_size: int) -> Iterator[str]:
    if doc["same_boot"] is False:
        yield "Not the same boot: only counters and findings can be compared."
    elif doc["same_boot"] is None:
        yield "Nothing says that these are of different boots: they are taken for one."
    yield from _of_counters(doc, page_size)
    yield from _of_tails(doc)
    yield from _of_folios(doc)
    yield from _of_findings(doc)
    if not (doc["counters"] or doc["tails"] or doc["folios"] or doc["findings"]):
        yield "Nothing that was looked at changed."
    if not doc["complete"]:
        yield "Not all could be read: there may be more."


def _of_counters(doc: DiffReport, page_size: int) -> Iterator[str]:
    for one in doc["counters"]:
        if one["nid"] is None:
            size = human_size(page_size << one["order"])
            yield (
                f"Huge pages of {size}, {one['counter']}: {one['before']} became "
                f"{one['after']}."
            )


def _of_tails(doc: DiffReport) -> Iterator[str]:
    tails = doc["tails"] or []
    written = [tail for tail in tails if tail["words"]]
    if written:
        yield (
            f"{len(written)} shared tail pages were written to, which nobody may do: "
            "run check."
        )
    states = [(tail["before"], tail["after"]) for tail in tails]
    moved = sum(bool(b and a and b["pfn"] != a["pfn"]) for b, a in states)
    if moved:
        yield f"{moved} slots of shared tail pages name another frame than before."
    fresh = sum(not tail["before"] for tail in tails)
    if fresh:
        yield f"{fresh} shared tail pages are new."


def _of_folios(doc: DiffReport) -> Iterator[str]:
    folios = doc["folios"] or []
    if folios:
        new = sum(one["before"] is None for one in folios)
        gone = sum(one["after"] is None for one in folios)
        yield (
            f"Huge pages: {new} new, {gone} gone, {len(folios) - new - gone} changed."
        )


def _of_findings(doc: DiffReport) -> Iterator[str]:
    for change in ("new", "gone"):
        found = [one["finding"] for one in doc["findings"] if one["change"] == change]
        if found:
            yield f"Findings of check, {change}: {len(found)}: {found[0]['message']}."
    unsure = [one["finding"] for one in doc["findings"] if one["change"] is None]
    if unsure:
        yield (
            f"Findings of check that the other side may have, too, where not all could "
            f"be read: {len(unsure)}: {unsure[0]['message']}."
        )


def print_diff(doc: DiffReport) -> None:
    """Print a document of :func:`diff_document()` for people."""
    print(*doc["conclusions"], sep="\n")
    if doc["counters"]:
        rows: list[list[object]] = [["ORDER", "NODE", "COUNTER", "BEFORE", "AFTER"]]
        for counter in doc["counters"]:
            nid = "(all)" if counter["nid"] is None else counter["nid"]
            names = [counter["order"], nid, counter["counter"]]
            rows.append([*names, counter["before"], counter["after"]])
        print("\nPools")
        print_table(rows)
    if doc["tails"]:
        print("\nShared tail pages")
        print_table(_tail_rows(doc["tails"]))
    if doc["folios"]:
        print("\nHuge pages")
        nowhere = "none" if doc["complete"] else "?"
        print_table(_folio_rows(doc["folios"], nowhere))
        if len(doc["folios"]) > _FOLIOS_LISTED:
            print(f"and {len(doc['folios']) - _FOLIOS_LISTED} more (--json has all)")
    if doc["findings"]:
        print("\nFindings of check")
        for one in doc["findings"]:
            finding = one["finding"]
            change = one["change"] or f"only {one['found_in']}, unknown in the other"
            print(f"  {change}: {finding['rule']}: {finding['message']}")


def _tail_rows(tails: list[TailChangeEntry]) -> list[list[object]]:
    rows: list[list[object]] = [
        ["NODE", "ZONE", "ORDER", "PFN", "REFCOUNT", "MAPPED BY", "WORDS"]
    ]
    for tail in tails:
        states = tail["before"], tail["after"]
        rows.append(
            [
                tail["nid"],
                tail["zone"] or "(all)",
                tail["order"],
                _both(*("(none)" if s is None else s["pfn"] for s in states)),
                _both(*("" if s is None else s["frame_refcount"] for s in states)),
                _both(*("" if s is None else s["mapped_by"] for s in states)),
                known(tail["words"]),
            ]
        )
    return rows


def _folio_rows(folios: list[FolioChangeEntry], nowhere: str) -> list[list[object]]:
    """
    The folios that changed, as rows of a table.

    :param nowhere: What stands for no list: a dump with holes may lack the link to it.
    """
    rows: list[list[object]] = [
        ["PFN", "ORDER", "LIST", "REFCOUNT", "OPTIMIZED", "HEAD", "FLAGS"]
    ]
    for one in folios[:_FOLIOS_LISTED]:
        states = one["before"], one["after"]
        rows.append(
            [
                one["head_pfn"],
                _both(*("(none)" if s is None else s["order"] for s in states)),
                _both(*("" if s is None else s["list"] or nowhere for s in states)),
                _both(*("" if s is None else s["refcount"] for s in states)),
                _both(*("" if s is None else _yes(s["optimized"]) for s in states)),
                _both(*("" if s is None else s["head_frame"] for s in states)),
                _both(*("" if s is None else _flags(s["flags"]) for s in states)),
            ]
        )
    return rows


def _flags(flags: Optional[list[str]]) -> str:
    return "?" if flags is None else "|".join(flags)


def _yes(value: Optional[bool]) -> str:
    return {True: "yes", False: "no", None: "?"}[value]


def _both(before: object, after: object) -> object:
    """What was and what became of it, once if that is the same."""
    before, after = known(before), known(after)
    if before == after:
        return before
    return " -> ".join(str(one) for one in (before, after) if one != "")
