# SPDX-License-Identifier: LGPL-2.1-or-later

"""VMCOREINFO as kernels write it, and as damage leaves it."""

from contextlib import suppress

from hypothesis import given, strategies as st
import pytest

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.vmcoreinfo import VALUE_SYMBOLS, Vmcoreinfo

REAL = b"""\
OSRELEASE=7.2.13+deb14-cloud-amd64
BUILD-ID=8a55a05d35a15fe072cfd7e22593672daae112af
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff98103f80
OFFSET(uts_namespace.name)=0
NUMBER(VMALLOC_START)=0xff38c8e400000000
SYMBOL(vmemmap)=ff9e5eb5c0000000
SYMBOL(mem_section)=ff21ab1d9fd4b880
LENGTH(mem_section)=131072
SIZE(page)=64
OFFSET(page.compound_info)=8
NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592
KERNELOFFSET=14c00000
"""


def test_every_kind_of_entry():
    info = Vmcoreinfo(REAL)
    assert info["OSRELEASE"] == "7.2.13+deb14-cloud-amd64"
    assert info["BUILD-ID"].startswith("8a55")
    assert info.integer("PAGESIZE") == 4096
    assert info.integer("KERNELOFFSET", 16) == 0x14C00000
    assert info.symbol("init_uts_ns") == 0xFFFFFFFF98103F80
    assert info.offset("page.compound_info") == 8
    assert info.number("VMALLOC_START") == 0xFF38C8E400000000
    assert info.number("PAGE_HUGETLB_MAPCOUNT_VALUE") == -201326592
    assert info.length("mem_section") == 131072
    assert info.size("page") == 64
    assert len(info) == len(list(info)) == 13


def test_trailing_zeros_of_the_note_are_no_value():
    assert Vmcoreinfo(b"CRASHTIME=5\0\0\0")["CRASHTIME"] == "5"


def test_value_may_contain_anything():
    assert Vmcoreinfo(b"OSRELEASE=a=b (c)\n")["OSRELEASE"] == "a=b (c)"


def test_values_that_look_like_addresses_are_not_offered_as_such():
    info = Vmcoreinfo(REAL)
    assert info.addresses() == {"init_uts_ns": 0xFFFFFFFF98103F80}
    assert {"vmemmap", "mem_section"} <= VALUE_SYMBOLS
    for name in ("vmemmap", "mem_section"):
        assert info.symbol(name) is not None
        assert info.address(name) is None


def test_missing_entries_are_none_and_keys_raise():
    info = Vmcoreinfo(b"X=1\n")
    for get in (
        info.symbol,
        info.address,
        info.number,
        info.length,
        info.size,
        info.offset,
        info.integer,
    ):
        assert get("absent") is None
    with pytest.raises(KeyError):
        info["absent"]
    assert info.get("absent") is None
    assert "absent" not in info


def test_repeated_with_the_same_value_is_fine():
    # node_data is printed by generic and by architecture code.
    info = Vmcoreinfo(b"SIZE(page)=64\nX=1\nSIZE(page)=64\n")
    assert info.size("page") == 64
    assert len(info) == 2


def test_repeated_with_another_value_names_both():
    info = Vmcoreinfo(b"SIZE(page)=64\nSIZE(page)=56\nSIZE(zone)=1\n")
    for get in (lambda: info.size("page"), lambda: info["SIZE(page)"]):
        with pytest.raises(FormatError, match=r"SIZE\(page\).*'64'.*'56'"):
            get()
    assert info.size("zone") == 1


@pytest.mark.parametrize("value", ["", "x", "12x", "1.5", "0x", "--1", "fg", "é"])
def test_nonsense_matters_only_to_those_who_need_it(value):
    info = Vmcoreinfo(f"SYMBOL(a)={value}\nNUMBER(a)={value}\nSIZE(b)=8\n".encode())
    for get in (info.symbol, info.number):
        with pytest.raises(FormatError, match="not a number"):
            get("a")
    assert info.size("b") == 8


