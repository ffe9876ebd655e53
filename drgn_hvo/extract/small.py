# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Smaller tables
--------------

Puts cut tables of symbols and types where VMCOREINFO and kallsyms say that the whole
ones are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from drgn_hvo.errors import HvoError, UnavailableError
from drgn_hvo.extract.cut_tables import cut_btf, cut_symbols
from drgn_hvo.extract.owners import are_free_to_keep, owners
from drgn_hvo.extract.recorder import Recording
from drgn_hvo.extract.tables import Translator, pages_of
from drgn_hvo.formats.kallsyms_writer import KallsymsImage, kallsyms_tables
from drgn_hvo.kernel.arrays import U64Array
from drgn_hvo.kernel.core_sources import CoreSources
from drgn_hvo.kernel.frames import FrameReader

__all__ = ("Replaced", "small_tables")


# What is cut down, as the recorder calls it.
_TABLES = ("kallsyms", "btf")


@dataclass
class Replaced:
    """
    Bytes that take the place of others.

    :param pages: By frame and offset in it.
    :param sizes: How many pages and bytes, by the reason whose reads they replace.
    :param reads: Address and size of what is now there to be read, by the same reason.
    """

    pages: dict[int, dict[int, bytes]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    reads: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


def _image_parts(
    image: KallsymsImage, symbols: dict[str, int]
) -> list[tuple[int, bytes]]:
    """Address and content of each table."""
    offsets = "kallsyms_offsets"
    if offsets not in symbols:
        offsets = "kallsyms_addresses"
    # Readers take all that lies in front of the next table for names.
    names_size = symbols["kallsyms_token_table"] - symbols["kallsyms_names"]
    parts = [
        (symbols["kallsyms_num_syms"], image.num_syms),
        (symbols["kallsyms_names"], image.names.ljust(names_size, b"\0")),
        (symbols["kallsyms_token_table"], image.token_table),
        (symbols["kallsyms_token_index"], image.token_index),
        (symbols[offsets], image.offsets),
    ]
    if image.relative_base is not None:
        parts.append((symbols["kallsyms_relative_base"], image.relative_base))
    return parts


def _fits(parts: list[tuple[int, bytes]], reads: list[tuple[int, int]]) -> bool:
    """Whether new tables lie within what was read of the old, each in its own."""
    sizes: dict[int, int] = {}
    for address, size in reads:
        sizes[address] = max(size, sizes.get(address, 0))
    return all(len(data) <= sizes.get(address, 0) for address, data in parts)


@dataclass(frozen=True)
class _CutBtf:
    """New BTF, and where it lies; *size* is that of the old."""

    address: int
    data: bytes
    size: int


def _new_btf(sources: CoreSources) -> Optional[_CutBtf]:
    """``None`` if there is none, it is damaged, or would not become smaller."""
    start, stop = sources.address("__start_BTF"), sources.address("__stop_BTF")
    try:
        data = cut_btf(sources.types().btf)
    except HvoError:
        return None
    if start is None or stop is None or len(data) >= stop - start:
        return None
    return _CutBtf(start, data, stop - start)


def _cut(
    sources: CoreSources, recording: Recording
) -> dict[str, list[tuple[int, bytes]]]:
    """New tables by reason; none of those that would not become smaller."""
    kallsyms, known = sources.kallsyms(), sources.vmcoreinfo().addresses()
    btf = _new_btf(sources)
    moved = {} if btf is None else {"__stop_BTF": btf.address + len(btf.data)}
    symbols = cut_symbols(kallsyms, known, moved)
    offsets_address = known.get("kallsyms_offsets", 0)
    image = kallsyms_tables(
        symbols, kallsyms.addressing, offsets_address, sources.byteorder
    )
    tables = _image_parts(image, known)
    fits = _fits(tables, recording.virtual.get("kallsyms", []))
    parts = {"kallsyms": tables} if fits else {}
    if btf is not None:
        # With the old symbols, it still ends where it did.
        data = btf.data if fits else btf.data.ljust(btf.size, b"\0")
        parts["btf"] = [(btf.address, data)]
    return parts


def small_tables(recording: Recording) -> Replaced:
    """Cut the tables of a target down, where it has them."""
    replaced = Replaced()
    kernel = recording.hvo.kernel
    page_table, page_size = kernel.page_table_format, kernel.geometry.page_size
    assert page_table is not None, "record() has checked that"
    try:
        cut = _cut(kernel.sources, recording)
    except UnavailableError:
        # Without kallsyms there is nothing to cut, nor to be found.
        return replaced
    reader = FrameReader(recording.base, page_size)
    translator = Translator(reader, page_table, kernel.translation.linear_ranges)
    pages, shift = _touched(cut), kernel.geometry.page_shift
    if not _are_tables(recording, translator):
        return replaced
    frames = translator.pages(pages_of(pages, shift))
    if len(frames) < len(pages_of(pages, shift)):
        # Damaged page tables do not say where they could go.
        return replaced
    for reason, parts in cut.items():
        replaced.reads[reason] = [(address, len(data)) for address, data in parts]
        touched: set[int] = set()
        for address, data in parts:
            _place(replaced, frames, address, data, page_size)
            touched.update(_frames_of(frames, address, len(data), shift))
        replaced.sizes[reason] = (
            len(touched),
            sum(
                # Zeros at the end are there so that they can be read, and need not be
                # counted.
                len(data.rstrip(b"\0"))
                for _, data in parts
            ),
        )
    return replaced


def _are_tables(recording: Recording, translator: Translator) -> bool:
    """
    Whether no page that tables were read from is somebody's, whose words would stand in
    the new ones as names.
    """
    hvo = recording.hvo
    reads = [
        (address, address + size - 1)
        for reason in _TABLES
        for address, size in recording.virtual.get(reason, ())
    ]
    ranges = np.array(reads, dtype=np.uint64).reshape(-1, 2)
    frames = translator.pages(pages_of(ranges, hvo.kernel.geometry.page_shift))
    pfns = np.array(sorted(set(frames.values())), dtype=np.int64)
    return bool(are_free_to_keep(hvo, owners(hvo, pfns)).all())


def _touched(cut: dict[str, list[tuple[int, bytes]]]) -> U64Array:
    """First and last address of each table."""
    return np.array(
        [(at, at + len(data) - 1) for parts in cut.values() for at, data in parts],
        dtype=np.uint64,
    ).reshape(-1, 2)


def _frames_of(
    frames: dict[int, int], address: int, size: int, page_shift: int
) -> list[int]:
    """The frames that hold a range of addresses."""
    first, last = address >> page_shift, address + size - 1 >> page_shift
    return [frames[page] for page in range(first, last + 1)]


def _place(
    replaced: Replaced, frames: dict[int, int], address: int, data: bytes, size: int
) -> None:
    """Put bytes into the frames behind their address."""
    while data:
        page, offset = divmod(address, size)
        piece, data = data[: size - offset], data[size - offset :]
        replaced.pages.setdefault(frames[page], {})[offset] = piece
        address += len(piece)
