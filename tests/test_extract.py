# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Extracts give the same answers
------------------------------

Whatever the commands say of a target, they must say of an extract of it, whole or
small; and it must stay an ordinary core for drgn and the tools of others.
"""

from functools import cache
import json
from pathlib import Path
import re
import shutil
import subprocess

from drgn import FaultError, TypeKind
from drgn.helpers.linux.hugetlb import for_each_hstate, huge_page_size
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
from drgn.helpers.linux.mm import (
    PageHead,
    compound_head,
    compound_order,
    follow_phys,
    page_to_pfn,
    pfn_to_page,
)
from drgn.helpers.linux.mmzone import for_each_online_pgdat, for_each_present_section
import jsonschema
import numpy as np
import pytest

from drgn_hvo.cli import main
from drgn_hvo.commands.schema import load_schema
from drgn_hvo.errors import HvoError, NotInDumpError, UnavailableError, UsageError
from drgn_hvo.formats.kdump_writer import kdump_pages, pack_page
from drgn_hvo.kernel import finders
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.kernel.kept_names import NAMES, OMITTED, TYPES
from drgn_hvo.kernel.pagetables import find_entry
from drgn_hvo.memmap.hvo import hvo_of as bound
from drgn_hvo.memmap.page_spec import parse_page_spec, resolve_page
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.machine.machine import build_machine
from tests.cores import CORES, core_path, open_core, truth
from tests.extract_support import DAMAGED, answers, extract, opened
from tests.overlay import Overlay, image_to_phys, without_symbols
from tests.synth_support import ALL, describe

MEGABYTE = 1000 * 1000
REAL = "7.2-2node"


@pytest.fixture(scope="module")
def machine():
    return build_machine(describe("shared-7.3"))


@pytest.fixture(scope="module", params=[False, True], ids=["full", "small"])
def real(request, tmp_path_factory):
    """A real core, and an extract of it."""
    path = tmp_path_factory.mktemp("real") / "core"
    return opened(core_path(REAL)), *extract(
        opened(core_path(REAL)), path, small=request.param
    )


@pytest.fixture
def only_known_names(monkeypatch):
    """
    The tables of names name everything that commands look up: of healthy machines and
    of damaged ones, in the target and in its extract.
    """
    objects, types = set(), set()
    find_object, find_type = finders._find_object, finders._find_type

    def note_object(prog, name, *args):
        objects.add(name)
        return find_object(prog, name, *args)

    def note_type(prog, kinds, name, filename):
        if kinds & finders._NAMED_KINDS:
            types.add(name)
        return find_type(prog, kinds, name, filename)

    monkeypatch.setattr(finders, "_find_object", note_object)
    monkeypatch.setattr(finders, "_find_type", note_type)
    yield
    assert objects
    assert types
    assert objects - {"vmemmap"} <= NAMES
    assert types <= TYPES | {"size_t", "ptrdiff_t"}


@cache
def answers_of_core(name):
    return answers(opened(core_path(name)))


@cache
def answers_of_machine(name):
    return answers(program(build_machine(describe(name))))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", CORES)
def test_real_cores(name, small, tmp_path):
    original = opened(core_path(name))
    copy, document = extract(original, tmp_path / "core", small=small)
    assert (tmp_path / "core").stat().st_size == document["output_bytes"]
    assert document["output_bytes"] <= (1 if small else 4) * MEGABYTE
    assert document["left_out"] == []
    assert answers(copy) == answers_of_core(name)


@pytest.mark.usefixtures("only_known_names")
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_generations(name, small, tmp_path):
    machine = build_machine(describe(name))
    copy, document = extract(program(machine), tmp_path / "core", small=small)
    assert document["left_out"] == []
    assert answers(copy) == answers_of_machine(name)


@pytest.mark.usefixtures("only_known_names")
@pytest.mark.parametrize("name", ALL)
def test_all_struct_pages(name, tmp_path):
    machine = build_machine(describe(name))
    copy, _ = extract(program(machine), tmp_path / "core", all_struct_pages=True)
    original = program(machine)
    assert answers(copy, deep=True) == answers(original, deep=True)
    assert all_heads(copy) == all_heads(original)


def all_heads(prog):
    hvo = bound(prog)
    chunks = hvo.heads.range(0, hvo.vmemmap.end_pfn)
    return b"".join(chunk.tobytes() for chunk in chunks)


def answers_or_refusal(prog):
    try:
        return answers(prog)
    except HvoError as e:
        return str(e)


@pytest.mark.usefixtures("only_known_names")
@pytest.mark.parametrize(("fault", "name"), DAMAGED)
def test_damage(fault, name, tmp_path):
    machine, _ = make_machine(describe(name), [fault])
    expected = answers_or_refusal(program(machine))
    try:
        copy, _ = extract(program(machine), tmp_path / "core", small=True)
    except HvoError as e:
        found = str(e)
    else:
        found = answers_or_refusal(copy)
    assert found == expected


@pytest.mark.parametrize("small", [False, True])
def test_same_bytes(small, tmp_path):
    """Again, and from the extract itself: nothing is lost, nothing is added."""
    original = opened(core_path(REAL))
    copy, _ = extract(original, tmp_path / "1", small=small)
    extract(opened(core_path(REAL)), tmp_path / "2", small=small)
    extract(copy, tmp_path / "3", small=small)
    first = (tmp_path / "1").read_bytes()
    assert first == (tmp_path / "2").read_bytes()
    assert first == (tmp_path / "3").read_bytes()


def test_small_stays_small(tmp_path):
    """What was cut away is not said to be there."""
    small, _ = extract(opened(core_path(REAL)), tmp_path / "1", small=True)
    extract(small, tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_kept_bytes_are_the_original_ones(real):
    """Independent of what reads them: each byte is as it was, or zero."""
    original, copy, document = real
    pages = dict(kdump_pages(Path(document["output"]).read_bytes()))
    cut = b"DRGN_HVO_EXTRACT=small" in copy["VMCOREINFO"].string_()
    changed = 0
    for pfn, data in pages.items():
        source = original.read(pfn << 12, 4096, physical=True)
        wrong = sum(new not in (0, old) for new, old in zip(data, source))
        changed += bool(wrong)
    # Tables of symbols and types that are cut down are new.
    assert changed <= (40 if cut else 0)


def test_drgn_helpers(real):
    """On the extract as on the original, from drgn's own code."""
    expected = truth(REAL)
    for prog in real[:2]:
        sizes = [int(huge_page_size(hstate)) for hstate in for_each_hstate(prog)]
        assert sizes == [1 << 21, 1 << 30]
        names = [hstate.name.string_() for hstate in for_each_hstate(prog)]
        assert names == [b"hugepages-2048kB", b"hugepages-1048576kB"]
        nids = [pgdat.node_id.value_() for pgdat in for_each_online_pgdat(prog)]
        assert nids == [node["nid"] for node in expected["nodes"]]
        assert len(list(for_each_present_section(prog))) == 4
        for folio in expected["folios"][::7]:
            page = pfn_to_page(prog, folio["pfn"])
            assert PageHead(page)
            assert compound_order(page).value_() == folio["order"]
            assert page_to_pfn(compound_head(page + 5)).value_() == folio["pfn"]
            phys = follow_phys(prog["init_mm"].address_of_(), page.value_())
            run = folio["vmemmap_runs"][0]
            assert phys.value_() >> 12 == run["pfn"]


