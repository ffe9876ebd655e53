# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Notations of pages
------------------

The kernel prints PFNs as ``%05lx`` and addresses as ``%px`` or ``%016lx``, without
``0x``; people and drgn-hvo write them in other ways, too.
"""

from hypothesis import given, strategies as st
import pytest

from drgn_hvo.errors import UsageError
from drgn_hvo.memmap.page_spec import parse_page_spec


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("7", "pfn", 7),
        ("0", "pfn", 0),
        ("4677", "pfn", 4677),
        ("10840", "pfn", 10840),
        ("0x10840", "pfn", 0x10840),
        ("0d10840", "pfn", 10840),
        ("pfn:7", "pfn", 7),
        ("pfn:4600", "pfn", 4600),
        ("pfn:0x4600", "pfn", 0x4600),
        ("pfn:0X4600", "pfn", 0x4600),
        ("pfn:0d04600", "pfn", 4600),
        ("pfn:04600", "pfn", 0x4600),
        ("pfn:00010", "pfn", 0x10),
        ("pfn:04b40", "pfn", 0x4B40),
        ("pfn:0d123456", "pfn", 123456),
        ("pfn:0d12f", "pfn", 0xD12F),
        ("pfn:1a2b3c", "pfn", 0x1A2B3C),
        ("page:0xff9e5eb5c0072100", "page", 0xFF9E5EB5C0072100),
        ("page:ff9e5eb5c0072100", "page", 0xFF9E5EB5C0072100),
        ("page:FF9E5EB5C0072100", "page", 0xFF9E5EB5C0072100),
        ("virt:ffff888000000000", "virt", 0xFFFF888000000000),
        ("phys:1000", "phys", 0x1000),
        ("task:12:7f424de00000", "task", 0x7F424DE00000),
    ],
)
def test_notations(text, kind, value):
    spec = parse_page_spec(text)
    assert (spec.kind, spec.value, spec.text) == (kind, value, text)


@pytest.mark.parametrize(
    ("text", "is_guessed"),
    [
        ("pfn:04600", True),
        ("pfn:04b40", True),
        ("pfn:4600", False),
        ("pfn:0x4600", False),
        ("7", False),
        ("page:ff9e5eb5c0072100", False),
    ],
)
def test_it_is_said_what_was_taken(text, is_guessed):
    read_as = parse_page_spec(text).read_as
    assert (read_as is not None and "hexadecimal" in read_as) == is_guessed


@pytest.mark.parametrize(
    "text",
    [
        "pfn:10840",
        "pfn:99999999",
        "pfn:004600",
        "pfn:0460",
        "046",
        "04600",
        "pfn:0d123",
    ],
)
def test_two_readings(text):
    number = text.rpartition(":")[2]
    readings = (int(number.replace("0d", "")), int(number, 16))
    with pytest.raises(UsageError) as error:
        parse_page_spec(text)
    words = str(error.value)
    assert text in words
    for value in readings:
        assert str(value) in words
    # Each of the ways out that it names is one.
    for way in words.partition(": use ")[2].split(" or "):
        assert parse_page_spec(way).value in readings


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pfn:",
        "pfn:-1",
        "pfn:0x",
        "pfn:1234567890abcdef0",
        "pfn:12345678901234567890a",
        "4b00",
        "ff9e5eb5c0072100",
        "page:",
        "page:0d12g",
        "page:0x12345678123456789",
        "virt:xyz",
        "pfn:4600\n",
        "pfn:٣",
        "task:1",
    ],
)
def test_no_page(text):
    with pytest.raises(UsageError, match="names no page"):
        parse_page_spec(text)


ALPHABET = "pfnagevirthystk:0123456789abcdefxXdD \n٣²"


@given(st.one_of(st.text(), st.text(ALPHABET, max_size=30)))
def test_anything(text):
    """One line that says why, or a number that the text contains."""
    try:
        spec = parse_page_spec(text)
    except UsageError as e:
        error = str(e)
    else:
        error = ""
    assert "\n" not in error
    if error:
        return
    digits = text.rpartition(":")[2].lower()
    readings = [int(digits, 16)] if digits.isalnum() and "x" in digits else []
    for base in (10, 16):
        try:
            readings.append(
                int(digits[2:] if digits[:2] in ("0x", "0d") else digits, base)
            )
            readings.append(int(digits, base))
        except ValueError:
            continue
    assert spec.value in readings
