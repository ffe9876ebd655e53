# SPDX-License-Identifier: LGPL-2.1-or-later

"""
kdump files that drgn cannot read
---------------------------------

drgn reads kdump-compressed files through libkdumpfile, which knows neither LoongArch
nor, in an s390x dump, what to do without the lowest page. A program can read the
physical memory of such a file all the same.
"""

from __future__ import annotations

from typing import Optional

from drgn import Architecture, FaultError, Platform, PlatformFlags, Program

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.kdump_reader import KdumpReader

__all__ = ("program_of_kdump",)

#: Where ``uname -m`` is not drgn's name of the architecture in lower case.
_MACHINES = {"ppc64le": "ppc64"}


def _platform(reader: KdumpReader) -> Optional[Platform]:
    name = _MACHINES.get(reader.machine, reader.machine).upper()
    if name not in Architecture.__members__:
        return None
    flags = PlatformFlags.IS_64_BIT
    if reader.byteorder == "little":
        flags |= PlatformFlags.IS_LITTLE_ENDIAN
    return Platform(Architecture[name], flags)


def program_of_kdump(path: str, vmcoreinfo: Optional[bytes]) -> Optional[Program]:
    """
    A program that reads a kdump-compressed file without libkdumpfile.

    :param vmcoreinfo: In place of what the file has.
    :return: ``None`` if it is no such file, or does not say of which architecture and
        kernel it is.
    """
    # For as long as the program.
    file = open(path, "rb", buffering=0)  # noqa: SIM115
    try:
        reader = KdumpReader(file)
        platform = _platform(reader)
        note = reader.vmcoreinfo if vmcoreinfo is None else vmcoreinfo
    except FormatError:
        platform = note = None
    if platform is None or note is None:
        file.close()
        return None

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        try:
            data = reader.read(address, count)
        except FormatError as e:
            raise FaultError(str(e), address) from None
        if data is None:
            raise FaultError("not in this dump", address)
        return data

    prog = Program(platform)
    prog.add_memory_segment(0, reader.end, read, True)
    prog.set_linux_kernel_custom(note, False)
    return prog
