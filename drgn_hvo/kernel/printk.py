# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The log of the kernel at hand
-----------------------------
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Optional, TypeVar

from drgn import FaultError, PlatformFlags, Program, offsetof, sizeof

from drgn_hvo.errors import FormatError, NotInDumpError, UnavailableError
from drgn_hvo.formats.printk_log import (
    PrintkLayout,
    PrintkLog,
    PrintkRecord,
    ReadMemory,
    find_printk_record,
    read_printk_log,
)
from drgn_hvo.kernel.bound import Kernel

__all__ = ("kernel_log", "logged_record")

_T = TypeVar("_T")


class _TypedLayout:
    """The layout of the ring buffer by types, for a VMCOREINFO that lacks it."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog

    def address(self, name: str) -> Optional[int]:
        return self._prog[name].address_

    def size(self, name: str) -> Optional[int]:
        return sizeof(self._prog.type(f"struct {name}"))

    def offset(self, name: str) -> Optional[int]:
        type_name, _, member = name.partition(".")
        # atomic_long_t is the only one with a typedef; the others are structures with
        # tags.
        prefix = "" if type_name.endswith("_t") else "struct "
        return offsetof(self._prog.type(prefix + type_name), member)


def _layout(kernel: Kernel) -> PrintkLayout:
    if kernel.vmcoreinfo.address("prb") is None and kernel.has_types:
        typed = _TypedLayout(kernel.prog)
        try:
            typed.address("prb")
        except (LookupError, UnavailableError):
            return kernel.vmcoreinfo
        return typed
    return kernel.vmcoreinfo


def kernel_log(kernel: Kernel) -> PrintkLog:
    """
    What this kernel printed and still has in memory.

    :raises NotInDumpError: if the dump does not hold it.
    :raises UnavailableError: if neither VMCOREINFO nor types say where it is.
    """
    return _read(kernel, read_printk_log)


def logged_record(kernel: Kernel, words: bytes, newest: int) -> Optional[PrintkRecord]:
    """
    The first of the newest records of this kernel that has some words.

    :param newest: How many of the last records to look at.
    :return: ``None`` if none that can be read has them.
    :raises: as :func:`kernel_log()`.
    """
    return _read(
        kernel,
        lambda read, layout, byte_order: find_printk_record(
            read, layout, byte_order, words, newest
        ),
    )


def _read(
    kernel: Kernel,
    what: Callable[[ReadMemory, PrintkLayout, Literal["little", "big"]], _T],
) -> _T:
    def read(address: int, size: int) -> Optional[bytes]:
        try:
            return bytes(kernel.prog.read(address, size))
        except (FaultError, ValueError, OverflowError):
            return None

    platform = kernel.prog.platform
    little = platform is None or platform.flags & PlatformFlags.IS_LITTLE_ENDIAN
    try:
        layout = _layout(kernel)
        return what(read, layout, "little" if little else "big")
    except LookupError as e:
        raise UnavailableError(f"the log cannot be read: {e}") from None
    except FormatError as e:
        if kernel.sources.extract_kind is not None:
            raise NotInDumpError(
                "the log is not in this dump: it is an extract, which has no log; "
                "--oops FILE reads it from a file"
            ) from None
        raise NotInDumpError(f"{e}; --oops FILE reads it from a file") from None
