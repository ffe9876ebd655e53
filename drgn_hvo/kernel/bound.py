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
from typing import Any, Literal, Optional, Union

from drgn import FaultError, Program, Type

from drgn_hvo.errors import (
    DetectionError,
    TargetError,
    UnavailableError,
    UsageError,
)
from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.page_table_formats import PageTableFormat
from drgn_hvo.formats.tail_words import Geometry
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.core_sources import has_debuginfo
from drgn_hvo.kernel.finders import FINDER_NAME, are_finders_enabled, install
from drgn_hvo.kernel.frames import FrameReader
from drgn_hvo.kernel.struct_page import (
    StructPageLayout,
    struct_page_from_types,
    struct_page_from_vmcoreinfo,
)
from drgn_hvo.kernel.translation import architecture_name, vmemmap_from_mem_section
from drgn_hvo.kernel.unread import KnownWords

__all__ = ("ASSUMPTIONS", "Kernel", "kernel")

_CACHE_KEY = "drgn_hvo.kernel.bound"

# What VMCOREINFO may say of struct page besides the types.
_NOTED = (
    *("size", "offset", "flags", "refcount", "mapcount", "mapping", "private", "lru"),
)

#: What ``--assume KEY=VALUE`` can override, and its values (``None``: a number).
ASSUMPTIONS: dict[str, Optional[tuple[str, ...]]] = {
    "encoding": ("pointer", "mask"),
    "tail_layout": ("plain", "first-tail", "fake-head", "shared"),
    "vmemmap": None,
}


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
        #: The same assumptions, as they were given.
        self.assumed = dict(assume)
        self._constants: dict[str, Optional[int]] = {}
        self.sources = install(prog)
        arch = architecture_name(prog)
        if arch is None:
            raise TargetError("the architecture of this target is not known")
        #: The architecture, as ``uname -m`` calls it.
        self.arch = arch
        self.architecture = ARCHITECTURES.get(arch)
        try:
            self.vmcoreinfo: Vmcoreinfo = self.sources.vmcoreinfo()
            self.translation = self.sources.translation()
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
        self.known_words = KnownWords(prog, self.geometry.page_size)

    @property
    def illegal_pointer_value(self) -> int:
        """``CONFIG_ILLEGAL_POINTER_VALUE``, which no type records."""
        entry = self.architecture
        return 0xDEAD << 48 if entry is None else entry.illegal_pointer_value

    @property
    def page_table_format(self) -> Optional[PageTableFormat]:
        """
        How to walk this kernel's page tables, if we can; else, see
        :attr:`no_page_tables_reason`.
        """
        return self.translation.page_tables

    @property
    def no_page_tables_reason(self) -> str:
        """Why page tables cannot be walked, if they cannot."""
        reason = self.translation.no_page_tables_reason
        return f"page tables of {self.arch} cannot be walked: {reason}"

    @property
    def tails_are_writable(self) -> bool:
        """
        Whether this architecture maps shared tail pages writable, see
        :attr:`PageTableFormat.tails_are_writable
        <drgn_hvo.formats.page_table_formats.PageTableFormat.tails_are_writable>`.
        """
        page_table = self.page_table_format
        return page_table is not None and page_table.tails_are_writable

    def direct_map(self, physical: int) -> Optional[int]:
        """
        The address of physical memory in the direct map, if that is known; of what is
        below all memory it need not be an address.
        """
        base = self.variable("page_offset_base")
        if base is not None:
            return int(base) + physical
        for one in self.translation.linear_ranges:
            if one.is_direct_map:
                return one.start + physical - one.physical
        return None

    @property
    def lowest_kernel_address(self) -> int:
        """Below it are addresses of processes."""
        return self.translation.lowest_address

    @property
    def has_types(self) -> bool:
        """Whether structures can be read, not just struct pages."""
        return self.types_from != "vmcoreinfo"

    def _types_from(self) -> Literal["dwarf", "btf", "vmcoreinfo"]:
        if has_debuginfo(self.prog):
            return "dwarf"
        if not are_finders_enabled(self.prog):
            self.no_types_reason = f"the finders named {FINDER_NAME!r} are turned off"
            return "vmcoreinfo"
        try:
            # Types without variables are for sessions; our commands need both.
            self.sources.address("__start_BTF")
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
        # To look for one goes through all names of BTF.
        if name not in self._constants:
            self._constants[name] = self._find_constant(name)
        return self._constants[name]

    def _find_constant(self, name: str) -> Optional[int]:
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
            found = self.prog[name]
            value = found.value_()
            if value == 0:
                self.known_words.check(0, found.address_ or 0)
        except (LookupError, FaultError):
            return None
        return value

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

    def _struct_page(self) -> StructPageLayout:
        noted = struct_page_from_vmcoreinfo(self.vmcoreinfo)
        if not self.has_types:
            if noted is None:
                raise TargetError(
                    "nothing describes struct page: no debuginfo, no BTF, and "
                    "VMCOREINFO lacks SIZE(page) or OFFSET(page.compound_head)"
                )
            return noted
        typed = struct_page_from_types(self.prog, self.types_from)
        for what in _NOTED if noted is not None else ():
            if getattr(noted, what) not in (None, getattr(typed, what)):
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
            mask = None if bit is None or not 0 <= bit < 64 else 1 << bit
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
            found["mem_section"] = vmemmap_from_mem_section(
                self.prog, self.vmcoreinfo, self.geometry.page_size
            )
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
        if not self.lowest_kernel_address <= base < 1 << 64 or base % 8:
            raise TargetError(f"vmemmap cannot be at {base:#x}")
        return base

    @cached_property
    def vmemmap_limits(self) -> tuple[int, int]:
        """
        Where vmemmap can be at most. It may begin inside the page that holds the struct
        page of PFN 0; some architectures say from where to where it goes.
        """
        vmcoreinfo = self.vmcoreinfo
        start = max(self.vmemmap, vmcoreinfo.number("VMEMMAP_START") or 0)
        end = min(self.vmemmap + self.max_pfn_limit * self.struct_page.size, 1 << 64)
        stated = vmcoreinfo.number("VMEMMAP_END")
        if stated is not None and start < stated < end:
            return start, stated
        vmalloc = vmcoreinfo.number("VMALLOC_START")
        if not self.lowest_kernel_address or start < (vmalloc or 0) < end:
            # MAX_PHYSMEM_BITS is more than generous, and something else is mapped
            # behind vmemmap, as on s390x.
            sections = self._end_of_sections() * self.struct_page.size
            end = min(vmalloc or end, self.vmemmap + sections)
        return start, end

    def _end_of_sections(self) -> int:
        """One more than the highest PFN of the last present section."""
        number, shift = (
            self.variable("__highest_present_section_nr"),
            self.section_shift,
        )
        if number is None or shift is None:
            return self.max_pfn_limit
        return int(number) + 1 << shift

    @cached_property
    def section_shift(self) -> Optional[int]:
        """``PFN_SECTION_SHIFT``; ``None`` if nothing tells."""
        bits = self.vmcoreinfo.number("SECTION_SIZE_BITS")
        if bits is None:
            return None
        # 24 to 34 on those that there are; a section has a page of the largest order of
        # the buddy allocator, include/linux/mmzone.h asserts.
        if not self.geometry.page_shift < bits <= 56:
            raise TargetError(f"VMCOREINFO has SECTION_SIZE_BITS={bits}")
        return bits - self.geometry.page_shift

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


def kernel(prog: Program) -> Kernel:
    """
    The kernel of a program, bound once.

    :raises HvoError: if it cannot be understood.
    """
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = Kernel(prog, {})
    bound: Kernel = prog.cache[_CACHE_KEY]
    return bound