@pytest.mark.parametrize("value", ["1" + "0" * 20, "-9223372036854775809", "9" * 9000])
def test_number_of_more_than_64_bits_is_refused(value):
    with pytest.raises(FormatError):
        Vmcoreinfo(f"NUMBER(a)={value}".encode()).number("a")


def test_numbers_of_64_bits_are_read():
    info = Vmcoreinfo(
        b"NUMBER(a)=-9223372036854775808\nNUMBER(b)=18446744073709551615\n"
        b"NUMBER(c)=0xffffffffffffffff\nNUMBER(d)=0\n"
    )
    assert [info.number(name) for name in "abcd"] == [-(2**63), 2**64 - 1, 2**64 - 1, 0]


@pytest.mark.parametrize("value", ["-1", "-ffffffff98103f80", "1_0", "+1", " 1", "1 "])
def test_what_no_kernel_prints_is_no_address(value):
    """Python's int() takes more than printf() gives."""
    info = Vmcoreinfo(f"SYMBOL(a)={value}\n".encode())
    for get in (lambda: info.symbol("a"), info.addresses):
        with pytest.raises(FormatError):
            get()


@pytest.mark.parametrize("value", ["-1", "1_0", " 1", "1 ", "+1"])
def test_what_no_kernel_prints_is_no_size(value):
    info = Vmcoreinfo(f"SIZE(a)={value}\nLENGTH(a)={value}\nOFFSET(a)={value}".encode())
    for get in (info.size, info.length, info.offset):
        with pytest.raises(FormatError):
            get("a")


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b"\n\n", b"no line", b"\xff" * 99])
def test_data_without_a_single_entry_is_not_vmcoreinfo(data):
    with pytest.raises(FormatError, match="KEY=VALUE"):
        Vmcoreinfo(data)


def test_implausibly_long_data_is_not_parsed():
    with pytest.raises(FormatError, match="cannot be"):
        Vmcoreinfo(b"X=1\n" * (1 << 19))


def test_lines_between_damage_are_still_read():
    info = Vmcoreinfo(b"\xff\xfe=1\nSIZE(page)=64\n\0\0\n(=)\nSYMBOL(=1\nPAGESIZE=4096")
    assert info.size("page") == 64
    assert info.integer("PAGESIZE") == 4096


def use(data):
    """Call everything for every key; say how many answers there were."""
    info = Vmcoreinfo(data)
    answers = 0
    for key in [*info, "absent"]:
        name = key[key.find("(") + 1 : -1]
        for get, argument in (
            (info.__getitem__, key),
            (info.get, key),
            (info.integer, key),
            (info.symbol, name),
            (info.address, name),
            (info.number, name),
            (info.length, name),
            (info.size, name),
            (info.offset, name),
        ):
            try:
                get(argument)
                answers += 1
            except (FormatError, KeyError):
                pass
    with suppress(FormatError):
        info.addresses()
    return answers


lines = st.builds(
    lambda kind, name, value: f"{kind}({name})={value}".encode(),
    st.sampled_from(["SYMBOL", "NUMBER", "SIZE", "OFFSET", "LENGTH"]),
    st.sampled_from(["page", "a.b", "x"]),
    st.integers(-(2**65), 2**65).map(str) | st.text(max_size=9),
)


@given(st.lists(lines | st.binary(max_size=20), max_size=20).map(b"\n".join))
def test_nothing_but_format_errors_from_any_lines(data):
    with suppress(FormatError):
        # There was an entry, and at least its text can be had or is ambiguous.
        assert use(data) > 0 or data.count(b"=") > 1


@given(st.integers(0, len(REAL) - 1), st.binary(min_size=1, max_size=4))
def test_nothing_but_format_errors_from_a_damaged_note(position, damage):
    data = REAL[:position] + damage + REAL[position + len(damage) :]
    # At most two lines can be hit.
    assert len(Vmcoreinfo(data)) >= 11
    assert use(data) > 0


@given(st.integers(10, len(REAL)))
def test_truncated_note_gives_what_is_left(length):
    info = Vmcoreinfo(REAL[:length])
    assert len(info) == REAL[:length].count(b"=")
    assert use(REAL[:length]) > 0
