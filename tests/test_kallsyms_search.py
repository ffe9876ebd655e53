# SPDX-License-Identifier: LGPL-2.1-or-later

"""Kallsyms and BTF in a kernel image of which VMCOREINFO says little."""

import random
import struct
import time

import numpy as np
import pytest

from drgn_hvo.errors import FormatError, UnavailableError
from drgn_hvo.extract.command import extract_document
from drgn_hvo.formats.btf_image import find_btf
from drgn_hvo.formats.kallsyms import Kallsyms, KallsymsTables, KernelSymbol
from drgn_hvo.formats.kallsyms_search import find_kallsyms
from drgn_hvo.formats.kallsyms_writer import kallsyms_tables
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.extract_support import opened
from tests.overlay import Overlay
from tests.synth_support import ALL, describe
from tools.lost_keys import without_keys

START = 0xFFFFFFFF81000000
KNOWN = {
    "init_uts_ns": START + 0x900100,
    "swapper_pg_dir": START + 0xA00000,
    "node_data": START + 0x900800,
}
# A name of more than 127 codes, "big" since v6.1.
BIG = "".join(random.Random(4).choices("abcdefghijklmnopqrstuvwxyz_0123456789", k=400))


def some_symbols(count, percpu):
    noise = random.Random(3)
    symbols = [KernelSymbol(name, at, "D") for name, at in KNOWN.items()]
    symbols.append(KernelSymbol(BIG, START + 0x5000, "t"))
    for i in range(count):
        name = f"{noise.choice(('do_', 'sys_', '__'))}{noise.randrange(1 << 40):x}_{i}"
        symbols.append(KernelSymbol(name, START + 64 * i, noise.choice("tTdDrRbB")))
    if percpu:
        symbols += [
            KernelSymbol("__per_cpu_start", 0, "A"),
            KernelSymbol("current_task", 0x1F000, "A"),
        ]
    return symbols


def image(addressing, byteorder="little", *, old=False, align=8, count=300, seqs=0):
    """
    A kernel image with tables as some kernel lays them out.

    :param old: Offsets in front of the names, as up to v6.3.
    :param seqs: Size of ``kallsyms_seqs_of_names`` in front of the tokens, as in v6.2.
    """
    symbols = some_symbols(count, addressing == "percpu")
    noise = random.Random(5)
    data = bytearray(noise.randbytes(0x8000))
    places = {}

    def put(name, table):
        data.extend(bytes(-len(data) % align))
        places[name] = START + len(data)
        data.extend(table)

    # Sizes do not depend on where the offsets lie.
    tables = kallsyms_tables(symbols, addressing, START, byteorder)
    kind = "kallsyms_addresses" if addressing == "absolute" else "kallsyms_offsets"
    for _ in range(2):
        del data[0x8000:]
        if old:
            put(kind, tables.offsets)
            if tables.relative_base is not None:
                put("kallsyms_relative_base", tables.relative_base)
        put("kallsyms_num_syms", tables.num_syms)
        put("kallsyms_names", tables.names)
        put("markers", tables.markers)
        put("seqs", noise.randbytes(seqs))
        put("kallsyms_token_table", tables.token_table)
        put("kallsyms_token_index", tables.token_index)
        if not old:
            put(kind, tables.offsets)
            data.extend(bytes(-len(data) % 8))
            if tables.relative_base is not None:
                put("kallsyms_relative_base", tables.relative_base)
        tables = kallsyms_tables(symbols, addressing, places[kind], byteorder)
    data.extend(noise.randbytes(0x8000))
    del places["markers"], places["seqs"]
    return bytes(data), places, symbols


LAYOUTS = [
    ("absolute", "little", {"old": True}),
    ("absolute", "big", {}),
    ("base", "little", {"old": True}),
    ("base", "little", {"old": True, "seqs": 912}),
    ("base", "big", {}),
    ("percpu", "little", {"old": True}),
    ("percpu", "little", {}),
    ("place", "little", {"align": 4}),
    ("place", "big", {"align": 4}),
    ("place", "little", {}),
]


@pytest.mark.parametrize(("addressing", "byteorder", "more"), LAYOUTS)
def test_every_generation_of_the_format(addressing, byteorder, more):
    data, places, symbols = image(addressing, byteorder, **more)
    found = find_kallsyms(START, data, KNOWN, byteorder)
    assert found == places

    def read(address, size):
        return data[address - START : address - START + size]

    tables = Kallsyms(KallsymsTables.read(read, found, byteorder), KNOWN)
    assert tables.addressing == addressing
    for symbol in symbols:
        assert tables.lookup(symbol.name) == [symbol]


def test_an_address_that_disagrees_is_no_match():
    data, _, _ = image("place")
    moved = {**KNOWN, "node_data": KNOWN["node_data"] + 8}
    with pytest.raises(FormatError, match="not found"):
        find_kallsyms(START, data, moved, "little")


