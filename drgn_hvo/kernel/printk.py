# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The log of the kernel at hand
-----------------------------
"""

from __future__ import annotations

from typing import Optional

from drgn import FaultError, PlatformFlags

from drgn_hvo.errors import FormatError, NotInDumpError
from drgn_hvo.formats.printk_log import PrintkLog, read_printk_log
from drgn_hvo.kernel.bound import Kernel

__all__ = ("kernel_log",)


def kernel_log(kernel: Kernel) -> PrintkLog:
    """
    What this kernel printed and still has in memory.

    :raises NotInDumpError: if the dump does not hold it.
    :raises UnavailableError: if VMCOREINFO does not say where it is.
    """

    def read(address: int, size: int) -> Optional[bytes]:
        try:
            return bytes(kernel.prog.read(address, size))
        except (FaultError, ValueError, OverflowError):
            return None

    platform = kernel.prog.platform
    little = platform is None or platform.flags & PlatformFlags.IS_LITTLE_ENDIAN
    try:
        return read_printk_log(read, kernel.vmcoreinfo, "little" if little else "big")
    except FormatError as e:
        if kernel.sources.extract_kind is not None:
            raise NotInDumpError(
                "the log is not in this dump: it is an extract, which has no log; "
                "--oops FILE reads it from a file"
            ) from None
        raise NotInDumpError(f"{e}; --oops FILE reads it from a file") from None
