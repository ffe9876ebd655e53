# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a kernel is like, in words
-------------------------------

A few sentences for somebody who has never heard of vmemmap, at the top of ``show`` and
``check``: whether HVO is there, whether it is healthy, whose fault it is if not, and
what to do next. Made from the documents alone; ``--evidence`` shows how it was decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional

from drgn_hvo.audit.defects import DEFECTS
from drgn_hvo.audit.rules import RULE_BY_ID, SubjectKind
from drgn_hvo.commands.allocation_text import exhausted
from drgn_hvo.commands.document import human_size
from drgn_hvo.commands.page_conclusions import next_step

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import AuditReport, FindingEntry, ShowReport

__all__ = ("SEE_CHECK", "check_conclusions", "check_evidence", "show_conclusions")

#: What ``show`` ends with; who has the findings of ``check`` at hand needs neither.
SEE_CHECK = (
    "Next: run check, which says what is wrong, and whose fault it may be.",
    "This is what there is; check says whether it is healthy.",
)

# How many things that are wrong are told in sentences; the table has all.
_STORIES_TOLD = 3


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _state(*, built: Optional[bool], enabled: Optional[bool]) -> str:
    if built is None:
        return "Whether this kernel was built with HVO is not known."
    if not built:
        return "This kernel was built without HVO."
    if enabled is None:
        return "HVO is built; whether it is on is not known."
    return "HVO is built and on." if enabled else "HVO is built, but off."


# show


def show_conclusions(
    doc: ShowReport, broken_lists: int, *, knows_pools: bool = True
) -> list[str]:
    """
    What a document of ``show`` says, in sentences.

    :param broken_lists: How many lists of huge pages are broken.
    :param knows_pools: Whether all pools were read: if not, there may be more.
    """
    return [
        _state(built=doc["hvo_built"], enabled=doc["hvo_enabled"]),
        *_huge_pages(doc, knows_pools),
        *_exhausted(doc),
        *_seen_by_show(doc, broken_lists),
    ]


def _huge_pages(doc: ShowReport, knows_pools: bool) -> Iterator[str]:
    hstates = doc["hstates"]
    if hstates is None:
        yield "Of its huge pages nothing is known."
        return
    totals = [hstate["total"] for hstate in hstates]
    known = [total for total in totals if total is not None]
    if len(known) < len(totals) or not knows_pools:
        yield "How many huge pages there are is not known."
        return
    total = sum(known)
    if not total:
        yield "There are no huge pages."
    elif doc["hvo_built"] is not False:
        yield from _optimized(doc, total)
    else:
        yield f"There {'is' if total == 1 else 'are'} {_counted(total, 'huge page')}."


def _optimized(doc: ShowReport, total: int) -> Iterator[str]:
    nodes = [node for hstate in doc["hstates"] or () for node in hstate["nodes"]]
    by_node = [node["optimized"] for node in nodes]
    counts = [count for count in by_node if count is not None]
    if len(counts) < len(by_node):
        yield "How many of its huge pages are optimized is not known."
        return
    optimized, saved = sum(counts), doc["saved"]
    text = f"{optimized} of {_counted(total, 'huge page')} "
    text += "is optimized" if optimized == 1 else "are optimized"
    size = None if saved is None else saved["net_bytes"]
    if optimized and size is not None:
        text += ": most of the memory that describes them is shared, which saves "
        text += f"{size / (1 << 20):.1f} MiB" if size >= 0 else "nothing yet"
    yield f"{text}."
    if optimized and doc["hvo_enabled"] is False:
        yield "They were optimized while it was on, or from boot on."
    reasons = doc["not_optimized"]
    if reasons:
        most = max(reasons, key=lambda one: one["count"])
        yield f"Of the others, {most['count']}: {most['reason']}."


def _exhausted(doc: ShowReport) -> Iterator[str]:
    for hstate in doc["hstates"] or ():
        if exhausted(hstate):
            size = human_size(hstate["page_bytes"])
            yield f"No further huge page of {size} can be had."


def _seen_by_show(doc: ShowReport, broken_lists: int) -> Iterator[str]:
    if doc["hwpoisoned"]:
        count = _counted(len(doc["hwpoisoned"]), "huge page")
        yield f"Memory failed in {count}: that is the hardware, not the kernel."
    seen = []
    if broken_lists:
        seen.append(f"{_counted(broken_lists, 'list')} of huge pages broken")
    if doc["vmemmap"]["aligned"] is False:
        seen.append("struct pages begin where masks lead to wrong heads")
    if seen:
        yield f"Not healthy: {'; '.join(seen)}."
        yield SEE_CHECK[0]
    else:
        yield SEE_CHECK[1]


# check


