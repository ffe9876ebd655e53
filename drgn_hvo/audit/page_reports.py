# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Verdicts on reports about pages
-------------------------------

What a report of a log means that is no page fault, as a table: the first entry of
:data:`PAGE_VERDICTS` that holds for the report. The text of a log is enough for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import re
from typing import Optional

from drgn_hvo.audit.page_faults import TELLING_TEXTS
from drgn_hvo.formats.oops_log import MESSAGES, LoggedReport
from drgn_hvo.formats.page_checks import CHECKS, check_of
from drgn_hvo.formats.printed_page import PrintedPage, printed_page
from drgn_hvo.formats.tail_words import Geometry
from drgn_hvo.formats.telling_words import TellingWord, telling_address

__all__ = (
    "PAGE_VERDICTS",
    "PageVerdict",
    "ReportOfPage",
    "page_report",
    "page_verdict_of",
)

_MESSAGES = {message.name: message for message in MESSAGES}


@dataclass(frozen=True)
class ReportOfPage:
    """
    A report, and what follows from its text.

    :param page: The page that was dumped.
    :param telling: What the address of a general protection fault is.
    :param tails: How this kernel lays tails out: ``plain``, ``fake-head`` or
        ``shared``; ``None`` if that is not known.
    """

    report: LoggedReport
    page: Optional[PrintedPage]
    telling: Optional[TellingWord]
    tails: Optional[str] = None

    def may_have(self, tails: str) -> bool:
        """Whether this kernel can have tails laid out so."""
        return self.tails in (None, tails)

    @property
    def is_of_tails(self) -> bool:
        """Whether the check that failed is about tails."""
        check = None if self.report.reason is None else check_of(self.report.reason)
        return check is not None and check.of_tails

    def says(self, name: str) -> bool:
        """Whether the address is this kind of poison."""
        return self.telling is not None and self.telling.name == name


_RELEASE = re.compile(r"(\d{1,3})\.(\d{1,3})\b")


def _tails_of(release: Optional[str]) -> Optional[str]:
    """
    How a release lays tails out. Since Linux kernel commit 622026e87c40 ("mm/hugetlb:
    remove fake head pages") (in v7.1) they are shared; stable kernels take parts of
    that, but none has taken this.
    """
    version = None if release is None else _RELEASE.match(release)
    if version is None:
        return None
    return "shared" if (int(version[1]), int(version[2])) >= (7, 1) else "fake-head"


def page_report(
    report: LoggedReport,
    geometry: Optional[Geometry] = None,
    tails: Optional[str] = None,
) -> ReportOfPage:
    """
    What a report of a log says about a page, as far as its text alone tells.

    :param geometry: Of the kernel, if it is at hand.
    :param tails: How the kernel lays tails out; if ``None``, its release says.
    """
    if tails is None:
        tails = _tails_of(report.crash.release)
    page = None
    if report.dump is not None:
        page = printed_page(report.dump, report.pfn, geometry)
    telling = None
    if report.address is not None:
        telling = telling_address(geometry or Geometry(4096, 64), report.address)
    return ReportOfPage(report, page, telling, tails)


@dataclass(frozen=True)
class PageVerdict:
    """
    What a report means.

    :param defect: The known defect of the kernel that prints this.
    """

    name: str
    holds: Callable[[ReportOfPage], bool]
    text: str
    defect: Optional[str] = None


def _page(
    tails: str, holds: Callable[[PrintedPage], bool]
) -> Callable[[ReportOfPage], bool]:
    return lambda r: r.page is not None and r.may_have(tails) and holds(r.page)


def _form(*names: str) -> Callable[[ReportOfPage], bool]:
    return lambda r: r.report.form in names


def _says(name: str) -> Callable[[ReportOfPage], bool]:
    return lambda report: report.says(name)


def _message(name: str) -> Callable[[ReportOfPage], bool]:
    return lambda r: r.report.form == "hugetlb-warning" and r.report.reason == name


_RESTORED = (
    "when this huge page was restored, each page of its struct pages was filled with a "
    "copy of the first one, which has the head, and these copies were left there. The "
    "kernel finds them when it frees the huge page, and gives up its memory"
)

