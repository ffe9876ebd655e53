# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Synthetic cores beside real ones
--------------------------------

What real cores have and the synthetic ones lack is written down in
``sample_vmcores/README.md``; these tests keep that list honest.
"""

import re
import struct
from typing import Any

import pytest

from drgn_hvo.commands.show import show_document
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.cores import open_core
from tests.synth_support import describe

PAIRS = [
    ("6.1-2node", "fake-head-6.1"),
    ("6.12-2node", "fake-head-6.12"),
    ("7.2-2node", "shared-7.3"),
    ("seed5-2node", "seed-v5"),
    ("seed6-2node", "seed-v6"),
    ("seedgh-2node", "mask-6.18-stable"),
]

# No log, no vmalloc areas.
ONLY_REAL = re.compile(
    r".*\(((dev_)?printk_.*|prb.*|clear_seq|latched_seq.*|vmap_area.*"
    r"|PAGE_UNACCEPTED_MAPCOUNT_VALUE)\)"
)
# CONFIG_MEMORY_FAILURE is not set everywhere; kallsyms of the imitation is
# absolute, which its model's is not.
ONLY_SYNTHETIC = {"NUMBER(PG_hwpoison)", "SYMBOL(kallsyms_addresses)"}


@pytest.fixture(scope="module", params=PAIRS, ids=[name for name, _ in PAIRS])
def pair(request):
    real, synthetic = request.param
    machine = build_machine(describe(synthetic))
    return hvo_of(open_core(real)), hvo_of(program(machine))


def vmcoreinfo_keys(hvo):
    return set(Vmcoreinfo(hvo.kernel.prog["VMCOREINFO"].string_()))


def test_vmcoreinfo(pair):
    real, synthetic = (vmcoreinfo_keys(hvo) for hvo in pair)
    only_real = {key for key in real - synthetic if not ONLY_REAL.fullmatch(key)}
    assert only_real <= {"SYMBOL(kallsyms_offsets)"}
    assert synthetic - real <= ONLY_SYNTHETIC


def keys(document, prefix=""):
    if isinstance(document, dict):
        for key, value in document.items():
            yield prefix + key
            yield from keys(value, f"{prefix}{key}.")
    elif isinstance(document, list):
        for value in document:
            yield from keys(value, prefix)


def test_show(pair):
    shown: list[Any] = [show_document(hvo, "x", folios=True) for hvo in pair]
    real, synthetic = shown
    # There are reasons only for huge pages that are not optimized.
    assert {key for key in keys(real) if not key.startswith("not_optimized.")} == {
        key for key in keys(synthetic) if not key.startswith("not_optimized.")
    }
    for document in (real, synthetic):
        for part in ("encoding", "tail_layout"):
            del document[part]["evidence"]
        del document["vmemmap"]["base"]
    for key in (
        "arch",
        "page_size",
        "types_from",
        "symbols_from",
        "struct_page",
        "encoding",
        "tail_layout",
        "hvo_enabled",
        "vmemmap",
        "notes",
    ):
        assert real.get(key) == synthetic.get(key), key


def words(hvo):
    """The first struct pages of an optimized free folio, pointers and place blanked."""
    folios = hvo.hugetlb.folios
    optimized = hvo.hugetlb.optimized_mapping & (folios.on_list == 1)
    pfn = int(folios.head_pfn[optimized][0])
    data = hvo.kernel.prog.read(hvo.vmemmap.page_address(pfn), 66 * 64)
    # Node, zone and last_cpupid: how wide they are is a matter of configuration.
    fields = (1 << 24) - 1
    found = []
    for page in range(66):
        row = list(struct.unpack_from("<8Q", data, 64 * page))
        row[0] &= fields
        # index of the head: what its last user left.
        row[4] = 0 if page % 64 == 0 else row[4]
        found.append([None if is_pointer(word) else word for word in row])
    return found


def is_pointer(word):
    """A kernel address, or 6.1's padding that holds half of one."""
    return 0xFF00 << 48 <= word < 0xFFFFFFFFF0000000


def test_struct_pages(pair):
    real, synthetic = (words(hvo) for hvo in pair)
    for page, (one, two) in enumerate(zip(real, synthetic)):
        assert one == two, f"struct page {page}"
