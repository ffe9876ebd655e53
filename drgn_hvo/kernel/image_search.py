# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The kernel image, searched
--------------------------

Finds kallsyms and BTF where VMCOREINFO does not name them: before v6.0, or where its
keys were lost. The image lies around the symbols that every VMCOREINFO has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drgn import FaultError

from drgn_hvo.errors import FormatError, UnavailableError
from drgn_hvo.formats.byteorder import ByteOrder
from drgn_hvo.kernel.unread import RECURSION

__all__ = ("KernelImage", "find_tables", "find_types", "read_image")

#: ``read(address, size)``: bytes of kernel virtual memory.
_Reader = Callable[[int, int], bytes]

# Real images have up to 60 MiB between _stext and the last symbol of VMCOREINFO.
_MAX_SIZE = 128 << 20
_CHUNK = 1 << 20
# The smallest page that a dump can leave out.
_PAGE = 4096


@dataclass(frozen=True)
class KernelImage:
    """
    The kernel image, as far as it is in the dump.

    :param start: The address of its first byte.
    :param data: Zeros where the dump has nothing.
    :param missing: How many bytes the dump does not have.
    """

    start: int
    data: bytes
    missing: int

    def why_not(self, reason: Exception) -> str:
        """Why something is not found in it."""
        if not self.missing:
            return str(reason)
        total = len(self.data) // _PAGE
        return (
            f"{reason}; {self.missing // _PAGE} of its {total} pages are not in this "
            "dump"
        )


def read_image(read: _Reader, known: Mapping[str, int]) -> KernelImage:
    """
    Read the kernel image, from its text to the last symbol in it that is known.

    :param known: Addresses of symbols, as VMCOREINFO has them.
    :raises FormatError: if nothing says where it is.
    :raises UnavailableError: if the dump has nothing of it.
    """
    text = known.get("_stext")
    if text is None:
        raise FormatError("VMCOREINFO does not say where the kernel image is (_stext)")
    start = text // _PAGE * _PAGE
    inside = [at for at in known.values() if start <= at < start + _MAX_SIZE]
    size = -(-(max(inside) + 1 - start) // _PAGE) * _PAGE
    data = bytearray(size)
    missing = 0
    for first in range(0, size, _CHUNK):
        missing += _read_part(read, start, data, first, min(_CHUNK, size - first))
    if missing == size:
        raise UnavailableError("the kernel image is not in this dump")
    return KernelImage(start, bytes(data), missing)


def _read_part(
    read: _Reader, start: int, data: bytearray, first: int, size: int
) -> int:
    """Read a part, by halves where not all of it is there; how much is missing."""
    try:
        data[first : first + size] = read(start + first, size)
    except FaultError as e:
        if RECURSION in str(e):
            raise
        if size <= _PAGE:
            return size
        half = size // 2 // _PAGE * _PAGE
        return _read_part(read, start, data, first, half) + _read_part(
            read, start, data, first + half, size - half
        )
    return 0


def find_tables(
    image: KernelImage, known: Mapping[str, int], byteorder: ByteOrder
) -> dict[str, int]:
    """
    As :func:`~drgn_hvo.formats.kallsyms_search.find_kallsyms()`.

    :raises UnavailableError: if they are not found.
    """
    from drgn_hvo.formats.kallsyms_search import find_kallsyms

    try:
        return find_kallsyms(image.start, image.data, known, byteorder)
    except FormatError as e:
        raise UnavailableError(
            f"VMCOREINFO does not name kallsyms, and {image.why_not(e)}"
        ) from None


def find_types(image: KernelImage) -> tuple[int, int]:
    """
    Where BTF of the kernel begins and ends.

    :raises UnavailableError: if it is not found.
    """
    from drgn_hvo.formats.btf_image import find_btf

    try:
        at, size = find_btf(image.data)
    except FormatError as e:
        raise UnavailableError(image.why_not(e)) from None
    return image.start + at, image.start + at + size
