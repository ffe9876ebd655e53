# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Extracts, compared
------------------

What the commands say of a target, in a form in which two targets can be compared.
"""

import contextlib
import io

import drgn
import numpy as np

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.map import map_document, print_map
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.extract.command import extract_document
from drgn_hvo.formats.kdump_writer import kdump_pages
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS
from drgn_hvo.synth.described.generations import generation

__all__ = ("DAMAGED", "MARK", "PAGE", "Marked", "answers", "extract", "marks", "opened")

# Each fault, in the first of these generations that can have it.
_NAMES = ("shared-7.3", "fake-head-6.12", "seed-v5")
_GENERATIONS = [generation(name) for name in _NAMES]
DAMAGED = [
    (fault.name, next(g.name for g in _GENERATIONS if fault.possible(g)))
    for fault in FAULTS
    if any(fault.possible(g) for g in _GENERATIONS)
]


def opened(path):
    """A program of a core that reads types from it."""
    prog = drgn.Program()
    prog.set_core_dump(path)
    install(prog)
    return prog


def extract(prog, path, **options):
    """An extract of a program, opened; and what the command says of it."""
    document = extract_document(prog, "core", str(path), **options)
    return opened(path), document


def _folio_pfns(hvo):
    """Of each folio the first and the last page; of some, many in between."""
    per_slice = hvo.kernel.geometry.pages_per_slice
    orders = hvo.hugetlb.folios.order.tolist()
    for i, pfn in enumerate(hvo.hugetlb.folios.head_pfn.tolist()):
        end = pfn + (1 << orders[i])
        yield pfn
        if i % 8 == 0:
            yield from range(pfn + 1, pfn + 4)
            yield from range(pfn + per_slice, end, max(per_slice, (end - pfn) // 8))
        yield end - 1


def _picture(hvo, pfn):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_map(map_document(hvo, "core", parse_page_spec(str(pfn))))
    return out.getvalue()


def _heads(hvo):
    folios = hvo.hugetlb.folios
    for pfn, order in zip(folios.head_pfn.tolist(), folios.order.tolist()):
        chunks = hvo.heads.range(pfn, pfn + (1 << order))
        yield pfn, np.concatenate(list(chunks)).tobytes()


def answers(prog, *, deep=False):
    """Everything that must be the same on an extract."""
    known = hvo_of(prog)
    found = {
        "show": show_document(known, "x", folios=True),
        "check": check_document(known, "x", CheckScope(deep=deep)),
        "unread": known.unread,
        "heads": dict(_heads(known)),
    }
    specs = [parse_page_spec(str(pfn)) for pfn in _folio_pfns(known)]
    found["page"] = page_document(known, "x", specs)
    pictured = known.hugetlb.folios.head_pfn.tolist()[:6]
    found["map"] = [_picture(known, pfn) for pfn in pictured]
    return found


# Odd words, so that they look like tails, and few zeros.
MARK = b"\xa5zQ9xW7v\xa5kJ5hG3f"
PAGE = MARK * 256


class Marked:
    """
    A synthetic machine in which all memory is marked that is neither in the kernel's
    image nor one of its tables: that of huge pages, THP, slab, order-0 pages (stacks
    are such), and what is free.
    """

    def __init__(self, machine):
        self.image = machine.image
        first = machine.plan.kernel_pfn
        self.kernel = range(first, first + machine.plan.kernel_pages)
        self.prog = drgn.Program(program(machine).platform)
        for start, end in machine.image.memory:
            size = (end - start) << 12
            self.prog.add_memory_segment(start << 12, size, self._read, True)
        self.prog.set_linux_kernel_custom(machine.vmcoreinfo, False)

    def _is_kernel(self, pfn):
        return pfn in self.kernel or self.image.has(pfn)

    def _read(self, address, count, offset, physical):
        first, end = address >> 12, (address + count + 4095) >> 12
        data = b"".join(
            self.image.read_frame(pfn).tobytes() if self._is_kernel(pfn) else PAGE
            for pfn in range(first, end)
        )
        return data[address % 4096 : address % 4096 + count]


def marks(path):
    """Pages with a mark, or half of one."""
    return [
        pfn
        for pfn, data in kdump_pages(path.read_bytes())
        if MARK[:8] in data or MARK[8:] in data
    ]
