# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Reports on dumps with a hole
----------------------------

As ``tools.holes`` for ``check``: leaves pages out of a core, one at a time, and asks
``page``, ``heads`` and ``oops`` about a huge page. Only pages that were read for the
whole dump are tried, as no other can change an answer. ``python -m tools.hole_reports
CORE…`` prints where an answer about what is left says something else than the answer
about the whole dump, instead of less.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
import logging
import sys
from typing import Any, Optional

import drgn
import numpy as np

from drgn_hvo.commands.failures import failure
from drgn_hvo.commands.heads import count_unread
from drgn_hvo.commands.oops import oops_document
from drgn_hvo.commands.page import page_document
from drgn_hvo.formats.oops_log import parse_log
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.memmap.hvo import Hvo, hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from tools.holes import HOLES, Dump, Hole

__all__ = (
    "Asked",
    "Questions",
    "ask",
    "claims",
    "main",
    "try_page",
    "wrong_claims",
)

#: What a report says where it does not know: the verdicts of ``oops``, and beginnings
#: of what ``page`` says of a struct page.
UNKNOWN_VERDICTS = ("read-only", "unknown", "table-not-in-dump")
UNKNOWN_KINDS = ("not in this dump", "all zeros: uninitialised, or left out")

#: Texts that follow from other values, how something was found out, and lists of what
#: is not known.
_FOLLOW = ("explanation", "conclusions", "list_by", "unread", "undecided")

# A write that was refused, and a read of nothing, as the kernel reports them.
_FAULT = """\
BUG: unable to handle page fault for address: {address:016x}
#PF: supervisor {access} access in kernel mode
#PF: error_code(0x{code:04x}) - {why}
Oops: Oops: {code:04x} [#1] SMP NOPTI
CPU: 1 UID: 0 PID: 412 Comm: memhog Not tainted {release} #1
RIP: 0010:folio_try_get+0x1c/0x60
---[ end trace 0000000000000000 ]---
"""


class _Pages(dict[int, bytes]):
    """Pages, and which of them were read."""

    def __init__(self, pages: dict[int, bytes]) -> None:
        super().__init__(pages)
        self.read: set[int] = set()

    def __getitem__(self, pfn: int) -> bytes:
        self.read.add(pfn)
        return super().__getitem__(pfn)


@dataclass(frozen=True)
class Questions:
    """
    What is asked of a dump.

    :param head_pfn: A huge page, optimized if there is one.
    :param faults: Addresses and error codes.
    """

    head_pfn: int
    release: str
    faults: tuple[tuple[int, int], ...]

    @classmethod
    def about(cls, hvo: Hvo) -> Questions:
        """Questions about the first optimized huge page of a whole dump."""
        folios = hvo.hugetlb.folios
        optimized = np.flatnonzero(np.asarray(folios.shared_ptes) > 0)
        head = int(folios.head_pfn[optimized[0] if len(optimized) else 0])
        page = hvo.vmemmap.page_address
        beyond = hvo.kernel.max_pfn_limit - 1
        faults = (page(head + 70) + 8, 3), (page(beyond) + 8, 2)
        return cls(head, hvo.kernel.release or "", faults)

    def log(self) -> str:
        """The text of the faults."""
        return "".join(
            _FAULT.format(
                address=address,
                code=code,
                access="write",
                why="permissions violation" if code & 1 else "not-present page",
                release=self.release,
            )
            for address, code in self.faults
        )

    def answers(self, prog: drgn.Program) -> dict[str, Any]:
        """What ``page``, ``oops`` and ``heads`` say."""
        known = hvo_of(prog)
        head = self.head_pfn
        pfns = (head, head + 70, head + 256, head - 1)
        specs = [parse_page_spec(f"pfn:0d{pfn}") for pfn in pfns]
        heads = np.concatenate(list(known.heads.range(head - 64, head + 576)))
        unread = count_unread(known.vmemmap, head - 64, heads)
        return {
            "page": page_document(known, "", specs)["pages"],
            "oops": oops_document(known, "", parse_log(self.log().splitlines()))[
                "reports"
            ],
            "heads": [None if pfn == ALL_ONES else pfn for pfn in heads.tolist()],
            "heads without": int((heads == np.uint64(ALL_ONES)).sum()) - sum(unread),
        }


