# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``who`` and ``sharers``, and their helpers, against what VMAs, files and drgn's own
translation say of processes, and against the ground truth of real cores.
"""

import json
from pathlib import Path

import drgn
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import follow_pfn, for_each_vma
import pytest

import drgn_hvo
from drgn_hvo.commands.who import who_document
from drgn_hvo.kernel.finders import install
from drgn_hvo.kernel.target import open_target
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from tests.command_support import check_refused, run
from tests.cores import CORES, core_path, open_core, truth
from tests.overlay import Overlay

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"
SAMPLE = SAMPLES / "shared-7.3.kdump"

VM_SHARED, VM_HUGETLB = 0x8, 0x400000

#: Cores that hold all of their processes.
WHOLE = ["6.12-mix", "seedgh-2node"]
#: Cores in which makedumpfile left out the memory of some.
HOLES = ["7.2-kdump", "7.2-mix", "seed5-2node"]


def document(*words):
    result = run(*words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def of_vmas(prog):
    """By VMAs and drgn's translation: who maps each PFN that begins a huge page."""
    found: dict[int, list[tuple[int, str, int, str, int]]] = {}
    tasks = prog["init_task"].tasks.address_of_()
    for task in list_for_each_entry("struct task_struct", tasks, "tasks"):
        mm = task.mm.read_()
        for vma in for_each_vma(mm) if mm else ():
            if not vma.vm_flags & VM_HUGETLB:
                continue
            start, end = vma.vm_start.value_(), vma.vm_end.value_()
            file, index = "", 0
            if vma.vm_flags & VM_SHARED:
                file = vma.vm_file.f_path.dentry.d_name.name.string_().decode()
            for address in range(start, end, 2 << 20):
                try:
                    pfn = follow_pfn(mm, address).value_()
                except drgn.FaultError:
                    continue
                index = vma.vm_pgoff.value_() + (address - start >> 12)
                comm = task.comm.string_().decode()
                users = found.setdefault(pfn, [])
                users.append((task.pid.value_(), comm, address, file, index))
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_who_maps(name):
    expected = of_vmas(open_target(str(core_path(name))))
    assert expected
    active = [f for f in truth(name)["folios"] if f["refcount"] > 0]
    assert {f["pfn"] for f in active} >= expected.keys()
    for folio in (active[0], active[-2], active[-1]):
        # A page whose struct page is on the tail.
        doc = document("who", core_path(name), folio["pfn"] + 300)
        assert doc["head_pfn"] == folio["pfn"]
        assert doc["refcount"] == folio["refcount"]
        assert doc["unread"] == []
        users = expected.get(folio["pfn"], [])
        assert {(m["pid"], m["comm"], int(m["start"], 0)) for m in doc["mappings"]} == {
            user[:3] for user in users
        }
        files = {user[3:] for user in users if user[3]}
        if files:
            ((file_name, index),) = files
            assert (doc["file"]["name"], doc["file"]["index"]) == (file_name, index)
            assert doc["file"]["kind"] == "hugetlbfs file"
        else:
            assert doc["file"] is None
        assert doc["anonymous"] == (bool(users) and not files)
        of_file = 512 if files else 0
        assert doc["left_over"] == folio["refcount"] - of_file - len(users)


def test_in_use_but_mapped_by_nobody():
    """A process of that guest was clearing the 1 GiB page that it is about to map."""
    doc = document("who", core_path("6.12-mix"), 262144)
    assert doc["mappings"] == []
    assert doc["file"] is None
    assert doc["left_over"] == 1
    text = "\n".join(doc["conclusions"])
    assert "It is in use, but mapped by nobody, and in no file." in text
    assert "1 reference left over" in text


@pytest.mark.parametrize("name", HOLES)
def test_who_maps_with_holes(name):
    """As many as the kernel counts, or the document says that it counts more."""
    prog = open_target(str(core_path(name)))
    base = int(truth(name)["vmemmap_base"], 0)
    active = [f for f in truth(name)["folios"] if f["refcount"] > 0]
    for folio in (active[0], active[-1]):
        head = drgn.Object(prog, "struct folio *", base + 64 * folio["pfn"])
        counted = head._entire_mapcount.counter.value_() + 1
        doc = document("who", core_path(name), folio["pfn"])
        assert doc["mapcount"] == counted
        assert len(doc["mappings"]) <= counted
        assert (doc["unread"] == []) == (len(doc["mappings"]) == counted)
        if doc["unread"]:
            assert f"the kernel counts {counted} mappings" in doc["unread"][-1]


@pytest.mark.parametrize("name", ["7.2-2node", "6.1-2node"])
def test_who_has_a_free_huge_page(name):
    doc = document("who", core_path(name), truth(name)["folios"][0]["pfn"] + 1)
    assert doc["list"] == "free"
    assert doc["left_over"] == 0
    assert "It is free: nobody has it." in doc["conclusions"]
    assert doc["unread"] == []