def check_conclusions(doc: AuditReport) -> list[str]:
    """What a document of ``check`` says, in sentences."""
    state = _state(built=doc["hvo_built"], enabled=doc["hvo_enabled"])
    stories = _stories(doc)
    if not stories:
        return [state, *_without_findings(doc)]
    told = [sentence for roots in stories[:_STORIES_TOLD] for sentence in _story(roots)]
    if len(stories) > _STORIES_TOLD:
        told.append("The table below has the others.")
    if not doc["complete"]:
        told.append("Not all could be read: there may be more.")
    return [state, _verdict(stories), *told, f"Next: {_next(stories)}."]


def _stories(doc: AuditReport) -> list[list[FindingEntry]]:
    """Findings that follow from no other, those of one known defect together."""
    stories: dict[str, list[FindingEntry]] = {}
    for finding in doc["findings"]:
        if finding["caused_by"] is None:
            key = finding["defect"] or finding["message"]
            stories.setdefault(key, []).append(finding)
    return list(stories.values())


def _verdict(stories: list[list[FindingEntry]]) -> str:
    one = len(stories) == 1
    if any(root["severity"] == "error" for roots in stories for root in roots):
        wrong = "one thing is" if one else f"{len(stories)} things are"
        return f"Not healthy: {wrong} wrong."
    things = "one thing is not as it" if one else "some things are not as they"
    return f"No damage, but {things} should be, and may do harm."


def _without_findings(doc: AuditReport) -> Iterator[str]:
    checked = doc["checked"]
    pages = _counted(checked["folios"], "huge page")
    if doc["complete"]:
        yield (
            f"Healthy: {pages}, {checked['optimized_folios']} of them optimized, and "
            "nothing wrong with what was checked."
        )
    else:
        yield (
            "Nothing wrong was found, but not all could be read: whether it is "
            "healthy is not known."
        )
        if doc["undecided"]:
            yield (
                "Next: 'could not be decided' below says what was missing; a dump that "
                "has it would tell."
            )
        else:
            yield (
                "Next: what is wrong with the dump is said above; one that is whole "
                "would tell."
            )


#: What is wrong, by what the rule that was broken is about.
_SUBJECTS: dict[SubjectKind, str] = {
    "vmemmap": "The table that describes all pages is not mapped as it should be",
    "section": "What is noted of a section of memory does not fit its pages",
    "slot": "One page describes the insides of many huge pages here, and that page, or "
    "what leads to it, is wrong",
    "folio": "What describes a huge page is wrong",
    "hstate": "The bookkeeping of a pool of huge pages is wrong",
    "slice": "Something that is no huge page uses what only huge pages share",
    "struct page": "Something looks like a huge page, or a part of one, and is none",
}


def _story(roots: list[FindingEntry]) -> Iterator[str]:
    root = roots[0]
    touched = sum(one["affected"] for one in roots)
    affected = f" ({_counted(touched, 'huge page')} affected)" if touched else ""
    yield f"{_SUBJECTS[RULE_BY_ID[root['rule']].subject]}{affected}."
    more = f", and {_counted(len(roots) - 1, 'place')} more" if len(roots) > 1 else ""
    yield f"In detail: {root['message']}{more} (rule {root['rule']})."
    if root["defect"] is not None:
        leads_to = DEFECTS[root["defect"]].leads_to
        yield (
            f"This is a known defect of the kernel, {root['defect']}, and no fault of "
            f"the hardware. It leads to this: {leads_to}."
        )
    elif root["difference"] is not None:
        yield f"{_upper(root['difference'])}; suspect {root['suspect']}."


def _next(stories: list[list[FindingEntry]]) -> str:
    first = stories[0][0]
    difference = first["difference"]
    if difference is None or "bit" not in difference:
        return next_step(difference)
    if len(stories) == 1 and not first["folded"]:
        return (
            "test the memory and look for machine checks in the log, since this is all "
            "that is wrong"
        )
    return (
        "look for who changes bits there: memory that fails is seldom wrong in several "
        "places at once"
    )


def check_evidence(doc: AuditReport) -> Iterator[str]:
    """How ``check`` came to its conclusions, one line each."""
    for i, finding in enumerate(doc["findings"]):
        if finding["caused_by"] is not None:
            cause = doc["findings"][finding["caused_by"]]["rule"]
            yield f"#{i} follows from #{finding['caused_by']} ({cause})"
            continue
        rule = RULE_BY_ID[finding["rule"]]
        yield f"#{i} breaks {rule.id}: {rule.holds}"
        yield f"   the kernel makes it so in {rule.source}"
        expected, actual = finding["expected"], finding["actual"]
        if finding["difference"] == "a number is off":
            yield f"   expected {expected}, found {actual}"
        elif expected is not None and actual is not None:
            differs = int(expected, 0) ^ int(actual, 0)
            yield f"   expected {expected}, found {actual}: {differs:#x} differs"
        if finding["difference"] is not None:
            yield f"   {finding['difference']}: suspect {finding['suspect']}"
        if finding["defect"] is not None:
            yield f"   {finding['defect']} leaves: {DEFECTS[finding['defect']].state}"
