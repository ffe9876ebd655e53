# SPDX-License-Identifier: LGPL-2.1-or-later

"""
BTF against blobs written by hand here, from the format's documentation alone,
and what becomes of them as drgn types.
"""

from contextlib import suppress
import random
import struct
import time
import tracemalloc
from typing import Any

import drgn
from drgn import Architecture, Object, Platform, PlatformFlags, Qualifiers, TypeKind
import pytest

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.btf import Btf, BtfKind
from drgn_hvo.kernel.btf_types import BtfTypes
from tests.btf_support import (
    BOOL,
    CHAR,
    CONST,
    DATASEC,
    DECL_TAG,
    ENUM,
    FLOAT,
    FUNC,
    FWD,
    PTR,
    RESTRICT,
    SIGNED,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VAR,
    VOLATILE,
    Writer,
)

ORDERS = ("<", ">")


LAYOUT = [
    (0, 0), (4, 0), (0, 0), (12, 0), (0, 12), (0, 12), (0, 8), (0, 0), (0, 0), (0, 0),
    (0, 0), (0, 0), (0, 0), (0, 8), (4, 0), (0, 12), (0, 0), (4, 0), (0, 0), (0, 12),
]  # fmt: skip


def all_kinds(order="<"):
    """One blob with every kind; the IDs of its types by a word for each."""
    w, ids = Writer(order), {}
    ids["int"] = w.int("int", 4, SIGNED)
    ids["char"] = w.int("char", 1, SIGNED | CHAR)
    ids["bool"] = w.int("_Bool", 1, BOOL)
    ids["ulong"] = w.int("long unsigned int", 8)
    ids["double"] = w.raw(FLOAT, "double", 8)
    node = w.count + 1
    ids["node"] = w.compound(
        STRUCT, "node", 16, ("next", node + 1, 0), ("value", ids["int"], 64)
    )
    ids["ptr"] = w.ref(PTR, node)
    ids["array"] = w.array(ids["int"], ids["ulong"], 5)
    ids["union"] = w.compound(
        UNION, "both", 8, ("l", ids["ulong"], 0), ("i", ids["int"], 0)
    )
    ids["enum"] = w.enum("color", 4, ("RED", 0), ("GREEN", 7), ("BLUE", 0xFFFFFFFF))
    ids["signed"] = w.enum("sign", 4, ("MINUS", -1), ("PLUS", 1), flag=1)
    ids["enum64"] = w.enum64("wide", ("LOW", 1), ("HIGH", 2**64 - 2))
    ids["signed64"] = w.enum64("swide", ("NEG", -(2**40)), ("POS", 2**40), flag=1)
    ids["fwd"] = w.ref(FWD, 0, "elsewhere")
    ids["fwdunion"] = w.raw(FWD, "uelsewhere", 0, flag=1)
    ids["volatile"] = w.ref(VOLATILE, ids["int"])
    ids["const"] = w.ref(CONST, ids["volatile"])
    ids["typedef"] = w.ref(TYPEDEF, ids["const"], "cvint")
    ids["restrict"] = w.ref(RESTRICT, ids["ptr"])
    ids["typetag"] = w.ref(TYPE_TAG, ids["node"], "user")
    ids["tagged"] = w.ref(PTR, ids["typetag"])
    ids["proto"] = w.proto(ids["int"], ("count", ids["ulong"]), ("", 0))
    ids["func"] = w.raw(FUNC, "printk", ids["proto"], vlen=1)
    ids["var"] = w.raw(VAR, "counter", ids["ulong"], 1)
    ids["datasec"] = w.raw(DATASEC, ".data..percpu", 8, ids["var"], 0, 8, vlen=1)
    ids["decltag"] = w.raw(DECL_TAG, "tag", ids["node"], 2**32 - 1)
    ids["voidptr"] = w.ref(PTR, 0)
    return w, ids


def program(order="<", bits=64):
    flags = PlatformFlags(0)
    if order == "<":
        flags |= PlatformFlags.IS_LITTLE_ENDIAN
    if bits == 64:
        flags |= PlatformFlags.IS_64_BIT
    arch = Architecture.X86_64 if order == "<" else Architecture.S390X
    return drgn.Program(Platform(arch, flags))


def constant(btf, name):
    found = btf.find_enumerator(name)
    assert found is not None
    type_id, enumerator = found
    assert enumerator.name == name
    return type_id, enumerator.value


