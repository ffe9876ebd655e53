# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Architectures
-------------

What differs from architecture to architecture, one module and one entry of
:data:`ARCHITECTURES` each; the reader and the generator use the same. What an entry
lacks, or cannot make of a kernel's VMCOREINFO, is a capability that is missing there:
the rest still works.
"""

from __future__ import annotations

from drgn_hvo.formats.architectures import (
    aarch64,
    loongarch64,
    ppc64,
    riscv64,
    s390x,
    x86_64,
)
from drgn_hvo.formats.architectures.architecture import Architecture
from drgn_hvo.formats.machine_models import MODELS

__all__ = ("ARCHITECTURES",)

#: By drgn's name for it, in lower case.
ARCHITECTURES: dict[str, Architecture] = {
    "x86_64": Architecture(
        62, x86_64.page_tables, x86_64.linear_ranges, MODELS["x86_64"]
    ),
    "riscv64": Architecture(
        243, riscv64.page_tables, riscv64.linear_ranges, MODELS["riscv64"]
    ),
    "loongarch64": Architecture(
        258,
        loongarch64.page_tables,
        loongarch64.linear_ranges,
        MODELS["loongarch64"],
        illegal_pointer_value=0,
    ),
    "aarch64": Architecture(
        183, aarch64.page_tables, aarch64.linear_ranges, MODELS["aarch64"]
    ),
    "s390x": Architecture(
        22,
        s390x.page_tables,
        s390x.linear_ranges,
        MODELS["s390x"],
        lowest_kernel_address=0,
    ),
    "ppc64": Architecture(
        21,
        ppc64.page_tables,
        ppc64.linear_ranges,
        MODELS["ppc64"],
        illegal_pointer_value=0x5DEADBEEF << 28,
    ),
}
