# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``extract``
-----------

Makes an extract of a target, and says what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
from typing import TYPE_CHECKING, Optional

from drgn import Program

from drgn_hvo.commands.document import document
from drgn_hvo.errors import UsageError
from drgn_hvo.extract.core import Extract, collect, write_extract
from drgn_hvo.extract.needs import REASONS, find_needs
from drgn_hvo.extract.recorder import record
from drgn_hvo.extract.small import Replaced, small_tables
from drgn_hvo.files import check_replaceable, replace_file
from drgn_hvo.kernel.dump import dump_of
from drgn_hvo.memmap.hvo import Hvo
from drgn_hvo.progress import progress

if TYPE_CHECKING:
    from drgn_hvo.commands.reports import ExtractReport

__all__ = ("extract_document", "print_extract")


def extract_document(
    base: Program,
    target: str,
    path: str,
    *,
    symbols: Sequence[str] = (),
    assume: Optional[dict[str, str]] = None,
    small: bool = False,
    all_struct_pages: bool = False,
    force: bool = False,
) -> ExtractReport:
    """
    Write an extract.

    :param base: The target, opened.
    :param path: The file to write.
    :param small: Whether to cut kallsyms and BTF down.
    :param all_struct_pages: Whether to keep struct pages that nobody looked at, too.
    :return: What ``extract --json`` prints.
    :raises UsageError: if the file cannot be written, or is there already.
    """
    if os.path.realpath(path) == os.path.realpath(target):
        raise UsageError(f"{path}: is the target itself")
    check_replaceable(path, force=force)
    recording = record(base, symbols, assume or {})
    # An extract of a small extract is small: what that left out is not there.
    small = small or recording.hvo.kernel.sources.extract_kind == "small"
    replaced = small_tables(recording) if small else Replaced()
    needs = find_needs(
        recording, all_struct_pages=all_struct_pages, replaced=replaced.reads
    )
    with progress(len(needs.frames()), "page") as bar:
        extract = collect(base, recording.hvo, needs, replaced.pages, bar)
    for reason, (pages, count) in replaced.sizes.items():
        extract.add(reason, pages, count)
    with replace_file(path, force=force) as file:
        kind = "small" if small else "full"
        source = dump_of(base)
        is_incomplete = source is not None and bool(source.complaints)
        write_extract(file, recording.hvo, extract, kind, is_incomplete=is_incomplete)
        size = file.seek(0, os.SEEK_END)
    return _document(recording.hvo, target, path, extract, size)


def _document(
    hvo: Hvo, target: str, path: str, extract: Extract, size: int
) -> ExtractReport:
    return {
        **document(target, hvo.kernel.release),
        "output": path,
        "output_bytes": size,
        "pages": len(extract.pages),
        "kept": [
            {"what": reason, "why": why, "pages": kept.pages, "bytes": kept.bytes}
            for reason, why in REASONS.items()
            for kept in [extract.kept.get(reason)]
            if kept is not None
        ],
        "left_out": [
            {"what": what, "pages": count} for what, count in extract.left_out.items()
        ],
    }


def print_extract(doc: ExtractReport) -> None:
    """Print a document of :func:`extract_document()` for people."""
    print(f"{doc['output']}: {doc['pages']} pages, {doc['output_bytes']} bytes")
    print()
    print(f"{'PAGES':>7}  {'BYTES KEPT':>10}  WHAT")
    for kept in doc["kept"]:
        print(f"{kept['pages']:>7}  {kept['bytes']:>10}  {kept['why']}")
    for left in doc["left_out"]:
        print(f"Left out: {left['pages']} {left['what']}")
    print()
    print("Everything else in these pages is zero, and all other pages are left out.")
