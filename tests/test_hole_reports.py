# SPDX-License-Identifier: LGPL-2.1-or-later

"""
``page``, ``heads`` and ``oops`` on dumps with holes: an answer about what is left says
less than that about the whole dump, and nothing else.
"""

from functools import lru_cache
import json
from pathlib import Path

import numpy as np
import pytest

from drgn_hvo.commands.heads import write_heads
from drgn_hvo.commands.oops import oops_document
from drgn_hvo.formats.oops_log import parse_log
from drgn_hvo.memmap.hvo import hvo_of
from tests.command_support import run
from tests.log_support import bad_page_state
from tools.hole_reports import ask, claims, try_page, wrong_claims
from tools.holes import HOLES

SAMPLES = Path(__file__).parents[1] / "sample_vmcores"

#: Every so many of the pages that are read are left out.
STEPS = {
    "shared-7.3": 29,
    "fake-head-6.12": 29,
    "next": 41,
    "debian-7.2": 97,
    "riscv64-sv39": 41,
}

NONE = np.iinfo(np.uint64).max


@lru_cache(maxsize=1)
def asked(name):
    return ask(str(SAMPLES / f"{name}.kdump"))


def frame_of(known, pfn):
    """The frame that the struct page of a PFN is in."""
    return known.vmemmap.mapping(pfn * known.vmemmap.size // 4096).pfn


@pytest.mark.parametrize("name", STEPS)
def test_less_and_nothing_else(name):
    about = asked(name)
    assert len(about.read) > 50
    for pfn in about.read[:: STEPS[name]]:
        for hole, wrong in try_page(about, pfn):
            assert not wrong, (pfn, hole)


def test_a_whole_dump_says_something():
    """Whoever says nothing would pass the above."""
    said = dict(claims(asked("shared-7.3").whole))
    assert said[".page[0].kind"] == "head"
    assert said[".page[1].kind"] == said[".page[2].kind"] == "tail"
    assert said[".oops[0].verdict"] == "shared-tail-write"
    assert said[".oops[1].verdict"] == "no-struct-page"
    assert len([path for path in said if path.startswith(".heads[")]) == 640


def test_another_answer_is_noticed():
    whole = {"page": [{"kind": "tail", "order": 9, "word": "0x1", "list": None}]}
    less = {"page": [{"kind": "not in this dump", "order": None, "word": None}]}
    assert wrong_claims(whole, less) == []
    other = {"page": [{"kind": "tail", "order": 8, "word": "0x0", "list": "free"}]}
    assert len(wrong_claims(whole, other)) == 3


@pytest.mark.parametrize("hole", HOLES)
def test_heads_that_are_not_known_are_counted(hole, tmp_path, capsys):
    """The file has all ones for them, and for pages that have no head."""
    about = asked("shared-7.3")
    known = hvo_of(about.dump.program())
    head = about.questions.head_pfn
    frame = frame_of(known, head)
    path = tmp_path / "heads.npy"
    whole = write_heads(known, str(path), None)
    heads = np.load(path)
    holey = hvo_of(about.dump.program(frame, hole))
    written = write_heads(holey, str(path), None, force=True)
    lost = np.flatnonzero((heads != NONE) & (np.load(path) == NONE))
    assert lost.tolist() == list(range(head, head + 64))
    assert (written.not_in_dump, written.zeros) == (
        whole.not_in_dump + 64 * (hole == "missing"),
        whole.zeros + 64 * (hole == "zeros"),
    )


def test_heads_say_what_the_dump_lacks(tmp_path):
    """An extract has the struct pages of huge pages, and few others."""
    core, path = SAMPLES / "debian-7.2.kdump", tmp_path / "heads.npy"
    result = run("heads", core, "-o", path)
    without = int((np.load(path) == NONE).sum())
    assert result.stdout == (
        "28672 of 131072 struct pages are not in this dump: whether they have a head "
        "is not known\n"
    )
    assert 28672 <= without < 32768
    doc = json.loads(run("heads", core, "-o", path, "--force", "--json").stdout)
    assert doc["unread"] == {"not_in_dump": 28672, "zeros": 0}
    core = SAMPLES / "shared-7.3.kdump"
    assert run("heads", core, "-o", path, "--force").stdout == ""


@pytest.mark.parametrize("hole", HOLES)
def test_words_that_are_not_in_the_dump_have_not_changed(hole):
    about = asked("fake-head-6.12")
    known = hvo_of(about.dump.program())
    pfn = about.questions.head_pfn + 1
    rows = known.vmemmap.read_pages(np.array([pfn]))
    words = tuple(rows.data[0].view("<u8").tolist())
    lines = bad_page_state(pfn, words, "nonzero _refcount")
    log = parse_log(list(lines))
    frame = frame_of(known, pfn)
    states = [
        oops_document(bound, "core", log, same_boot=True)["reports"][0]["against_dump"]
        for bound in (known, hvo_of(about.dump.program(frame, hole)))
    ]
    assert states == ["unchanged", "not-in-dump"]
