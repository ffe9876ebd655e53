# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Extracts hold nobody's data
---------------------------

Marks are planted in everything that is not the kernel's own bookkeeping, and looked
for in the decompressed extract. In whose pages they are planted is decided here from
other sources than those that the command uses: the generator's plan, or which pages
makedumpfile excluded.
"""

from functools import cache
import signal
import subprocess
import sys
import time

import drgn
from drgn.helpers.linux.mm import follow_phys
import numpy as np
import pytest

from drgn_hvo.errors import HvoError, UsageError
from drgn_hvo.formats.kdump_writer import kdump_pages
from drgn_hvo.kernel.pagetables import find_entry
from drgn_hvo.memmap.hvo import hvo_of as bound
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.machine.machine import build_machine
from tests.cores import core_path
from tests.extract_support import DAMAGED, PAGE, Marked, extract, marks, opened
from tests.overlay import Overlay
from tests.synth_support import ALL, describe

OPTIONS = [{}, {"small": True}, {"all_struct_pages": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_huge_thp_slab_free_and_order_0_pages(name, options, tmp_path):
    marked = Marked(build_machine(describe(name)))
    machine = build_machine(describe(name))
    for kinds in (machine.plan.huge, machine.plan.pages):
        for placed in kinds:
            # The marks are where they should be, all kinds of users included.
            assert marked.prog.read(placed.first_pfn << 12, 4096, True) == PAGE
    _, document = extract(marked.prog, tmp_path / "core", **options)
    assert document["left_out"] == []
    assert marks(tmp_path / "core") == []


@pytest.mark.parametrize(("fault", "name"), DAMAGED)
def test_damage_lets_nothing_through(fault, name, tmp_path):
    machine, _ = make_machine(describe(name), [fault])
    try:
        extract(Marked(machine).prog, tmp_path / "core")
    except HvoError:
        # What cannot be opened is not extracted either.
        assert list(tmp_path.iterdir()) == []
        return
    assert marks(tmp_path / "core") == []


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("kind", ["thp", "slab", "buddy", "huge"])
@pytest.mark.parametrize("name", ["shared-7.3", "fake-head-6.12"])
def test_page_tables_that_lead_to_data(name, kind, level, tmp_path):
    """
    The worst damage: an entry for the struct pages of a huge page names somebody's
    page, or one for a whole page table does.
    """
    machine = build_machine(describe(name))
    hvo = bound(program(machine))
    groups = machine.plan.huge if kind == "huge" else machine.plan.pages
    placed = next(p for p in groups if getattr(p.group, "kind", "huge") == kind)
    victim = placed.first_pfn + 1
    first = int(np.flatnonzero(hvo.hugetlb.optimized_mapping)[0])
    address = hvo.vmemmap.base + int(hvo.hugetlb.folios.head_pfn[first]) * 64
    page_table = hvo.kernel.page_table_format
    assert page_table is not None
    entry = find_entry(hvo.kernel.reader, page_table, address)
    assert entry is not None
    place = entry.address if not level else entry_of_table(machine, entry.address >> 12)
    value = int.from_bytes(machine.image.read(place, 8), "little")
    changed = value & ~0x000F_FFFF_FFFF_F000 | victim << 12
    machine.image.write(place, changed.to_bytes(8, "little"))
    _, document = extract(Marked(machine).prog, tmp_path / "core")
    assert document["left_out"] != []
    assert marks(tmp_path / "core") == []


def entry_of_table(machine, pfn):
    """Where the entry is that names a page table."""
    for first, rows in machine.image.chunks(4096):
        words = np.ascontiguousarray(rows).view("<u8")
        is_table = (words >> np.uint64(12) & np.uint64((1 << 40) - 1)) == pfn
        is_table &= (words & np.uint64(0x81)) == 1
        for row, column in np.argwhere(is_table).tolist():
            return ((first + row) << 12) + 8 * column
    raise AssertionError(f"no entry names {pfn:#x}")


class Filled(Overlay):
    """A real core with some pages marked, in the dump or not."""

    def __init__(self, base, marked):
        super().__init__(base)
        self.marked = marked

    def _read(self, address, count, offset, physical):
        parts = []
        while count:
            size = min(count, 4096 - address % 4096)
            if address >> 12 in self.marked:
                parts.append(PAGE[address % 4096 :][:size])
            else:
                parts.append(self.base.read(address, size, physical=True))
            address, count = address + size, count - size
        return b"".join(parts)


def excluded(prog, words):
    """What makedumpfile left out, but for zero pages of the kernel."""
    reserved = prog.constant("PG_reserved").value_()
    free = (words[:, 6] >> np.uint64(32) == 0) | (words[:, 3] != 0)
    free &= (words[:, 0] >> np.uint64(reserved) & np.uint64(1)) == 0
    for pfn in np.flatnonzero(free).tolist():
        try:
            prog.read(pfn << 12, 1, physical=True)
        except drgn.FaultError:
            yield pfn


def slab(prog, words):
    """Slab caches: a flag, or since v6.12 a page type."""
    if prog.type("struct slab").has_member("__page_type"):
        kind = prog.constant("PGTY_slab").value_()
        found = words[:, 6] << np.uint64(32) >> np.uint64(56) == kind
    else:
        bit = prog.constant("PG_slab").value_()
        found = words[:, 0] >> np.uint64(bit) & np.uint64(1) == 1
    return np.flatnonzero(found).tolist()


def stacks(prog):
    """Kernel stacks, mapped in vmalloc, of the first tasks behind init_task."""
    task, init_mm = prog["init_task"], prog["init_mm"].address_of_()
    for _ in range(50):
        following = task.tasks.next.value_() - drgn.offsetof(task.type_, "tasks")
        task = drgn.Object(prog, "struct task_struct", address=following)
        for page in range(4):
            stack = task.stack.value_() + page * 4096
            yield follow_phys(init_mm, stack).value_() >> 12


@cache
def private_frames(name):
    """A real core, and frames of it that are private, in the dump or not."""
    base = opened(core_path(name))
    hvo = bound(base)
    pages = hvo.vmemmap.read_slices(0, hvo.vmemmap.end_pfn // 64)
    words = np.where(pages.present[:, None], pages.data.view("<u8"), 0)
    marked = [set(excluded(base, words)), set(slab(base, words)), set(stacks(base))]
    assert all(len(frames) > 100 for frames in marked)
    return base, set().union(*marked)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["6.1-2node", "7.2-kdump"])
def test_real_cores(name, options, tmp_path):
    base, private = private_frames(name)
    filled = Filled(base, private)
    _, document = extract(filled.prog, tmp_path / "core", **options)
    assert document["left_out"] == []
    assert marks(tmp_path / "core") == []


def test_disk_full(tmp_path):
    """A limit on the size of files stands for a full disk."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "from drgn_hvo.errors import UsageError\n"
        "from drgn_hvo.extract.command import extract_document\n"
        "from drgn_hvo.synth.containers.elf import program\n"
        "from drgn_hvo.synth.machine.machine import build_machine\n"
        "from tests.synth_support import describe\n"
        "prog = program(build_machine(describe('shared-7.3')))\n"
        "try:\n"
        "    extract_document(prog, 'core', sys.argv[1])\n"
        "except UsageError as e:\n"
        "    print(e)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "core")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "cannot write" in result.stdout
    assert "File too large" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_interrupted(tmp_path):
    script = (
        "import sys, time\n"
        "from drgn_hvo.extract import core\n"
        "from drgn_hvo.extract.command import extract_document\n"
        "from drgn_hvo.synth.containers.elf import program\n"
        "from drgn_hvo.synth.machine.machine import build_machine\n"
        "from tests.synth_support import describe\n"
        "def slow(*_):\n"
        "    print('packing', flush=True)\n"
        "    time.sleep(60)\n"
        "core.pack_page = slow\n"
        "prog = program(build_machine(describe('shared-7.3')))\n"
        "extract_document(prog, 'core', sys.argv[1], force=True)\n"
    )
    (tmp_path / "core").write_bytes(b"as it was")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "core")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"packing\n"
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.wait(timeout=20) != 0
        assert time.monotonic() - start < 20
    assert [path.name for path in tmp_path.iterdir()] == ["core"]
    assert (tmp_path / "core").read_bytes() == b"as it was"


def test_nothing_is_left_of_what_cannot_be_understood(tmp_path):
    machine = build_machine(describe("shared-7.3"))
    prog = program(machine)
    with pytest.raises(UsageError):
        extract(prog, tmp_path / "core", assume={"encoding": "nonsense"})
    assert list(tmp_path.iterdir()) == []


def test_unreadable_pages_are_counted(tmp_path):
    machine, _ = make_machine(describe("shared-7.3"), ["page-missing"])
    _, document = extract(program(machine), tmp_path / "core")
    (left,) = document["left_out"]
    assert left == {"what": "pages that the target itself does not have", "pages": 1}
    (gone,) = machine.image.missing
    assert gone not in dict(kdump_pages((tmp_path / "core").read_bytes()))
