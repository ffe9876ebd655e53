# SPDX-License-Identifier: LGPL-2.1-or-later

"""Kallsyms against tables that a small encoder of our own makes."""

from contextlib import suppress
import random
import struct
import time

from hypothesis import given, strategies as st
import pytest

from drgn_hvo.errors import FormatError
from tests.kallsyms_support import BASE, BIG, TABLES, Image, ReadError

MODES = ("place", "base", "percpu", "absolute")
ORDERS = ("little", "big")

SYMBOLS = [
    ("T_stext", BASE),
    ("Tdo_one", BASE + 0x40),
    ("tdup", BASE + 0x80),
    ("Tabc", BASE + 0x100),
    ("Tcab", BASE + 0x140),
    ("Tbca", BASE + 0x180),
    ("Tfoo", BASE + 0x200),
    ("Tfo_alias", BASE + 0x200),
    ("tdup", BASE + 0x240),
    (BIG, BASE + 0x280),
    ("Dinit_uts_ns", BASE + 0x100000),
    ("d__init_page_lookup", BASE + 0x100040),
    ("Bhstates", BASE + 0x7EFF_0000),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", MODES)
def test_every_symbol_of_every_addressing_mode(mode, order):
    kallsyms = Image(SYMBOLS, mode, order).load()
    assert kallsyms.addressing == mode
    assert len(kallsyms) == len(SYMBOLS)
    assert [(s.type + s.name, s.address) for s in kallsyms] == SYMBOLS


def test_percpu_symbols_are_absolute():
    symbols = [("Afixed_percpu_data", 0), ("Acpu_number", 0x1F40), *SYMBOLS]
    kallsyms = Image(symbols, "percpu").load()
    assert [(s.type + s.name, s.address) for s in kallsyms] == symbols


@pytest.mark.parametrize("mode", MODES)
def test_lookup_by_name(mode):
    kallsyms = Image(SYMBOLS, mode).load()
    for name, address in SYMBOLS:
        if name != "tdup":
            (entry,) = kallsyms.lookup(name[1:])
            assert (entry.address, entry.type) == (address, name[0])
    for name in ("", "absent", "_stex", "stext", "_stextt", "T_stext", "é"):
        assert kallsyms.lookup(name) == []


def many(count):
    rng = random.Random(count)
    names = ["T_stext"] + [
        f"t{rng.choice('abcdefg') * rng.randrange(1, 140)}_{i}" for i in range(count)
    ]
    return [(name, BASE + 16 * i) for i, name in enumerate(names)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("count", "align", "behind"),
    [
        (256, 8, b""),
        (600, 8, b""),
        # What v6.2 and v6.3 have behind the marks, three bytes a symbol.
        (700, 8, bytes(range(1, 256)) * 9 + b"\0" * 9),
        # v7.2 aligns to 4.
        (767, 4, b""),
    ],
)
def test_marks_lead_to_the_same_names(count, align, behind, order, monkeypatch):
    symbols = many(count)
    image = Image(symbols, "base", order, align, behind)
    image.symbols.pop("kallsyms_seqs_of_names")
    marks = image.symbols.pop("kallsyms_markers") - TABLES
    with monkeypatch.context() as without_loop:
        without_loop.delattr("drgn_hvo.formats.kallsyms._places")
        kallsyms = image.load()
    assert [(s.type + s.name, s.address) for s in kallsyms] == symbols
    # Marks that are damaged change nothing, wherever they lead.
    for wrong in (0, 1, 7, 0x7FFF_FFFF, 0xFFFF_FFFF):
        value = struct.unpack_from(
            "<I" if order == "little" else ">I", image.memory, marks + 4
        )[0]
        image.memory[marks + 4 : marks + 8] = wrong.to_bytes(4, order)
        kallsyms = image.load()
        image.memory[marks + 4 : marks + 8] = value.to_bytes(4, order)
        assert [(s.type + s.name, s.address) for s in kallsyms] == symbols


def test_marks_do_not_hide_damaged_names():
    symbols = many(600)
    image = Image(symbols, "base")
    first = image.symbols["kallsyms_names"] - TABLES
    image.memory[first] += 1
    with_marks = outcome(image)
    marks = image.symbols["kallsyms_markers"] - TABLES
    image.memory[marks : marks + 12] = bytes(12)
    assert outcome(image) == with_marks


def outcome(image):
    try:
        return [(s.type + s.name, s.address) for s in image.load()]
    except FormatError as e:
        return str(e)


def test_static_symbols_may_share_a_name():
    addresses = [s.address for s in Image(SYMBOLS, "place").load().lookup("dup")]
    assert addresses == [BASE + 0x80, BASE + 0x240]


def test_anagrams_are_told_apart():
    kallsyms = Image(SYMBOLS, "place").load()
    found = {name: kallsyms.lookup(name) for name in ("abc", "cab", "bca", "acb")}
    assert {name: [s.address - BASE for s in e] for name, e in found.items()} == {
        "abc": [0x100],
        "cab": [0x140],
        "bca": [0x180],
        "acb": [],
    }


@pytest.mark.parametrize("length", [126, 127, 128, 129, 255, 256, 400, 511])
def test_big_symbols(length):
    name = ("xyz" * length)[:length]
    symbols = [*SYMBOLS, (f"t{name}", BASE + 0x300), ("tlast", BASE + 0x400)]
    kallsyms = Image(symbols, "place").load()
    assert [s.address for s in kallsyms.lookup(name)] == [BASE + 0x300]
    assert [s.address for s in kallsyms.lookup("last")] == [BASE + 0x400]


@given(st.data())
def test_nearest_and_extent(data):
    kallsyms = Image(SYMBOLS, "place").load()
    address = data.draw(
        st.sampled_from([a + d for _, a in SYMBOLS for d in (-1, 0, 1)])
        | st.integers(0, 2**64 - 1)
    )
    below = [(a, n) for n, a in SYMBOLS if a <= address]
    nearest = kallsyms.nearest(address)
    last = max(a for _, a in SYMBOLS)
    if below and address <= last:
        assert nearest.address == max(below)[0]
        assert (nearest.address, nearest.type + nearest.name) in below
    else:
        assert nearest is None
    above = [a for _, a in SYMBOLS if a > address]
    assert kallsyms.extent(address) == (min(above) - address if above else None)


def test_nothing_lies_between_per_cpu_offsets_and_the_image():
    kallsyms = Image([*SYMBOLS, ("A__per_cpu_end", 0x34000)], "percpu").load()
    assert kallsyms.nearest(0x34000).name == "__per_cpu_end"
    assert kallsyms.nearest(0xFFFF888000000000) is None


names = st.text("abcxyz_.0", min_size=1, max_size=12)


@given(
    st.lists(st.tuples(names, st.integers(0, 0x7EFF_FFFF)), max_size=20),
    st.sampled_from(MODES),
    st.sampled_from(ORDERS),
)
def test_any_symbols_come_back(drawn, mode, order):
    symbols = [("T_stext", BASE), *(("t" + n, BASE + a) for n, a in drawn)]
    kallsyms = Image(symbols, mode, order).load()
    assert [(s.type + s.name, s.address) for s in kallsyms] == symbols
    for name, _ in symbols:
        assert sorted(s.address for s in kallsyms.lookup(name[1:])) == sorted(
            a for n, a in symbols if n == name
        )


def test_addresses_that_vmcoreinfo_denies_are_refused():
    for mode in MODES:
        with pytest.raises(FormatError, match=r"disagrees.*_stext"):
            Image(SYMBOLS, mode).load(_stext=BASE + 0x40)


def test_one_of_the_known_symbols_that_disagrees_is_enough():
    places = {(name[1:]): address for name, address in SYMBOLS}
    unique = [n for n in places if sum(name[1:] == n for name, _ in SYMBOLS) == 1]
    known = {name: places[name] for name in ("_stext", *unique[-2:])}
    for mode in MODES:
        assert Image(SYMBOLS, mode).load(**known).addressing == mode
        wrong = {**known, unique[-1]: known[unique[-1]] + 8}
        with pytest.raises(FormatError, match="disagrees"):
            Image(SYMBOLS, mode).load(**wrong)


def test_tables_without_a_known_symbol_prove_nothing():
    with pytest.raises(FormatError, match="none of the symbols"):
        Image(SYMBOLS, "place").load(swapper_pg_dir=BASE)


def test_one_of_several_symbols_with_a_known_name_is_enough():
    assert Image(SYMBOLS, "base").load(dup=BASE + 0x240).addressing == "base"


@pytest.mark.parametrize(
    "missing",
    [
        "kallsyms_num_syms",
        "kallsyms_names",
        "kallsyms_token_table",
        "kallsyms_token_index",
        "kallsyms_offsets",
    ],
)
def test_missing_table_is_named(missing):
    image = Image(SYMBOLS, "place")
    del image.symbols[missing]
    with pytest.raises(FormatError, match=missing):
        image.load()


def test_missing_base_is_refused():
    image = Image(SYMBOLS, "base")
    del image.symbols["kallsyms_relative_base"]
    with pytest.raises(FormatError, match="disagrees"):
        image.load()


def test_exception_of_the_reader_passes():
    image = Image(SYMBOLS, "place")
    image.symbols["kallsyms_offsets"] = 0x1000
    with pytest.raises(ReadError, match="0x1000"):
        image.load()


@pytest.mark.parametrize("count", [0, 5_000_000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_absurd_count_is_refused_before_anything_is_read(count):
    image = Image(SYMBOLS, "place")
    image.memory[:4] = struct.pack("<I", count)
    with pytest.raises(FormatError, match=f"counts {count} symbols"):
        image.load()
    assert image.requested < 4096


@pytest.mark.parametrize("distance", [-(1 << 40), -8, 0, (64 << 20) + 1, 1 << 40])
def test_absurd_extent_of_the_names_is_refused(distance):
    image = Image(SYMBOLS, "place")
    names_at = image.symbols["kallsyms_names"]
    image.symbols["kallsyms_token_table"] = names_at + distance
    with pytest.raises(FormatError, match="bytes of names"):
        image.load()
    assert image.requested < 4096


def test_more_symbols_than_names_is_refused():
    image = Image(SYMBOLS[:1], "absolute")
    image.memory[:4] = struct.pack("<I", 2000)
    image.memory += bytes(16000)
    with pytest.raises(FormatError, match="damaged"):
        image.load()


def test_name_of_no_length_is_refused():
    image = Image(SYMBOLS, "place")
    image.memory[image.symbols["kallsyms_names"] - TABLES] = 0
    with pytest.raises(FormatError, match="no name"):
        image.load()


def test_damage_is_a_format_error_and_nothing_else():
    chance = random.Random("kallsyms")
    loaded = 0
    start = time.monotonic()
    for _ in range(800):
        order = chance.choice(ORDERS)
        image = Image(SYMBOLS, chance.choice(MODES), order)
        for _ in range(chance.choice((1, 1, 2, 8))):
            position = chance.randrange(len(image.memory))
            image.memory[position] = chance.choice((0, 0x7F, 0x80, 0xFF))
        if chance.random() < 0.2:
            del image.memory[chance.randrange(len(image.memory)) :]
        if chance.random() < 0.2:
            name = chance.choice(sorted(image.symbols))
            image.symbols[name] = chance.choice((0, 2**64 - 1, TABLES, TABLES + 7))
        with suppress(FormatError, ReadError):
            kallsyms = image.load()
            for entry in kallsyms:
                kallsyms.lookup(entry.name)
            for address in (0, BASE, BASE + 0x210, 2**64 - 1):
                kallsyms.nearest(address)
                kallsyms.extent(address)
            loaded += 1
        # Offsets of four million symbols, and the names.
        assert image.requested < 128 << 20
    assert 100 < loaded < 800
    assert time.monotonic() - start < 60


def test_truncated_at_any_point():
    whole = Image(SYMBOLS, "base")
    for length in range(0, len(whole.memory), 5):
        image = Image(SYMBOLS, "base")
        del image.memory[length:]
        with pytest.raises((FormatError, ReadError)):
            image.load()