def test_drgn_kallsyms(real):
    """drgn's own decoder of the symbol table finds what ours does."""
    _, copy, _ = real
    index = load_vmlinux_kallsyms(copy)
    for name in ("hstates", "node_data", "__start_BTF", "__stop_BTF"):
        (symbol,) = index(copy, name, None, True)
        assert symbol.address == core_sources(copy).address(name)


def members(found, depth=3):
    """Everything that a type contains, in a form that can be compared."""
    if found.kind == TypeKind.TYPEDEF:
        return (found.name, members(found.type, depth))
    if found.kind == TypeKind.ENUM:
        return [(e.name, e.value) for e in found.enumerators]
    if found.kind == TypeKind.ARRAY:
        return (found.length, members(found.type, depth))
    if found.kind not in (TypeKind.STRUCT, TypeKind.UNION) or not depth:
        return (str(found.type_name()),)
    return (
        found.size,
        [
            (m.name, m.bit_offset, m.bit_field_size, members(m.type, depth - 1))
            for m in found.members
        ],
    )


@pytest.mark.parametrize("name", ["6.1-2node", "7.2-2node", "seed5-2node"])
def test_small_types(name, tmp_path):
    original = opened(core_path(name))
    copy, _ = extract(opened(core_path(name)), tmp_path / "core", small=True)
    kinds = ["struct ", "enum ", ""]
    seen = 0
    for type_name in TYPES:
        for kind in kinds:
            try:
                expected = original.type(kind + type_name)
            except LookupError:
                with pytest.raises(LookupError):
                    copy.type(kind + type_name)
                continue
            seen += 1
            assert members(copy.type(kind + type_name)) == members(expected)
    assert seen > 15


