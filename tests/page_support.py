# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Pages of damaged words
----------------------

Which pages to ask about when a word of a synthetic machine was changed: by the
machine's own plan, not by what the commands find.
"""

from drgn_hvo.synth.damage.targets import Targets

__all__ = ("pages_of",)


def _slices(machine):
    """Every slice that has a page table entry of its own, with its address."""
    plan = machine.plan
    size, page_size = plan.generation.struct_page_size, plan.page_size
    for slice_ in range(plan.max_pfn * size // page_size):
        pfn = -(-slice_ * page_size // size)
        try:
            yield slice_, pfn, machine.slice_entry(pfn)
        except KeyError:
            continue


def _struct_pages(machine, address):
    """PFNs whose struct page holds a byte of memory."""
    plan = machine.plan
    size, page_size = plan.generation.struct_page_size, plan.page_size
    per_slice = plan.generation.geometry.pages_per_slice
    frame, rest = divmod(address, page_size)
    heads = [head for placed in plan.huge for head in placed.heads()]
    firsts = [h for h in heads if machine.page_physical(h) // page_size == frame]
    firsts += [t.last_alias for t in machine.vmemmap.tails if t.pfn == frame]
    firsts += [
        -(-slice_ * page_size // size)
        for slice_ in range(plan.max_pfn * size // page_size)
        if machine.vmemmap.frame_of(slice_) == frame
    ]
    if size * per_slice == page_size:
        return [first + rest // size for first in firsts]
    return [pfn for first in firsts for pfn in range(first - 1, first + per_slice + 1)
            if 0 <= address - machine.page_physical(pfn) < size]  # fmt: skip


def pages_of(machine, changes):
    """PFNs that are about what was changed: the first and the last of each word's."""
    found, plan = set(), machine.plan
    entries = {address: pfn for _, pfn, address in _slices(machine)}
    for change, _ in changes:
        pfns = _struct_pages(machine, change.address)
        found |= {pfns[0], pfns[-1]} if pfns else set()
        if change.address in entries:
            found.add(entries[change.address])
    if found:
        return sorted(found)
    # A slot: a tail of a huge page that uses it. A pool, or where vmemmap is: a tail
    # of any huge page.
    targets = Targets(machine)
    first = plan.generation.min_order
    slots = [
        targets.slot(order)
        for order in range(first, first + plan.generation.slots)
        if machine.vmemmap.tails
    ]
    if any(change.address in slots for change, _ in changes):
        return [targets.tail().last_alias + targets.INDEX]
    return [targets.any_folio().first_pfn + targets.INDEX]