def test_pins_are_what_is_left_over():
    """What pin_user_pages() does to the head, three times."""
    name, known = "6.12-mix", truth("6.12-mix")
    folio = next(f for f in known["folios"] if f["refcount"] == 513)
    base = open_core(name)
    frame = folio["vmemmap_runs"][0]["pfn"] << 12
    prog = open_target(str(core_path(name)))
    offset = drgn.offsetof(prog.type("struct folio"), "_pincount")
    patches = {
        frame + 52: (513 + 3).to_bytes(4, "little"),
        frame + offset: (3).to_bytes(4, "little"),
    }
    for pins, patched in ((3, patches), (0, {frame + 52: patches[frame + 52]})):
        patched_prog = Overlay(base, patches=patched).prog
        spec = parse_page_spec(str(folio["pfn"]))
        doc = who_document(hvo_of(patched_prog), "core", spec)
        assert (doc["left_over"], doc["pincount"]) == (3, pins)
        text = "\n".join(doc["conclusions"])
        assert f"3 references left over; the kernel counts {pins} pins" in text
    patched_prog = Overlay(base, patches={frame + 52: (2).to_bytes(4, "little")}).prog
    doc = who_document(hvo_of(patched_prog), "core", spec)
    assert doc["left_over"] == 2 - 1 - 1  # what it would be before v6.7


def test_who_without_processes():
    """A synthetic kernel has none, and an extract leaves them out."""
    in_use = [
        f for f in document("show", SAMPLE, "--folios")["folios"] if f["refcount"]
    ]
    doc = document("who", SAMPLE, in_use[0]["head_pfn"])
    assert doc["refcount"] == in_use[0]["refcount"]
    assert doc["mappings"] == []
    if doc["mapcount"] is None:
        assert doc["left_over"] is None
    check_refused(run("who", SAMPLE, "0"), "no huge page covers PFN 0")


def test_helper_finds_the_same():
    prog = open_target(str(core_path("6.12-mix")))
    install(prog)
    for pfn in (6144, 262144):
        doc = document("who", core_path("6.12-mix"), pfn)
        folio = drgn_hvo.page_folio(prog["vmemmap"].read_() + pfn)
        found = drgn_hvo.hugetlb_folio_holders(folio)
        assert (found.file is None) == (doc["file"] is None)
        if found.file is not None:
            assert found.file.host.i_ino.value_() == doc["file"]["inode"]
        assert [(m.task.pid.value_(), f"{m.start:#x}") for m in found.mappings] == [
            (m["pid"], m["start"]) for m in doc["mappings"]
        ]
        assert found.left_over == doc["left_over"]
        assert found.pincount == doc["pincount"]
        assert found.unread == doc["unread"]
    with pytest.raises(drgn_hvo.errors.HvoError):
        drgn_hvo.hugetlb_folio_holders(prog["vmemmap"].read_() + 1)


@pytest.mark.parametrize("name", CORES)
def test_sharers(name):
    """The frame of tails that most share, by its PFN and by a struct page."""
    known = truth(name)
    sharing: dict[int, dict[int, int]] = {}
    refcounts = {folio["pfn"]: folio["refcount"] for folio in known["folios"]}
    for folio in known["folios"]:
        for one in folio["vmemmap_runs"]:
            if one["first"]:
                slices = sharing.setdefault(one["pfn"], {})
                slices[folio["pfn"]] = slices.get(folio["pfn"], 0) + one["count"]
    frame, folios = max(sharing.items(), key=lambda item: len(item[1]))
    by_pfn = document("sharers", core_path(name), frame)
    assert by_pfn["frame"] == frame
    assert by_pfn["pfn"] is None
    assert {p["head_pfn"]: p["slices"] for p in by_pfn["huge_pages"]} == folios
    for page in by_pfn["huge_pages"]:
        assert page["refcount"] == refcounts[page["head_pfn"]]
    assert by_pfn["others"] == 0
    assert (by_pfn["tail"] is None) == (len(folios) == 1)
    first = next(iter(folios))
    address = int(known["vmemmap_base"], 0) + 64 * (first + 64)
    by_page = document("sharers", core_path(name), f"page:{address:#x}")
    assert by_page["pfn"] == first + 64
    assert by_page["huge_pages"] == by_pfn["huge_pages"]

    prog = open_target(str(core_path(name)))
    install(prog)
    if prog_has_folio(prog):
        page_type = "struct page *"
        base = int(known["vmemmap_base"], 0)
        page = drgn.Object(prog, page_type, base + 64 * frame)
        found = [f.value_() for f in drgn_hvo.for_each_folio_on_vmemmap_tail(page)]
        assert found == [base + 64 * pfn for pfn in sorted(folios)]


def prog_has_folio(prog):
    try:
        return bool(prog.type("struct folio"))
    except LookupError:
        return False


def test_sharers_of_a_frame_with_a_stray_slice():
    core = SAMPLES / "shared-7.3.kdump"
    tails = document("show", core)["shared_tails"]
    for tail in tails:
        doc = document("sharers", core, tail["pfn"])
        assert doc["tail"] == {k: tail[k] for k in ("nid", "zone", "order")}
        assert doc["mapped_by"] == tail["mapped_by"]
        assert sum(p["slices"] for p in doc["huge_pages"]) == tail["mapped_by"]
        text = run("sharers", core, tail["pfn"]).stdout
        assert f"tails on PFN {tail['pfn']}" in text


@pytest.mark.parametrize("arg", ["0", "nonsense", "page:0x8"])
@pytest.mark.parametrize("verb", ["who", "sharers"])
def test_what_is_no_huge_page_is_refused(verb, arg):
    check_refused(run(verb, SAMPLE, arg), "error: ")
