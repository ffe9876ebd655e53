# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The kernel at hand
------------------

:class:`Kernel` binds a :class:`drgn.Program` to what must be known before any
struct page can be read: where the words of ``struct page`` are, where vmemmap
is, and who says so. Sources that disagree end in
:exc:`~drgn_hvo.errors.DetectionError`; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Optional, Union

from drgn import Architecture, FaultError, Program, Type

from drgn_hvo.errors import (
    DetectionError,
    TargetError,
    UnavailableError,
    UsageError,
)
from drgn_hvo.formats.page_table_formats import PAGE_TABLE_FORMATS, PageTableFormat
from drgn_hvo.formats.tail_words import Geometry
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.finders import (
    FINDER_NAME,
    are_finders_enabled,
    has_debuginfo,
    install,
)
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.struct_page import (
    StructPage,
    struct_page_from_types,
    struct_page_from_vmcoreinfo,
)

__all__ = ("ASSUMPTIONS", "TRANSLATED_BY_DRGN", "Kernel", "kernel")

_CACHE_KEY = "drgn_hvo.kernel.bound"

#: What ``--assume KEY=VALUE`` can override, and its values (``None``: a number).
ASSUMPTIONS: dict[str, Optional[tuple[str, ...]]] = {
    "encoding": ("pointer", "mask"),
    "tail_layout": ("plain", "fake-head", "shared"),
    "vmemmap": None,
}


#: The architectures of 64-bit kernels that drgn can translate addresses of.
TRANSLATED_BY_DRGN = (
    Architecture.X86_64,
    Architecture.AARCH64,
    Architecture.S390X,
    Architecture.PPC64,
)


# arch/*/Kconfig; where it is not set, as on LoongArch, it is 0.
_ILLEGAL_POINTER_VALUES = {Architecture.PPC64: 0x5DEADBEEF << 28}


class Kernel:
    """
    A Linux kernel in a :class:`drgn.Program`; without assumptions, use
    :func:`kernel()` to get it.

    :param assume: Detected properties to override, see :data:`ASSUMPTIONS`.
    :raises TargetError: if *prog* is no kernel, or one that is not supported.
    :raises UsageError: if *assume* is not understood.
    """

    def __init__(self, prog: Program, assume: Mapping[str, str]) -> None:
        self.prog = prog
        self.assume = _parse_assumptions(assume)
        self.sources = install(prog)
        platform = prog.platform
        if platform is None:
            raise TargetError("the architecture of this target is not known")
        self.architecture = platform.arch
        try:
            self.vmcoreinfo: Vmcoreinfo = self.sources.vmcoreinfo()
        except UnavailableError as e:
            raise TargetError(str(e)) from None
        #: Why there are no types, if there are none.
        self.no_types_reason: Optional[str] = None
        self.release = self.vmcoreinfo.get("OSRELEASE")
        self.types_from = self._types_from()
        self.symbols_from = self._symbols_from()
        self.struct_page = self._struct_page()
        self.geometry = self._geometry()
        self.reader = FrameReader(prog, self.geometry.page_size)

    @property
    def arch(self) -> str:
        """The architecture, as ``uname -m`` calls it."""
        return self.architecture.name.lower()

    @property
    def illegal_pointer_value(self) -> int:
        """``CONFIG_ILLEGAL_POINTER_VALUE``, which no type records."""
        return _ILLEGAL_POINTER_VALUES.get(self.architecture, 0xDEAD << 48)

    @cached_property
    def page_table_format(self) -> Optional[PageTableFormat]:
        """
        How to walk this kernel's page tables, if we can.

        :raises FormatError: if VMCOREINFO does not lead to the top table.
        """
        make = PAGE_TABLE_FORMATS.get(self.arch)
        return None if make is None else make(self.vmcoreinfo)

    @property
    def has_types(self) -> bool:
        """Whether structures can be read, not just struct pages."""
        return self.types_from != "vmcoreinfo"

    def _types_from(self) -> str:
        if has_debuginfo(self.prog):
            return "dwarf"
        if not are_finders_enabled(self.prog):
            self.no_types_reason = f"the finders named {FINDER_NAME!r} are turned off"
            return "vmcoreinfo"
        try:
            self.sources.types()
        except UnavailableError as e:
            self.no_types_reason = str(e)
            return "vmcoreinfo"
        return "btf"

    def _symbols_from(self) -> str:
        if has_debuginfo(self.prog):
            return "elf"
        try:
            self.sources.kallsyms()
        except UnavailableError:
            return "vmcoreinfo"
        return "kallsyms"

    def type(self, name: str) -> Optional[Type]:
        """A type, ``None`` if there is none of that name or there are no types."""
        if not self.has_types:
            return None
        try:
            return self.prog.type(name)
        except LookupError:
            return None

    def constant(self, name: str) -> Optional[int]:
        """An enumerator, ``None`` if this kernel has none of that name."""
        if not self.has_types:
            return None
        try:
            value: int = self.prog.constant(name).value_()
        except LookupError:
            return None
        return value

    def variable(self, name: str) -> Any:
        """
        The value of a variable, as :meth:`drgn.Object.value_()`.

        :return: ``None`` if the kernel has no such variable or the dump lacks it.
        """
        if not self.has_types:
            return None
        try:
            return self.prog[name].value_()
        except (LookupError, FaultError):
            return None

    def has_variable(self, name: str) -> bool:
        """Whether the kernel has a variable, if that can be told."""
        if self.symbols_from == "elf":
            return any(True for _ in self.prog.symbols(name))
        try:
            return self.sources.address(name) is not None
        except UnavailableError:
            return False

    def _geometry(self) -> Geometry:
        page_size = self.vmcoreinfo.integer("PAGESIZE")
        if page_size is None:
            raise TargetError("VMCOREINFO has no PAGESIZE")
        try:
            return Geometry(page_size, self.struct_page.size)
        except ValueError as e:
            raise TargetError(f"VMCOREINFO cannot be right: {e}") from None

    def _struct_page(self) -> StructPage:
        noted = struct_page_from_vmcoreinfo(self.vmcoreinfo)
        if not self.has_types:
            if noted is None:
                raise TargetError(
                    "nothing describes struct page: no debuginfo, no BTF, and "
                    "VMCOREINFO lacks SIZE(page) or OFFSET(page.compound_head)"
                )
            return noted
        typed = struct_page_from_types(self.prog, self.types_from)
        for what in ("size", "offset", "flags"):
            if noted is not None and getattr(noted, what) != getattr(typed, what):
                raise DetectionError(
                    f"{self.types_from} and VMCOREINFO disagree about struct page: "
                    f"{what} {getattr(typed, what)} and {getattr(noted, what)}"
                )
        return typed

    @cached_property
    def PG_head_mask(self) -> int:
        """
        ``1 << PG_head``.

        :raises TargetError: if nothing says which bit it is.
        """
        mask = self.vmcoreinfo.number("PG_head_mask")
        if mask is None:
            bit = self.constant("PG_head")
            mask = None if bit is None else 1 << bit
        if mask is None or mask <= 0 or mask & (mask - 1):
            raise TargetError("nothing says which page flag is PG_head")
        return mask

    @cached_property
    def vmemmap(self) -> int:
        """
        Address of the struct page of PFN 0.

        :raises DetectionError: if sources disagree.
        :raises TargetError: if no source says.
        """
        assumed = self.assume.get("vmemmap")
        if isinstance(assumed, int):
            return assumed
        found = {
            "VMCOREINFO": self.vmcoreinfo.symbol("vmemmap"),
            "vmemmap_base": self.variable("vmemmap_base"),
        }
        if None in found.values():
            found["mem_section"] = _vmemmap_from_mem_section(self)
        known = {source: at for source, at in found.items() if at is not None}
        if not known:
            raise TargetError(
                "nothing says where vmemmap is: neither VMCOREINFO nor mem_section"
            )
        if len(set(known.values())) > 1:
            both = " and ".join(
                f"{source} says {at:#x}" for source, at in known.items()
            )
            raise DetectionError(
                f"where is vmemmap? {both}; use --assume vmemmap=ADDRESS"
            )
        base = next(iter(known.values()))
        if not 1 << 63 <= base < 1 << 64 or base % 8:
            raise TargetError(f"vmemmap cannot be at {base:#x}")
        return base

    @cached_property
    def max_pfn_limit(self) -> int:
        """One more than the highest PFN that this kernel could address."""
        bits = self.vmcoreinfo.number("MAX_PHYSMEM_BITS") or 52
        if not 32 <= bits <= 56:
            raise TargetError(f"VMCOREINFO has MAX_PHYSMEM_BITS={bits}")
        return 1 << (bits - self.geometry.page_shift)


