# SPDX-License-Identifier: LGPL-2.1-or-later

"""The code that ``--drgn`` prints does what the command does."""

import contextlib
import io
from typing import Any

from drgn.commands import run_command
from drgn.helpers.linux.mm import follow_pfn
import pytest

import drgn_hvo.commands.in_drgn  # noqa: F401
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.errors import HvoError
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from tests.cores import open_core
from tests.helpers_support import has_folios
from tests.synth_support import ALL, describe, machine_and_program

REAL = ["7.2-2node", "6.12-2node", "6.1-2node", "seed5-2node", "seed6-2node"]


def synthetic(name):
    _, prog = machine_and_program(describe(name))
    return prog


def real(name):
    prog = open_core(name)
    install(prog)
    return prog


EVERY_PROGRAM = pytest.mark.parametrize(
    ("make", "name"),
    [(synthetic, name) for name in ALL] + [(real, name) for name in REAL],
)


def lines_of(prog, command):
    """What a command prints with ``--drgn``, executed."""
    code, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(code):
        run_command(prog, f"{command} --drgn")
    with contextlib.redirect_stdout(out):
        exec(code.getvalue(), {"prog": prog})
    return out.getvalue().splitlines()


def text(*values):
    return " ".join(str(value) for value in values)


@EVERY_PROGRAM
def test_show(make, name):
    prog = make(name)
    doc: Any = show_document(hvo_of(prog), "core", folios=True)
    expected = [doc["encoding"]["kind"]]
    expected += [
        text(t["nid"], t["zone"], t["order"], t["pfn"]) for t in doc["shared_tails"]
    ]
    expected += [
        text(h["order"], h["total"], h["free"], h["surplus"]) for h in doc["hstates"]
    ]
    saved = [
        text(s["nid"], s["order"], s["pages"]) for s in doc["saved"]["by_node_order"]
    ]
    folios = [text(f["head_pfn"], f["nid"], f["optimized_flag"]) for f in doc["folios"]]
    if not has_folios(prog):
        with pytest.raises(HvoError, match="no struct folio"):
            lines_of(prog, "hvo show --folios")
        return
    found = lines_of(prog, "hvo show --folios")
    assert found[: len(expected)] == expected
    rest = found[len(expected) :]
    assert sorted(rest[: len(saved)]) == sorted(saved)
    assert rest[len(saved) :] == folios


@EVERY_PROGRAM
def test_page(make, name):
    prog = make(name)
    known = hvo_of(prog)
    shown: Any = show_document(known, "core", folios=True)
    folio = shown["folios"][0]
    pfn = folio["head_pfn"] + 100
    address = known.vmemmap.page_address(pfn)
    specs = [f"pfn:0d{pfn}", f"page:{address:#x}", f"phys:{pfn << 12:#x}"]
    pages = page_document(known, "core", [parse_page_spec(s) for s in specs])["pages"]
    expected = []
    for page in pages:
        expected += [
            text(page["pfn"], page["head_pfn"]),
            text(page["order"], page["hugetlb"]),
            text(page["nid"], page["zone"]),
            text(folio["optimized_flag"]),
            frames_by_drgn(prog, known.vmemmap, folio),
        ]
    found = lines_of(prog, f"hvo page {' '.join(specs)}")
    # Behind the frames come their permissions.
    assert [line.partition("] ")[0] for line in found] == expected


def frames_by_drgn(prog, vmemmap, folio):
    """The frames of a folio's struct pages, as drgn's own page table walk has them."""
    start = vmemmap.page_address(folio["head_pfn"])
    size = vmemmap.size << folio["order"]
    init_mm = prog["init_mm"].address_of_()
    frames = [
        follow_pfn(init_mm, address).value_()
        for address in range(start, start + size, 4096)
    ]
    return str(frames)[:-1]
