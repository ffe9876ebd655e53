# SPDX-License-Identifier: LGPL-2.1-or-later

"""
How a wrong word differs
------------------------

What was expected and what is there tell who may have done it: memory that failed turns
single bits, code that writes where it should not leaves whole words, and these often
look like what they are. A table, the first entry of :data:`DIFFERENCES` that holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from drgn_hvo.audit.findings import Finding
from drgn_hvo.formats.telling_words import telling_register
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("DIFFERENCES", "Difference", "difference_of")

_WORD = (1 << 64) - 1

# Numbers that the kernel counts up and down: how many bits differ tells nothing.
_COUNTS = ("hstate-counters", "hstate-reserve", "shared-tail-refcount",
           "folio-tail-refcount", "folio-list")  # fmt: skip

# How many of eight bytes must be printable to make a text.
_TEXT = 6


@dataclass(frozen=True)
class Difference:
    """
    A way in which a wrong word differs.

    :param text: What it is, for people.
    :param suspect: Who may have done it.
    """

    name: str
    holds: Callable[[Hvo, Finding, int, int], bool]
    text: str
    suspect: str


def _bits(expected: int, actual: int) -> int:
    return bin((expected ^ actual) & _WORD).count("1")


def _is_text(actual: int) -> bool:
    return sum(0x20 <= byte < 0x7F for byte in actual.to_bytes(8, "little")) >= _TEXT


def _is_struct_page(hvo: Hvo, actual: int) -> bool:
    offset = (actual & ~1) - hvo.vmemmap.base
    return 0 <= offset < hvo.vmemmap.end_pfn * hvo.vmemmap.size


#: The first that holds is told.
DIFFERENCES = (
    Difference(
        "known-defect",
        lambda _h, f, _e, _a: f.defect is not None,
        "it is what a known defect of the kernel leaves",
        "the kernel",
    ),
    Difference(
        "count",
        lambda _h, f, _e, _a: f.rule in _COUNTS,
        "a number is off",
        "code that counted or took a reference where it should not",
    ),
    Difference(
        "one-bit",
        lambda _h, _f, e, a: _bits(e, a) == 1,
        "one bit differs",
        "memory that failed, or code that sets or clears a flag of a page that is not "
        "its own",
    ),
    Difference(
        "zeros",
        lambda _h, _f, _e, a: not a & _WORD,
        "the word was cleared",
        "code that cleared what it took for its own",
    ),
    Difference(
        "struct-page",
        lambda h, _f, _e, a: _is_struct_page(h, a & _WORD),
        "a pointer to a struct page stands there",
        "code that stored a pointer to a struct page, or to its list links",
    ),
    Difference(
        "poison",
        lambda h, _f, _e, a: telling_register(h.kernel.geometry, a & _WORD) is not None,
        "a word stands there that the kernel uses elsewhere, as a mask or as poison",
        "code that took this struct page for another",
    ),
    Difference(
        "text",
        lambda _h, _f, _e, a: _is_text(a & _WORD),
        "text stands there",
        "a write beyond the end of somebody's buffer",
    ),
    Difference(
        "few-bits",
        lambda _h, _f, e, a: _bits(e, a) <= 3,
        "a few bits differ",
        "memory that failed, or code that sets several flags",
    ),
    Difference(
        "word",
        lambda _h, _f, _e, _a: True,
        "the whole word differs",
        "a write that did not belong there",
    ),
)


def difference_of(hvo: Hvo, finding: Finding) -> Optional[Difference]:
    """How the word of a finding differs, ``None`` if it names no two words."""
    expected, actual = finding.expected, finding.actual
    if finding.defect is None and (expected is None or actual is None):
        return None
    return next(
        one
        for one in DIFFERENCES
        if one.holds(hvo, finding, expected or 0, actual or 0)
    )