def types_of(w):
    return BtfTypes(program(w.order), Btf(w.blob()))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", [None, LAYOUT])
def test_every_kind_is_read(order, layout):
    w, ids = all_kinds(order)
    btf = Btf(w.blob(layout))
    assert btf.byteorder == {"<": "little", ">": "big"}[order]
    assert len(btf) == w.count + 1
    assert btf.unknown is None
    assert {btf.kind(i) for i in range(len(btf))} == set(BtfKind)
    integer = btf.integer(ids["int"])
    assert (integer.name, integer.size, integer.bits) == ("int", 4, 32)
    assert integer.is_signed
    assert not integer.is_bool
    assert btf.integer(ids["bool"]).is_bool
    assert btf.array(ids["array"]) == (ids["int"], 5)
    assert [(m.name, m.type_id, m.bit_offset, m.bit_size) for m in btf.members(6)] == [
        ("next", ids["ptr"], 0, 0),
        ("value", ids["int"], 64, 0),
    ]
    assert [(p.name, p.type_id) for p in btf.params(ids["proto"])] == [
        ("count", ids["ulong"]),
        ("", 0),
    ]
    assert btf.resolve(ids["typedef"]) == ids["int"]
    assert btf.target(ids["func"]) == ids["proto"]
    assert not btf.fwd_is_union(ids["fwd"])
    assert btf.fwd_is_union(ids["fwdunion"])


@pytest.mark.parametrize("order", ORDERS)
def test_enumerators_of_every_width_and_sign(order):
    w, ids = all_kinds(order)
    btf = Btf(w.blob())
    values = {
        name: [e.value for e in btf.enumerators(ids[name])]
        for name in ("enum", "signed", "enum64", "signed64")
    }
    assert values == {
        "enum": [0, 7, 2**32 - 1],
        "signed": [-1, 1],
        "enum64": [1, 2**64 - 2],
        "signed64": [-(2**40), 2**40],
    }
    for name, enum, value in (
        ("GREEN", "enum", 7),
        ("MINUS", "signed", -1),
        ("HIGH", "enum64", 2**64 - 2),
        ("NEG", "signed64", -(2**40)),
    ):
        assert constant(btf, name) == (ids[enum], value)
    # Names of other things are no constants.
    for name in ("node", "next", "count", "YELLOW", ""):
        assert btf.find_enumerator(name) is None


def test_name_is_found_among_the_kinds_that_were_asked_for():
    w = Writer()
    first = w.compound(STRUCT, "page", 4)
    w.int("page", 4)
    second = w.compound(STRUCT, "page", 8)
    typedef = w.ref(TYPEDEF, first, "page")
    btf = Btf(w.blob())
    assert btf.find("page", [BtfKind.STRUCT]) == [first, second]
    assert btf.find("page", [BtfKind.TYPEDEF, BtfKind.UNION]) == [typedef]
    assert btf.find("page", [BtfKind.UNION]) == []
    assert btf.find("pag", [BtfKind.STRUCT]) == []
    assert btf.find("", [BtfKind.STRUCT]) == []


def test_name_may_be_the_end_of_another_string():
    w = Writer()
    shared = w.string("struct_page")
    page = w.raw(STRUCT, shared + 7, 4, vlen=0)
    w.raw(ENUM, 0, 4, shared + 6, 3, vlen=1)
    btf = Btf(w.blob())
    assert btf.name(page) == "page"
    assert btf.find("page", [BtfKind.STRUCT]) == [page]
    assert constant(btf, "_page") == (2, 3)
    assert btf.find("struct_page", [BtfKind.STRUCT]) == []


def unknown_kind(order):
    """A type in front of one of kind 25 (4 bytes, then 8 for each), one behind."""
    w = Writer(order)
    front = w.int("front", 4)
    w.raw(25, "new", 0, 0, 1, 2, 3, 4, vlen=2)
    behind = w.compound(STRUCT, "behind", 4, ("a", front, 0))
    w.enum("e", 4, ("BEHIND", 1))
    return w, front, behind


@pytest.mark.parametrize("order", ORDERS)
def test_unknown_kind_is_stepped_over_with_a_layout_section(order):
    w, front, behind = unknown_kind(order)
    btf = Btf(w.blob([*LAYOUT, *[(0, 0)] * 5, (4, 8)]))
    assert btf.unknown is None
    assert btf.find("front", [BtfKind.INT]) == [front]
    assert btf.find("behind", [BtfKind.STRUCT]) == [behind]
    assert constant(btf, "BEHIND") == (4, 1)
    assert btf.kind(2) == 25
    with pytest.raises(FormatError, match="kind 25"):
        BtfTypes(program(order), btf).type(2)


