# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What people ask of a page besides its head: flags and type by name, whether memory
failed there, and why a huge page is not optimized. drgn's own helpers, the kernel's log
and descriptions of machines are what it is compared with.
"""

from dataclasses import replace
import json
from pathlib import Path
import re
from typing import Any

from drgn import FaultError
from drgn.helpers.linux.mm import PageSlab, decode_page_flags_value, pfn_to_page
import pytest

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import UsageError
from drgn_hvo.kernel.bound import kernel
from drgn_hvo.kernel.printk import kernel_log
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.not_optimized import REASONS, why_not_optimized
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.memmap.page_words import PageWordsReader
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.described.description import HugePages
from drgn_hvo.synth.described.generations import GENERATIONS
from drgn_hvo.synth.machine.machine import build_machine
from tests.command_support import run
from tests.cores import core_path
from tests.synth_support import describe

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

SHARED = SAMPLES.parents[1] / "shared" / "cores"

#: Names of flags that have several; drgn gives all of them.
REAL = ["debian-6.1", "debian-6.12", "debian-7.2"]


def document(command, core, *args):
    printed = run(command, core, *args, "--json")
    assert printed.returncode == 0, printed.stderr
    return json.loads(printed.stdout)


@pytest.mark.parametrize("sample", REAL)
def test_flags_as_drgn_names_them(sample):
    found = hvo_of(open_target(str(SAMPLES / f"{sample}.kdump"), [], None))
    reader = PageWordsReader(found.kernel, found.vmemmap)
    prog = found.kernel.prog
    named: set[str] = set()
    for pfn in range(0, 1 << 16, 7):
        words = reader.read(pfn)
        if words is None:
            continue
        decoded = decode_page_flags_value(prog, words.flags).lower()
        theirs = {name.removeprefix("pg_") for name in decoded.split("|")}
        names = words.flag_names or []
        assert set(names) <= theirs
        # What they have besides are second names of these bits, and higher bits.
        bits = {n: b for b, n in words.names.flags.items()}
        all_bits = (1 << len(bits)) - 1
        assert sum(1 << bits[name] for name in names) == words.flags & all_bits
        named |= set(names)
        try:
            is_slab = PageSlab(pfn_to_page(prog, pfn))
        except FaultError:
            continue
        assert (words.type_name == "slab") == is_slab
    assert {"head", "reserved"} & named


def test_poisoned_pages_are_those_of_the_log():
    """The raw pages are those that the kernel said had failed."""
    core = core_path("7.3-poison")
    log = "\n".join(kernel_log(kernel(open_target(str(core), [], None))).lines())
    # Free huge pages in which memory failed were dissolved, and are none any more.
    failed = {
        int(pfn, 16)
        for pfn in re.findall(
            r"Memory failure: 0x([0-9a-f]+): recovery action for huge page", log
        )
    }
    assert len(failed) == 12
    shown = document("show", core, "--folios")
    poisoned = shown["hwpoisoned"]
    assert {pfn for one in poisoned for pfn in one["raw_pages"]} == failed
    heads = {one["head_pfn"] for one in poisoned}
    assert heads == {f["head_pfn"] for f in shown["folios"] if f["hwpoison"]}
    for one in poisoned:
        assert one["unknown"] is None
        for pfn in one["raw_pages"]:
            assert one["head_pfn"] <= pfn < one["head_pfn"] + (1 << one["order"])
    some = poisoned[3]
    (page,) = document("page", core, some["raw_pages"][0])["pages"]
    assert page["hwpoison"] == {
        "poisoned": True,
        "raw_pages": some["raw_pages"],
        "unknown": None,
    }
    (head,) = document("page", core, some["head_pfn"])["pages"]
    assert "hwpoison" in head["flags"]
    assert document("check", core)["hwpoisoned"] == 12
    for command in ("show", "check"):
        assert "12" in run(command, core).stdout
    (well,) = document("page", core, shown["folios"][0]["head_pfn"])["pages"]
    if well["pfn"] not in heads:
        assert well["hwpoison"]["poisoned"] is False


# Where their hugetlb folios have a list of the pages that failed.
LISTING = [entry.name for entry in GENERATIONS if entry.lists_failed]


@pytest.mark.parametrize("name", LISTING)
def test_pages_that_failed_are_those_that_were_made_to(name):
    """In optimized folios and in others; on free lists and in use."""
    description = describe(name)
    failed = {0: (0,), 1: (5, 300), 5: (511, 64, 63)}
    huge_pages = [
        replace(group, failed=failed.get(i, ()))
        for i, group in enumerate(description.huge_pages)
    ]
    machine = build_machine(replace(description, huge_pages=tuple(huge_pages)))
    heads = [placed.first_pfn for placed in machine.plan.huge]
    expected = {heads[i]: sorted(heads[i] + k for k in failed[i]) for i in failed}
    hvo = hvo_of(program(machine))
    shown: Any = show_document(hvo, "core", folios=True)
    assert {f["head_pfn"] for f in shown["folios"] if f["hwpoison"]} == set(expected)
    assert {p["head_pfn"]: p["raw_pages"] for p in shown["hwpoisoned"]} == expected
    assert {p["unknown"] for p in shown["hwpoisoned"]} == {None}
    checked = check_document(hvo, "core", CheckScope())
    assert (checked["hwpoisoned"], checked["findings"]) == (len(failed), [])
    for head, pfns in expected.items():
        specs = [parse_page_spec(str(head + 7))]
        (page,) = page_document(hvo, "core", specs)["pages"]
        assert page["hwpoison"] == {
            "poisoned": True,
            "raw_pages": pfns,
            "unknown": None,
        }


def test_kernels_that_list_no_pages_that_failed():
    huge_pages = (HugePages(0, "DMA32", 9, 1, failed=(3,)),)
    with pytest.raises(UsageError, match="lists no pages that have failed"):
        describe("5.15", huge_pages=huge_pages)
    huge_pages = (HugePages(0, "DMA32", 9, 1, failed=(512,)),)
    with pytest.raises(UsageError, match="failed are 0 to 511"):
        describe("shared-7.3", huge_pages=huge_pages)


def test_nothing_is_poisoned_elsewhere():
    shown = document("show", SAMPLES / "debian-7.2.kdump", "--folios")
    assert shown["hwpoisoned"] == []
    assert {folio["hwpoison"] for folio in shown["folios"]} == {False}
    assert "poison" not in run("check", SAMPLES / "debian-7.2.kdump").stdout


@pytest.mark.parametrize(
    ("sample", "reasons"),
    [
        ("plain-7.2", {"not-built": 17}),
        ("odd-size-7.3", {"odd-size": 17}),
        ("shared-7.3-off", {"never-split": 17}),
        ("shared-7.3", {"restored": 4}),
        ("debian-7.2", {}),
        ("arm64-4k", {"not-built": 6}),
        ("arm64-64k", {"too-small": 6}),
    ],
)
def test_why_not_optimized(sample, reasons):
    core = SAMPLES / f"{sample}.kdump"
    counted: dict[str, int] = {}
    for one in why_not_optimized(hvo_of(open_target(str(core), [], None))):
        counted[one.reason] = counted.get(one.reason, 0) + one.count
    assert counted == reasons
    shown = document("show", core)
    optimized = sum(n["optimized"] for h in shown["hstates"] for n in h["nodes"])
    found = sum(n["folios"] for h in shown["hstates"] for n in h["nodes"])
    assert found - optimized == sum(reasons.values())
    printed = run("show", core).stdout
    for reason in reasons:
        assert f"not optimized: {REASONS[reason]}" in printed


def test_self_hosted_vmemmap():
    """Hot-added memory that holds its own memmap: 180 of 210 huge pages."""
    core = SHARED / "instants" / "hotplug1-7.2a.small.kdump"
    if not core.exists():
        pytest.skip("no instants in ../shared/cores")
    rows = why_not_optimized(hvo_of(open_target(str(core), [], None)))
    # The extract lacks struct pages of most frames.
    assert {row.reason for row in rows} == {"self-hosted", "not-read"}
    assert sum(row.count for row in rows) == 180
