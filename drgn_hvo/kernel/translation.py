# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernel addresses
----------------

Where drgn cannot translate the addresses of a kernel, :func:`add_memory_segments()`
lets a program read them all the same: by arithmetic where the kernel maps memory
linearly, through its page tables elsewhere. What drgn reads rightly without this stays
as it is.

Every drgn session runs this when it gets its target: nothing here imports NumPy, and
formats are imported only where drgn fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property, lru_cache, partial
import os
import re
from typing import TYPE_CHECKING, BinaryIO, Callable, NamedTuple, Optional

from drgn import Architecture, FaultError, Program, ProgramFlags

from drgn_hvo.errors import FormatError, UnavailableError

if TYPE_CHECKING:
    from drgn_hvo.formats.architectures.architecture import (
        Architecture as ArchitectureEntry,
        LinearRange,
    )
    from drgn_hvo.formats.byteorder import ByteOrder
    from drgn_hvo.formats.elf_segments import Segment
    from drgn_hvo.formats.page_table_formats import PageTableFormat
    from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

__all__ = (
    "WALKED_BY_DRGN",
    "Entry",
    "Translation",
    "add_memory_segments",
    "architecture_name",
    "entries_to",
    "entry_of",
    "vmemmap_from_mem_section",
)

#: The architectures of 64-bit kernels whose page tables drgn walks: what it reads of
#: them it reads everywhere.
WALKED_BY_DRGN = frozenset(
    {
        Architecture.X86_64,
        Architecture.AARCH64,
        Architecture.S390X,
        Architecture.PPC64,
    }
)

# How many translated pages are remembered.
_KEPT_PAGES = 1 << 14

_Range = tuple[int, int]


class Entry(NamedTuple):
    """
    A page table entry.

    :param address: Physical address of the entry itself.
    :param value: What it holds.
    :param level: Of its table; 0 is the lowest.
    """

    address: int
    value: int
    level: int


#: ``read(address, size)``: physical memory; ``None`` if it is not in the dump.
PhysicalReader = Callable[[int, int], Optional[bytes]]


def entry_of(
    read: PhysicalReader, page_table: PageTableFormat, byteorder: ByteOrder, va: int
) -> Optional[Entry]:
    """
    The entry that decides how one address is mapped: a mapping, or the first one on
    the way that is not present.

    :param byteorder: Of the kernel.
    :return: ``None`` if a table on the way is not in the dump.
    """
    return list(entries_to(read, page_table, byteorder, va))[-1]


def entries_to(
    read: PhysicalReader, page_table: PageTableFormat, byteorder: ByteOrder, va: int
) -> Iterator[Optional[Entry]]:
    """
    The entries on the way to one address, the one in the top table first.

    :param byteorder: Of the kernel.
    :return: Iterator whose last element is that of :func:`entry_of()`.
    """
    byteorder = page_table.entry_byteorder or byteorder
    table = page_table.root
    for level in range(len(page_table.levels) - 1, -1, -1):
        address = table + 8 * page_table.index(va, level)
        data = read(address, 8)
        if data is None:
            yield None
            return
        entry = Entry(address, int.from_bytes(data, byteorder), level)
        yield entry
        decoded = page_table.decode(entry.value, level)
        if not decoded.present or decoded.is_mapping:
            return
        table = decoded.address
        if page_table.none_is_a_table and _is_none(read, page_table, entry, table):
            return


