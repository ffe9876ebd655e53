# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Sections of memory
------------------

``struct mem_section`` of all sections that a machine has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgn_hvo.synth.machine.plan import Plan

__all__ = ("Sections", "section_order")

Int64 = npt.NDArray[np.int64]

# SECTION_MARKED_PRESENT, _HAS_MEM_MAP, _IS_ONLINE, _IS_EARLY.
_MEMORY_FLAGS = 0xF
_DEVICE_FLAGS = 0x3


def section_order(plan: Plan, number: int) -> int:
    """
    ``compound_page_order`` of a section: that of compound pages of a device, or of a
    gigantic page that memblock allocated; 0 for anything else, see
    section_set_compound_order_range().
    """
    pages = plan.description.section_pages
    first, end = number * pages, (number + 1) * pages
    for device in plan.description.devices:
        if device.first_pfn <= first and end <= device.end_pfn:
            return device.order
    for placed in plan.huge:
        is_boot = placed.optimized and placed.group.origin == "boot"
        if is_boot and placed.first_pfn <= first and end <= placed.end_pfn:
            return placed.group.order if 1 << placed.group.order >= pages else 0
    return 0


@dataclass(frozen=True)
class Sections:
    """
    The sections of a machine.

    :param numbers: Ascending.
    """

    plan: Plan
    numbers: Int64

    @classmethod
    def of(cls, plan: Plan) -> Sections:
        """Those of memory and of devices."""
        numbers = sorted({*plan.sections, *plan.device_sections})
        return cls(plan, np.array(numbers, dtype=np.int64))

    @property
    def _size(self) -> int:
        return self.plan.structures.mem_section.size

    @property
    def _per_root(self) -> int:
        return self.plan.page_size // self._size

    @property
    def roots(self) -> Int64:
        """Indices of the roots that have sections: each has a page of them."""
        return np.unique(self.numbers // self._per_root)

    def offsets(self) -> dict[int, int]:
        """Where each section is in the pages of :meth:`data()`, by its number."""
        pages = np.searchsorted(self.roots, self.numbers // self._per_root)
        places = pages * self.plan.page_size
        places += self.numbers % self._per_root * self._size
        return dict(zip(self.numbers.tolist(), places.tolist()))

    def data(self, usage: int) -> bytes:
        """
        A page of ``struct mem_section`` for each root that has some.

        :param usage: Address of the array of ``struct mem_section_usage``.
        """
        plan, c_type = self.plan, self.plan.structures.mem_section
        shape = (len(self.roots) * self._per_root, self._size // 8)
        rows = np.zeros(shape, dtype=f"{plan.order}u8")
        which = np.array(list(self.offsets().values()), dtype=np.int64) // self._size
        are_devices = np.isin(self.numbers, plan.device_sections)
        flags = np.where(are_devices, _DEVICE_FLAGS, _MEMORY_FLAGS)
        rows[which, 0] = np.uint64(plan.space.vmemmap) | flags.astype(np.uint64)
        step = plan.structures.mem_section_usage.size
        usages = usage + step * np.arange(len(self.numbers), dtype=np.uint64)
        rows[which, c_type.offset("usage") // 8] = usages
        if c_type.has("compound_page_order"):
            at = c_type.offset("compound_page_order") // 4
            orders = [section_order(plan, n) for n in self.numbers.tolist()]
            rows.view(f"{plan.order}u4")[which, at] = orders
        return rows.tobytes()
