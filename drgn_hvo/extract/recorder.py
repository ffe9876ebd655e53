# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Recording what is read
----------------------

A program that reads the memory of another one and notes every access: virtual ones
by address, so that what drgn reads to translate them does not count, and physical
ones by frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from drgn import FaultError, Object, Program, ProgramFlags
import numpy as np

from drgn_hvo.audit.run import run_audit
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import HvoError, UnavailableError
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.arrays import Int64Array, ranges
from drgn_hvo.kernel.bound import Kernel
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.target import load_symbols
from drgn_hvo.kernel.variables import VARIABLES
from drgn_hvo.memmap.hvo import Hvo

__all__ = ("Recorder", "Recording", "record")

# More physical memory than any architecture can address.
_MAX_PHYSICAL = 1 << 56
# With MAX_PHYSMEM_BITS 52 and sections of 128 MiB: 2^25 sections, 128 in a page.
_MAX_SECTION_ROOTS = 1 << 18
_MAX_VIRTUAL = (1 << 64) - 1


class Recorder:
    """
    Wraps a program.

    :param base: Where memory is read.
    """

    def __init__(self, base: Program) -> None:
        self.base = base
        #: What is being read, for the records.
        self.reason = "words"
        #: Address and size of virtual reads, by reason.
        self.virtual: dict[str, set[tuple[int, int]]] = {}
        #: Address and size of physical reads.
        self.physical: set[tuple[int, int]] = set()
        self.prog = Program(base.platform)
        self.prog.add_memory_segment(0, _MAX_PHYSICAL, self._read_physical, True)
        is_live = bool(base.flags & ProgramFlags.IS_LIVE)
        self.prog.set_linux_kernel_custom(_note(base), is_live)
        # In front of drgn's own translation: the base program translates, and is
        # recorded.
        self.prog.add_memory_segment(0, _MAX_VIRTUAL, self._read_virtual, False)

    def _read_physical(
        self, address: int, count: int, _offset: int, _physical: bool
    ) -> bytes:
        data = self.base.read(address, count, physical=True)
        self.physical.add((address, count))
        return data

    def _read_virtual(
        self, address: int, count: int, _offset: int, _physical: bool
    ) -> bytes:
        data = self.base.read(address, count)
        self.virtual.setdefault(self.reason, set()).add((address, count))
        return data

    @contextmanager
    def reading(self, reason: str) -> Iterator[None]:
        """Attribute what is read to a reason."""
        before, self.reason = self.reason, reason
        try:
            yield
        finally:
            self.reason = before

    def frames(self, page_size: int) -> Int64Array:
        """The frames that were read physically, ascending."""
        reads = np.array(sorted(self.physical), dtype=np.int64).reshape(-1, 2)
        first = reads[:, 0] // page_size
        end = -(-(reads[:, 0] + reads[:, 1]) // page_size)
        return np.unique(ranges(first, end - first))


def _note(base: Program) -> bytes:
    """
    VMCOREINFO of a program, with the addresses of kallsyms added where it lacks them:
    an extract holds no kernel image to search for these.
    """
    text: bytes = base["VMCOREINFO"].string_()
    try:
        found = core_sources(base).found_tables()
    except UnavailableError:
        return text
    if not found:
        return text
    lines = [line for line in text.split(b"\n") if line and b"(kallsyms_" not in line]
    more = [f"SYMBOL({name})={at:x}".encode() for name, at in sorted(found.items())]
    return b"\n".join([*lines, *more, b""])


class Recording:
    """
    What the commands read of a target.

    :param hvo: Of the recording program; reading on through it is harmless, the
        records here are final.
    """

    def __init__(self, recorder: Recorder, hvo: Hvo) -> None:
        self.hvo = hvo
        self.base = recorder.base
        self.frames = recorder.frames(hvo.kernel.geometry.page_size)
        self.virtual = {
            reason: sorted(reads) for reason, reads in recorder.virtual.items()
        }


def _read_sources(recorder: Recorder) -> None:
    """All of kallsyms and BTF, which drgn and every command begin with."""
    sources = install(recorder.prog, translates=True)
    for reason, source in (("kallsyms", sources.kallsyms), ("btf", sources.types)):
        with recorder.reading(reason):
            try:
                source()
            except UnavailableError:
                # The commands say why, on the extract as here. What was read in a
                # search that failed is not kept.
                recorder.virtual.pop(reason, None)


# What of a structure is kept, besides what the commands read: the page table, for
# follow_phys() and whatever else translates by hand. Nothing of other structures.
_MEMBERS = {"init_mm": ("pgd",), "contig_page_data": ()}


# What reading a variable can end in.
_NOT_READ = (
    ArithmeticError,
    FaultError,
    HvoError,
    LookupError,
    TypeError,
    ValueError,
)


def _read_variables(prog: Program) -> None:
    """
    All that drgn can be asked for by name, so that nothing reads as zero just because
    our commands did not look.
    """
    # drgn makes it from mem_section.
    names = [
        "vmemmap",
        *(n for n, variable in VARIABLES.items() if variable.in_extracts),
    ]
    for name in names:
        try:
            found = prog[name]
            for part in _parts(name, found):
                part.read_()
        except _NOT_READ:
            # Not in this kernel or dump, or of a type that has no value, so nobody else
            # can read it either.
            continue


def _parts(name: str, found: Object) -> list[Object]:
    if name in _MEMBERS:
        return [found.member_(member) for member in _MEMBERS[name]]
    return [found]


def _read_sections(prog: Program, kernel: Kernel) -> None:
    """
    ``mem_section[]``, by which makedumpfile and drgn's helpers find struct pages;
    only CONFIG_SPARSEMEM_EXTREME has roots of a page each.
    """
    roots = kernel.vmcoreinfo.symbol("mem_section")
    length = kernel.vmcoreinfo.length("mem_section")
    if not roots or not length or length > _MAX_SECTION_ROOTS:
        return
    with suppress(FaultError, OverflowError):
        table = np.frombuffer(prog.read(roots, 8 * length), dtype=kernel.reader.u64)
        for sections in table[table != 0].tolist():
            with suppress(FaultError, OverflowError):
                prog.read(sections, kernel.geometry.page_size)


# Strings of struct new_utsname, 65 bytes each (__NEW_UTS_LEN + 1), and which are kept:
# not those that name the machine.
_UTSNAME_SIZE = 65
_UTSNAME = (
    ("sysname", True),
    ("nodename", False),
    ("release", True),
    ("version", True),
    ("machine", True),
    ("domainname", False),
)


def _read_utsname(prog: Program, vmcoreinfo: Vmcoreinfo) -> None:
    """What makedumpfile and crash look at before anything else."""
    namespace = vmcoreinfo.address("init_uts_ns")
    offset = vmcoreinfo.offset("uts_namespace.name")
    if namespace is None or offset is None:
        return
    for i, (_, is_kept) in enumerate(_UTSNAME):
        if is_kept:
            address = namespace + offset + i * _UTSNAME_SIZE
            # Damage leads behind the end of memory.
            with suppress(FaultError, OverflowError):
                prog.read(address, _UTSNAME_SIZE)


def record(base: Program, symbols: Sequence[str], assume: dict[str, str]) -> Recording:
    """
    Run the commands.

    :param symbols: Files with debuginfo.
    :raises UnavailableError: if this kernel's page tables cannot be walked, or it is
        not known how to ask whose a page is.
    """
    recorder = Recorder(base)
    load_symbols(recorder.prog, symbols)
    _read_sources(recorder)
    hvo = Hvo(Kernel(recorder.prog, assume))
    if not hvo.vmemmap.has_mappings:
        raise UnavailableError(
            f"an extract needs page tables, and those of {hvo.kernel.arch} cannot be "
            "walked"
        )
    if not hvo.kernel.has_types:
        raise UnavailableError(
            "an extract needs types, which say how struct pages name their users: "
            f"{hvo.kernel.no_types_reason}; debuginfo, given with -s, would do"
        )
    show_document(hvo, "", folios=True)
    run_audit(hvo)
    _read_variables(recorder.prog)
    _read_sections(recorder.prog, hvo.kernel)
    _read_utsname(recorder.prog, hvo.kernel.vmcoreinfo)
    return Recording(recorder, hvo)