def _is_none(
    read: PhysicalReader, page_table: PageTableFormat, entry: Entry, table: int
) -> bool:
    """Whether an entry leads to the table that stands for none."""
    data = read(table, page_table.table_size(entry.level - 1))
    return data is not None and data == data[:8] * (len(data) // 8)


def architecture_name(prog: Program) -> Optional[str]:
    """drgn's name of a program's architecture, in lower case."""
    platform = prog.platform
    return None if platform is None else platform.arch.name.lower()


def vmemmap_from_mem_section(
    prog: Program, vmcoreinfo: Vmcoreinfo, page_size: int
) -> Optional[int]:
    """
    vmemmap from the first section that is present, as sparse_encode_mem_map()
    left it: the same in all sections, with flags in the low bits.
    """
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
            sections = prog.read_u64(roots + 8 * root)
            for i in range(per_root if sections else 0):
                word = prog.read_u64(sections + i * size + offset)
                if word & has_mem_map:
                    # The flags fit below a page, and vmemmap begins on one.
                    return word & -page_size
    except FaultError:
        return None
    return None


class Translation:
    """
    Physical addresses of a kernel's virtual ones.

    :param architecture: ``None`` if there is no entry for it: then nothing is known.
    """

    def __init__(
        self,
        prog: Program,
        vmcoreinfo: Vmcoreinfo,
        architecture: Optional[ArchitectureEntry],
    ) -> None:
        self._prog = prog
        self._vmcoreinfo = vmcoreinfo
        self._architecture = architecture
        self._is_choosing = False
        #: Why there are no page tables, if there are none.
        self.no_page_tables_reason: Optional[str] = None

    @property
    def lowest_address(self) -> int:
        """Below it are addresses of processes."""
        entry = self._architecture
        return 1 << 63 if entry is None else entry.lowest_kernel_address

    @cached_property
    def linear_ranges(self) -> tuple[LinearRange, ...]:
        """What is mapped linearly, as far as VMCOREINFO tells."""
        if self._architecture is None:
            return ()
        try:
            return self._architecture.linear_ranges(self._vmcoreinfo)
        except FormatError:
            return ()

    @cached_property
    def page_tables(self) -> Optional[PageTableFormat]:
        """
        The kernel's page tables; ``None`` if nothing is known of them, see
        :attr:`no_page_tables_reason`.
        """
        try:
            return self._choose()
        except FormatError as e:
            self.no_page_tables_reason = str(e)
            return None

    def _choose(self) -> PageTableFormat:
        if self._architecture is None:
            raise FormatError("nothing is known of its page tables")
        candidates = self._architecture.page_tables(self._vmcoreinfo)
        if len(candidates) == 1:
            return candidates[0]
        address = self.struct_page_of_image()
        if address is None:
            raise FormatError("nothing says how many levels its page tables have")
        fit = [c for c in candidates if self._fits(c, address)]
        if len(fit) != 1:
            levels = ", ".join(str(len(c.levels)) for c in candidates)
            raise FormatError(
                f"{'none' if not fit else 'more than one'} of {levels} levels of page "
                "tables fits what is in this dump"
            )
        return fit[0]

    def _fits(self, page_table: PageTableFormat, address: int) -> bool:
        entry = entry_of(self._read_physical, page_table, self._byteorder, address)
        if entry is None:
            return False
        decoded = page_table.decode(entry.value, entry.level)
        return decoded.present and decoded.is_mapping

    @property
    def _byteorder(self) -> ByteOrder:
        from drgn_hvo.kernel.core_sources import program_byteorder

        return program_byteorder(self._prog)

    def _read_physical(self, address: int, size: int) -> Optional[bytes]:
        try:
            return self._prog.read(address, size, physical=True)
        except (FaultError, ValueError, OverflowError):
            return None

    def struct_page_of_image(self) -> Optional[int]:
        """
        The address of the struct page of a page of the kernel image: one that every
        kernel has. ``None`` if it cannot be told.
        """
        vmcoreinfo = self._vmcoreinfo
        stext, size = vmcoreinfo.symbol("_stext"), vmcoreinfo.size("page")
        page_size = vmcoreinfo.integer("PAGESIZE")
        if stext is None or not size or not page_size:
            return None
        physical = self._linear(stext)
        base = vmcoreinfo.symbol("vmemmap")
        if base is None:
            base = vmemmap_from_mem_section(self._prog, vmcoreinfo, page_size)
        if physical is None or base is None:
            return None
        return base + physical[0] // page_size * size

    def _linear(self, address: int) -> Optional[_Range]:
        for one in self.linear_ranges:
            if one.start <= address < one.end:
                return one.physical + address - one.start, one.end - address
        return None

    def outside_page_tables(self, address: int) -> Optional[int]:
        """
        The physical address behind a virtual one that page tables say nothing about,
        as in LoongArch's direct windows; ``None`` for all others.
        """
        for one in self.linear_ranges:
            if not one.by_page_tables and one.start <= address < one.end:
                return one.physical + address - one.start
        return None

    def physical(self, address: int) -> Optional[_Range]:
        """
        The physical address behind a virtual one, and for how many bytes from there on
        the next ones follow; ``None`` if it is not mapped or cannot be told.
        """
        found = self._linear(address)
        if found is None and not self._is_choosing:
            found = self._by_page_tables(address)
        return found

    def _by_page_tables(self, address: int) -> Optional[_Range]:
        self._is_choosing = True
        try:
            page_table = self.page_tables
        finally:
            self._is_choosing = False
        if page_table is None:
            return None
        size = 1 << page_table.page_shift
        frame = self._frame(address & -size)
        if frame is None:
            return None
        return frame + address % size, size - address % size

    @cached_property
    def _frame(self) -> Callable[[int], Optional[int]]:
        if self._prog.flags & ProgramFlags.IS_LIVE:
            return self._walk
        return lru_cache(_KEPT_PAGES)(self._walk)

    def _walk(self, address: int) -> Optional[int]:
        """The physical address of a page."""
        page_table = self.page_tables
        assert page_table is not None, "the caller has checked that"
        entry = entry_of(self._read_physical, page_table, self._byteorder, address)
        if entry is None:
            return None
        return page_table.mapped_to(entry.value, entry.level, address)

    def read(self, address: int, count: int) -> bytes:
        """
        Read kernel memory.

        :raises FaultError: if it is not mapped, or not in the dump.
        """
        parts = []
        while count:
            found = self.physical(address)
            if found is None:
                raise FaultError("not mapped, or not in this dump", address)
            size = min(count, found[1])
            parts.append(self._prog.read(found[0], size, physical=True))
            address, count = address + size, count - size
        return b"".join(parts)


# What every VMCOREINFO says, found without parsing the rest.
_INIT_UTS_NS = re.compile(rb"^SYMBOL\(init_uts_ns\)=([0-9a-f]{1,16})$", re.MULTILINE)

# struct uts_namespace begins with its names, and before v5.11 a reference count.
_UTS_SIZE = 32


def _says_linux(read: Callable[[int, int], bytes], address: int) -> bool:
    try:
        return b"Linux\0" in read(address, _UTS_SIZE)
    except (FaultError, NotImplementedError, OverflowError, ValueError):
        return False


def _can_read(read: Callable[[int, int], bytes], address: int) -> bool:
    try:
        return bool(read(address, 8))
    except (FaultError, NotImplementedError, OverflowError, ValueError):
        return False


def add_memory_segments(prog: Program) -> None:
    """
    Let a program read kernel memory that drgn cannot translate, if we can.

    To know, ``init_uts_ns`` is read, which says "Linux", and a struct page.
    """
    # /proc/kcore has a segment for everything.
    if prog.flags & ProgramFlags.IS_LOCAL:
        return
    _add_physical_segment(prog)
    try:
        note: bytes = prog["VMCOREINFO"].string_()
    except LookupError:
        return
    match = _INIT_UTS_NS.search(note)
    if match is None:
        return
    init_uts_ns = int(match[1], 16)
    platform = prog.platform
    reads_image = _says_linux(prog.read, init_uts_ns)
    if reads_image and platform is not None and _is_translated(prog, platform.arch):
        return
    from drgn_hvo.kernel.core_sources import core_sources

    try:
        translation = core_sources(prog).translation()
    except UnavailableError:
        return  # reading VMCOREINFO raises the same error, with its reason
    if reads_image and not _reads_too_much(prog):
        # By segments of the file, or by the library that reads it?
        address = translation.struct_page_of_image()
        if address is None or _can_read(prog.read, address):
            return
    elif not _says_linux(translation.read, init_uts_ns):
        return
    for start, end in _gaps(translation.lowest_address, _file_segments(prog)):
        prog.add_memory_segment(
            start,
            min(end - start, (1 << 64) - 1),
            lambda address, count, _offset, _physical: translation.read(address, count),
        )


def _reads_too_much(prog: Program) -> bool:
    """
    Whether drgn's walk needs pages that a dump may lack.

    On s390x it reads 16 KiB from each table on, though those of pages have 2 KiB: what
    lies behind need not be in a dump that was filtered.
    """
    platform = prog.platform
    return platform is not None and platform.arch == Architecture.S390X


def _is_translated(prog: Program, architecture: Architecture) -> bool:
    """
    Whether drgn translates all addresses if it translates those of the kernel image.

    kdump-compressed files are translated by libkdumpfile, which does not know all that
    drgn knows: on arm64, for one, no addresses of 52 bits.
    """
    if architecture not in WALKED_BY_DRGN:
        return False
    if architecture == Architecture.X86_64:
        return True
    if prog.core_dump_path is None:
        return not _reads_too_much(prog)
    from drgn_hvo.formats.elf_segments import ELF_MAGIC

    with suppress(OSError), open(prog.core_dump_path, "rb") as f:
        return f.read(len(ELF_MAGIC)) == ELF_MAGIC
    return False


def _add_physical_segment(prog: Program) -> None:
    """
    Let a program read physical memory that drgn does not find in the file.

    In an ELF file without a VMCOREINFO note, drgn takes physical addresses of 0 for
    none; QEMU never adds the note for s390x and ppc64 pseries, whose memory is one
    segment from 0 on. Of kdump-compressed files, libkdumpfile reads none of LoongArch
    and ppc64.
    """
    path, platform = prog.core_dump_path, prog.platform
    if path is None or platform is None or platform.arch == Architecture.X86_64:
        return
    # For as long as the program, if it is used.
    file = open(path, "rb", buffering=0)  # noqa: SIM115
    found = _unread_elf(file) or _unread_kdump(file)
    if found is None or _reads_physical(prog, found.start):
        file.close()
        return
    prog.add_memory_segment(
        0,
        found.size,
        lambda address, count, _offset, _physical: found.read(address, count),
        True,
    )


class _Unread(NamedTuple):
    """
    Memory of a file that drgn may not read.

    :param start: An address that is in the file.
    """

    start: int
    size: int
    read: Callable[[int, int], bytes]


def _unread_elf(file: BinaryIO) -> Optional[_Unread]:
    from drgn_hvo.formats.elf_segments import read_elf_frame

    try:
        elf = read_elf_frame(file)
    except FormatError:
        return None
    if elf is None or len(elf.loads) != 1 or elf.loads[0].paddr:
        return None
    (segment,) = elf.loads

    def read(address: int, count: int) -> bytes:
        data = os.pread(file.fileno(), count, segment.offset + address)
        if len(data) < count:
            raise FaultError("not in this dump", address)
        return data

    return _Unread(0, segment.filesz, read)


def _unread_kdump(file: BinaryIO) -> Optional[_Unread]:
    from drgn_hvo.formats.kdump import read_kdump_frame
    from drgn_hvo.formats.kdump_reader import KdumpReader
    from drgn_hvo.kernel.kdump_program import read_or_fault

    try:
        frame = read_kdump_frame(file)
    except FormatError:
        return None
    if frame is None:
        return None
    reader = KdumpReader(frame)
    return _Unread(reader.first, reader.end, partial(read_or_fault, reader))


def _reads_physical(prog: Program, address: int) -> bool:
    try:
        prog.read(address, 1, physical=True)
    except FaultError:
        return False
    return True


def _file_segments(prog: Program) -> list[Segment]:
    """The segments of the core file; none if it is no ELF file."""
    path = prog.core_dump_path
    if path is None:
        return []
    from drgn_hvo.formats.elf_segments import read_elf_frame

    try:
        with open(path, "rb") as f:
            elf = read_elf_frame(f)
    except (FormatError, OSError):
        return []
    return [] if elf is None else elf.loads


def _gaps(start: int, segments: Iterable[Segment]) -> Iterator[_Range]:
    """What segments leave of the addresses from *start* on."""
    for vaddr, size in sorted((s.vaddr, s.memsz) for s in segments):
        if start < vaddr:
            yield start, vaddr
        start = max(start, vaddr + size)
    if start < 1 << 64:
        yield start, 1 << 64