@pytest.mark.parametrize("layout", [None, LAYOUT])
@pytest.mark.parametrize("order", ORDERS)
def test_unknown_kind_matters_only_to_types_behind_it(order, layout):
    w, front, behind = unknown_kind(order)
    btf = Btf(w.blob(layout))
    assert btf.unknown == (2, 25)
    assert btf.find("front", [BtfKind.INT]) == [front]
    assert BtfTypes(program(order), btf).type(front).size == 4
    for need in (
        lambda: btf.find("behind", [BtfKind.STRUCT]),
        lambda: btf.find("nowhere", [BtfKind.STRUCT]),
        lambda: btf.find_enumerator("BEHIND"),
        lambda: btf.kind(behind),
        lambda: btf.name(2),
    ):
        with pytest.raises(FormatError, match=r"type 2 is of kind 25.*newer"):
            need()


def test_type_in_front_that_refers_behind_an_unknown_kind_fails_when_used():
    w = Writer()
    number = w.int("int", 4, SIGNED)
    w.compound(STRUCT, "half", 12, ("good", number, 0), ("bad", 4, 64))
    w.raw(99, "new", 0)
    w.ref(PTR, number)
    half = types_of(w).type(2)
    assert half.size == 12
    assert half.member("good").type.size == 4
    with pytest.raises(FormatError, match="kind 99"):
        half.member("bad").type  # noqa: B018


@pytest.mark.parametrize("order", ORDERS)
def test_drgn_types_of_every_kind(order):
    w, ids = all_kinds(order)
    types = types_of(w)
    prog = program(order)
    t = {name: types.type(type_id) for name, type_id in ids.items()
         if name not in ("datasec", "decltag")}  # fmt: skip
    assert (t["int"].kind, t["int"].size, t["int"].is_signed) == (TypeKind.INT, 4, True)
    assert t["bool"].kind == TypeKind.BOOL
    assert (t["double"].kind, t["double"].size) == (TypeKind.FLOAT, 8)
    assert t["array"].type_name() == "int [5]"
    assert t["fwd"].type_name() == "struct elsewhere"
    assert not t["fwd"].is_complete()
    assert t["fwdunion"].kind == TypeKind.UNION
    assert t["typedef"].type_name() == "cvint"
    assert t["typedef"].type.qualifiers == Qualifiers.CONST | Qualifiers.VOLATILE
    assert t["restrict"].qualifiers == Qualifiers.RESTRICT
    assert t["tagged"].type_name() == "struct node *"
    assert t["voidptr"].type_name() == "void *"
    assert t["proto"].type_name() == t["func"].type_name()
    assert t["func"].type_name() == "int (unsigned long count, ...)"
    assert t["func"].is_variadic
    assert [p.name for p in t["func"].parameters] == ["count"]
    assert t["var"].type_name() == "unsigned long"
    assert types.type(0).kind == TypeKind.VOID
    assert prog.platform == program(order).platform
    for name in ("datasec", "decltag"):
        with pytest.raises(FormatError, match="no type in C"):
            types.type(ids[name])


@pytest.mark.parametrize("order", ORDERS)
def test_values_are_read_through_the_types(order):
    w, ids = all_kinds(order)
    types = types_of(w)
    prog = types.type(0).prog
    memory = struct.pack(f"{order}QiI", 0x1000, -5, 0)
    prog.add_memory_segment(
        0x1000, len(memory), lambda a, n, o, p: memory[o : o + n], False
    )
    node = Object(prog, types.type(ids["node"]), address=0x1000)
    # A list that leads back to itself.
    assert node.next.next.value.value_() == -5
    assert node.next.next.type_.type_name() == "struct node *"
    both = Object.from_bytes_(
        prog, types.type(ids["union"]), struct.pack(f"{order}Q", 2**32 + 2)
    )
    assert both.l.value_() == 2**32 + 2
    assert both.i.value_() == {"<": 2, ">": 1}[order]
    enum = Object(prog, types.type(ids["signed64"]), -(2**40))
    assert enum.format_(type_name=False) == "NEG"


FIELDS = [("a", 3), ("b", 5), ("c", 13), ("d", 1), ("e", 10), ("f", 32), ("g", 60)]


