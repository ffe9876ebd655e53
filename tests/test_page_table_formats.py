# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Bits of page table entries, against entries that were seen in dumps of running kernels
and against the definitions in kernel headers: numbers, not names of the table.
"""

from dataclasses import replace

from hypothesis import given, strategies as st
import numpy as np
import pytest

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.architectures import ARCHITECTURES
from drgn_hvo.formats.machine_models import MadeKernel
from drgn_hvo.formats.page_table_formats import (
    DecodedEntry,
    PageTableFormat,
)
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo

# Of Debian's 7.2.13 kernel; its tables have five levels.
DEBIAN_7_2 = """SYMBOL(swapper_pg_dir)=ffffffff97e2a000
NUMBER(phys_base)=-18874368
NUMBER(pgtable_l5_enabled)=1
"""
FOUR_LEVELS = DEBIAN_7_2.replace("enabled)=1", "enabled)=0")


def format_of(architecture: str, vmcoreinfo: str) -> PageTableFormat:
    return ARCHITECTURES[architecture].page_tables(Vmcoreinfo(vmcoreinfo.encode()))[0]


x86_64 = format_of("x86_64", FOUR_LEVELS)
x86_64_sme = format_of("x86_64", FOUR_LEVELS + f"NUMBER(sme_mask)={1 << 47}\n")
x86_64_l5 = format_of("x86_64", DEBIAN_7_2)

RISCV64 = """SYMBOL(swapper_pg_dir)=ffffffff82307000
NUMBER(VA_BITS)=39
NUMBER(va_kernel_pa_offset)=0xfffffffeffe00000
"""
LOONGARCH64 = "SYMBOL(swapper_pg_dir)=9000000000b50000\nPAGESIZE=16384\n"
ARM64 = """SYMBOL(swapper_pg_dir)=ffff917de0f03000
PAGESIZE=4096
NUMBER(VA_BITS)=52
NUMBER(TCR_EL1_T1SZ)=0xc
NUMBER(kimage_voffset)=0xffff917d9e800000
"""
ARM64_64K = ARM64.replace("=4096", "=65536")
PPC64 = """SYMBOL(swapper_pg_dir)=c0000000029d0000
PAGESIZE=4096
NUMBER(RADIX_MMU)=1
"""
S390X = """SYMBOL(swapper_pg_dir)=3fffff54000
KERNELOFFSET=3fffe3a8000
KERNELOFFPHYS=9a8000
"""

riscv64 = format_of("riscv64", RISCV64)
loongarch64 = format_of("loongarch64", LOONGARCH64)
arm64 = format_of("aarch64", ARM64)
arm64_64k = format_of("aarch64", ARM64_64K)
ppc64 = format_of("ppc64", PPC64)
s390x = format_of("s390x", S390X)

# An entry, its level, and what it says.
SEEN = [
    # Entries of vmemmap in Debian's kernels. 7.2: a head's slice, a tail's, a large
    # page, a tail's slice that was made read-only at boot. 6.1: a tail's slice.
    (x86_64_l5, 0x80000000018E7163, 0, DecodedEntry(True, True, True, 0x18E7000)),
    (x86_64_l5, 0x80000000018BB121, 0, DecodedEntry(True, True, False, 0x18BB000)),
    (x86_64_l5, 0x800000000FA001E3, 1, DecodedEntry(True, True, True, 0xFA00000)),
    (x86_64_l5, 0x84000001BFECC121, 0, DecodedEntry(True, True, False, 0x1BFECC000)),
    (x86_64_l5, 0x800000000FA70161, 0, DecodedEntry(True, True, False, 0xFA70000)),
    # _PAGE_TABLE, arch/x86/include/asm/pgtable_types.h.
    (x86_64, 0x000000001FFD1067, 1, DecodedEntry(True, False, True, 0x1FFD1000)),
    # _PAGE_BIT_PAT_LARGE lies where the address of a small page begins.
    (x86_64, 0x800000001BA011E3, 1, DecodedEntry(True, True, True, 0x1BA00000)),
    (x86_64, 0x80000000400001E1, 2, DecodedEntry(True, True, False, 0x40000000)),
    (x86_64, 0x0000000040001065, 2, DecodedEntry(True, False, False, 0x40001000)),
    # Bit 7 of an entry of the lowest level is _PAGE_PAT.
    (x86_64, 0x80000000DEAD51E3, 0, DecodedEntry(True, True, True, 0xDEAD5000)),
    (x86_64_sme, 0x80008000018BB121, 0, DecodedEntry(True, True, False, 0x18BB000)),
    (x86_64_l5, 0x000000001FFD1067, 4, DecodedEntry(True, False, True, 0x1FFD1000)),
    # Debian's 7.2.13 of riscv64: tables have no permissions; text is read-only.
    (riscv64, 0x2BFFC401, 2, DecodedEntry(True, False, True, 0xAFFF1000)),
    (riscv64, 0x20EC5CE7, 0, DecodedEntry(True, True, True, 0x83B17000)),
    (riscv64, 0x200800EB, 1, DecodedEntry(True, True, False, 0x80200000)),
    # Svpbmt and Svnapot are no part of the address.
    (riscv64, 0xE000000020EC5CE7, 0, DecodedEntry(True, True, True, 0x83B17000)),
    # A LoongArch kernel: tables are named by addresses in a direct window.
    (loongarch64, 0x90000000EFEEC000, 2, DecodedEntry(True, False, True, 0xEFEEC000)),
    (loongarch64, 0x87F01D3, 0, DecodedEntry(True, True, True, 0x87F0000)),
    (loongarch64, 0x87F00D3, 0, DecodedEntry(True, True, False, 0x87F0000)),
    # Debian's 7.2.13 of arm64, with LPA2: bits 50 and 51 are those of shareability.
    (arm64, 0x10000000430EC003, 4, DecodedEntry(True, False, True, 0x430EC000)),
    (arm64, 0x00E800006BA00401, 1, DecodedEntry(True, True, True, 0x6BA00000)),
    (arm64, 0x00D0000040210483, 0, DecodedEntry(True, True, False, 0x40210000)),
    (
        arm64,
        0x00E800006BA00703,
        0,
        DecodedEntry(True, True, True, 0xC00006BA00000),
    ),
    (
        arm64_64k,
        0x00E800006BA09703,
        0,
        DecodedEntry(True, True, True, 0x900006BA00000),
    ),
    # Debian's 7.2.13 of ppc64el and s390x.
    (ppc64, 0x800000003FF9D009, 3, DecodedEntry(True, False, True, 0x3FF9D000)),
    (ppc64, 0xC00000003F40018E, 1, DecodedEntry(True, True, True, 0x3F400000)),
    (ppc64, 0xC00000000000018D, 1, DecodedEntry(True, True, False, 0)),
    (s390x, 0x2FAD8007, 2, DecodedEntry(True, False, True, 0x2FAD8000)),
    (s390x, 0x2FADE001, 1, DecodedEntry(True, False, True, 0x2FADE000)),
    (s390x, 0x2FADD13D, 0, DecodedEntry(True, True, True, 0x2FADD000)),
    (s390x, 0xAA821D, 0, DecodedEntry(True, True, False, 0xAA8000)),
]


@pytest.mark.parametrize(("page_table", "entry", "level", "said"), SEEN)
def test_entries_that_were_seen(page_table, entry, level, said):
    assert page_table.decode(entry, level) == said


@pytest.mark.parametrize(
    ("page_table", "entry", "level"),
    [(x86_64, 0, 0), (x86_64, 0x80000000018BB120, 0), (x86_64, 0x1FFD1066, 2)],
)
def test_entries_that_are_not_there(page_table, entry, level):
    assert not page_table.decode(entry, level).present


def test_reach():
    assert [x86_64.shift(level) for level in range(5)] == [12, 21, 30, 39, 48]
    assert x86_64_l5.reach_shift == 57
    assert x86_64.root == 0x16C2A000
    assert riscv64.root == 0x82507000
    assert loongarch64.root == 0xB50000
    assert s390x.root == 0x2554000
    assert [len(form.levels) for form in (riscv64, arm64, arm64_64k)] == [3, 5, 3]
    assert [loongarch64.reach_shift, ppc64.reach_shift] == [47, 52]
    assert x86_64.index(0xFFFFEA0000000000, 3) == 0x1D4


@pytest.mark.parametrize(
    "vmcoreinfo",
    [
        "NUMBER(phys_base)=0\n",
        "SYMBOL(swapper_pg_dir)=ffffffff82a10000\n",
        # Not in the kernel's part of the address space; inside a page; below zero.
        "SYMBOL(swapper_pg_dir)=2a10000\nNUMBER(phys_base)=0\n",
        "SYMBOL(swapper_pg_dir)=ffffffff82a10008\nNUMBER(phys_base)=0\n",
        "SYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=-1073741824\n",
    ],
)
def test_vmcoreinfo_that_leads_nowhere(vmcoreinfo):
    with pytest.raises(FormatError):
        format_of("x86_64", vmcoreinfo)


def made_formats() -> list[PageTableFormat]:
    """What machines of all architectures have."""
    formats = []
    for name, entry in ARCHITECTURES.items():
        for page_shift, levels in entry.model.layouts:
            made = MadeKernel(
                levels=levels,
                page_shift=page_shift,
                text=entry.model.layouts[page_shift, levels].text or 0x9000 << 48,
                text_physical=0x80200000,
                page_offset=0,
                ram_base=0x80000000,
                vmalloc=0,
                vmemmap=0,
                vmemmap_start=0,
                kernel_offset=0,
                swapper_pg_dir=0,
                node_data=0,
                max_numnodes=1,
                max_pfn=1,
            )
            # The top table lies where the image does.
            made = replace(made, swapper_pg_dir=made.text + 0x10000)
            if name == "ppc64":
                made = replace(made, swapper_pg_dir=(0xC << 60) + 0x80210000)
            lines = [
                *entry.model.notes(made),
                f"PAGESIZE={1 << page_shift}",
                f"SYMBOL(swapper_pg_dir)={made.swapper_pg_dir:x}",
            ]
            candidates = entry.page_tables(Vmcoreinfo("\n".join(lines).encode()))
            formats += [form for form in candidates if len(form.levels) == levels]
    return formats


FORMATS = [x86_64, x86_64_sme, x86_64_l5, *made_formats()]
entries = st.integers(0, (1 << 64) - 1)
of_a_level = st.sampled_from(
    [(form, level) for form in FORMATS for level in range(len(form.levels))]
)


@given(of_a_level, st.lists(entries, min_size=1))
def test_many_are_decoded_as_one_is(at, values):
    page_table, level = at
    array = np.array(values, dtype=np.uint64)
    present = page_table.levels[level].is_present(array)
    one_by_one = [page_table.decode(value, level) for value in values]
    assert present.tolist() == [said.present for said in one_by_one]
    many = page_table.decode_all(array[present], level)
    there = [said for said in one_by_one if said.present]
    assert many.is_mapping.tolist() == [said.is_mapping for said in there]
    assert many.writable.tolist() == [said.writable for said in there]
    assert many.address.tolist() == [said.address for said in there]


@given(of_a_level, st.integers(0, 1 << 34), st.booleans())
def test_what_is_made_is_decoded(at, number, writable):
    page_table, level = at
    if not page_table.levels[level].has_mappings:
        return
    flags = page_table.protections.kernel
    if not writable:
        flags = page_table.protections.read_only
        if flags is None:
            flags = page_table.protections.rodata
    address = (number << page_table.shift(level)) & 0x7FFF_FFFF_F000
    entry = page_table.make(address, level, flags)
    said = DecodedEntry(True, True, writable, address)
    assert page_table.decode(entry, level) == said
    assert page_table.mapped_to(entry, level, 0x123) == address | 0x123
    other = page_table.with_write(entry, level, allowed=not writable)
    assert page_table.decode(other, level).writable == (not writable)
    assert page_table.with_write(other, level, allowed=writable) == entry
    moved = page_table.with_frame(entry, level, 0)
    assert page_table.decode(moved, level).address == 0
    again = page_table.with_frame(moved, level, address >> page_table.page_shift)
    assert page_table.decode(again, level) == said
    many = page_table.make(np.array([address, 0], dtype=np.uint64), level, flags)
    assert many.tolist() == [entry, page_table.make(0, level, flags)]


@given(of_a_level, st.integers(0, 1 << 34))
def test_what_leads_to_a_table_is_decoded(at, number):
    page_table, level = at
    if not level:
        return
    size = page_table.table_size(level - 1)
    address = number * size & 0x7FFF_FFFF_FFFF
    entry = page_table.make_table(address, level)
    assert page_table.decode(entry, level) == DecodedEntry(True, False, True, address)


@pytest.mark.parametrize("page_table", FORMATS)
def test_what_is_empty_is_not_there(page_table):
    empty = page_table.protections.empty
    for level in range(len(page_table.levels)):
        if level and page_table.none_is_a_table:
            continue
        entry = empty[level] if empty else 0
        assert not page_table.decode(entry, level).present


def test_what_is_made_is_what_kernels_make():
    """PAGE_KERNEL, PAGE_KERNEL_RO, PAGE_KERNEL_LARGE and _PAGE_TABLE of x86-64."""
    made, protections = x86_64.make, x86_64.protections
    assert protections.read_only is not None
    assert made(0x18E7000, 0, protections.kernel) == 0x80000000018E7163
    assert made(0x18BB000, 0, protections.read_only) == 0x80000000018BB121
    assert made(0xFA00000, 1, protections.kernel) == 0x800000000FA001E3
    assert x86_64.make_table(0x1FFD1000, 1) == 0x1FFD1067
    assert protections.write_protected == 1 << 58
    many = made(np.array([0x1000, 0x2000], dtype=np.uint64), 0, protections.kernel)
    assert many.tolist() == [0x8000000000001163, 0x8000000000002163]
