# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What our finders tell drgn, and above all what they do when they cannot tell:
drgn's helpers take LookupError for "not configured" and go on.
"""

from collections.abc import Callable
from contextlib import suppress
import functools
import time
from typing import Any

import drgn
from drgn import Architecture, Platform, SymbolBinding, TypeKind
from drgn.helpers.linux.hugetlb import for_each_hstate, hugetlb_total_usage
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
from drgn.helpers.linux.mm import (
    compound_head,
    decode_page_flags_value,
    follow_phys,
    for_each_valid_page_range,
    totalram_pages,
)
from drgn.helpers.linux.mmzone import (
    NODE_DATA,
    for_each_online_pgdat,
    for_each_present_section,
)
from drgn.helpers.linux.nodemask import for_each_online_node, nr_node_ids
import pytest

from drgn_hvo.errors import HvoError, UnavailableError
from drgn_hvo.kernel.core_sources import core_sources, has_debuginfo
from drgn_hvo.kernel.finders import FINDER_NAME, install
from drgn_hvo.kernel.variables import VARIABLES
from tests.btf_support import SIGNED, STRUCT, Writer
from tests.cores import CORES, open_core, truth
from tests.finders_support import NOWHERE, TABLE_NAMES, UTS, kernel, kernel_with
from tests.kallsyms_support import BASE

# Kernel variables that nobody describes: neither BTF nor our table.
UNDESCRIBED = ("linux_banner", "slab_caches", "linux_proc_banner")

# What must not answer, rather than answer wrongly, where there are no sources.
# The value of each says how it would be wrong if LookupError came through.
PROBES: dict[str, Callable[[drgn.Program], Any]] = {
    "for_each_hstate": lambda prog: list(for_each_hstate(prog)),
    "hugetlb_total_usage": hugetlb_total_usage,
    "nr_node_ids": nr_node_ids,
    "for_each_online_node": lambda prog: list(for_each_online_node(prog)),
    "for_each_online_pgdat": lambda prog: list(for_each_online_pgdat(prog)),
    "NODE_DATA": lambda prog: NODE_DATA(prog, 0),
    "totalram_pages": totalram_pages,
    "for_each_valid_page_range": lambda prog: list(for_each_valid_page_range(prog)),
    "for_each_present_section": lambda prog: list(for_each_present_section(prog)),
    "decode_page_flags_value": lambda prog: decode_page_flags_value(prog, 64),
    "struct page": lambda prog: prog.type("struct page"),
    "struct folio": lambda prog: prog.type("struct folio"),
    "PG_head": lambda prog: prog["PG_head"],
    "init_mm": lambda prog: prog["init_mm"],
}


@functools.lru_cache(maxsize=2)
def core(name):
    prog = open_core(name)
    install(prog)
    return prog


def small_btf():
    """Struct hstate, but none of the arrays that hstates has its length from."""
    w = Writer()
    number = w.int("int", 4, SIGNED)
    w.int("unsigned int", 4)
    w.compound(STRUCT, "hstate", 4, ("order", number, 0))
    w.enum("order", 4, ("ORDER_MAX", 22))
    return w


EVERY_VARIABLE = [
    ("D" + name, UTS[1] + 64 * i)
    for i, name in enumerate(["init_uts_ns", "mem_section", *VARIABLES])
    if name != "init_uts_ns" or not i
]


@pytest.mark.parametrize("name", ["7.2-2node", "6.1-2node"])
def test_variable_that_nobody_describes_is_an_error_of_ours(name):
    prog = core(name)
    for variable in UNDESCRIBED:
        with pytest.raises(UnavailableError, match=f"{variable} at 0x.*debuginfo") as e:
            prog[variable]
        assert not isinstance(e.value, LookupError)
        with pytest.raises(UnavailableError):
            prog.variable(variable)


@pytest.mark.parametrize("name", ["7.2-2node", "6.1-2node"])
def test_what_does_not_exist_is_a_lookup_error_of_drgn(name):
    prog = core(name)
    for look_up in (
        lambda: prog["no_such_variable"],
        lambda: prog.variable("no_such_variable"),
        lambda: prog.constant("NO_SUCH_CONSTANT"),
        lambda: prog.function("no_such_function"),
        lambda: prog.type("struct no_such_struct"),
        lambda: prog.type("no_such_type_t"),
        lambda: prog.symbol("no_such_symbol"),
    ):
        with pytest.raises(LookupError):
            look_up()


@pytest.mark.parametrize("name", CORES)
def test_variables_have_their_types_and_values(name):
    prog = core(name)
    expected = truth(name)
    assert prog["nr_node_ids"].type_.type_name() == "unsigned int"
    assert prog["nr_node_ids"].value_() == len(expected["nodes"])
    hstates = expected["hstates"]
    assert prog["hugetlb_max_hstate"].value_() == len(hstates)
    assert prog["hstates"].type_.length >= len(hstates)
    assert prog["hstates"].type_.type.type_name() == "struct hstate"
    assert prog["init_mm"].type_.type_name() == "struct mm_struct"
    assert prog["vmemmap"].type_.type_name() == "struct page *"
    assert prog["PG_head"].type_.kind == TypeKind.ENUM
    assert prog["schedule"].type_.kind == TypeKind.FUNCTION
    # sysfs and /proc of the guest confirmed these.
    found = {h.order.value_(): h.nr_huge_pages.value_() for h in for_each_hstate(prog)}
    assert found == {h["order"]: h["nr_huge_pages"] for h in hstates}
    assert sorted(for_each_online_node(prog)) == sorted(
        node["nid"] for node in expected["nodes"]
    )


SOURCES_MISSING: dict[str, Callable[[], drgn.Program]] = {
    "no kallsyms": kernel,
    "kallsyms not in the dump": lambda: kernel(NOWHERE),
    "functions only, no BTF": lambda: kernel_with([]),
    "no BTF": lambda: kernel_with(EVERY_VARIABLE),
    "damaged BTF": lambda: kernel_with(EVERY_VARIABLE, b"\x9f\xeb" + bytes(64)),
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("missing", SOURCES_MISSING)
def test_helpers_are_loud_without_sources(missing, probe):
    # What needs no BTF, such as an unsigned int, gets as far as reading memory.
    with pytest.raises((UnavailableError, drgn.FaultError)):
        PROBES[probe](SOURCES_MISSING[missing]())


def test_helpers_are_loud_when_there_is_no_vmcoreinfo():
    prog = drgn.Program(Platform(Architecture.X86_64))
    install(prog)
    with pytest.raises(UnavailableError, match="no VMCOREINFO"):
        list(for_each_hstate(prog))
    with pytest.raises(UnavailableError, match="no VMCOREINFO"):
        prog.type("struct page")


@pytest.mark.parametrize(
    "value", [-1, 0, 1, 2**64 - 1, 2**63, 2**64, 0xFFFFFFFF82FFFFFF]
)
def test_absurd_addresses_of_tables_are_loud_and_nothing_else(value):
    for table in TABLE_NAMES:
        prog = kernel_with([UTS], small_btf().blob(), **{f"kallsyms_{table}": value})
        with pytest.raises(HvoError):
            list(for_each_hstate(prog))
        with pytest.raises(HvoError):
            prog.type("struct hstate")
        assert prog.symbols("_stext") == []


@pytest.mark.parametrize(
    ("start", "stop"),
    [(BASE, BASE), (BASE + 8, BASE), (BASE, BASE + 0x7000_0000), (BASE, BASE + 64)],
)
def test_absurd_extent_of_btf_is_loud(start, stop):
    prog = kernel_with([UTS, ("D__start_BTF", start), ("D__stop_BTF", stop)])
    with pytest.raises(UnavailableError, match="BTF"):
        prog.type("struct page")


def test_kernel_with_functions_only_in_kallsyms_cannot_tell_about_variables():
    prog = kernel_with([("Tschedule", BASE + 64)], small_btf().blob())
    with pytest.raises(UnavailableError, match="CONFIG_KALLSYMS_ALL"):
        prog["hstates"]
    # With data in it, what is not there does not exist.
    with pytest.raises(LookupError):
        kernel_with([UTS], small_btf().blob())["hstates"]


def test_array_of_unknown_length_is_loud():
    prog = kernel_with([UTS, ("Bhstates", BASE + 0x5000)], small_btf().blob())
    with pytest.raises(UnavailableError, match="how many elements hstates has"):
        prog["hstates"]


def test_two_symbols_of_one_name_are_loud():
    symbols = [UTS, ("bhstates", BASE + 0x5000), ("bhstates", BASE + 0x6000)]
    with pytest.raises(UnavailableError, match="2 symbols named hstates"):
        kernel_with(symbols, small_btf().blob())["hstates"]


def test_type_behind_an_unknown_kind_is_loud_and_others_work():
    w = small_btf()
    w.raw(42, "new", 0)
    w.compound(STRUCT, "page", 4)
    prog = kernel_with([UTS], w.blob())
    assert prog.type("struct hstate").size == 4
    assert prog["ORDER_MAX"].value_() == 22
    for name in ("struct page", "struct no_such"):
        with pytest.raises(HvoError, match="kind 42"):
            prog.type(name)
    with pytest.raises(HvoError, match="kind 42"):
        prog["PG_head"]


def test_reason_is_the_same_each_time():
    prog = kernel()
    reasons = set()
    for _ in range(3):
        with pytest.raises(UnavailableError) as e:
            prog.type("struct page")
        reasons.add(str(e.value))
    assert len(reasons) == 1
    assert "\n" not in reasons.pop()


@pytest.mark.parametrize("make", [kernel, lambda: core("7.2-2node")])
def test_types_that_drgn_knows_by_itself_still_work(make):
    prog = make()
    sizes = {
        "int": 4,
        "unsigned char": 1,
        "unsigned long": 8,
        "long long": 8,
        "char *": 8,
        "void *": 8,
        "int [3]": 12,
        "size_t": 8,
        "ptrdiff_t": 8,
        "_Bool": 1,
        "double": 8,
    }
    assert {name: drgn.sizeof(prog.type(name)) for name in sizes} == sizes
    assert drgn.cast("unsigned long", drgn.Object(prog, "int", 3)).value_() == 3


def test_vmcoreinfo_of_drgn_is_not_ours_to_answer():
    prog = kernel()
    assert b"SYMBOL(swapper_pg_dir)" in prog["VMCOREINFO"].string_()
    assert prog["PAGE_SIZE"].value_() == 4096
    assert prog["UTS_RELEASE"].string_() == b"7.2.13"


def finders(prog):
    return [
        prog.enabled_type_finders(),
        prog.enabled_object_finders(),
        prog.enabled_symbol_finders(),
    ]


def test_finders_stand_behind_all_others():
    prog = open_core("seed5-2node")
    before = finders(prog)
    install(prog)
    assert finders(prog) == [[*names, FINDER_NAME] for names in before]
    assert not has_debuginfo(prog)


def test_answers_of_other_finders_come_first():
    prog = open_core("seed5-2node")
    install(prog)
    mine = prog.struct_type("page", 1, ())
    prog.register_type_finder(
        "mine",
        lambda prog, kinds, name, filename: mine if name == "page" else None,
        enable_index=0,
    )
    assert prog.type("struct page").size == 1
    assert prog.type("struct zone").size > 1


def test_installing_twice_is_installing_once():
    prog = open_core("seed5-2node")
    sources = install(prog)
    once = finders(prog)
    assert install(prog) is sources is core_sources(prog)
    assert finders(prog) == once
    assert len(list(for_each_hstate(prog))) == len(truth("seed5-2node")["hstates"])


def test_name_in_a_file_is_not_ours_to_answer():
    # Neither BTF nor kallsyms knows the file: this could be another variable.
    with pytest.raises(LookupError):
        core("7.2-2node").variable("hstates", "mm/hugetlb.c")


def assert_same_symbol(ours, theirs):
    assert (ours.name, ours.address, ours.kind) == (
        theirs.name,
        theirs.address,
        theirs.kind,
    )
    # drgn leaves open what is not global.
    if theirs.binding != SymbolBinding.UNKNOWN:
        assert ours.binding == theirs.binding


@pytest.mark.parametrize("name", CORES)
def test_symbols_are_those_of_drgns_own_loader(name):
    prog = core(name)
    theirs = list(load_vmlinux_kallsyms(prog)(prog, None, None, False))
    kallsyms = core_sources(prog).kallsyms()
    assert len(theirs) > 20_000
    assert sorted((s.name, s.address) for s in kallsyms) == sorted(
        (s.name, s.address) for s in theirs
    )


def test_each_symbol_is_found_by_name_and_by_address():
    """On the smallest core, all of them; the loaders are the same for others."""
    prog = core("seed5-2node")
    symbols = load_vmlinux_kallsyms(prog)(prog, None, None, False)
    places = {(symbol.name, symbol.address) for symbol in symbols}
    for symbol in symbols:
        by_name = {s.address: s for s in prog.symbols(symbol.name)}
        assert_same_symbol(by_name[symbol.address], symbol)
        at = prog.symbol(symbol.address)
        # Of several symbols in one place any will do.
        assert at.address == symbol.address
        assert (at.name, at.address) in places


def test_address_inside_a_function_is_the_functions():
    prog = core("7.2-2node")
    schedule = prog.symbol("schedule")
    assert prog.symbol(schedule.address + 5).name == "schedule"
    assert prog.function("schedule").address_ == schedule.address
    assert schedule.size > 5
    with suppress(LookupError):
        assert prog.symbol(schedule.address - 1).name != "schedule"


def test_listing_all_symbols_takes_no_more_than_seconds():
    prog = core("7.2-2node")
    start = time.monotonic()
    assert len(prog.symbols()) == len(core_sources(prog).kallsyms())
    assert time.monotonic() - start < 10


def test_helpers_of_drgn_work_on_a_core_without_debuginfo():
    prog = core("7.2-2node")
    page = prog["vmemmap"] + truth("7.2-2node")["folios"][0]["pfn"]
    assert compound_head(page + 1) == page
    assert follow_phys(prog["init_mm"].address_of_(), page).value_() > 0