#: The first that holds is the verdict.
PAGE_VERDICTS = (
    PageVerdict(
        "copy-of-head",
        _page("fake-head", lambda p: p.is_unaligned_head),
        "the page looks as the head of a huge page, but lies where none of its order "
        f"can begin: {_RESTORED}",
        "restored-fake-heads",
    ),
    PageVerdict(
        "boot-tail-overwritten",
        lambda r: (
            r.is_of_tails
            and r.may_have("shared")
            and r.page is not None
            and r.page.has_empty_lru
            and r.page.refcount == 1
        ),
        "the struct page is as memmap_init() leaves one, though it is a tail of a huge "
        "page: a shared tail page that was made at boot was overwritten, and all tails "
        "on it look as pages of their own",
        "memmap-init-overwrite",
    ),
    PageVerdict(
        "copy-of-first-tail",
        _page("fake-head", lambda p: p.is_copied_tail),
        "the tail holds what only the first tails of a huge page do, and is none of "
        f"these: {_RESTORED}",
        "restored-fake-heads",
    ),
    PageVerdict(
        "boot-tail-refcount",
        lambda r: (
            r.report.reason == "nonzero _refcount"
            and r.may_have("shared")
            and r.page is not None
            and r.page.refcount == 1
            and r.page.has_lru_of_another
            and not r.page.is_head
        ),
        "the tail has reference count 1 and a stale pointer to another one's lru: it "
        "was copied from a shared tail page that was made at boot. The memory of the "
        "huge page that is freed here is lost",
        "boot-tail-refcount",
    ),
    PageVerdict(
        "not-initialised",
        lambda r: r.report.dump is not None and r.report.dump.is_poisoned,
        "nobody ever initialised this struct page: a wrong PFN led to it, or its "
        "memory is not there",
    ),
    PageVerdict(
        "tail-damaged",
        lambda r: r.is_of_tails,
        "a tail is not as prep_compound_tail() leaves it: somebody wrote to it, or it "
        "is not what was there before HVO took it. On kernels that share tails, all "
        "huge pages of that order in the zone can be concerned",
    ),
    PageVerdict(
        "debug-check",
        _form("vm-bug-on"),
        "a check failed that only kernels with CONFIG_DEBUG_VM make: the code that is "
        "named here was handed a page which is not what it must be",
    ),
    PageVerdict(
        "still-in-use",
        lambda r: r.report.form == "bad-page-state" and r.report.reason in CHECKS,
        "a page was given back, or is to be handed out, that is not free by its own "
        "words: it was freed once too often, somebody still uses it, or its struct "
        "page was overwritten",
    ),
    PageVerdict(
        "bad-state",
        _form("bad-page-state"),
        "a page was given back, or is to be handed out, whose struct page is not that "
        "of a free one",
    ),
    PageVerdict(
        "bad-mapping",
        _form("bad-page-map"),
        "an entry in the page tables of a process leads to a page that it should not, "
        "or the page's counts do not fit: the entry was damaged, or the page was "
        "freed while it was mapped",
    ),
    PageVerdict(
        "memory-failure",
        _form("memory-failure"),
        "the hardware reported that this memory is bad, or somebody said so for a "
        "test: the page is taken out of use. Of a huge page, the head has PG_hwpoison, "
        "and a list in it names the pages of 4 KiB",
    ),
    *(
        PageVerdict(message.name, _message(message.name), message.text)
        for message in MESSAGES
    ),
    *(PageVerdict(name, _says(name), text) for name, text in TELLING_TEXTS.items()),
    PageVerdict(
        "non-canonical",
        _form("general-protection-fault"),
        "an address was accessed that cannot be one, or not in this way: a pointer was "
        "overwritten or never set. That is not about tails by itself; look at the "
        "registers",
    ),
    PageVerdict(
        "check-failed",
        _form("kernel-bug", "kernel-warning"),
        "a check in the code that is named here failed; look at the registers for the "
        "page that it was about",
    ),
    PageVerdict(
        "dumped",
        lambda _r: True,
        "the kernel printed this page because somebody asked for it; the reason says "
        "why",
    ),
)


def page_verdict_of(report: ReportOfPage) -> PageVerdict:
    """The verdict on a report that is no page fault."""
    return next(verdict for verdict in PAGE_VERDICTS if verdict.holds(report))
