# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Where BTF is, by its looks
--------------------------

``__start_BTF`` is a symbol of kallsyms. Where that cannot be had, the blob of the
kernel is the only one in its image: those of modules lie with the modules.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.btf_header import MAGICS, parse_header, section

__all__ = ("find_btf",)

# Structures that every kernel has: a blob with two of their names is the kernel's BTF.
_NAMES = (b"\0list_head\0", b"\0task_struct\0", b"\0page\0")
_ENOUGH_NAMES = 2


def _sizes(data: bytes, start: int) -> Iterator[int]:
    """Yield the size of the blob that begins at *start*, if one does."""
    blob = data[start : start + 64]
    try:
        header, _ = parse_header(blob)
    except FormatError:
        return
    ends = (header.type_off + header.type_len, header.str_off + header.str_len)
    size = header.hdr_len + max(*ends, header.layout_off + header.layout_len)
    if not header.type_len or start + size > len(data):
        return
    strings = section(data[start : start + size], header, "str")
    text = data[start + strings.start : start + strings.stop]
    known = sum(name in text for name in _NAMES)
    if text[:1] == b"\0" and text[-1:] == b"\0" and known >= _ENOUGH_NAMES:
        yield size


def find_btf(data: bytes) -> tuple[int, int]:
    """
    Find the BTF of the kernel.

    :param data: The kernel image.
    :return: Where it begins in there, and its size.
    :raises FormatError: if there is none, or more than one.
    """
    found = []
    for magic in MAGICS:
        start = data.find(magic)
        while start >= 0:
            found += [(start, size) for size in _sizes(data, start)]
            start = data.find(magic, start + 1)
    if len(found) != 1:
        raise FormatError(f"{len(found)} places in the kernel image can be its BTF")
    return found[0]
