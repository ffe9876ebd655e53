# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Naming a page
-------------

What a user may write to name a page, and the PFN that it means.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Callable, Optional

from drgn import FaultError

from drgn_hvo.errors import NotInDumpError, UnavailableError, UsageError
from drgn_hvo.kernel.pagetables import walk
from drgn_hvo.memmap.vmemmap import Vmemmap

__all__ = ("PageSpec", "parse_page_spec", "resolve_page")

_HEX = r"(?:0[xX])?[0-9a-fA-F]{1,16}"
_ADDRESS_FORMS = {
    "page": re.compile(rf"page:({_HEX})"),
    "virt": re.compile(rf"virt:({_HEX})"),
    "phys": re.compile(rf"phys:({_HEX})"),
    "task": re.compile(rf"task:([0-9]{{1,10}}):({_HEX})"),
}
_PFN = re.compile(r"(pfn:)?(0[xX][0-9a-fA-F]{1,16}|0[dD][0-9]{1,20}|[0-9a-fA-F]{1,20})")

# The kernel prints PFNs as "%05lx", without "0x": see bad_page() in mm/page_alloc.c.
# That gives five digits at least, and zeros in front of fewer.
_PRINTED_DIGITS = 5

_AS_PRINTED = "hexadecimal, as the kernel prints a PFN"

_USE = "use pfn:N, page:0xADDR, virt:0xADDR, phys:0xADDR or task:PID:0xVADDR"


@dataclass(frozen=True)
class PageSpec:
    """
    A page as the user named it.

    :param kind: ``pfn``, ``page``, ``virt``, ``phys`` or ``task``.
    :param value: The number or address.
    :param pid: For ``task``.
    :param read_as: How a number was read that does not say itself what it is.
    """

    text: str
    kind: str
    value: int
    pid: Optional[int] = None
    read_as: Optional[str] = None


def parse_page_spec(text: str) -> PageSpec:
    """
    Understand ``pfn:N``, ``page:0xADDR``, ``virt:0xADDR``, ``phys:0xADDR``,
    ``task:PID:0xVADDR`` or a bare PFN.

    Addresses are hexadecimal, with or without ``0x``. A PFN is ``0x…``, ``0d…`` or
    decimal, and behind ``pfn:`` also what the kernel prints, if that cannot be
    decimal.

    :raises UsageError: if it is none of these, or a PFN that can be read in two ways.
    """
    pfn = _PFN.fullmatch(text)
    if pfn:
        return _parse_pfn(text, pfn[2], is_named=bool(pfn[1]))
    for kind, form in _ADDRESS_FORMS.items():
        match = form.fullmatch(text)
        if match:
            pid = int(match[1]) if kind == "task" else None
            return PageSpec(text, kind, int(match[match.lastindex or 1], 16), pid)
    raise UsageError(f"{text!r} names no page: {_USE}")


def _parse_pfn(text: str, number: str, *, is_named: bool) -> PageSpec:
    """
    Understand a PFN, in the base that its prefix names.

    :param number: What stands behind ``pfn:``, or all of it.
    :param is_named: Whether there is a ``pfn:``.
    """
    prefix = number[:2].lower()
    if prefix == "0x":
        return PageSpec(text, "pfn", int(number, 16))
    if prefix == "0d" and number[2:].isdigit():
        if is_named and len(number) == _PRINTED_DIGITS:
            raise _ambiguous(text, int(number[2:]), int(number, 16))
        return PageSpec(text, "pfn", int(number[2:]))
    if not number.isdigit():
        if is_named and len(number) <= 16:
            return PageSpec(text, "pfn", int(number, 16), read_as=_AS_PRINTED)
        raise UsageError(
            f"{text!r} names no page: a bare number is a decimal PFN; {_USE}"
        )
    is_padded = number[0] == "0" and len(number) > 1
    # Of two notations only the kernel's has zeros in front, and it has them up to
    # five digits.
    if is_padded and is_named and len(number) == _PRINTED_DIGITS:
        return PageSpec(text, "pfn", int(number, 16), read_as=_AS_PRINTED)
    # No address, and no PFN, has more than 16 hexadecimal digits.
    is_printable = is_named and _PRINTED_DIGITS <= len(number) <= 16
    if is_padded or is_printable:
        raise _ambiguous(text, int(number), int(number, 16))
    return PageSpec(text, "pfn", int(number))


def _ambiguous(text: str, decimal: int, printed: int) -> UsageError:
    # "0d" and three digits could be five that the kernel printed.
    mark = "0d" if decimal >= 1000 else ""
    return UsageError(
        f"{text!r} is PFN {decimal} in decimal, as we print PFNs, or {printed} in "
        f"hexadecimal, as the kernel does: use pfn:{mark}{decimal} or pfn:{printed:#x}"
    )


