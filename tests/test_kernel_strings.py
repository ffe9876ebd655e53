# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Format strings of the kernel
----------------------------

Every form of a report, filled in as ``printk()`` would from the very strings of the
kernel's source, is found; and these strings are in the source of the kernels that are
at hand: what Debian's ``linux-source-*`` unpacks to, or the folders that
``LINUX_SOURCES`` names.
"""

from __future__ import annotations

from dataclasses import dataclass
import glob
import os
from pathlib import Path
import re
from typing import Any, Optional

import pytest

from drgn_hvo.formats.oops_log import parse_log
from drgn_hvo.formats.page_checks import CHECKS

SOURCES = sorted(
    path
    for path in [
        *os.environ.get("LINUX_SOURCES", "").split(os.pathsep),
        *glob.glob("/usr/src/linux-source-*"),
    ]
    if path and Path(path, "mm").is_dir()
)

PFN, PAGE = 0x4B40, 0xFFFFEA000012D000

_CONVERSION = re.compile(r"%(#?)(-?)(0?)(\d*)(?:l{0,2}|h)(px|pS|p|[xdus])")


def printed(form: str, *values: Any) -> str:
    """As printk() prints; strings and symbols are given as they come out."""
    rest = list(values)

    def convert(match: re.Match[str]) -> str:
        alternate, _, zero, width, kind = match.groups()
        value = rest.pop(0)
        if kind == "px":
            return f"{value:016x}"
        if kind in ("p", "pS", "s"):
            return str(value)
        if kind in ("d", "u"):
            return f"{value:{zero}{width}d}"
        return ("0x" if alternate else "") + f"{value:{zero}{width}x}"

    line = _CONVERSION.sub(convert, form)
    assert not rest
    return line


@dataclass(frozen=True)
class Line:
    """
    One line that a kernel prints.

    :param file: Where the string is.
    :param form: The string, as it is there.
    :param since: Which releases have it.
    :param found: What is expected to be read from it; ``None`` if it is no beginning.
    """

    file: str
    form: str
    values: tuple[Any, ...]
    found: Optional[dict[str, Any]] = None
    since: str = "5.14"
    until: str = "99"


FAULT = {"form": "page-fault", "pfn": None}
STATE = {"form": "bad-page-state", "pfn": PFN}
MAP = {"form": "bad-page-map"}
POISON = {"form": "memory-failure", "pfn": PFN}

LINES = [
    Line("arch/x86/mm/fault.c", "BUG: unable to handle page fault for address: %px\\n",
         (PAGE,), FAULT),
    Line("arch/x86/mm/fault.c",
         "BUG: kernel NULL pointer dereference, address: %px\\n", (8,), FAULT),
    Line("arch/arm64/mm/fault.c",
         "Unable to handle kernel %s at virtual address %016lx\\n",
         ("paging request", PAGE), FAULT),
    Line("arch/arm64/mm/fault.c",
         "Unable to handle kernel %s at virtual address %016lx\\n",
         ("write to read-only memory", PAGE), FAULT),
    Line("mm/page_alloc.c", "BUG: Bad page state in process %s  pfn:%05lx\\n",
         ("a comm with spaces", PFN), STATE),
    Line("mm/memory.c", "BUG: Bad page map in process %s  pte:%08llx pmd:%08llx\\n",
         ("init", 0x45A2025, 0x45A3067), MAP, until="6.18"),
    Line("mm/memory.c", "BUG: Bad page map in process %s  %s:%08llx",
         ("init", "pmd", 0x80000000045A2025), MAP, since="7.0", until="7.3"),
    Line("mm/memory.c", "BUG: Bad page map in process %s  %s:%s",
         ("init", "pte", "80000000045a2025"), MAP, since="7.3"),
    Line("mm/memory-failure.c", "%#lx: recovery action for %s: %s\\n",
         (PFN, "huge page", "Recovered"), POISON),
    Line("mm/memory-failure.c",
         "%#lx: Sending SIGBUS to %s:%d due to hardware memory corruption\\n",
         (PFN, "init", 1), POISON),
    Line("mm/memory-failure.c", "%#lx: page already poisoned\\n", (PFN,), POISON,
         since="6.12"),
    Line("mm/madvise.c",
         "Soft offlining pfn %#lx at process virtual address %#lx\\n",
         (PFN, 0x7F0000000000), POISON),
    Line("mm/madvise.c",
         "Injecting memory failure for pfn %#lx at process virtual address %#lx\\n",
         (PFN, 0x7F0000000000), POISON),
    Line("mm/hwpoison-inject.c", "Injecting memory failure at pfn %#lx\\n", (PFN,),
         POISON),
    Line("mm/hugetlb.c", "HugeTLB: unexpected refcount on PFN %lu\\n", (PFN,),
         {"form": "hugetlb-warning", "pfn": PFN}, since="6.12", until="7.0"),
    Line("mm/hugetlb.c", "hugetlb: Huge Page Reserved count may go negative.\\n", (),
         {"form": "hugetlb-warning", "reason": "reserve-negative"}),
    Line("mm/hugetlb.c",
         "HugeTLB: allocating %lu of page size %s failed.  Only allocated %lu "
         "hugepages.\\n", (64, "2.00 MiB", 3),
         {"form": "hugetlb-warning", "reason": "pool-not-filled"}),
    Line("mm/hugetlb.c",
         "HugeTLB: freed %lu cross-zone hugepages of size %s on node %d.\\n",
         (2, "1.00 GiB", 0), {"form": "hugetlb-warning", "reason": "cross-zone"},
         since="7.3"),
    Line("mm/sparse-vmemmap.c", "vmemmap alloc failure: order:%u", (0,),
         {"form": "hugetlb-warning", "reason": "vmemmap-allocation"}),
    Line("mm/sparse-vmemmap.c", "[%lx-%lx] potential offnode page_structs\\n",
         (PAGE, PAGE + 4095), {"form": "hugetlb-warning", "reason": "vmemmap-offnode"}),
    Line("kernel/panic.c", "WARNING: CPU: %d PID: %d at %s:%d %pS\\n",
         (0, 1, "mm/hugetlb_vmemmap.c", 210, "vmemmap_remap+0x1/0x2"),
         {"form": "kernel-warning", "reason": "mm/hugetlb_vmemmap.c:210"},
         until="7.0"),
    Line("kernel/panic.c", "WARNING: %s:%d at %pS, CPU#%d: %s/%d\\n",
         ("mm/hugetlb_vmemmap.c", 210, "vmemmap_remap+0x1/0x2", 0, "init", 1),
         {"form": "kernel-warning", "reason": "mm/hugetlb_vmemmap.c:210"}, since="7.0"),
    Line("lib/bug.c", "kernel BUG at %s:%u!\\n", ("mm/filemap.c", 1502),
         {"form": "kernel-bug", "reason": "mm/filemap.c:1502"}),
    # The first line of dump_page(), whatever asked for it.
    Line("mm/debug.c",
         "page:%p refcount:%d mapcount:%d mapping:%p index:%#lx pfn:%#lx\\n",
         ("000000003a1b2c3d", 1, 0, "0000000000000000", 0, PFN),
         {"form": "page-dump", "pfn": PFN}, until="6.9"),
    Line("mm/debug.c",
         "page: refcount:%d mapcount:%d mapping:%p index:%#lx pfn:%#lx\\n",
         (1, -1, "0000000000000000", 0x101, PFN), {"form": "page-dump", "pfn": PFN},
         since="6.12"),
    Line("mm/debug.c", "page:%p is uninitialized and poisoned",
         ("000000003a1b2c3d",), {"form": "page-dump", "pfn": None}),
    # The others.
    Line("mm/debug.c",
         "head:%p order:%u compound_mapcount:%d compound_pincount:%d\\n",
         ("000000003a1b2c3d", 9, 1, 2), until="6.2"),
    Line("mm/debug.c",
         "head: order:%u mapcount:%d entire_mapcount:%d nr_pages_mapped:%d "
         "pincount:%d\\n", (9, 1, 2, 3, 4), since="6.12"),
    Line("mm/debug.c", "page_type: %x(%s)\\n", (0xF4, "hugetlb"), since="6.12"),
    Line("mm/debug.c", "page dumped because: %s\\n", ("nonzero mapcount",)),
    Line("mm/debug.c", "memcg:%lx\\n", (0xFF11000001234567,)),
    Line("mm/debug.c", "page does not match folio\\n", (), since="6.12"),
    Line("arch/x86/mm/fault.c", "#PF: error_code(0x%04lx) - %s\\n",
         (3, "permissions violation")),
    Line("arch/arm64/mm/fault.c", "  ESR = 0x%016lx\\n", (0x9600004F,)),
    Line("arch/arm64/mm/fault.c", "[%016lx] pgd=%016llx", (PAGE, 0x424BB403)),
    Line("arch/arm64/mm/fault.c", ", pte=%016llx", (0x60000043ACF783,)),
    Line("arch/riscv/mm/fault.c", ", pte=%016lx", (0x20EFFC01,), since="7.0"),
    Line("mm/page_alloc.c", "BUG: Bad page state: %lu messages suppressed\\n", (17,)),
]  # fmt: skip

PREFIX = {"mm/memory-failure.c": "Memory failure: "}


def text_of(line: Line) -> str:
    return PREFIX.get(line.file, "") + printed(line.form, *line.values).replace(
        "\\n", ""
    )


@pytest.mark.parametrize(
    "line", [line for line in LINES if line.found], ids=lambda line: line.form
)
def test_beginnings_are_found(line):
    (report,) = parse_log([f"[    1.045515] {text_of(line)}"]).reports
    assert line.found is not None
    for name, value in line.found.items():
        assert getattr(report, name) == value


def test_the_rest_is_read():
    lines = [line for line in LINES if line.found is None and line.file == "mm/debug.c"]
    (first,) = (text_of(line) for line in LINES if line.form.startswith("page: ref"))
    newest = [text_of(line) for line in lines if line.since == "6.12"]
    always = [text_of(line) for line in lines if line.since == "5.14"]
    (report,) = parse_log([first, *newest, *always]).reports
    dump = report.dump
    assert dump is not None
    assert (dump.refcount, dump.mapcount, dump.index) == (1, -1, 0x101)
    assert (dump.order, dump.page_type) == (9, "hugetlb")
    assert dict(dump.counts) == {
        "mapcount": 1, "entire_mapcount": 2, "nr_pages_mapped": 3, "pincount": 4,
    }  # fmt: skip
    assert dump.memcg == 0xFF11000001234567
    assert report.reason == "nonzero mapcount"


def _version(path: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)$", path.rstrip("/"))
    assert found is not None, f"{path}: no version at the end"
    return int(found[1]), int(found[2])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


needs_source = pytest.mark.skipif(not SOURCES, reason="no linux-source-* unpacked")


def _source(root: str, file: str) -> str:
    text = Path(root, file).read_text(errors="replace")
    # Strings that go on in the next line.
    return re.sub(r'"\s*\n\s*"', "", text)


@needs_source
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.form)
def test_strings_are_the_kernels(source, line):
    version = _version(source)
    if not _numbers(line.since) <= version < _numbers(line.until):
        pytest.skip("other releases")
    assert line.form in _source(source, line.file)


@needs_source
@pytest.mark.parametrize("reason", CHECKS)
def test_reasons_are_the_kernels(reason):
    """In one of the releases; most are in all of them."""
    files = ("page_alloc", "memory", "memory_hotplug", "page_isolation", "filemap",
             "page_poison", "kasan/report")  # fmt: skip
    assert any(
        f'"{reason}"' in _source(source, f"mm/{file}.c")
        for source in SOURCES
        for file in files
    )


@needs_source
@pytest.mark.parametrize("source", SOURCES)
def test_no_reason_of_bad_page_is_missing(source):
    text = _source(source, "mm/page_alloc.c")
    reasons = re.findall(r'(?:bad_page\([\w &\[\]+]+, |bad_reason = )"([^"]+)"', text)
    assert len(reasons) > 8
    assert set(reasons) <= set(CHECKS)