def _parse_assumptions(assume: Mapping[str, str]) -> dict[str, Union[str, int]]:
    parsed: dict[str, Union[str, int]] = {}
    for key, value in assume.items():
        if key not in ASSUMPTIONS:
            known = ", ".join(ASSUMPTIONS)
            raise UsageError(f"cannot assume {key!r}; what can be assumed: {known}")
        choices = ASSUMPTIONS[key]
        if choices is None:
            try:
                parsed[key] = int(value, 0)
            except ValueError:
                raise UsageError(f"{key}={value!r} is not a number") from None
        elif value not in choices:
            raise UsageError(f"{key} is one of {', '.join(choices)}, not {value!r}")
        else:
            parsed[key] = value
    return parsed


def _vmemmap_from_mem_section(kernel: Kernel) -> Optional[int]:
    """
    vmemmap from the first section that is present, as sparse_encode_mem_map()
    left it: the same in all sections, with flags in the low bits.
    """
    vmcoreinfo = kernel.vmcoreinfo
    page_size = kernel.geometry.page_size
    roots = vmcoreinfo.symbol("mem_section")
    length = vmcoreinfo.length("mem_section")
    size = vmcoreinfo.size("mem_section")
    offset = vmcoreinfo.offset("mem_section.section_mem_map")
    section_bits = vmcoreinfo.number("SECTION_SIZE_BITS")
    physmem_bits = vmcoreinfo.number("MAX_PHYSMEM_BITS")
    if offset is None or not (
        roots and length and size and section_bits and physmem_bits
    ):
        return None
    if not 0 < section_bits < physmem_bits < 64 or offset > size - 8:
        return None
    per_root = page_size // size
    # Only CONFIG_SPARSEMEM_EXTREME has roots of a page each.
    if length * per_root != 1 << (physmem_bits - section_bits):
        return None
    has_mem_map = 1 << 1  # SECTION_HAS_MEM_MAP, since v2.6.13
    try:
        for root in range(min(length, 1 << 12)):
            sections = kernel.prog.read_u64(roots + 8 * root)
            for i in range(per_root if sections else 0):
                word = kernel.prog.read_u64(sections + i * size + offset)
                if word & has_mem_map:
                    # The flags fit below a page, and vmemmap begins on one.
                    return word & -page_size
    except FaultError:
        return None
    return None


def kernel(prog: Program) -> Kernel:
    """
    The kernel of a program, bound once.

    :raises HvoError: if it cannot be understood.
    """
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = Kernel(prog, {})
    bound: Kernel = prog.cache[_CACHE_KEY]
    return bound
