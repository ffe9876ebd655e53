# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Writing cores
-------------

The containers by name, and a machine written into one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import os
from pathlib import Path
from typing import IO, Any, Optional, Union, cast

from drgn_hvo.errors import UsageError
from drgn_hvo.files import replace_file
from drgn_hvo.synth.containers.elf import Progress, write_elf, write_vmcore
from drgn_hvo.synth.containers.kdump import FlattenedFile, write_kdump
from drgn_hvo.synth.damage.faults import AppliedFault, make_machine
from drgn_hvo.synth.described.description import Description
from drgn_hvo.synth.machine.machine import Machine

__all__ = ("CONTAINERS", "write_core", "write_machine")


def _write_flattened(machine: Machine, file: IO[bytes], progress: Progress) -> None:
    flattened = FlattenedFile(file)
    write_kdump(machine, cast(IO[bytes], flattened), progress)
    flattened.finish()


#: The containers, by the name on the command line.
CONTAINERS: dict[str, Callable[[Machine, IO[bytes], Progress], None]] = {
    "elf": write_elf,
    "vmcore": write_vmcore,
    "kdump": write_kdump,
    "flattened": _write_flattened,
}


def write_machine(
    machine: Machine,
    path: Union[str, Path],
    container: str = "elf",
    *,
    force: bool = False,
    progress: Optional[Progress] = None,
) -> None:
    """
    Write a machine to a file.

    :param container: A key of :data:`CONTAINERS`.
    :raises UsageError: if there is no such container, or the file cannot be written
        or is there already.
    """
    if container not in CONTAINERS:
        known = ", ".join(CONTAINERS)
        raise UsageError(f"there is no container {container!r}; there are: {known}")
    with replace_file(path, force=force) as file:
        CONTAINERS[container](machine, file, progress or _ignore)
        if machine.truncated:
            file.flush()
            # In the middle of the memory, which lies behind everything else.
            file.truncate(file.seek(0, os.SEEK_END) // 2)


def _ignore(_: Any) -> None:
    pass


def write_core(
    description: Description,
    path: Union[str, Path],
    container: str = "elf",
    faults: Iterable[str] = (),
    *,
    force: bool = False,
    progress: Optional[Progress] = None,
) -> list[AppliedFault]:
    """
    Write the core of a described machine.

    :param faults: Names of :data:`~drgn_hvo.synth.damage.faults.FAULTS`.
    :return: What the faults changed.
    """
    machine, applied = make_machine(description, faults)
    write_machine(machine, path, container, force=force, progress=progress)
    return applied
