# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Random machines
---------------

Whatever is described is what the reader reports.
"""

import io
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st
import numpy as np
import pytest

from drgn_hvo.formats.btf import Btf, BtfKind
from drgn_hvo.formats.kallsyms import Kallsyms, KallsymsTables, KernelSymbol
from drgn_hvo.formats.kallsyms_writer import kallsyms_tables
from drgn_hvo.formats.tail_words import ALL_ONES
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.containers.kdump import FlattenedFile
from drgn_hvo.synth.machine.btf_writer import write_btf
from drgn_hvo.synth.machine.ctype import ULONG, array, pointer, struct, union
from tests.random_machines import SECTION, machines
from tests.synth_support import ALL, expected_folios, expected_heads


@pytest.mark.parametrize("name", ALL)
@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_what_is_described_is_reported(name, data):
    machine = data.draw(machines(name))
    found = hvo_of(program(machine))
    check_folios(machine, found)
    check_counters(machine, found)
    check_heads(machine, found)


def check_folios(machine, hvo):
    folios = hvo.hugetlb.folios
    flags = hvo.hugetlb.has_hpg_flag("vmemmap_optimized")
    found = {
        pfn: (order, optimized, mapping, frame)
        for pfn, order, optimized, mapping, frame in zip(
            folios.head_pfn.tolist(),
            folios.order.tolist(),
            flags.tolist(),
            hvo.hugetlb.optimized_mapping.tolist(),
            folios.head_frame.tolist(),
        )
    }
    expected = {
        pfn: (f.order, f.optimized, f.optimized, machine.page_physical(pfn) >> 12)
        for pfn, f in expected_folios(machine).items()
        if f.list is not None or f.optimized
    }
    assert found == expected
    assert folios.PG_head.all()
    assert folios.is_hugetlb.all()
    assert (folios.own_order == folios.order).all()
    slices = np.maximum(
        1, machine.plan.generation.struct_page_size * (1 << folios.order) // 4096
    )
    private = machine.plan.generation.private_slices
    private += np.array(
        [
            placed.group.restored_slices
            for pfn in folios.head_pfn.tolist()
            for placed in machine.plan.huge
            if placed.first_pfn <= pfn < placed.end_pfn
        ],
        dtype=np.int64,
    )
    shared = np.where(hvo.hugetlb.optimized_mapping, slices - private, 0)
    assert folios.shared_ptes.tolist() == shared.tolist()


def check_counters(machine, hvo):
    for state in hvo.hugetlb.hstates:
        groups = [
            g
            for g in machine.plan.description.huge_pages
            if g.order == state.order and g.list != "none"
        ]
        assert state.total == sum(g.count for g in groups)
        assert state.free == sum(g.count for g in groups if g.list == "free")
        assert state.surplus == sum(g.count for g in groups if g.surplus)
        assert state.total == sum(state.total_node.values())
    assert all(a_list.broken is None for a_list in hvo.hugetlb.lists)


def check_heads(machine, hvo):
    end = hvo.vmemmap.end_pfn
    present = {*machine.plan.sections, *machine.plan.device_sections}
    assert end == (max(present) + 1) * SECTION
    heads = np.concatenate(list(hvo.heads.range(0, end)))
    expected = np.full(end, ALL_ONES, dtype=np.uint64)
    for section in present:
        span = slice(section * SECTION, (section + 1) * SECTION)
        expected[span] = np.arange(span.start, span.stop, dtype=np.uint64)
    for pfn, (head, _) in expected_heads(machine).items():
        expected[pfn] = head
    assert np.flatnonzero(heads != expected).tolist() == []


def base_of(data):
    return None if data is None else int.from_bytes(data, "little")


names = st.text("abcdefgh_0123456789", min_size=1, max_size=200)


@given(
    st.dictionaries(names, st.integers(0, 1 << 29), min_size=1, max_size=400),
    st.sampled_from(["place", "percpu", "absolute"]),
)
@settings(max_examples=40)
def test_kallsyms_round_trip(symbols, addressing):
    base = 0xFFFFFFFF81000000
    at = {name: base + offset for name, offset in symbols.items()}
    entries = [KernelSymbol(name, address, "T") for name, address in at.items()]
    tables = kallsyms_tables(entries, addressing, base + 4096)
    absolute = addressing == "absolute"
    image = KallsymsTables(
        num_syms=len(at),
        names=tables.names,
        token_table=tables.token_table,
        token_index=tables.token_index,
        offsets=None if absolute else tables.offsets,
        offsets_address=base + 4096,
        relative_base=base_of(tables.relative_base),
        addresses=tables.offsets if absolute else None,
    )
    kallsyms = Kallsyms(image, at)
    assert {entry.name: entry.address for entry in kallsyms} == at


@st.composite
def compounds(draw, depth=0):
    """C structures with anonymous members, arrays and pointers."""
    members: list[tuple[Any, Any]] = []
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.integers(0, 3 if depth < 2 else 2))
        if kind == 3:
            members.append((None, draw(compounds(depth=depth + 1))))
        else:
            chosen = (ULONG, array(ULONG, draw(st.integers(0, 5))), pointer("struct s"))
            members.append((f"m{depth}_{i}", chosen[kind]))
    make = draw(st.sampled_from([struct, union]))
    return make(None if depth else "s", *members)


@given(compounds())
@settings(max_examples=60)
def test_btf_round_trip(compound):
    btf = Btf(write_btf([compound], "little"))
    assert btf.unknown is None
    kind = BtfKind.STRUCT if compound.keyword == "struct" else BtfKind.UNION
    (type_id,) = btf.find("s", [kind])
    assert_same(btf, type_id, compound)


def assert_same(btf, type_id, compound):
    assert btf.size(type_id) == compound.size
    members = list(btf.members(type_id))
    assert [(m.name or None, m.bit_offset // 8) for m in members] == [
        (m.name, m.offset) for m in compound.members
    ]
    for member, described in zip(members, compound.members):
        if described.name is None:
            assert_same(btf, member.type_id, described.type)


@given(st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=300)), max_size=20))
def test_flattened_round_trip(writes):
    """Records put where they say give the file that seeking would have."""
    plain, flat = io.BytesIO(), io.BytesIO()
    flattened = FlattenedFile(flat)
    for offset, data in writes:
        plain.seek(offset)
        plain.write(data)
        flattened.seek(offset)
        flattened.write(data)
    flattened.finish()
    again = io.BytesIO()
    flat.seek(4096)
    while True:
        offset, size = np.frombuffer(flat.read(16), dtype=">i8").tolist()
        if offset == -1:
            break
        again.seek(offset)
        again.write(flat.read(size))
    assert again.getvalue() == plain.getvalue()
    assert flat.read() == b""