def claims(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All that a document says: paths and values, without those that are ``None``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _FOLLOW:
                yield from claims(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from claims(inner, f"{path}[{i}]")
    elif value is not None:
        yield path, value


def _is_unknown(path: str, value: Any, zeros: frozenset[str]) -> bool:
    if path.endswith(".verdict"):
        return value in UNKNOWN_VERDICTS
    if path.endswith(".kind"):
        return str(value).startswith(UNKNOWN_KINDS)
    # The words of a struct page that reads as zeros, which is said beside them.
    return value == "0x0" and path.rpartition(".")[0] in zeros


def _says_less(path: str, value: Any, before: Any) -> bool:
    """Whether fewer pages are said to have no head."""
    return path == ".heads without" and value < before


def wrong_claims(whole: dict[str, Any], holey: dict[str, Any]) -> list[str]:
    """What the answers about a dump with a hole claim, and those about all do not."""
    before, now = dict(claims(whole)), dict(claims(holey))
    zeros = frozenset(
        path[: -len(".kind")]
        for path, value in now.items()
        if path.endswith(".kind") and str(value).startswith("all zeros")
    )
    return [
        f"{path}: {value!r} instead of {before.get(path)!r}"
        for path, value in now.items()
        if before.get(path) != value
        and not _is_unknown(path, value, zeros)
        and not _says_less(path, value, before.get(path))
    ]


@dataclass
class Asked:
    """
    What was asked of one dump.

    :param whole: The answers of the whole dump.
    :param read: The pages that were read for them.
    """

    dump: Dump
    questions: Questions
    whole: dict[str, Any]
    read: list[int] = field(default_factory=list)


def ask(path: str) -> Asked:
    """Ask a whole dump."""
    dump = Dump(path)
    questions = Questions.about(hvo_of(dump.program()))
    dump.pages = pages = _Pages(dump.pages)
    whole = questions.answers(dump.program())
    return Asked(dump, questions, whole, sorted(pages.read))


def try_page(asked: Asked, pfn: int) -> list[tuple[Hole, str]]:
    """Leave out one page; what is wrong then, by the kind of hole."""
    found: list[tuple[Hole, str]] = []
    for hole in HOLES:
        try:
            holey = asked.questions.answers(asked.dump.program(pfn, hole))
        except Exception as e:
            found.append((hole, "" if failure(e) else f"{type(e).__name__}: {e}"))
            continue
        found.append((hole, "; ".join(wrong_claims(asked.whole, holey))))
    return found


_asked: Optional[Asked] = None


def _begin(path: str) -> None:
    global _asked
    _asked = ask(path)


def _try(pfn: int) -> list[tuple[Hole, str]]:
    assert _asked is not None, "the worker has begun"
    return try_page(_asked, pfn)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Try cores; give 1 if any answer claims too much."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.hole_reports", description=__doc__
    )
    parser.add_argument("cores", nargs="+", metavar="CORE")
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("--step", type=int, default=1, help="try every STEPth page")
    options = parser.parse_args(arguments)
    # What the plugin says of each program.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    failed = False
    for path in options.cores:
        pfns = ask(path).read[:: options.step]
        tried, bad = 0, 0
        with ProcessPoolExecutor(
            options.jobs, initializer=_begin, initargs=(path,)
        ) as pool:
            results = pool.map(_try, pfns, chunksize=8)
            for pfn, found in zip(pfns, results):
                for hole, wrong in found:
                    tried += 1
                    if wrong:
                        bad += 1
                        print(f"{path}: PFN {pfn} {hole}: {wrong}", flush=True)
        failed |= bool(bad)
        print(f"{path}: {tried} holes in pages that were read, {bad} wrong answers")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
