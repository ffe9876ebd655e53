# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Descriptions
------------

TOML in, one clear line out if no machine can be so.
"""

import pytest

from drgn_hvo.errors import UsageError
from drgn_hvo.synth.described.description import Description, HugePages, Node, Pages
from drgn_hvo.synth.described.description_file import (
    load_description,
    parse_description,
)
from drgn_hvo.synth.machine.machine import build_machine

GOOD = """
generation = "shared-7.3"
release = "7.3.1-test"
seed = 5
paging_levels = 5
locks = "rt-mutex"
is_lock_held = true
marked = true
reserved = {9 = 1}

[[node]]
id = 0
ranges = [[0x0, 0x9f], [0x100, 0x8000]]
zones = {DMA = [0x1, 0x1000], DMA32 = [0x1000, 0x8000]}

[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
count = 2
list = "active"
failed = [3, 500]

[[pages]]
node = 0
zone = "DMA32"
kind = "slab"
order = 3
"""


def refused(text):
    """The one line that says why."""
    with pytest.raises(UsageError) as caught:
        build_machine(parse_description(text))
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_good():
    description = parse_description(GOOD)
    assert description == Description(
        generation="shared-7.3",
        release="7.3.1-test",
        seed=5,
        paging_levels=5,
        locks="rt-mutex",
        is_lock_held=True,
        marked=True,
        reserved={9: 1},
        nodes=(
            Node(
                0,
                ((0, 0x9F), (0x100, 0x8000)),
                {"DMA": (1, 0x1000), "DMA32": (0x1000, 0x8000)},
            ),
        ),
        huge_pages=(HugePages(0, "DMA32", 9, 2, list="active", failed=(3, 500)),),
        pages=(Pages(0, "DMA32", "slab", 3),),
    )
    build_machine(description)


NODE_1 = """
[[node]]
id = 1
ranges = [[0x7000, 0x9000]]
zones = {Normal = [0x7000, 0x9000]}
"""
BIG = """
[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
"""

# What is changed in GOOD, and what the line must say.
NONSENSE = [
    ("shared-7.3", "shared-9.9", "there is no generation 'shared-9.9'"),
    ("seed = 5", "sead = 5", "unknown key 'sead'"),
    ("seed = 5", "seed = 'x'", "seed cannot be 'x'"),
    ("seed = 5", "seed = true", "seed cannot be True"),
    ("seed = 5", "seed = -1", "a seed has 64 bits"),
    ("seed = 5", "seed = [", "Invalid"),
    ('generation = "shared-7.3"', "", "has no generation"),
    ("paging_levels = 5", "paging_levels = 3", "4 or 5 levels"),
    ("seed = 5", "architecture = 'mips'", "'mips' cannot be made up"),
    ("seed = 5", "page_size = 65536", "no pages of 65536"),
    ("seed = 5", "struct_page_size = 56", "64 bytes in shared-7.3, not 56"),
    ("seed = 5", "kernel_offset = 4096", "kernel_offset 0x1000 is not a multiple"),
    ("seed = 5", "physical_start = 0x40000000", "no room for the kernel"),
    ("rt-mutex", "ticket", "locks is one of queued, rt-mutex, unknown"),
    ("[3, 500]", "[3, 512]", "pages that have failed are 0 to 511"),
    ("[3, 500]", "[3, 'x']", "failed is no list of numbers"),
    ("[3, 500]", "3", "failed is no list"),
    ("seed = 5", "hstates = [9, 9]", "of different orders"),
    ("seed = 5", "hstates = [0]", "orders from 1 to 18"),
    ("seed = 5", "hstates = ['x']", "no list of orders"),
    ("{9 = 1}", "{9 = 3}", "3 huge pages cannot be reserved"),
    ("{9 = 1}", "{x = 3}", "'x' is no order"),
    ("{9 = 1}", "{9 = 'a'}", "no table of numbers"),
    ("7.3.1-test", "x" * 65, "1 to 64 characters"),
    ("id = 0", "id = 5000", "node 5000 is not below 1024"),
    ("id = 0", "", "node ? has no id"),
    ("[[node]]", "[[nodes]]", "unknown key 'nodes'"),
    ("[[0x0, 0x9f], [0x100, 0x8000]]", "[]", "has no memory"),
    ("[0x0, 0x9f], ", "[0x0, 0x200], ", "overlap"),
    ("[0x0, 0x9f], ", "[0x9f, 0x0], ", "is no range"),
    ("[0x0, 0x9f], ", "[0x0], ", "is not [START, END]"),
    ("DMA32 = [0x1000", "DMA32 = [0x1800", "page 0x1000 of node 0 is in no zone"),
    ("DMA = [0x1, 0x1000]", "DMA = [0x1, 0x1100]", "overlap"),
    ("DMA = ", "DNA = ", "zones are DMA, DMA32, Normal, Movable"),
    ("[[pages]]", NODE_1 + "[[pages]]", "overlap"),
    ("order = 9", "order = 4", "there is no pool of that order"),
    ("order = 9", "order = 9\nfirst_pfn = 0x2100", "is not aligned"),
    ("order = 9", "order = 9\nfirst_pfn = 0x7e00", "are outside zone DMA32"),
    ("order = 9", "order = 9\nfirst_pfn = 0x0", "are outside zone DMA32"),
    ("count = 2", "count = 100", "51200 pages do not fit in zone DMA32"),
    ("count = 2", "count = 0", "0 of them"),
    ('list = "active"', 'list = "lost"', "list is one of free, active, none"),
    ('list = "active"', 'origin = "x"', "origin is one of"),
    ('list = "active"', "flags = 1", "unknown key 'flags'"),
    ('list = "active"', "optimized = 1", "optimized cannot be 1"),
    (
        'list = "active"',
        'origin = "restored"\noptimized = true',
        "restored ones are not optimized",
    ),
    ('kind = "slab"', 'kind = "slob"', "kind is one of"),
    ("order = 3", "order = 12", "order is 1 to 10"),
    ("node = 0\nzone", "node = 3\nzone", "there is no node 3"),
    ('zone = "DMA32"', 'zone = "Normal"', "node 0 has no zone Normal"),
]


@pytest.mark.parametrize(("old", "new", "words"), NONSENSE)
def test_nonsense(old, new, words):
    assert old in GOOD
    assert words in refused(GOOD.replace(old, new, 1))


OPTIMIZED = 'list = "active"\noptimized = true'


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ("plain-7.2", "plain-7.2 is built without HVO"),
        ("odd-size-7.3", "80 bytes cannot be optimized"),
        ("shared-7.3-off", "never switches HVO on"),
    ],
)
def test_hvo_where_there_is_none(generation, words):
    text = GOOD.replace("shared-7.3", generation).replace('list = "active"', OPTIMIZED)
    assert words in refused(text)


def test_hvo_needs_a_minimal_order():
    text = GOOD.replace("seed = 5", "hstates = [4]").replace("{9 = 1}", "{}")
    text = text.replace("order = 9", "order = 4").replace("[3, 500]", "[3]")
    build_machine(parse_description(text))
    assert "HVO needs order 7 at least" in refused(
        text.replace('list = "active"', OPTIMIZED)
    )


def test_more_pages_than_memory():
    """Everything is taken, and there is no room for what the kernel needs."""
    text = GOOD + BIG + "first_pfn = 0x1600\ncount = 53\n"
    text = text.replace("count = 2", "count = 1")
    assert "more pages than memory" in refused(text) or "no room" in refused(text)


def test_two_groups_in_one_place():
    text = GOOD + BIG + "first_pfn = 0x2000\n" + BIG + "first_pfn = 0x2000\n"
    assert "no room for 1 pages of order 9" in refused(text)


def test_a_hole_is_no_memory():
    text = GOOD.replace("[0x100, 0x8000]", "[0x100, 0x2100], [0x2300, 0x8000]")
    text += BIG + "first_pfn = 0x2000\n"
    assert "there is no memory at pages 0x2000 to 0x2200" in refused(text)


def test_files(tmp_path):
    path = tmp_path / "machine.toml"
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        load_description(path)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        load_description(path)
    path.write_text(GOOD)
    assert load_description(path) == parse_description(GOOD)
    with path.open("w") as f:
        # As sparse as /dev/zero is endless.
        f.truncate(1 << 40)
    with pytest.raises(UsageError, match="too large for a description"):
        load_description(path)