def resolve_page(vmemmap: Vmemmap, spec: PageSpec) -> int:
    """
    The PFN that a specification means.

    :raises UsageError: if there cannot be such a page.
    :raises NotInDumpError: if what leads to it is not in the dump.
    """
    pfn = _RESOLVERS[spec.kind](vmemmap, spec)
    slice_ = pfn * vmemmap.size // vmemmap.page_size
    # Where a page table was not read, struct pages may go on.
    if pfn >= vmemmap.end_pfn and not vmemmap.may_go_on_at(slice_):
        hint = ""
        if spec.kind == "pfn" and spec.value >= vmemmap.kernel.max_pfn_limit:
            hint = "; an address needs page:, virt: or phys: in front"
        raise UsageError(
            f"{spec.text}: PFN {pfn} is out of range, struct pages end at PFN "
            f"{vmemmap.end_pfn - 1}{hint}"
        )
    return pfn


def _resolve_pfn(_vmemmap: Vmemmap, spec: PageSpec) -> int:
    return spec.value


def _resolve_phys(vmemmap: Vmemmap, spec: PageSpec) -> int:
    return spec.value >> vmemmap.kernel.geometry.page_shift


def _resolve_page(vmemmap: Vmemmap, spec: PageSpec) -> int:
    pfn = vmemmap.page_pfn(spec.value)
    if pfn is not None:
        return pfn
    offset = spec.value - vmemmap.base
    inside = offset // vmemmap.size
    if 0 <= inside < vmemmap.kernel.max_pfn_limit:
        raise UsageError(
            f"{spec.text}: not the address of a struct page but "
            f"{offset % vmemmap.size} bytes into page:{vmemmap.page_address(inside):#x}"
        )
    hint = ""
    if spec.value < 1 << 32:
        hint = "; it may be a hash, which is what the kernel prints for a pointer (%p)"
    raise UsageError(
        f"{spec.text}: not in vmemmap, which begins at {vmemmap.base:#x}{hint}"
    )


def _resolve_virt(vmemmap: Vmemmap, spec: PageSpec) -> int:
    from drgn.helpers.linux.mm import follow_phys

    kernel = vmemmap.kernel
    if spec.value < kernel.lowest_kernel_address:
        raise UsageError(
            f"{spec.text}: not a kernel address; task:PID:0xVADDR takes those of a task"
        )
    physical = kernel.translation.outside_page_tables(spec.value)
    if physical is not None:
        return physical >> kernel.geometry.page_shift
    if kernel.page_table_format is None:
        try:
            init_mm = kernel.prog["init_mm"].address_of_()
            phys = follow_phys(init_mm, spec.value).value_()
        except (FaultError, LookupError):
            raise NotInDumpError(
                f"{spec.text}: not mapped, or not in this dump"
            ) from None
        return int(phys) >> kernel.geometry.page_shift
    start = spec.value & -kernel.geometry.page_size
    found = walk(
        kernel.reader,
        kernel.page_table_format,
        start,
        start + kernel.geometry.page_size,
    )
    if not len(found.runs):
        if found.missing:
            table = found.missing[0]
            raise NotInDumpError(
                f"{spec.text}: page table {table.address:#x} {table.reason}"
            )
        raise UsageError(f"{spec.text}: not mapped")
    run = found.runs
    return int(run.pfn[0]) + ((start - int(run.va[0])) >> kernel.geometry.page_shift)


def _resolve_task(vmemmap: Vmemmap, spec: PageSpec) -> int:
    from drgn.helpers.linux.mm import follow_phys
    from drgn.helpers.linux.pid import find_task

    kernel = vmemmap.kernel
    if not kernel.has_types:
        raise UnavailableError(f"{spec.text}: finding a task needs types")
    if kernel.sources.extract_kind is not None:
        raise NotInDumpError(
            f"{spec.text}: not in this dump: it is an extract, which has no tasks"
        )
    try:
        task = find_task(kernel.prog, spec.pid or 0)
        if not task:
            raise UsageError(f"{spec.text}: there is no task {spec.pid}")
        mm = task.mm.read_()
        if not mm:
            raise UsageError(f"{spec.text}: task {spec.pid} has no address space")
        phys = follow_phys(mm, spec.value).value_()
    except FaultError as e:
        raise NotInDumpError(
            f"{spec.text}: not mapped, or not in this dump: {e}"
        ) from None
    return int(phys) >> kernel.geometry.page_shift


_RESOLVERS: dict[str, Callable[[Vmemmap, PageSpec], int]] = {
    "pfn": _resolve_pfn,
    "page": _resolve_page,
    "virt": _resolve_virt,
    "phys": _resolve_phys,
    "task": _resolve_task,
}
