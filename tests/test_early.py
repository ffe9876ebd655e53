# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What drgn asks for at the start of a session
--------------------------------------------

``struct module``, in order to list loaded modules: the answer is there whoever asks,
and nobody pays for all of BTF or kallsyms.
"""

from contextlib import suppress
import random
import subprocess
import sys
import textwrap

import drgn
from drgn import ModuleFileStatus, TypeKind, TypeKindSet
import pytest

from drgn_hvo.errors import FormatError
from drgn_hvo.formats import kallsyms_lookup
from drgn_hvo.formats.btf import BtfKind
from drgn_hvo.formats.btf_search import find_struct
from drgn_hvo.formats.kallsyms_lookup import KallsymsLookup
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.kernel.finders import install
from tests.btf_support import PTR, SIGNED, STRUCT, UNION, Writer
from tests.cores import core_path, open_core
from tests.finders_support import UTS, kernel, kernel_with
from tests.kallsyms_support import BASE, Image, ReadError


def module_btf(order="<"):
    """Struct module, and what else has to do with that name."""
    w = Writer(order)
    number, module, pointer = 1, 2, 3
    w.int("int", 4, SIGNED)
    members = ("state", number, 0), ("self", pointer, 64), ("b", number, 32)
    w.compound(STRUCT, "module", 24, *members)
    w.ref(PTR, module)
    w.compound(UNION, "module_memory", 4, ("module", number, 0))
    w.enum("more", 4, ("module", 0x04000001))
    bits = ("low", number, 0, 3), ("high", number, 3, 29)
    w.compound(STRUCT, "bits", 4, *bits, flag=1)
    return w


def asks_after_loading(prog):
    """
    Named in the example of a user: what drgn's own loader is called, and then the type.
    """
    with suppress(drgn.MissingDebugInfoError):
        prog.load_default_debug_info()
    return prog.type("struct module")


def load_debug_info(prog):
    return prog.type("struct module")


@pytest.mark.parametrize("ask", [asks_after_loading, load_debug_info])
def test_struct_module_is_answered_whoever_asks(ask):
    prog = kernel_with([UTS], module_btf().blob())
    module = ask(prog)
    assert (module.size, module.tag) == (24, "module")
    assert [(m.name, m.bit_offset) for m in module.members] == [
        ("state", 0),
        ("self", 64),
        ("b", 32),
    ]
    assert not core_sources(prog).types.is_loaded
    # Where the rest of BTF leads to it, it is this one, and the only one.
    assert module.member("self").type.type.member("state").type.size == 4
    sources = core_sources(prog)
    assert sources.types.is_loaded
    assert sources.types().type(2) is sources.early_struct("module")


def test_bit_fields_of_an_early_structure():
    prog = kernel_with([UTS], module_btf().blob())
    found = core_sources(prog).early_struct("bits")
    assert found is not None
    assert [m.bit_field_size for m in found.members] == [3, 29]
    assert found.members[1].bit_offset == 3


@pytest.mark.parametrize(
    "prog",
    [kernel(), kernel_with([UTS]), kernel_with([UTS], b"no BTF at all")],
    ids=["no kallsyms", "no BTF", "damaged"],
)
def test_no_answer_ends_no_session(prog):
    """drgn takes any error but LookupError for a reason to give up."""
    with pytest.raises(LookupError):
        asks_after_loading(prog)


def test_a_union_of_that_name_is_none():
    prog = kernel_with([UTS], module_btf().blob())
    with pytest.raises(LookupError):
        prog.type("union module")


def test_modules_are_listed_when_nobody_wants_debuginfo():
    where = ("Dmodules", UTS[1] + 0x1000)
    w = module_btf()
    w.compound(STRUCT, "list_head", 16, ("next", 3, 0), ("prev", 3, 64))
    prog = kernel_with([UTS, where], w.blob())
    assert prog["modules"].address_ == where[1], "as long as drgn was not asked"
    with pytest.raises(drgn.MissingDebugInfoError):
        prog.load_default_debug_info()
    with pytest.raises(LookupError, match="DONT_NEED"):
        prog["modules"]
    prog.main_module().debug_file_status = ModuleFileStatus.DONT_NEED
    assert prog["modules"].address_ == where[1]


@pytest.mark.parametrize("name", ["7.2-2node", "6.1-2node"])
def test_start_of_a_session_reads_little(name):
    code = """
        import sys, drgn
        from drgn_hvo.kernel.finders import install
        prog = drgn.Program()
        prog.set_core_dump(sys.argv[1])
        install(prog)
        try:
            prog.load_default_debug_info()
        except drgn.MissingDebugInfoError:
            pass
        print(prog.type("struct module").size, [m.name for m in prog.modules()])
        print([m for m in ("numpy", "drgn_hvo.formats.btf") if m in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(core_path(name))],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    prog = open_core(name)
    install(prog)
    types = core_sources(prog).types()
    whole = types.find(TypeKindSet((TypeKind.STRUCT,)), "module")
    assert whole is not None
    assert done.stdout == f"{whole.size} ['kernel']\n[]\n"


@pytest.mark.parametrize(
    "name", ["7.2-2node", "6.12-2node", "6.1-2node", "seed5-2node"]
)
def test_structures_and_symbols_are_those_of_the_whole_tables(name):
    """Against the readers that read everything."""
    prog = open_core(name)
    install(prog)
    sources = core_sources(prog)
    symbols = sources.kallsyms()
    lookup = KallsymsLookup(prog.read, sources.vmcoreinfo().addresses(), "little")
    chosen = random.Random(1).sample(range(len(symbols)), 200)
    for entry in (symbols._entry(i) for i in chosen):
        entries = symbols.lookup(entry.name)
        expected = entry.address if len(entries) == 1 else None
        assert lookup.address(entry.name) == expected, entry.name
    assert lookup.address("no_symbol_of_this_name") is None
    data, btf = sources._read_btf(sources.address), sources.types().btf
    compounds = [i for i in range(1, len(btf)) if btf.kind(i) == BtfKind.STRUCT]
    for type_id in random.Random(2).sample(compounds, 100):
        tag = btf.name(type_id)
        if not tag or len(btf.find(tag, [BtfKind.STRUCT])) > 1:
            continue
        found = find_struct(data, tag)
        assert found is not None, tag
        assert found.size == btf.size(type_id)
        assert [list(member) for member in found.members] == [
            [m.name, m.type_id, m.bit_offset, m.bit_size] for m in btf.members(type_id)
        ]
    assert find_struct(data, "no_struct_of_this_name") is None


def named_symbols(count):
    return [("T_stext", BASE)] + [
        (f"t{random.Random(i).getrandbits(60):x}", BASE + 16 * i)
        for i in range(1, count)
    ]


def index_by_name(symbols):
    order = sorted(range(len(symbols)), key=lambda i: symbols[i][0][1:])
    return b"".join(i.to_bytes(3, "big") for i in order)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("mode", ["place", "base", "percpu"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("count", [300, 512, 1025])
def test_index_by_name(order, mode, last, count, monkeypatch):
    monkeypatch.setattr(kallsyms_lookup, "_FEW", 0)
    symbols = named_symbols(count)
    index = index_by_name(symbols)
    index += bytes(-len(index) % 8)
    image = Image(symbols, mode, order, behind_marks=b"" if last else index)
    if last:
        image.place("an index that VMCOREINFO does not name", index)
    image.memory += bytes(4096)
    known = {"_stext": BASE, **image.symbols}
    image.requested = 0
    lookup = KallsymsLookup(image.read, known, order)
    assert [lookup.address(name[1:]) for name, _ in symbols] == [
        at for _, at in symbols
    ]
    for absent in ("a", "zzz", "", symbols[5][0][1:] + "x"):
        assert lookup.address(absent) is None


@pytest.mark.parametrize("wrong", [bytes(24 << 10), b"\xff" * (24 << 10)])
def test_no_index_is_no_answer(wrong, monkeypatch):
    monkeypatch.setattr(kallsyms_lookup, "_FEW", 0)
    image = Image(named_symbols(600), "place", behind_marks=wrong)
    image.memory += bytes(1 << 20)
    with pytest.raises(FormatError):
        KallsymsLookup(image.read, {"_stext": BASE, **image.symbols}, "little")


def test_names_that_several_symbols_have_are_no_answer():
    symbols = [("T_stext", BASE), ("tstatic", BASE + 16), ("tstatic", BASE + 32)]
    image = Image(symbols, "place")
    image.memory += bytes(4096)
    lookup = KallsymsLookup(image.read, {"_stext": BASE, **image.symbols}, "little")
    assert lookup.address("static") is None
    assert lookup.address("_stext") == BASE


def test_damaged_tables_are_format_errors(monkeypatch):
    """Whatever is in the tables: an answer, or an error that callers know."""
    image = Image(named_symbols(300), "place")
    image.memory += bytes(4096)
    known = {"_stext": BASE, **image.symbols}
    chance = random.Random(3)
    whole = bytes(image.memory)
    for few in (0, 4096):
        monkeypatch.setattr(kallsyms_lookup, "_FEW", few)
        for _ in range(300):
            image.memory[:] = whole
            for _ in range(chance.randint(1, 30)):
                image.memory[chance.randrange(len(whole))] = chance.randrange(256)
            with suppress(FormatError, ReadError):
                KallsymsLookup(image.read, known, "little").address("_stext")


@pytest.mark.parametrize("order", ["<", ">"])
def test_damaged_btf_is_a_format_error(order):
    blob = module_btf(order).blob()
    whole = find_struct(blob, "module")
    assert whole is not None
    assert whole.size == 24
    chance = random.Random(4)
    for length in range(len(blob)):
        with suppress(FormatError):
            find_struct(blob[:length], "module")
    for _ in range(2000):
        damaged = bytearray(blob)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(blob))] = chance.randrange(256)
        with suppress(FormatError):
            find_struct(bytes(damaged), "module")