def test_small_says_what_it_cannot_tell(tmp_path):
    copy, _ = extract(opened(core_path(REAL)), tmp_path / "core", small=True)
    with pytest.raises(UnavailableError, match="--small"):
        copy.type("struct task_struct")
    with pytest.raises(UnavailableError, match="--small"):
        copy["printk_ratelimit_state"]
    # Of these it can tell.
    with pytest.raises(LookupError):
        copy["hugetlb_optimize_vmemmap_key"]
    # An address between kept symbols is not taken for theirs.
    original = core_sources(opened(core_path(REAL))).kallsyms()
    (other,) = original.lookup("schedule")
    assert copy.symbol(other.address).name == OMITTED
    (kept,) = original.lookup("hstates")
    assert copy.symbol(kept.address + 8).name == "hstates"


def test_no_tasks(real):
    """A task that cannot be looked for is not a task that does not exist."""
    _, copy, _ = real
    hvo = bound(copy)
    with pytest.raises(NotInDumpError, match="it is an extract"):
        resolve_page(hvo.vmemmap, parse_page_spec("task:1:0x1000"))
    with pytest.raises(UnavailableError, match="init_pid_ns is not in this dump"):
        copy["init_pid_ns"]


def test_what_is_missing_is_not_in_this_dump(real):
    original, copy, _ = real
    hvo = bound(copy)
    full = bound(original)
    # The kernel's text, and the direct map of a page that was left out.
    text = core_sources(original).address("schedule")
    direct = original["page_offset_base"].value_() + (0x9000 << 12)
    for address in (text, direct):
        with pytest.raises(FaultError):
            copy.read(address, 8)
        spec = parse_page_spec(f"virt:{address:#x}")
        try:
            assert resolve_page(hvo.vmemmap, spec) == resolve_page(full.vmemmap, spec)
        except NotInDumpError:
            continue


def test_of_huge_pages_even_direct_map_addresses_can_be_named(real):
    original, copy, _ = real
    hvo = bound(copy)
    base = original["page_offset_base"].value_()
    for pfn in hvo.hugetlb.folios.head_pfn.tolist():
        spec = parse_page_spec(f"virt:{base + (pfn + 9 << 12):#x}")
        assert resolve_page(hvo.vmemmap, spec) == pfn + 9


def run(*args):
    return subprocess.run(args, capture_output=True, text=True, timeout=120)


def test_makedumpfile(real, tmp_path):
    """
    It takes headers, VMCOREINFO, utsname, page tables and all sections, up to the
    kernel's log, which extracts do not have.
    """
    if shutil.which("makedumpfile") is None:
        pytest.skip("no makedumpfile")
    path = real[2]["output"]
    result = run(
        "makedumpfile", "--message-level", "31", "--dump-dmesg", path, tmp_path / "log"
    )
    assert "Can't get the prb address" in result.stderr
    sections = re.findall(r"mem_map\[ *\d+\] ([0-9a-f]+) ", result.stdout)
    assert len(sections) == 4
    hvo = bound(real[1])
    assert int(sections[0], 16) == hvo.vmemmap.base


