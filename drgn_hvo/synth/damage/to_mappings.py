# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damage to mappings
------------------

Page table entries of vmemmap: each function makes the changes
of one entry of :data:`~drgn_hvo.synth.damage.faults.FAULTS`, which says what they are.
"""

from __future__ import annotations

from drgn_hvo.errors import UsageError
from drgn_hvo.synth.damage.targets import Change, Targets

__all__ = (
    "entry_bits",
    "head_read_only",
    "head_shared",
    "plain_read_only",
    "pte_foreign",
    "pte_none",
    "pte_writable",
    "second_read_only",
    "second_shared",
    "stray",
)

Changes = list[Change]


def pte_foreign(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head(), 3)
    value = t.page_table.with_frame(t.read_entry(entry), 0, t.kernel_frame())
    return [t.entry(entry, value, "entry of slice 3 of a folio")]


def pte_writable(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head(), 3)
    if t.page_table.tails_are_writable:
        architecture = t.plan.description.architecture
        raise UsageError(f"shared tails are writable on {architecture} anyway")
    value = t.page_table.with_write(t.read_entry(entry), 0, allowed=True)
    return [t.entry(entry, value, "writable bit of slice 3 of a folio")]


def pte_none(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head(), 3)
    empty = t.page_table.protections.empty
    return [t.entry(entry, empty[0] if empty else 0, "entry of slice 3 of a folio")]


def entry_bits(t: Targets) -> Changes:
    """Such as the bit for user mode."""
    entry, page_table = t.machine.slice_entry(t.optimized_head(), 3), t.page_table
    shared = page_table.shared_bits(0, is_mapping=True)
    shared &= ~page_table.protections.kernel
    for form in page_table.levels[0].present:
        shared &= ~form.mask
    value = t.read_entry(entry) ^ (shared & -shared)
    return [t.entry(entry, value, "a bit of the entry of slice 3 of a folio")]


def head_shared(t: Targets) -> Changes:
    one = t.machine.slice_entry(t.optimized_head(0))
    two = t.machine.slice_entry(t.optimized_head(1))
    return [t.entry(two, t.read_entry(one), "entry of slice 0 of a folio")]


def head_read_only(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head())
    value = t.page_table.with_write(t.read_entry(entry), 0, allowed=False)
    return [t.entry(entry, value, "writable bit of slice 0 of a folio")]


def plain_read_only(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.split().first_pfn, 3)
    value = t.page_table.with_write(t.read_entry(entry), 0, allowed=False)
    return [t.entry(entry, value, "writable bit of slice 3 of a folio")]


def second_read_only(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.optimized_head(), 1)
    value = t.page_table.with_write(t.read_entry(entry), 0, allowed=False)
    return [t.entry(entry, value, "writable bit of slice 1 of a folio")]


def second_shared(t: Targets) -> Changes:
    one = t.machine.slice_entry(t.optimized_head(0), 1)
    two = t.machine.slice_entry(t.optimized_head(1), 1)
    return [t.entry(two, t.read_entry(one), "entry of slice 1 of a folio")]


def stray(t: Targets) -> Changes:
    entry = t.machine.slice_entry(t.order_0_slice())
    value = t.read_entry(t.machine.slice_entry(t.optimized_head(), 1))
    return [t.entry(entry, value, "entry of a slice of order-0 pages")]