def field_value(data, order, offset, bits, signed):
    """Counted from the least significant bit of the struct, or the most."""
    number = int.from_bytes(data, "little" if order == "<" else "big")
    shift = offset if order == "<" else 8 * len(data) - offset - bits
    value = number >> shift & (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("style", ["kind_flag", "old"])
@pytest.mark.parametrize("order", ORDERS)
def test_bit_fields(order, style, signed):
    w = Writer(order)
    encoding = SIGNED if signed else 0
    word = w.int("long", 8, encoding)
    word = w.ref(TYPEDEF, w.ref(CONST, word), "cword")
    members: list[tuple[Any, ...]] = []
    offset = 0
    for name, bits in FIELDS:
        if offset // 64 != (offset + bits - 1) // 64:
            offset += -offset % 64
        if style == "kind_flag":
            members.append((name, word, offset, bits))
        else:
            # The offset is split between the member and its own integer.
            inner = offset % 8
            own = w.int("long", 8, encoding, bits=bits, offset=inner)
            members.append((name, w.ref(TYPEDEF, own, "t"), offset - inner))
        offset += bits
    plain = w.int("int", 4)
    members.append(("plain", plain, 128, *[0] * (style == "kind_flag")))
    struct_id = w.compound(STRUCT, "s", 24, *members, flag=style == "kind_flag")
    types = types_of(w)
    struct_type = types.type(struct_id)
    data = random.Random(order + style).randbytes(24)
    value = Object.from_bytes_(struct_type.prog, struct_type, data)
    offset = 0
    for name, bits in FIELDS:
        if offset // 64 != (offset + bits - 1) // 64:
            offset += -offset % 64
        member = struct_type.member(name)
        assert (member.bit_offset, member.bit_field_size) == (offset, bits)
        read = getattr(value, name).value_()
        assert read == field_value(data, order, offset, bits, signed), name
        offset += bits
    assert struct_type.member("plain").bit_field_size is None
    assert value.plain.value_() == struct.unpack_from(f"{order}I", data, 16)[0]


def test_anonymous_members_are_transparent():
    w = Writer()
    number = w.int("int", 4, SIGNED)
    inner = w.compound(UNION, "", 4, ("x", number, 0), ("y", number, 0))
    outer = w.compound(STRUCT, "outer", 8, ("", inner, 32))
    outer_type = types_of(w).type(outer)
    assert outer_type.member("y").bit_offset == 32
    assert outer_type.members[0].name is None
    assert outer_type.members[0].type.tag is None


def test_forward_declaration_means_the_only_definition():
    w = Writer()
    declared = w.ref(FWD, 0, "one")
    twice = w.ref(FWD, 0, "two")
    for name, size in (("one", 8), ("two", 4), ("two", 12)):
        w.compound(STRUCT, name, size)
    types = types_of(w)
    assert types.type(declared).size == 8
    assert not types.type(twice).is_complete()


def test_types_are_found_by_kind_and_name():
    w, ids = all_kinds()
    types = types_of(w)

    def find(name, *kinds):
        return types.find(drgn.TypeKindSet(kinds), name)

    assert find("node", TypeKind.STRUCT) == types.type(ids["node"])
    assert find("node", TypeKind.UNION, TypeKind.ENUM) is None
    assert find("cvint", TypeKind.TYPEDEF).type_name() == "cvint"
    # One kind in BTF, two in drgn.
    assert find("_Bool", TypeKind.INT) is None
    assert find("_Bool", TypeKind.BOOL).size == 1
    assert find("int", TypeKind.BOOL) is None
    assert find("wide", TypeKind.ENUM).enumerators[1] == drgn.TypeEnumerator(
        "HIGH", 2**64 - 2
    )
    assert find("printk", TypeKind.FUNCTION) is None


def test_loops_are_refused():
    w = Writer()
    w.ref(TYPEDEF, 2, "a")
    w.ref(CONST, 1)
    w.array(3, 3, 1)
    btf = Btf(w.blob())
    types = BtfTypes(program(), btf)
    for loop in (
        lambda: btf.resolve(1),
        lambda: types.type(1),
        lambda: types.type(2),
        lambda: types.type(3),
    ):
        with pytest.raises(FormatError, match="itself"):
            loop()


@pytest.mark.parametrize(
    ("offset", "damage", "message"),
    [
        (0, b"\x12\x34", "magic number is 1234"),
        (2, b"\x02", "version 2"),
        (4, b"\x04\0\0\0", "header length"),
        (8, b"\xff\xff\xff\x7f", "type section ends"),
        (12, b"\xff\xff\xff\xff", "type section ends"),
        (20, b"\xff\xff\xff\xff", "str section ends"),
        (20, b"\0\0\0\0", "not terminated"),
        (12, b"\x0b\0\0\0", "whole words"),
    ],
)
def test_damaged_header_is_named(offset, damage, message):
    data = bytearray(all_kinds()[0].blob())
    data[offset : offset + len(damage)] = damage
    with pytest.raises(FormatError, match=message):
        Btf(bytes(data))


def test_truncated_at_any_point():
    data = all_kinds()[0].blob()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            Btf(data[:length])


def test_wrong_questions_are_refused():
    w, ids = all_kinds()
    btf = Btf(w.blob())
    for question in (
        lambda: btf.integer(ids["node"]),
        lambda: btf.array(ids["int"]),
        lambda: list(btf.members(ids["int"])),
        lambda: list(btf.enumerators(ids["int"])),
        lambda: list(btf.params(ids["int"])),
        lambda: btf.name(len(btf)),
        lambda: btf.kind(2**31),
        lambda: btf.kind(-1),
    ):
        with pytest.raises(FormatError):
            question()


def walk(data):
    """Ask everything about every type; all refusals must be FormatError."""
    btf = Btf(data)
    accessors = (
        btf.kind,
        btf.name,
        btf.size,
        btf.target,
        btf.integer,
        btf.array,
        btf.resolve,
        btf.is_signed_enum,
        btf.fwd_is_union,
        lambda type_id: list(btf.members(type_id)),
        lambda type_id: list(btf.enumerators(type_id)),
        lambda type_id: list(btf.params(type_id)),
    )
    for type_id in range(len(btf) + 1):
        for accessor in accessors:
            with suppress(FormatError):
                accessor(type_id)
    for name in ("node", "int", "wide", "no such name"):
        with suppress(FormatError):
            btf.find(name, list(BtfKind))
    for name in ("GREEN", "HIGH", "no such name"):
        with suppress(FormatError):
            btf.find_enumerator(name)
    return btf


def convert(btf, order):
    """Make every type a drgn type and look at its members."""
    types = BtfTypes(program(order), btf)
    for type_id in range(len(btf)):
        with suppress(FormatError):
            found = types.type(type_id)
            found.type_name()
            if found.kind in (TypeKind.STRUCT, TypeKind.UNION):
                for member in found.members or ():
                    with suppress(FormatError):
                        _ = member.type, member.bit_field_size
            if found.kind == TypeKind.FUNCTION:
                for parameter in found.parameters:
                    with suppress(FormatError):
                        _ = parameter.type


def mutations(count, seed):
    chance = random.Random(seed)
    originals = [(o, all_kinds(o)[0].blob(la)) for o in ORDERS for la in (None, LAYOUT)]
    for _ in range(count):
        order, original = chance.choice(originals)
        data = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 8))):
            position = chance.randrange(len(data))
            data[position] = chance.choice(
                (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
            )
        if chance.random() < 0.1:
            del data[chance.randrange(len(data)) :]
        yield order, bytes(data)


def test_damage_is_a_format_error_and_nothing_else():
    read = 0
    slowest = 0.0
    tracemalloc.start()
    try:
        for _, data in mutations(700, "walk"):
            start = time.monotonic()
            with suppress(FormatError):
                walk(data)
                read += 1
            slowest = max(slowest, time.monotonic() - start)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read > 300
    assert slowest < 2
    assert peak < 16 << 20


def test_damaged_types_are_format_errors_as_drgn_types_too():
    read = 0
    for order, data in mutations(1000, "convert"):
        with suppress(FormatError):
            btf = Btf(data)
            convert(btf, order)
            read += 1
    assert read > 400


def test_long_chain_of_nested_types_does_not_exhaust_the_stack():
    w = Writer()
    for i in range(5000):
        w.ref((PTR, CONST, TYPEDEF)[i % 3], i + 2, "t")
    w.int("int", 4)
    types = types_of(w)
    with pytest.raises(FormatError, match="itself"):
        types.type(1)
    # What is near the end of the chain can still be had.
    assert types.type(5000).unaliased_kind() in (TypeKind.POINTER, TypeKind.INT)


def test_walk_sees_every_type_of_undamaged_btf():
    w, _ = all_kinds()
    assert len(walk(w.blob())) == w.count + 1