def test_open_files_are_refused(machine, tmp_path):
    (tmp_path / "core").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists; use --force"):
        extract(program(machine), tmp_path / "core")
    assert (tmp_path / "core").read_bytes() == b"mine"
    extract(program(machine), tmp_path / "core", force=True)
    with pytest.raises(UsageError, match="is no regular file"):
        extract(program(machine), tmp_path, force=True)


def test_command_line(machine, tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    extract(program(machine), source)
    assert main(["extract", str(source), "-o", str(source), "--force"]) == 2
    assert "is the target itself" in capsys.readouterr().err
    assert main(["extract", str(source), "-o", str(target), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, load_schema("extract"))
    assert document["target"] == str(source)
    assert document["output_bytes"] == target.stat().st_size
    assert sum(1 for _ in kdump_pages(target.read_bytes())) == document["pages"]
    assert {kept["what"] for kept in document["kept"]} >= {"words", "huge-pages"}
    assert main(["extract", str(source), "-o", str(target)]) == 2
    assert "use --force" in capsys.readouterr().err
    assert main(["extract", str(source), "-o", str(target), "--force"]) == 0
    out = capsys.readouterr().out
    assert "shared tail pages" in out
    assert main(["show", str(target)]) == 0


def test_it_names_no_machine(tmp_path):
    base = opened(core_path(REAL))
    uts = base["init_uts_ns"].name
    fields = [field.address_of_().value_() for field in (uts.nodename, uts.domainname)]
    patches = {image_to_phys(base, field): b"db17.example" for field in fields}
    copy, document = extract(Overlay(base, patches=patches).prog, tmp_path / "core")
    for field in fields:
        assert copy.read(field, 65) == bytes(65)
    assert copy.read(uts.release.address_of_().value_(), 65)[:3] == b"7.2"
    data = Path(document["output"]).read_bytes()
    pages = [page for _, page in kdump_pages(data)]
    assert not any(b"example" in part for part in (data, *pages))


def test_vmcoreinfo_is_the_same_but_for_the_mark(real):
    original, copy, _ = real
    lines = [p["VMCOREINFO"].string_().splitlines() for p in (original, copy)]
    more = [line for line in lines[1] if line not in lines[0]]
    assert [line for line in lines[1] if line in lines[0]] == lines[0]
    assert len(more) == 1
    assert more[0].startswith(b"DRGN_HVO_EXTRACT=")


def test_no_types(tmp_path):
    """Without them no struct page can be asked whose its page is."""
    prog = without_symbols(open_core(REAL))
    with pytest.raises(UnavailableError, match="an extract needs types"):
        extract(prog, tmp_path / "core", small=True)
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_of_targets(machine, tmp_path):
    """A running kernel's memory is read once more when all is done."""
    live = program(machine, is_live=True)
    copy, document = extract(live, tmp_path / "live")
    assert document["left_out"] == []
    assert answers(copy) == answers(program(machine))


def test_a_page_that_was_freed_meanwhile_is_left_out(tmp_path, monkeypatch):
    """Between the walk and the reading, a page of vmemmap became somebody's."""
    changing = build_machine(describe("shared-7.3"))
    hvo = bound(program(changing))
    first = np.flatnonzero(hvo.hugetlb.optimized_mapping)[0]
    frame = int(hvo.hugetlb.folios.head_frame[first])
    slice_ = int(hvo.hugetlb.folios.head_pfn[first]) // 64
    page_table = hvo.kernel.page_table_format
    assert page_table is not None
    address = hvo.vmemmap.base + slice_ * 4096
    entry = find_entry(hvo.kernel.reader, page_table, address)
    assert entry is not None

    def pack_and_change(data, level):
        changing.image.write(entry.address, bytes(8))
        return pack_page(data, level)

    monkeypatch.setattr("drgn_hvo.extract.core.pack_page", pack_and_change)
    path = tmp_path / "live"
    _, document = extract(program(changing, is_live=True), path)
    (left,) = document["left_out"]
    assert left["pages"] == 1
    assert frame not in dict(kdump_pages(path.read_bytes()))
