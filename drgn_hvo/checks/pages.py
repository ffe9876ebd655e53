# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Struct pages in their page of vmemmap
-------------------------------------

The rules that look at all struct pages of a page of vmemmap, in one pass.
"""

from __future__ import annotations

from typing import Union

from drgn_hvo.checks.context import Context
from drgn_hvo.checks.folios import FolioTails
from drgn_hvo.checks.heads import CompoundHeads, StrayHeads
from drgn_hvo.checks.scan import scan

__all__ = ("check_pages",)


def check_pages(context: Context) -> None:
    """Decide ``folio-tail-info``, ``stray-head`` and ``compound-heads``."""
    rules: list[Union[FolioTails, StrayHeads, CompoundHeads]] = [FolioTails(context)]
    if "stray-head" not in context.audit.skipped:
        rules.append(StrayHeads(context))
    if "compound-heads" not in context.audit.skipped:
        rules.append(CompoundHeads(context))
    scan(context, rules)
    for rule in rules:
        rule.report()
