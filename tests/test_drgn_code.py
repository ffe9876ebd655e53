# SPDX-License-Identifier: LGPL-2.1-or-later

"""The code that ``--drgn`` prints does what the command does."""

import contextlib
import io

from drgn.commands import run_command
import pytest

import drgn_hvo.drgn_command  # noqa: F401
from drgn_hvo.finders import install
from drgn_hvo.hvo import hvo
from drgn_hvo.pages import parse_page_spec
from drgn_hvo.report.page import page_document
from drgn_hvo.report.show import show_document

from .cores import open_core
from .synth_support import ALL, describe, machine_and_program

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
    doc = show_document(hvo(prog), "core", folios=True)
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
    found = lines_of(prog, "hvo show --folios")
    assert found[: len(expected)] == expected
    rest = found[len(expected) :]
    assert sorted(rest[: len(saved)]) == sorted(saved)
    assert rest[len(saved) :] == folios


@EVERY_PROGRAM
def test_page(make, name):
    prog = make(name)
    known = hvo(prog)
    folio = show_document(known, "core", folios=True)["folios"][0]
    pfn = folio["head_pfn"] + 100
    address = known.vmemmap.page_address(pfn)
    specs = [f"pfn:{pfn}", f"page:{address:#x}", f"phys:{pfn << 12:#x}"]
    pages = page_document(known, "core", [parse_page_spec(s) for s in specs])["pages"]
    expected = []
    for page in pages:
        frames = [folio["head_frame"], *folio["tail_frames"]]
        expected += [
            text(page["pfn"], page["head_pfn"]),
            text(page["order"], page["hugetlb"]),
            text(page["nid"], page["zone"]),
            text(folio["optimized_flag"]),
        ]
    found = lines_of(prog, f"hvo page {' '.join(specs)}")
    frames = [line for line in found if line.startswith("[")]
    assert [line for line in found if not line.startswith("[")] == expected
    assert len(frames) == len(specs)
    assert {frame for line in frames for frame in eval(line.split("] ")[0] + "]")} == {
        folio["head_frame"],
        *folio["tail_frames"],
    }
