# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The log in kernel memory
------------------------

Ring buffers are written here as ``prb_reserve()`` and ``prb_commit()`` in
``kernel/printk/printk_ringbuffer.c`` write them; real ones are compared with what
drgn's helper reads.
"""

import json
from pathlib import Path

from drgn.helpers.linux.printk import get_printk_records
from hypothesis import given, settings, strategies as st
import jsonschema
import pytest

from drgn_hvo.commands.schema import load_schema
from drgn_hvo.errors import FormatError, HvoError, UnavailableError
from drgn_hvo.formats.printk_log import find_printk_record, read_printk_log
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.bound import kernel
from drgn_hvo.kernel.printk import kernel_log
from drgn_hvo.kernel.target import open_target
from tests.command_support import check_refused, run
from tests.cores import CORES, core_path, open_core
from tests.overlay import Overlay, vmcoreinfo_text

ROOT = Path(__file__).resolve().parents[1]

PRB, RING, DESCS, INFOS, TEXT = 0x1000, 0x2000, 0x10000, 0x40000, 0x80000
M64 = (1 << 64) - 1

VMCOREINFO = f"""\
SYMBOL(prb)=ffffffff{PRB:08x}
SIZE(printk_ringbuffer)=88
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
SIZE(prb_desc_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(atomic_long_t.counter)=0
"""

HIGH = 0xFFFFFFFF << 32


class Memory:
    """Memory that a ring buffer is in, and what was written to it."""

    def __init__(self, order, count_bits=3, text_bits=8, perfect_fit=True):
        self.order = order
        self.count_bits, self.text_bits = count_bits, text_bits
        self.perfect_fit = perfect_fit
        self.bytes = bytearray(0x100000)
        self.put(PRB, HIGH | RING)
        self.put(RING, count_bits, 4)
        self.put(RING + 8, HIGH | DESCS)
        self.put(RING + 16, HIGH | INFOS)
        self.put(RING + 48, text_bits, 4)
        self.put(RING + 56, HIGH | TEXT)
        # DESC0_ID and BLK0_LPOS: both begin just below where they wrap.
        self.id = -(1 << count_bits) & (M64 >> 2)
        self.lpos = -(1 << text_bits) & M64
        self.live = []
        self.tail_id = None

    def put(self, address, value, size=8):
        self.bytes[address : address + size] = value.to_bytes(size, self.order)

    def read(self, address, size):
        if address >> 32 != 0xFFFFFFFF or address + size > HIGH + len(self.bytes):
            return None
        start = address & 0xFFFFFFFF
        return bytes(self.bytes[start : start + size])

    def wraps(self, lpos):
        return (lpos & M64) >> self.text_bits

    def log(self, text, state=2):
        """One record, *text* None for an empty line."""
        index = self.id & ((1 << self.count_bits) - 1)
        begin = following = 3
        if text:
            size = -(-(8 + len(text)) // 8) * 8
            begin = self.lpos
            following = begin + size & M64
            last = following - 1 if self.perfect_fit else following
            start = begin & ((1 << self.text_bits) - 1)
            if self.wraps(begin) != self.wraps(last):
                following = (following >> self.text_bits << self.text_bits) + size
                start = 0
            self.lpos = following
            self.put(TEXT + start, self.id)
            self.bytes[TEXT + start + 8 : TEXT + start + 8 + len(text)] = text
        desc, info = DESCS + 24 * index, INFOS + 88 * index
        self.put(desc, state << 62 | self.id)
        self.put(desc + 8, begin)
        self.put(desc + 16, following & M64)
        self.put(info + 8, len(self.live) * 1_000_000_000 + 123456)
        self.put(info + 16, len(text or b""), 2)
        self.live.append((begin, text, state))
        self.put(RING + 24, self.id)
        count = min(len(self.live), 1 << self.count_bits)
        self.put(RING + 32, (self.id - count + 1) & (M64 >> 2))
        self.id = (self.id + 1) & (M64 >> 2)

    def alive(self):
        """Texts that were not written over: the newest that fit."""
        kept, used = [], 0
        for begin, text, state in reversed(self.live[-(1 << self.count_bits) :]):
            if text:
                used = self.lpos - begin & M64
                if used > 1 << self.text_bits:
                    break
                if state in (1, 2):
                    kept.append(text)
        return kept[::-1]

    def parsed(self):
        note = Vmcoreinfo(VMCOREINFO.encode())
        return read_printk_log(self.read, note, self.order)


TEXTS = st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=60)), max_size=40)


@given(TEXTS, st.sampled_from(["little", "big"]), st.booleans())
@settings(deadline=None)
def test_what_was_logged_is_read(texts, order, perfect_fit):
    """Around the ends of the buffer, of the descriptors, and of 64 bits."""
    memory = Memory(order, perfect_fit=perfect_fit)
    if not texts:
        return
    for text in texts:
        memory.log(text)
    found = memory.parsed()
    alive = memory.alive()
    # What was written over in part is garbage, and is older than what was not.
    records = found.records[len(found.records) - len(alive) :] if alive else ()
    assert [record.text for record in records] == alive
    assert [r.ts_nsec for r in found.records] == sorted(
        r.ts_nsec for r in found.records
    )


@given(
    st.lists(
        st.sampled_from([None, b"x", b"some words", b"words", b"wo", b"rds" * 15]),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["little", "big"]),
    st.integers(1, 9),
    st.integers(0, 3),
    st.sampled_from([5, 8, 11]),
)
@settings(deadline=None)
def test_what_is_looked_for_is_found(texts, order, newest, state, text_bits):
    """As by reading the records one by one."""
    memory = Memory(order, text_bits=text_bits)
    for text in texts:
        memory.log(text)
    memory.log(b"more words", state=state)
    note = Vmcoreinfo(VMCOREINFO.encode())
    found = find_printk_record(memory.read, note, order, b"words", newest)
    log = read_printk_log(memory.read, note, order, newest)
    assert found == next((r for r in log.records if b"words" in r.text), None)


def test_looking_for_what_is_not_there_takes_few_reads():
    memory = Memory("little", count_bits=10, text_bits=16)
    for number in range(3000):
        memory.log(b"line %d" % number)
    reads = []

    def read(address, size):
        reads.append(size)
        return memory.read(address, size)

    note = Vmcoreinfo(VMCOREINFO.encode())
    assert find_printk_record(read, note, "little", b"words", 1024) is None
    assert len(reads) < 20
    assert find_printk_record(read, note, "little", b"line 2999", 1024) is not None


def test_lines():
    memory = Memory("little")
    memory.log(b"one")
    memory.log(b"two\nlines")
    memory.log(b"\xff")
    assert list(memory.parsed().lines()) == [
        "[    0.000123] one",
        "[    1.000123] two",
        "[    1.000123] lines",
        "[    2.000123] \ufffd",
    ]


@pytest.mark.parametrize("state", [0, 3])
def test_what_is_being_written(state):
    memory = Memory("little")
    memory.log(b"done")
    memory.log(b"not yet", state=state)
    assert [record.text for record in memory.parsed().records] == [b"done"]


@pytest.mark.parametrize("line", VMCOREINFO.splitlines())
def test_vmcoreinfo_lacks_a_line(line):
    memory = Memory("little")
    memory.log(b"text")
    note = Vmcoreinfo(VMCOREINFO.replace(line + "\n", "").encode())
    if line.startswith(("SIZE(printk_ringb", "SIZE(prb_desc_ring")):
        read_printk_log(memory.read, note, "little")
        return
    with pytest.raises(UnavailableError, match="VMCOREINFO lacks"):
        read_printk_log(memory.read, note, "little")


@given(st.data())
@settings(deadline=None)
def test_damage(data):
    """Any change of the structures: some records, or one line that says why not."""
    memory = Memory("little")
    for i in range(20):
        memory.log(b"x" * (i % 7 + 1))
    for _ in range(data.draw(st.integers(1, 6))):
        area, size = data.draw(
            st.sampled_from([(PRB, 8), (RING, 88), (DESCS, 192), (INFOS, 704)])
        )
        at = area + data.draw(st.integers(0, size - 1)) // 8 * 8
        memory.put(at, data.draw(st.integers(0, M64)))
    try:
        found = memory.parsed()
    except HvoError as e:
        said, size = str(e), 0
    else:
        said, size = "", sum(len(r.text) for r in found.records)
    assert "\n" not in said
    assert size < 1 << 20


def test_huge_counts_are_bounded():
    memory = Memory("little")
    memory.log(b"text")
    memory.put(RING, 26, 4)
    memory.put(RING + 32, 5)
    reads = []

    def read(address, size):
        reads.append(size)
        return memory.read(address, size)

    found = read_printk_log(read, Vmcoreinfo(VMCOREINFO.encode()), "little")
    assert len(reads) < 4 << 18
    assert found.missing
    memory.put(RING, 27, 4)
    with pytest.raises(FormatError, match="damaged"):
        memory.parsed()


# Real cores


@pytest.mark.parametrize("name", CORES)
def test_as_drgn_reads_it(name):
    """
    drgn's helper takes the ID of a record that lies at the beginning of the buffer,
    because it did not fit at the end, for text.
    """
    prog = open_target(str(core_path(name)))
    ours = kernel_log(kernel(prog))
    drgns = get_printk_records(prog)
    assert ours.missing == 0
    assert [r.ts_nsec for r in ours.records] == [r.timestamp for r in drgns]
    assert [r.caller for r in ours.records] == [
        f"T{r.caller_tid}" if r.caller_cpu is None else f"C{r.caller_cpu}"
        for r in drgns
    ]
    different = [
        (ours_.text, drgns_.text)
        for ours_, drgns_ in zip(ours.records, drgns)
        if ours_.text != drgns_.text
    ]
    assert all(ours_[:-8] == drgns_[8:] for ours_, drgns_ in different)
    assert len(different) <= 1


@pytest.mark.parametrize("name", ["6.1-2node", "7.2-2node"])
def test_layout_by_types(name):
    """Without what VMCOREINFO says of printk."""
    base = open_core(name)
    lines = vmcoreinfo_text(base).splitlines(keepends=True)
    note = "".join(line for line in lines if "pr" not in line.partition("=")[0])
    bound = kernel(Overlay(base, note.encode()).prog)
    assert bound.vmcoreinfo.address("prb") is None
    whole = kernel_log(kernel(open_target(str(core_path(name)))))
    assert kernel_log(bound) == whole


# The command line


def test_log_of_the_core():
    """L3 and L5: a core whose log has many reports of the defect that check names."""
    core = core_path("6.12-mix")
    document = json.loads(run("page", core, "--oops", "@core", "--json").stdout)
    jsonschema.validate(document, load_schema("page"))
    (story,) = document["stories"]
    assert story["defect"] == "restored-fake-heads"
    assert story["count"] == len(document["reports"])
    log = "\n".join(kernel_log(kernel(open_target(str(core)))).lines())
    assert story["count"] == log.count("BUG: Bad page state in process")
    # The kernel leaves such pages alone, but makes them no tails any more.
    for report in document["reports"]:
        if report["against_dump"] == "changed":
            assert set(report["changed"]) <= {"compound_head", "mapping"}
        else:
            assert report["against_dump"] == "unchanged"
    shown = run("page", core, "--oops", "@core")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "6.12.115" in shown.stdout
    assert "the memory of every huge page that is freed is lost" in " ".join(
        shown.stdout.split()
    )


def test_memory_failures_of_the_core():
    core = core_path("7.3-poison")
    document = json.loads(run("page", core, "--oops", "@core", "--json").stdout)
    assert {r["verdict"] for r in document["reports"]} == {"memory-failure"}
    pfns = [report["pfn"] for report in document["reports"]]
    # As /proc/kmsg had them; the guest poisoned page 5 of every third huge page.
    assert pfns[:3] == [0x3C05, 0x4205, 0x4805]
    (story,) = document["stories"]
    assert story["pfns"] == pfns
    assert sorted(story["reasons"].values()) == [12, 18]


def test_healthy_log():
    result = run("page", core_path("7.2-2node"), "--oops", "@core")
    assert (result.returncode, result.stderr) == (0, "")
    assert "no report about a page" in result.stdout
    result = run("page", core_path("7.2-2node"), "--oops", "@core", "--json")
    document = json.loads(result.stdout)
    jsonschema.validate(document, load_schema("page"))
    assert document["reports"] == document["stories"] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("debian-7.2", "an extract, which has no log"), ("shared-7.3", "SYMBOL(prb)")],
)
def test_core_without_a_log(name, words):
    sample = ROOT / "sample_vmcores" / f"{name}.kdump"
    check_refused(run("page", sample, "--oops", "@core"), words)
