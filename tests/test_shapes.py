# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernels whose types nobody knows: every member in other shapes. Here a fixed part of all
cases; ``python -m tools.shapes`` tries the whole.
"""

import logging

from drgn import Architecture, Platform, Program, TypeMember
import pytest

from drgn_hvo.errors import DetectionError
from drgn_hvo.kernel.shapes import (
    SHAPES,
    WORD,
    array_of,
    fault_of,
    require_shapes,
)
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import build_machine
from tests.synth_support import ALL, describe
from tools.shapes import GENERATIONS, Kernel

# A number without a common factor with the number of shapes.
_EACH = 23


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", GENERATIONS)
def test_no_shape_ends_in_a_traceback_or_a_wrong_answer(name, tmp_path):
    kernel = Kernel(name, tmp_path)
    cases = kernel.cases()[::_EACH]
    assert len(cases) > 60
    quick = ("show", "check", "page", "map", "heads")
    assert [str(f) for case in cases for f in kernel.faults(*case, quick)] == []


def test_no_shape_keeps_an_extract_from_being_made_or_refused(tmp_path):
    kernel = Kernel("shared-7.3", tmp_path)
    cases = kernel.cases()[:: 2 * _EACH + 1]
    assert [str(f) for case in cases for f in kernel.faults(*case, ["extract"])] == []


@pytest.mark.parametrize("name", ALL)
def test_every_known_kernel_has_the_shapes_of_the_table(name):
    prog = hvo_of(program(build_machine(describe(name)))).kernel.prog
    for struct in SHAPES:
        require_shapes(prog.type(struct), struct)


def changed(tmp_path, member, shape):
    kernel = Kernel("shared-7.3", tmp_path)
    case = next(case for case in kernel.cases() if str(case[0]) == member)
    return kernel, kernel.changed_program(case[0], shape)


def test_what_was_found_and_what_was_expected_is_said(tmp_path):
    _, opened = changed(tmp_path, "zone.vmemmap_tails", "struct")
    with opened as prog:
        found = hvo_of(prog)
        assert found.layout.encoding.kind == "mask"
        assert "expected an array" in str(found.layout.tails.array_fault)
        assert len(found.hugetlb.folios) == 10
        assert [str(one.need) for one in found.unread] == ["Need.SLOTS"]


def test_a_pool_in_another_shape_leaves_nodes_and_tails_known(tmp_path):
    _, opened = changed(tmp_path, "hstate.nr_huge_pages", "other size")
    with opened as prog:
        found = hvo_of(prog)
        assert not found.hugetlb.hstates
        assert len(found.shared_tails) == 2
        (unread,) = (one for one in found.unread if "pools" in one.what)
        assert "(4 bytes), expected an integer of 8 bytes" in unread.why


def test_a_struct_page_with_memdesc_is_refused_by_name(tmp_path):
    """Its other words may lie where they always did, and mean something else."""
    kernel = Kernel("shared-7.3", tmp_path)
    with (
        kernel.with_name("memcg_data", "memdesc") as prog,
        pytest.raises(DetectionError, match="struct page has memdesc, and 64"),
    ):
        hvo_of(prog)


def test_a_bit_field_is_no_word(tmp_path):
    _, opened = changed(tmp_path, "zone.spanned_pages", "bit field")
    with opened as prog:
        fault = fault_of(
            prog.type("struct zone"),
            "spanned_pages",
            SHAPES["struct zone"]["spanned_pages"],
        )
    assert fault == (
        "struct zone.spanned_pages is a bit field, expected an integer of 8 bytes"
    )


def test_an_array_of_something_else_is_not_that_array():
    prog = Program(Platform(Architecture.X86_64))
    byte, word = prog.int_type("u8", 1, False), prog.int_type("u64", 8, False)
    shape = array_of(WORD)
    for element, length, fits in ((word, 4, True), (byte, 4, False), (word, 0, False)):
        member = TypeMember(prog.array_type(element, length), "bits")
        owner = prog.struct_type("mask", 32, (member,))
        assert (fault_of(owner, "bits", shape) is None) == fits
