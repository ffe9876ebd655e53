# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``show --html``
---------------

One page about a machine for people who would rather look: zones, huge pages, shared
tail pages with their users, and what ``check`` found. It needs no script and loads
nothing; its policy forbids both to whatever a dump may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Optional
from xml.etree.ElementTree import Element

from drgn_hvo import __version__
from drgn_hvo.commands.check import (
    CheckScope,
    check_document,
    error_document,
    restrictions,
    summary,
    undecided_rules,
)
from drgn_hvo.commands.conclusions import SEE_CHECK
from drgn_hvo.commands.document import (
    dump_problems,
    human_size,
    hwpoison_text,
    printable,
    printable_document,
    with_dump,
)
from drgn_hvo.commands.machine_svg import (
    PICTURE_STYLE,
    Mark,
    UserBand,
    about_size,
    legend_swatch,
    pattern_definitions,
    text_of_pages,
    users_picture,
    zone_picture,
)
from drgn_hvo.commands.markup import add, add_text, as_html
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import UnavailableError
from drgn_hvo.memmap.huge_page_states import KINDS
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.memmap.memory_cells import (
    MemoryCells,
    ZoneCells,
    memory_cells,
    tail_users,
)

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import (
        CheckReport,
        FindingEntry,
        SharedTailEntry,
        ShowReport,
    )

__all__ = ("machine_page",)

# How many rows of a table are on the page at most; the commands print all.
_MAX_ROWS = 200

