# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernels whose page tables are not in the dump
---------------------------------------------

Where struct pages can be read all the same, ``page`` and ``heads`` work.
"""

import struct
import sys

import drgn
import numpy as np

from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec

VMEMMAP = 0xFFFFFDFFC0000000
PAGES = 1024
HEAD, ORDER = 512, 6
LITTLE_64 = drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN


def struct_pages(mask):
    """Order-0 pages, one compound page, and a stretch that was never initialised."""
    pages = bytearray()
    for pfn in range(PAGES):
        flags, word = 1 << 12, 0
        if pfn == HEAD:
            flags |= 1 << 6
        elif HEAD < pfn < HEAD + (1 << ORDER):
            word = mask or VMEMMAP + 64 * HEAD + 1
        page = struct.pack("<QQ5QII", flags, word, 0, 0, 0, 0, 0, 0xFFFFFFFF, 1)
        pages += b"\xff" * 64 if pfn >= PAGES - 64 else page.ljust(64, b"\0")
    return bytes(pages)


VMCOREINFO = f"""OSRELEASE=7.2.13-arm64
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffff800081a3d000
SYMBOL(_stext)=ffff800080010000
KERNELOFFSET=0
NUMBER(kimage_voffset)=0xffff800040000000
NUMBER(PHYS_OFFSET)=0x40000000
SYMBOL(vmemmap)={VMEMMAP:x}
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page._refcount)=60
OFFSET(page._mapcount)=56
OFFSET(page.compound_info)=8
NUMBER(PG_head_mask)=64
NUMBER(MAX_PHYSMEM_BITS)=48
NUMBER(VA_BITS)=48
NUMBER(TCR_EL1_T1SZ)=0x10
"""


def program(arch, mask=0):
    memory = struct_pages(mask)
    prog = drgn.Program(drgn.Platform(arch, LITTLE_64))
    prog.set_linux_kernel_custom(VMCOREINFO.encode(), False)
    prog.add_memory_segment(
        VMEMMAP,
        len(memory),
        lambda address, count, offset, physical: memory[offset : offset + count],
    )
    return prog


def test_pages_and_heads_on_arm64(monkeypatch):
    bound = hvo_of(program(drgn.Architecture.AARCH64), {"encoding": "pointer"})
    monkeypatch.setattr(type(bound.vmemmap), "end_pfn", PAGES)
    heads = np.concatenate(list(bound.heads.range(0, PAGES)))
    expected = np.arange(PAGES, dtype=np.uint64)
    expected[HEAD : HEAD + (1 << ORDER)] = HEAD
    expected[PAGES - 64 :] = ALL_ONES
    assert (heads == expected).all()


def test_page_on_arm64(monkeypatch):
    bound = hvo_of(program(drgn.Architecture.AARCH64), {"encoding": "pointer"})
    monkeypatch.setattr(type(bound.vmemmap), "end_pfn", PAGES)
    specs = [parse_page_spec(text) for text in (str(HEAD + 3), "1000", "7")]
    tail, poisoned, single = page_document(bound, "core", specs)["pages"]
    assert (tail["kind"], tail["head_pfn"]) == ("tail", HEAD)
    assert tail["slice"]["frame"] is None
    assert poisoned["kind"] == "uninitialised"
    assert (single["kind"], single["head_pfn"]) == ("order-0", 7)


def test_masks_on_arm64(monkeypatch):
    bound = hvo_of(program(drgn.Architecture.AARCH64, mask=0xFFFFFFFFFFFFF001))
    monkeypatch.setattr(type(bound.vmemmap), "end_pfn", PAGES)
    document = show_document(bound, "core", folios=False)
    assert document["encoding"]["kind"] == "mask"
    assert document["notes"][-1] == "the page tables of vmemmap are not in this dump"
    heads = np.concatenate(list(bound.heads.range(0, PAGES)))
    assert (heads[HEAD : HEAD + (1 << ORDER)] == HEAD).all()


def test_page_tables_that_vmcoreinfo_does_not_lead_to(monkeypatch):
    monkeypatch.setattr(
        sys.modules[__name__],
        "VMCOREINFO",
        VMCOREINFO.replace("NUMBER(kimage_voffset)", "NUMBER(removed)"),
    )
    bound = hvo_of(program(drgn.Architecture.AARCH64), {"encoding": "pointer"})
    monkeypatch.setattr(type(bound.vmemmap), "end_pfn", PAGES)
    document = show_document(bound, "core", folios=False)
    assert document["notes"][-1] == (
        "page tables of aarch64 cannot be walked: VMCOREINFO has no "
        "NUMBER(kimage_voffset)"
    )
