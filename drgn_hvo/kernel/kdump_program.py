# SPDX-License-Identifier: LGPL-2.1-or-later

"""
kdump files that drgn cannot read
---------------------------------

drgn reads kdump-compressed files through libkdumpfile, which knows neither LoongArch
nor, in an s390x dump, what to do without the lowest page, and ends the process where a
file is cut off. A program can read the physical memory of such a file all the same.
"""

from __future__ import annotations

from typing import Optional

from drgn import Architecture, FaultError, Platform, PlatformFlags, Program

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.kdump import KdumpFrame, read_kdump_frame
from drgn_hvo.formats.kdump_reader import KdumpReader
from drgn_hvo.formats.machine_models import MODELS

__all__ = ("kdump_platform", "libkdumpfile_fault", "program_of_kdump", "read_or_fault")

# UTS_MACHINE of kernels, and ELF_MACHINE_UNAME of QEMU, in lower case.
_MACHINES = {
    "x86_64": Architecture.X86_64,
    "aarch64": Architecture.AARCH64,
    "ppc64": Architecture.PPC64,
    "ppc64le": Architecture.PPC64,
    "riscv64": Architecture.RISCV64,
    "s390x": Architecture.S390X,
    "loongarch64": Architecture.LOONGARCH64,
}

# By the names of _MACHINES.
_PRSTATUS_SIZES = {
    name: MODELS[name.replace("ppc64le", "ppc64")].prstatus_size for name in _MACHINES
}


def libkdumpfile_fault(frame: KdumpFrame) -> Optional[str]:
    """
    Why libkdumpfile must not see a file: it maps what it reads, so that the process
    ends where the file is cut off; and where a note with the registers of a processor
    is too short, it frees what it uses after that.
    """
    if frame.end > frame.file.size:
        return "cut off"
    size = _PRSTATUS_SIZES.get(frame.machine.lower())
    if size is not None and not frame.has_registers(size):
        return "damaged: notes with registers are too short"
    return None


def kdump_platform(frame: KdumpFrame) -> Optional[Platform]:
    """The platform that a file names, if it does."""
    architecture = _MACHINES.get(frame.machine.lower())
    if architecture is None:
        return None
    flags = PlatformFlags.IS_64_BIT
    if frame.byteorder == "little":
        flags |= PlatformFlags.IS_LITTLE_ENDIAN
    return Platform(architecture, flags)


def read_or_fault(reader: KdumpReader, address: int, count: int) -> bytes:
    """
    Read physical memory as drgn wants it of a memory segment.

    :raises FaultError: if the file does not hold it, or not rightly.
    """
    try:
        data = reader.read(address, count)
    except FormatError as e:
        raise FaultError(str(e), address) from None
    if data is None:
        raise FaultError("not in this dump", address)
    return data


def program_of_kdump(path: str, vmcoreinfo: Optional[bytes]) -> Optional[Program]:
    """
    A program that reads a kdump-compressed file without libkdumpfile.

    :param vmcoreinfo: In place of what the file has.
    :return: ``None`` if it is no such file, or does not say of which architecture and
        kernel it is.
    """
    # For as long as the program.
    file = open(path, "rb")  # noqa: SIM115
    try:
        frame = read_kdump_frame(file)
        platform = None if frame is None else kdump_platform(frame)
        note = vmcoreinfo
        if note is None and frame is not None:
            note = frame.vmcoreinfo
    except FormatError:
        frame = platform = note = None
    if frame is None or platform is None or note is None:
        file.close()
        return None
    reader = KdumpReader(frame)

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        return read_or_fault(reader, address, count)

    prog = Program(platform)
    prog.add_memory_segment(0, reader.end, read, True)
    prog.set_linux_kernel_custom(note, False)
    return prog