# How many ranges of PFNs that use a shared tail page are named at most.
_MAX_RANGES = 6

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.45 system-ui,'DejaVu Sans',sans-serif;color:#111;background:#fff;
margin:1.5em auto;max-width:64em;padding:0 1em}
h1{font-size:1.5em}h2{margin-top:1.8em;border-bottom:1px solid #999}
table{border-collapse:collapse;margin:.6em 0}
th,td{border:1px solid #bbb;padding:.15em .5em;text-align:left;vertical-align:top}
th{background:#eee}td.n{text-align:right}
td.w{white-space:nowrap}
code{font-family:ui-monospace,'DejaVu Sans Mono',monospace;
overflow-wrap:anywhere}
.status{border:2px solid #111;padding:.4em .8em;font-weight:bold}
.error{border-color:#c00000}.legend{columns:2;list-style:none;padding:0}
.legend svg{vertical-align:middle;margin-right:.5em}
svg{max-width:100%;height:auto}.legend svg{width:16px}
:target{outline:3px solid #c00000}
"""

_NOT_SHARED = "No page of struct pages is shared between huge pages"


class _Page:
    """
    The page of one machine, section by section.

    :param shown: What ``show`` says.
    :param checked: What ``check`` says.
    """

    def __init__(self, hvo: Hvo, shown: ShowReport, checked: CheckReport) -> None:
        self._hvo = hvo
        self._shown = printable_document(shown)
        self._checked = printable_document(checked)
        self._all_findings: list[FindingEntry] = []
        if self._checked["status"] != "error":
            self._all_findings = self._checked["findings"]
        self._findings = self._all_findings[:_MAX_ROWS]
        self._tails = (self._shown["shared_tails"] or [])[:_MAX_ROWS]
        self._cells: Optional[MemoryCells] = None
        if hvo.has_hugetlb:
            self._cells = memory_cells(hvo)
        self._page_size = shown["page_size"]
        self._places: dict[str, str] = {}
        self._marks = list(self._all_marks())

    def make(self) -> Element:
        """All of it."""
        page = Element("html", {"lang": "en"})
        head = add(page, "head")
        add(head, "meta", {"charset": "utf-8"})
        policy = {"http-equiv": "Content-Security-Policy", "content": _POLICY}
        add(head, "meta", policy)
        view = {"name": "viewport", "content": "width=device-width"}
        add(head, "meta", view)
        target = self._shown["target"]
        add(head, "title", text=f"HVO of {target}")
        add(head, "style", text=_STYLE + PICTURE_STYLE)
        body = add(page, "body")
        body.append(pattern_definitions())
        add(body, "h1", text=f"HVO of {target}")
        self._add_status(body)
        self._add_kernel(body)
        self._add_memory(body)
        self._add_tails(body)
        self._add_pools(body)
        self._add_findings(body)
        self._add_unknown(body)
        add(body, "p", text=f"Made by drgn-hvo {__version__}.")
        return page

    # What is where.

    def _pfn_of(self, finding: FindingEntry) -> Optional[int]:
        for pfn in (finding["head_pfn"], finding["pfn"]):
            if pfn is not None:
                return pfn
        physical = finding["physical_address"]
        return None if physical is None else int(physical, 0) // self._page_size

    def _all_marks(self) -> Iterator[Mark]:
        for i, finding in enumerate(self._findings):
            pfn = self._pfn_of(finding)
            if pfn is not None:
                text = f"#{i} {finding['rule']}: {finding['message']}"
                yield self._mark(pfn, "finding", f"#finding-{i}", text)
        for i, tail in enumerate(self._tails):
            if tail["pfn"] is not None:
                text = f"the frame of shared tail page S{i}, PFN {tail['pfn']}"
                yield self._mark(tail["pfn"], "tail", f"#tail-{i}", text)

    def _mark(self, pfn: int, style: str, link: str, text: str) -> Mark:
        """A mark, by whose place links to it go: one a cell, which stands for all."""
        found = self._zone_of(pfn)
        if found is None:
            return Mark(pfn, style, link, text, "")
        zone, cells = found
        key = f"{style}-{zone}-{cells.cell(pfn)}"
        self._places[link] = key
        return Mark(pfn, style, link, text, key)

    def _zone_of(self, pfn: int) -> Optional[tuple[int, ZoneCells]]:
        for i, cells in enumerate(self._cells.zones if self._cells else ()):
            if cells.cell(pfn) is not None:
                return i, cells
        return None

    # Sections.

    def _add_status(self, body: Element) -> None:
        doc = self._checked
        has_error = any(one["severity"] == "error" for one in self._all_findings)
        style = "status error" if has_error else "status"
        said = f"check: {summary(doc)}"
        if doc["status"] != "error":
            said += restrictions(doc)
        status = add(body, "p", {"class": style}, said)
        add_text(status, ". ")
        add(status, "a", {"href": "#findings"}, "What was found")
        for problem in dump_problems(self._shown):
            add(body, "p", {"class": "status error"}, f"The dump is {problem}")
        said_of_both = [
            one for one in self._shown["conclusions"] if one not in SEE_CHECK
        ]
        if doc["status"] != "error":
            said_of_both += doc["conclusions"]
        listed = add(body, "ul")
        for sentence in dict.fromkeys(said_of_both):
            add(listed, "li", text=sentence)

    def _add_kernel(self, body: Element) -> None:
        doc = self._shown
        tails, saved = doc["tail_layout"], doc["saved"]
        add(body, "h2", text="Kernel")
        enabled = {True: "on", False: "off", None: "unknown"}[doc["hvo_enabled"]]
        net = saved["net_bytes"] if saved else None
        rows = [
            ["release", f"{_known(doc['release'])} {doc['arch']}"],
            ["HVO for new huge pages", enabled],
            ["tails are", _known(tails["kind"])],
            ["encoding of tails", doc["encoding"]["kind"]],
            ["struct page", f"{doc['struct_page']['size']} bytes"],
            ["saved by HVO", "unknown" if net is None else about_size(net)],
        ]
        _add_table(body, [], rows)
        for line in (*doc["encoding"]["evidence"], *tails["evidence"]):
            add(body, "div", text=f"\u2013 {line}")

    def _add_memory(self, body: Element) -> None:
        add(body, "h2", {"id": "memory"}, "Memory")
        if self._cells is None:
            reason = self._hvo.kernel.no_types_reason
            add(body, "p", text=f"Unknown: zones and pools need types: {reason}")
            return
        size = human_size(self._page_size << self._cells.order)
        text = (
            f"A cell is {size}. Letters in lower case: there is more than one thing in "
            "the cell, whose area is divided as its memory is. Thick frame and \u201c!"
            "\u201d: a finding. Dashed frame: a shared tail page is in there. Rest the "
            "pointer on a cell for what is in it."
        )
        add(body, "p", text=text)
        legend = add(body, "ul", {"class": "legend"})
        for kind, said in enumerate(KINDS):
            item = add(legend, "li")
            item.append(legend_swatch(kind))
            add_text(item, said.text)
        for why in self._cells.unknown[:_MAX_ROWS]:
            add(body, "p", text=f"Not all is known: {printable(why)}")
        for i, cells in enumerate(self._cells.zones):
            self._add_zone(body, i, cells)
        if self._cells.left_out:
            add(body, "p", text=f"{self._cells.left_out} more zones are not drawn.")

    def _add_zone(self, body: Element, index: int, cells: ZoneCells) -> None:
        zone = cells.zone
        name = f"Node {zone.nid}, zone {printable(zone.name)}"
        add(body, "h3", {"id": f"zone-{index}"}, name)
        if len(cells.pages):
            end = cells.edges[-1]
            text = f"{name}: PFN {zone.start_pfn} to {end - 1}"
            marks = [one for one in self._marks if self._is_of(one, index)]
            body.append(zone_picture(cells, self._page_size, marks, text))
        said = text_of_pages(cells.pages.sum(axis=0).tolist(), self._page_size)
        add(body, "p", text=f"{said or 'nothing of it can be drawn'}.")
        if cells.behind:
            text = f"{cells.behind} of its pages lie behind the end of struct pages."
            add(body, "p", text=text)

    @staticmethod
    def _is_of(mark: Mark, index: int) -> bool:
        return mark.anchor.startswith(f"{mark.style}-{index}-")

    def _add_tails(self, body: Element) -> None:
        add(body, "h2", {"id": "tails"}, "Shared tail pages and their users")
        kind = self._shown["tail_layout"]["kind"]
        if not self._tails:
            add(body, "p", text=_without_tails(kind, self._shown["shared_tails"]))
            return
        users = [
            None if tail["pfn"] is None else tail_users(self._hvo, tail["pfn"])
            for tail in self._tails
        ]
        bands = []
        for i, (tail, found) in enumerate(zip(self._tails, users)):
            span = self._span(tail)
            if found is not None and span is not None:
                label = f"S{i}: PFN {tail['pfn']}, order {tail['order']}"
                starts, ends, _ = found
                link = f"#tail-{i}"
                bands.append(UserBand(label, link, span, tail["pfn"], starts, ends))
        text = "Which memory is in huge pages whose struct pages map each of them"
        body.append(users_picture(bands, text))
        header = ["", "node", "zone", "order", "frame", "users", "mapped by"]
        table = _add_table(body, header, [])
        for i, (tail, found) in enumerate(zip(self._tails, users)):
            self._add_tail(table, i, tail, found)
        more = len(self._shown["shared_tails"] or ()) - len(self._tails)
        if more:
            add(body, "p", text=f"{more} more are not shown.")

    def _span(self, tail: SharedTailEntry) -> Optional[tuple[int, int]]:
        """Where the memory is that a shared tail page is for."""
        all_cells = [
            one for one in (self._cells.zones if self._cells else ()) if len(one.pages)
        ]
        own = [one for one in all_cells if one.zone.nid == tail["nid"]]
        of_zone = [one for one in own if printable(one.zone.name) == tail["zone"]]
        for some in (of_zone, own, all_cells):
            if some:
                lows = [int(one.edges[0]) for one in some]
                return min(lows), max(int(one.edges[-1]) for one in some)
        return None

    def _add_tail(
        self, table: Element, i: int, tail: SharedTailEntry, found: object
    ) -> None:
        row = add(table, "tr", {"id": f"tail-{i}"})
        add(row, "th", text=f"S{i}")
        add(row, "td", {"class": "n"}, str(tail["nid"]))
        # A slot of a zone has a name; one of a node is for all of its zones.
        add(row, "td", text="(all)" if tail["zone"] is None else tail["zone"])
        add(row, "td", {"class": "n"}, str(tail["order"]))
        self._add_place(add(row, "td", {"class": "w"}), f"#tail-{i}", tail["pfn"])
        cell = add(row, "td")
        if isinstance(found, tuple):
            self._add_users(cell, *found)
        else:
            cell.text = "unknown: the slot names no page"
        mapped_by = tail["mapped_by"]
        text = "unknown" if mapped_by is None else f"{mapped_by} pages of vmemmap"
        add(row, "td", text=text)

    def _add_users(
        self, cell: Element, starts: Sequence[int], ends: Sequence[int], count: int
    ) -> None:
        least = "" if self._hvo.vmemmap.has_all_mappings else "at least "
        plural = "" if count == 1 else "s"
        cell.text = f"{least}{count} huge page{plural}"
        if not count:
            return
        add_text(cell, ": PFN ")
        for k, (start, end) in enumerate(zip(starts[:_MAX_RANGES], ends)):
            add_text(cell, ", " if k else "")
            self._add_link_to_pfn(cell, f"{start} to {end - 1}", int(start))
        if len(starts) > _MAX_RANGES:
            add_text(cell, f", and {len(starts) - _MAX_RANGES} more ranges")

    def _add_link_to_pfn(self, parent: Element, text: str, pfn: int) -> None:
        found = self._zone_of(pfn)
        if found is None:
            add(parent, "span", text=text)
        else:
            add(parent, "a", {"href": f"#zone-{found[0]}"}, text)

    def _add_place(self, cell: Element, link: str, pfn: Optional[int]) -> None:
        """A PFN, and where it is in the picture."""
        if pfn is None:
            cell.text = "unknown"
        elif link in self._places:
            add(cell, "a", {"href": f"#{self._places[link]}"}, f"PFN {pfn}")
        else:
            cell.text = f"PFN {pfn}"

    def _add_pools(self, body: Element) -> None:
        add(body, "h2", {"id": "pools"}, "Pools")
        hstates = self._shown["hstates"]
        if hstates is None:
            has_types = self._shown["types_from"] != "vmcoreinfo"
            why = "what leads to them was not read" if has_types else "pools need types"
            add(body, "p", text=f"Unknown: {why}.")
            return
        header = ["size", "node", "total", "free", "surplus", "found", "optimized"]
        rows = []
        for pool in hstates:
            size = human_size(pool["page_bytes"])
            counts = [_known(pool[key]) for key in ("total", "free", "surplus")]
            rows.append([size, "all", *counts, "", ""])
            for node in pool["nodes"]:
                columns = (node["total"], node["free"], node["surplus"])
                found = (node["folios"], node["optimized"])
                counts = [_known(count) for count in (*columns, *found)]
                rows.append([size, str(node["nid"]), *counts])
        _add_table(body, header, rows[:_MAX_ROWS])
        if len(rows) > _MAX_ROWS:
            add(body, "p", text=f"{len(rows) - _MAX_ROWS} more rows are not shown.")
        for one in self._shown["hwpoisoned"] or ():
            text = hwpoison_text(one["raw_pages"], one["unknown"])
            add(body, "p", text=f"PFN {one['head_pfn']}: {text}")

    def _add_findings(self, body: Element) -> None:
        add(body, "h2", {"id": "findings"}, "Findings")
        if self._checked["status"] == "error":
            add(body, "p", text=f"Unknown: {self._checked['error']}.")
            return
        if not self._findings:
            add(body, "p", text="None.")
            return
        header = ["", "severity", "rule", "huge pages", "cause", "where", "what"]
        table = _add_table(body, header, [])
        for i, finding in enumerate(self._findings):
            row = add(table, "tr", {"id": f"finding-{i}"})
            add(row, "th", text=f"#{i}")
            add(row, "td", text=finding["severity"])
            add(add(row, "td", {"class": "w"}), "code", text=finding["rule"])
            add(row, "td", {"class": "n"}, str(finding["affected"]))
            self._add_cause(add(row, "td"), finding)
            self._add_where(add(row, "td", {"class": "w"}), i, finding)
            self._add_message(add(row, "td"), finding)
        more = len(self._all_findings) - len(self._findings)
        if more:
            add(body, "p", text=f"{more} more are not shown; check prints all.")

    @staticmethod
    def _add_cause(cell: Element, finding: FindingEntry) -> None:
        cause = finding["caused_by"]
        if cause is not None and cause < _MAX_ROWS:
            add(cell, "a", {"href": f"#finding-{cause}"}, f"#{cause}")
        elif cause is not None:
            cell.text = f"#{cause}"

    def _add_where(self, cell: Element, i: int, finding: FindingEntry) -> None:
        pfn = self._pfn_of(finding)
        if pfn is None:
            add(cell, "a", {"href": "#pools"}, "pools")
            return
        self._add_place(cell, f"#finding-{i}", pfn)
        for k, tail in enumerate(self._tails):
            if tail["pfn"] == pfn:
                add_text(cell, ", ")
                add(cell, "a", {"href": f"#tail-{k}"}, f"S{k}")

    @staticmethod
    def _add_message(cell: Element, finding: FindingEntry) -> None:
        cell.text = finding["message"]
        if finding["folded"]:
            add_text(cell, f" (and {finding['folded']} more like it)")
        if finding["expected"] is not None or finding["actual"] is not None:
            expected, actual = _known(finding["expected"]), _known(finding["actual"])
            add_text(cell, ": ")
            add(cell, "code", text=f"{actual}, expected {expected}")
        if finding["defect"]:
            add(cell, "div", text=f"Known kernel defect: {finding['defect']}")

    def _add_unknown(self, body: Element) -> None:
        add(body, "h2", {"id": "unknown"}, "What is not known")
        doc = self._checked
        lines: list[str] = []
        if doc["status"] != "error":
            for one in doc["not_in_dump"]:
                lines.append(f"{one['count']} {one['what']}: not in this dump")
            for why, rules in undecided_rules(doc):
                lines.append(f"could not be decided: {', '.join(rules)}: {why}")
        lines += self._shown["notes"]
        if not lines:
            text = "All that was looked at was read."
            if doc["status"] == "error":
                text = "See above."
            add(body, "p", text=text)
            return
        listed = add(body, "ul")
        for line in lines[:_MAX_ROWS]:
            add(listed, "li", text=line)
        if len(lines) > _MAX_ROWS:
            add(body, "p", text=f"{len(lines) - _MAX_ROWS} more are not shown.")


def _without_tails(kind: Optional[str], tails: Optional[object]) -> str:
    """Why there is nothing to draw."""
    if kind is None or tails is None:
        return "Unknown: which tails this kernel shares could not be found out."
    if kind == "shared":
        return "None is in use, as far as vmemmap_tails[] was read."
    if kind == "fake-head":
        return (
            f"{_NOT_SHARED}: on this kernel an optimized huge page maps its tails onto "
            "the page that holds its own head, again and again (fake heads)."
        )
    return f"{_NOT_SHARED} on this kernel."


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


def _add_table(
    parent: Element, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> Element:
    table = add(parent, "table")
    if header:
        first = add(table, "tr")
        for text in header:
            add(first, "th", text=text)
    for cells in rows:
        row = add(table, "tr")
        for text in cells:
            add(row, "td", {"class": "n"} if text.isdecimal() else {}, text)
    return table


def machine_page(hvo: Hvo, target: str) -> tuple[str, CheckReport]:
    """
    The page about a machine, and the audit that it tells of.

    :param target: What the user calls it.
    """
    checked: CheckReport
    try:
        checked = check_document(hvo, target, CheckScope())
    except UnavailableError as e:
        checked = error_document(target, str(e))
    shown = show_document(hvo, target, folios=False)
    shown = with_dump(shown, hvo.kernel.prog, hvo.kernel)
    return as_html(_Page(hvo, shown, checked).make()), checked
