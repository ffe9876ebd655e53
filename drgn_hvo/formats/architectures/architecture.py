# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What an architecture is
-----------------------

The shape of the entries of :data:`~drgn_hvo.formats.architectures.ARCHITECTURES`, and
what several of them ask of VMCOREINFO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.machine_models import MachineModel
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

__all__ = (
    "WORD",
    "Architecture",
    "LinearRange",
    "base_page_shift",
    "number",
    "root_address",
    "symbol",
)

#: All bits of a word.
WORD = (1 << 64) - 1


@dataclass(frozen=True)
class LinearRange:
    """
    Kernel addresses whose physical address is computed, without page tables.

    :param name: What is there.
    :param start: First address.
    :param end: End (exclusive).
    :param physical: Physical address behind *start*.
    :param is_direct_map: Whether all memory is there.
    :param by_page_tables: Whether page tables map it, too.
    """

    name: str
    start: int
    end: int
    physical: int
    is_direct_map: bool = False
    by_page_tables: bool = True


@dataclass(frozen=True)
class Architecture:
    """
    A port of the kernel.

    :param elf_machine: ``e_machine`` of its core files.
    :param page_tables: Makes the format of a kernel's page tables from VMCOREINFO; if
        that does not tell all, every format that it can be. Raises
        :exc:`~drgn_hvo.errors.FormatError` if VMCOREINFO lacks what is needed, or
        cannot be right.
    :param linear_ranges: What is mapped linearly, as far as VMCOREINFO tells.
    :param model: How machines of it are made up.
    :param illegal_pointer_value: ``CONFIG_ILLEGAL_POINTER_VALUE``, which no type
        records.
    :param lowest_kernel_address: Below it are those of processes; 0 where the kernel
        has an address space of its own.
    """

    elf_machine: int
    page_tables: Callable[[Vmcoreinfo], tuple[PageTableFormat, ...]]
    linear_ranges: Callable[[Vmcoreinfo], tuple[LinearRange, ...]]
    model: MachineModel
    illegal_pointer_value: int = 0xDEAD << 48
    lowest_kernel_address: int = 1 << 63


def symbol(vmcoreinfo: Vmcoreinfo, name: str) -> int:
    """
    The address of a symbol.

    :raises FormatError: if VMCOREINFO does not have it.
    """
    value = vmcoreinfo.symbol(name)
    if value is None:
        raise FormatError(f"VMCOREINFO has no SYMBOL({name})")
    return value


def number(vmcoreinfo: Vmcoreinfo, name: str) -> int:
    """
    The value of ``NUMBER()``.

    :raises FormatError: if VMCOREINFO does not have it.
    """
    value = vmcoreinfo.number(name)
    if value is None:
        raise FormatError(f"VMCOREINFO has no NUMBER({name})")
    return value


def base_page_shift(vmcoreinfo: Vmcoreinfo, *possible: int) -> int:
    """
    The base page size, as a power of two.

    :param possible: What it can be.
    :raises FormatError: if it is something else.
    """
    size = vmcoreinfo.integer("PAGESIZE") or 0
    shift = size.bit_length() - 1
    if size != 1 << max(shift, 0) or shift not in possible:
        raise FormatError(f"VMCOREINFO has PAGESIZE={size}, which cannot be here")
    return shift


def root_address(root: int, size: int) -> int:
    """
    The physical address of a top table, if it can be that.

    :param size: Of the table, in bytes, to which it is aligned, up to 4096.
    :raises FormatError: if not.
    """
    if not 0 <= root < 1 << 56 or root % min(size, 4096):
        raise FormatError(f"VMCOREINFO puts the top page table at {root:#x}")
    return root
