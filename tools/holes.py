# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Dumps with a hole
-----------------

Leaves one page out of a core, every page in turn, once as a page that the dump does not
have and once as one that reads as zeros, and audits what is left. What was not read is
unknown: ``python -m tools.holes CORE…`` says where an answer claims more than that.

Whole or holey, a core is held against three promises:

- A healthy core has no finding, and of a damaged one no *other* finding than the whole
  core has; a finding that is gone belongs to a rule that says that it is undecided.
- A rule passes only if damage to the page would not have broken it: the page is filled
  with garbage to find out.
- An audit is complete only if every rule has the result that it has on the whole core.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
import sys
from typing import Literal, Optional

import drgn

from drgn_hvo.commands.check import CheckScope, check_document, exit_status
from drgn_hvo.commands.failures import failure
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of

__all__ = ("Answer", "AnsweredFinding", "Dump", "audited", "judge", "main")

Hole = Literal["missing", "zeros", "garbage"]

#: What is tried with every page.
HOLES: tuple[Hole, ...] = ("missing", "zeros")

_END = 1 << 46
# Struct pages that look like heads, and others that look like tails.
_GARBAGE = b"\x5a" * 64 + b"\xa5" * 64


class Dump:
    """
    The pages of a core in memory, to be read with one of them changed.

    :param path: Of the core.
    """

    def __init__(self, path: str) -> None:
        self._base = open_target(path, (), None)
        self.note: bytes = self._base["VMCOREINFO"].string_()
        text = self.note.decode("ascii", "replace")
        sizes = [line[9:] for line in text.split("\n") if line[:9] == "PAGESIZE="]
        self.page_size = int(sizes[0])
        self.pages = dict(self._read_all())

    def _read_all(self) -> Iterator[tuple[int, bytes]]:
        """All pages that the core has, by PFN; a bisection, for most are not there."""
        size = self.page_size
        for pfn in self._present(0, self._limit()):
            yield pfn, self._base.read(pfn * size, size, physical=True)

    def _limit(self) -> int:
        return hvo_of(self._base).vmemmap.end_pfn

    def _present(self, start: int, end: int) -> Iterator[int]:
        size = self.page_size
        for pfn in range(start, end):
            try:
                self._base.read(pfn * size, size, physical=True)
            except drgn.FaultError:
                continue
            yield pfn

    def program(
        self, pfn: Optional[int] = None, hole: Hole = "missing"
    ) -> drgn.Program:
        """
        A program of this dump.

        :param pfn: The page that is changed; ``None`` for the whole dump.
        """
        pages = self.pages
        if pfn is not None:
            pages = dict(pages)
            del pages[pfn]
            if hole != "missing":
                fill = bytes(64) if hole == "zeros" else _GARBAGE
                pages[pfn] = fill * (self.page_size // len(fill))
        prog = drgn.Program(self._base.platform)
        prog.add_memory_segment(0, _END, partial(_read, pages, self.page_size), True)
        prog.set_linux_kernel_custom(self.note, False)
        return prog


def _read(
    pages: dict[int, bytes],
    size: int,
    address: int,
    count: int,
    _offset: int,
    _physical: bool,
) -> bytes:
    first, last = address // size, (address + count - 1) // size
    try:
        data = b"".join([pages[pfn] for pfn in range(first, last + 1)])
    except KeyError as e:
        raise drgn.FaultError("not in this dump", e.args[0] * size) from None
    begin = address - first * size
    return data[begin : begin + count]


@dataclass(frozen=True)
class AnsweredFinding:
    """
    A finding.

    :param about: Rule, order, and folio or word.
    :param is_folded: Whether it stands for many.
    """

    about: tuple[object, ...]
    message: str
    is_folded: bool


@dataclass(frozen=True)
class Answer:
    """
    What an audit says.

    :param status: The exit status.
    :param results: Of each rule.
    :param error: Why the target could not be audited.
    """

    status: int
    complete: bool
    results: tuple[tuple[str, str], ...] = ()
    checked: tuple[tuple[str, object], ...] = ()
    findings: tuple[AnsweredFinding, ...] = ()
    error: Optional[str] = None


def audited(prog: drgn.Program) -> Answer:
    """Audit a program, as ``check`` does."""
    try:
        doc = check_document(hvo_of(prog), "", CheckScope())
    except Exception as e:
        known = failure(e)
        if known is None:
            raise
        return Answer(2, False, error=known)
    return Answer(
        exit_status(doc, strict=True),
        doc["complete"],
        tuple((rule["id"], rule["result"]) for rule in doc["rules"]),
        tuple(doc["checked"].items()),
        tuple(
            AnsweredFinding(
                (f["rule"], f["order"], where), f["message"], f["folded"] > 0
            )
            for f in doc["findings"]
            # Of several words of one folio, another may be the first.
            for where in (f["head_pfn"] or f["address"],)
        ),
    )


def judge(
    whole: Answer, holey: Answer, garbage: Optional[Answer], hole: Hole
) -> list[str]:
    """
    What an answer about a dump with a hole claims without knowing it.

    :param whole: The answer about the whole dump.
    :param garbage: The answer about the dump with something else in the page.
    """
    if holey.error is not None:
        return []
    wrong = []
    told = {finding.about for finding in whole.findings}
    # Of many alike, told as one, another may be the first.
    many = {finding.about[:2] for finding in whole.findings if finding.is_folded}
    for finding in holey.findings:
        if finding.about not in told and finding.about[:2] not in many:
            wrong.append(f"finding: {finding.about[0]}: {finding.message}")
    results, before = dict(holey.results), dict(whole.results)
    for rule, result in results.items():
        if before[rule] == "fail" and result == "pass":
            wrong.append(f"{rule} fails, and passes with the hole")
    if garbage is not None:
        broken = {rule for rule, result in garbage.results if result == "fail"}
        unread = {rule for rule in broken if before[rule] == results[rule] == "pass"}
        if hole == "zeros":
            # Counters of a pool that is not used are zeros, and were before.
            unread.discard("hstate-counters")
        wrong += [f"{rule} passes unread" for rule in sorted(unread)]
    same = (holey.results, holey.checked) == (whole.results, whole.checked)
    if holey.complete and whole.complete and not same:
        wrong.append("complete, but not all was looked at")
    return wrong


_dump: Optional[Dump] = None
_whole: Optional[Answer] = None


def _begin(path: str) -> None:
    global _dump, _whole
    _dump = Dump(path)
    _whole = audited(_dump.program())


def _try(pfn: int) -> list[tuple[int, str, int, str]]:
    """Try one page: PFN, kind of hole, exit status and what is wrong."""
    assert _dump is not None, "the worker has begun"
    assert _whole is not None, "the worker has begun"
    garbage: Optional[Answer] = None
    with suppress(Exception):  # what becomes of garbage is for other tests
        garbage = audited(_dump.program(pfn, "garbage"))
    out: list[tuple[int, str, int, str]] = []
    for hole in HOLES:
        if hole == "zeros" and not any(_dump.pages[pfn]):
            continue  # nothing is lost
        try:
            answer = audited(_dump.program(pfn, hole))
        except Exception as e:
            out.append((pfn, hole, 70, f"{type(e).__name__}: {e}"))
            continue
        wrong = judge(_whole, answer, garbage, hole)
        out.append((pfn, hole, answer.status, "; ".join(wrong)))
    return out


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Try cores; give 1 if any answer claims too much."""
    parser = argparse.ArgumentParser(prog="python -m tools.holes", description=__doc__)
    parser.add_argument("cores", nargs="+", metavar="CORE")
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("--step", type=int, default=1, help="try every STEPth page")
    options = parser.parse_args(arguments)
    failed = False
    for path in options.cores:
        dump = Dump(path)
        pfns = sorted(dump.pages)[:: options.step]
        statuses: Counter[tuple[str, int]] = Counter()
        bad = 0
        with ProcessPoolExecutor(
            options.jobs, initializer=_begin, initargs=(path,)
        ) as pool:
            for tried in pool.map(_try, pfns, chunksize=8):
                for pfn, hole, status, wrong in tried:
                    statuses[hole, status] += 1
                    if wrong:
                        bad += 1
                        print(
                            f"{path}: PFN {pfn} {hole}: {status}: {wrong}", flush=True
                        )
        failed |= bool(bad)
        counts = ", ".join(
            f"{hole} {status}: {count}"
            for (hole, status), count in sorted(statuses.items())
        )
        print(f"{path}: {len(pfns)} pages, {bad} wrong answers; exit {counts}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