def test_two_symbols_prove_nothing():
    data, _, _ = image("place")
    known = {name: KNOWN[name] for name in ("init_uts_ns", "node_data")}
    with pytest.raises(FormatError, match="not found"):
        find_kallsyms(START, data, known, "little")


def test_tables_that_are_there_twice_are_not_guessed_at():
    data, _, _ = image("base")
    with pytest.raises(FormatError, match="tables in the kernel image"):
        find_kallsyms(START, data + bytes(-len(data) % 8) + data, KNOWN, "little")


def test_any_damage_is_refused_or_harmless():
    """What is found is what is there, whichever byte is wrong."""
    data, places, _ = image("place", align=4)
    noise = random.Random(8)
    for _ in range(60):
        broken = bytearray(data)
        broken[noise.randrange(0x8000, len(data) - 0x8000)] ^= noise.randrange(1, 256)
        try:
            assert find_kallsyms(START, bytes(broken), KNOWN, "little") == places
        except FormatError:
            continue


def test_64_mib_take_at_most_two_seconds():
    data, places, _ = image("base", old=True, count=20_000)
    noise = np.random.default_rng(1).integers(0, 1 << 32, 4 << 20, dtype=np.uint32)
    text = noise.tobytes()[: -len(data) % 8 or None]
    text = (text * 4)[: (64 << 20) - len(data)]
    start = START - len(text) // 8 * 8
    begin = time.process_time()
    found = find_kallsyms(start, text[: START - start] + data, KNOWN, "little")
    assert time.process_time() - begin < 2
    assert found == places


@pytest.mark.parametrize("name", ALL)
def test_a_kernel_without_the_keys_is_read_as_with_them(name):
    machine = build_machine(describe(name))
    base = program(machine)
    note = without_keys(base["VMCOREINFO"].string_())
    assert b"kallsyms" not in note
    found, right = hvo_of(Overlay(base, vmcoreinfo=note).prog), hvo_of(base)
    assert found.kernel.symbols_from == "kallsyms"
    assert found.kernel.types_from == "btf"
    assert found.layout == right.layout
    assert found.hugetlb.hstates == right.hugetlb.hstates


def test_its_extract_names_them(tmp_path):
    """There is no image in it to be searched."""
    base = program(build_machine(describe("shared-7.3")))
    note = without_keys(base["VMCOREINFO"].string_())
    lost = Overlay(base, vmcoreinfo=note).prog
    for small in (False, True):
        path = tmp_path / f"{small}.kdump"
        extract_document(lost, "core", str(path), small=small)
        sources = core_sources(opened(path))
        assert b"SYMBOL(kallsyms_num_syms)" in sources.prog["VMCOREINFO"].string_()
        assert sources.address("hstates") == core_sources(base).address("hstates")


def test_an_image_that_is_not_there_is_said(tmp_path):
    machine = build_machine(describe("shared-7.3"))
    base = program(machine)
    start = machine.kernel.physical("_stext")
    note = without_keys(base["VMCOREINFO"].string_())
    holes = [(start, start + (6 << 20))]
    lost = Overlay(base, vmcoreinfo=note, missing=holes).prog
    with pytest.raises(UnavailableError, match="kernel image is not in this dump"):
        core_sources(lost).kallsyms()
    tables = machine.kernel.physical("kallsyms_names")
    holes = [(tables & -4096, (tables & -4096) + 4096)]
    lost = Overlay(base, vmcoreinfo=note, missing=holes).prog
    with pytest.raises(UnavailableError, match=r"not found.*; 1 of its \d+ pages are"):
        core_sources(lost).kallsyms()


def test_types_are_found_without_symbols():
    """For sessions, and as long as one blob can be them."""
    machine = build_machine(describe("shared-7.3"))
    base = program(machine)
    tokens = machine.kernel.physical("kallsyms_token_index")
    broken = Overlay(base, patches={tokens: b"\xff" * 512}).prog
    kernel = hvo_of(broken).kernel
    assert (kernel.types_from, kernel.symbols_from) == ("vmcoreinfo", "vmcoreinfo")
    assert broken.type("struct page").size == 64
    start = machine.kernel.physical("__start_BTF")
    size = machine.kernel.address("__stop_BTF") - machine.kernel.address("__start_BTF")
    blob = machine.image.read(start, size)
    assert find_btf(b"\xeb\x9f" * 9 + bytes(6) + blob + b"\0") == (24, size)
    with pytest.raises(FormatError, match="0 places"):
        find_btf(blob[:-1])
    with pytest.raises(FormatError, match="2 places"):
        find_btf(blob + blob)
    assert struct.unpack_from("<H", blob) == (0xEB9F,)
