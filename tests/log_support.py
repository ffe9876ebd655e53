# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Texts of reports about pages
----------------------------

Made from the kernel's own format strings; ``test_kernel_strings.py`` holds these
against its source.
"""

from __future__ import annotations

__all__ = (
    "GPF_HINTS",
    "HEAD",
    "MASK_9",
    "TAIL",
    "TAIL_MAPPING",
    "arm64_fault",
    "bad_page_map",
    "bad_page_state",
    "dump_page",
    "general_protection_fault",
    "raw_lines",
    "riscv_fault",
    "struct_page_words",
)

TAIL_MAPPING = 0xDEAD000000000400


def struct_page_words(info, *, flags=0x17FFFFC0000000, mapping=TAIL_MAPPING, count=0):
    """The eight words of a struct page: _mapcount is -1, _refcount *count*."""
    return (flags, info, 0, mapping, 0, 0, count << 32 | 0xFFFFFFFF, 0)


#: A tail of a huge page of 2 MiB, and the head of one.
MASK_9 = 0xFFFFFFFFFFFF8001
TAIL = struct_page_words(MASK_9)
HEAD = (
    0x17FFFFC0000040, 0, 0xFF1100000A5B2C30, 0, 0, 0x10, 0xF4000000, 0,
)  # fmt: skip


def raw_lines(prefix, words):
    """print_hex_dump(…, prefix, DUMP_PREFIX_NONE, 32, 8, …)"""
    for i in range(0, len(words), 4):
        yield prefix + " ".join(f"{word:016x}" for word in words[i : i + 4])


def dump_page(pfn, words, *, form="new", order=0, because=None, **changes):
    """__dump_folio(), since v6.9 (``new``) and before (``old``, ``6.7``)."""
    names = "head|" if order else ""
    say = {"refcount": 0, "mapcount": 0, "names": names, "kind": "", **changes}
    counts = f"refcount:{say['refcount']} mapcount:{say['mapcount']}"
    rest = f"mapping:0000000000000000 index:0x0 pfn:0x{pfn:x}"
    if form == "new":
        yield f"page: {counts} {rest}"
        if order:
            yield (
                f"head: order:{order} mapcount:0 entire_mapcount:0 nr_pages_mapped:0 "
                "pincount:3"
            )
    else:
        yield f"page:000000003a1b2c3d {counts} {rest}"
        if order and form == "old":
            yield (
                f"head:0000000012345678 order:{order} compound_mapcount:0 "
                "compound_pincount:3"
            )
        elif order:
            yield (
                f"head:0000000012345678 order:{order} entire_mapcount:0 "
                "nr_pages_mapped:0 pincount:3"
            )
    if "memcg" in say:
        yield f"memcg:{say['memcg']:x}"
    flags = say.get("flags", words[0])
    yield (
        f"{say['kind']}flags: 0x{flags:x}({say['names']}node=0|zone=2|"
        "lastcpupid=0x1fffff)"
    )
    if "page_type" in say:
        yield f"page_type: {say['page_type']}"
    yield from raw_lines("raw: ", words)
    if order:
        yield from raw_lines("head: ", say.get("head_words", words))
    if because is not None:
        yield f"page dumped because: {because}"


def bad_page_state(pfn, words, because, *, comm="init", calls=(), **changes):
    """bad_page(), print_modules(), dump_stack()."""
    yield f"BUG: Bad page state in process {comm}  pfn:{pfn:05x}"
    yield from dump_page(pfn, words, because=because, **changes)
    yield "Modules linked in: virtio_blk"
    yield (
        f"CPU: 0 UID: 0 PID: 1 Comm: {comm} Tainted: G    B              "
        "6.12.117+deb12-cloud-amd64 #1  Debian 6.12.117-1~deb12u1"
    )
    yield "Call Trace:"
    yield " <TASK>"
    yield " dump_stack_lvl+0x64/0x80"
    yield " bad_page+0x70/0x110"
    for call in calls:
        yield f" {call}+0x1/0x2"
    yield " ? filp_close+0x1d/0x30"
    yield "RIP: 0033:0x47b7a0"
    yield "RAX: ffffffffffffffda RBX: 0000000000000001 RCX: 000000000047b7a0"
    yield " </TASK>"


def bad_page_map(pfn, words, *, new=False):
    """print_bad_pte(), since v6.18 print_bad_page_map()."""
    if new:
        yield "BUG: Bad page map in process memhog  pte:80000000045a2025"
        yield "pgd:0045a0067 p4d:0045a0067 pud:0045a1067 pmd:0045a3067"
        yield from dump_page(pfn, words, because="bad page map")
    else:
        yield ("BUG: Bad page map in process memhog  pte:80000000045a2025 pmd:045a3067")
        yield from dump_page(pfn, words, form="old", because="bad pte")
    yield (
        "addr:00007f0000001000 vm_flags:00100073 anon_vma:0000000000000000 "
        "mapping:ff1100000a5b2c30 index:0"
    )


GPF_HINTS = (
    ", probably for non-canonical address",
    ", maybe for address",
    ", probably LASS violation for address",
)


def general_protection_fault(address, hint=GPF_HINTS[0], registers=()):
    """exc_general_protection(), __die_header(), show_regs()."""
    said = "" if address is None else f"{hint} 0x{address:x}"
    yield f"Oops: general protection fault{said}: 0000 [#1] SMP NOPTI"
    yield (
        "CPU: 1 UID: 0 PID: 412 Comm: memhog Not tainted 7.2.13+deb14-cloud-amd64 #1 "
        "PREEMPT(lazy)  Debian 7.2.13-1"
    )
    yield "RIP: 0010:page_mapping+0x1c/0x60"
    yield "RSP: 0018:ffffc90000123d50 EFLAGS: 00010286"
    for name, value in registers:
        yield f"{name}: {value:016x}"
    yield "Call Trace:"
    yield " <TASK>"
    yield " folio_mark_dirty+0x5f/0x130"
    yield "---[ end trace 0000000000000000 ]---"


def arm64_fault(address, *, write, mapped, entries=(), **changes):
    """die_kernel_fault(), mem_abort_decode(), show_pte() and die() of arm64."""
    esr = 0x25 << 26 | 1 << 25 | (0x0F if mapped else 0x07) | (1 << 6 if write else 0)
    what = "write to read-only memory" if mapped and write else "paging request"
    yield f"Unable to handle kernel {what} at virtual address {address:016x}"
    yield "Mem abort info:"
    yield f"  ESR = 0x{esr:016x}"
    yield "  EC = 0x25: DABT (current EL), IL = 32 bits"
    yield "  SET = 0, FnV = 0"
    yield "Data abort info:"
    yield f"  CM = 0, WnR = {int(write)}, TnD = 0, TagAccess = 0"
    yield "swapper pgtable: 4k pages, 52-bit VAs, pgdp=00000000424bb000"
    names = ("pgd", "p4d", "pud", "pmd", "pte")
    tables = ", ".join(f"{n}={v:016x}" for n, v in zip(names, entries))
    yield f"[{address:016x}] {tables}"
    yield f"Internal error: Oops: {esr:016x} [#1] SMP"
    yield (
        "CPU: 0 UID: 0 PID: 77 Comm: init Not tainted "
        f"{changes.get('release', '7.2.13+deb14-arm64')} #1 PREEMPT  Debian 7.2.13-1"
    )
    yield "pc : folio_try_get+0x1c/0x60"
    yield "lr : filemap_get_entry+0x74/0x180"
    yield "sp : ffff80008248bbe0"
    yield f"x29: ffff80008248bbe0 x28: {address & -64:016x} x27: 0000000000000000"
    yield "Call trace:"
    yield " folio_try_get+0x1c/0x60 (P)"
    yield " el0_svc+0x38/0x110"
    yield "---[ end trace 0000000000000000 ]---"


def riscv_fault(address, *, cause, entries=(), **changes):
    """die_kernel_fault(), show_pte(), die() and __show_regs() of riscv."""
    yield f"Unable to handle kernel paging request at virtual address {address:016x}"
    if entries:
        yield ("Current init pgtable: 4K pagesize, 39-bit VAs, pgdp=0x0000000083a3c000")
        names = ("pgd", "p4d", "pud", "pmd", "pte")
        tables = ", ".join(f"{n}={v:016x}" for n, v in zip(names, entries))
        yield f"[{address:016x}] {tables}"
    yield "Oops [#1]"
    yield (
        "CPU: 0 UID: 0 PID: 77 Comm: init Not tainted "
        f"{changes.get('release', '7.2.13+deb14-riscv64')} #1 PREEMPT  Debian 7.2.13-1"
    )
    yield "epc : folio_try_get+0x1c/0x60"
    yield " ra : filemap_get_entry+0x74/0x180"
    yield ("epc : ffffffff802a1b2c ra : ffffffff802a1c74 sp : ff2000000064bc40")
    yield (f" gp : ffffffff81e3a6a8 tp : ff60000002b1a040 t0 : {address & -64:016x}")
    yield f"status: 0000000200000120 badaddr: {address:016x} cause: {cause:016x}"
    yield "---[ end trace 0000000000000000 ]---"
