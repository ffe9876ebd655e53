# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Kernels whose types nobody knows
--------------------------------

Gives every member of every structure of a synthetic kernel's BTF another shape: another
kind of type, another size, another place, or none. ``python -m tools.shapes`` runs the
commands on each and says where one ended in an internal error, or gave an answer that
is neither that of the kernel as it was nor an error nor "unknown".
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import io
import logging
import os
from pathlib import Path
import sys
import tempfile
from typing import Any, Optional

from drgn import Program

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.commands.failures import failure
from drgn_hvo.commands.map import map_document, print_map
from drgn_hvo.commands.page import page_document
from drgn_hvo.commands.show import show_document
from drgn_hvo.extract.command import extract_document
from drgn_hvo.formats.btf import Btf, BtfKind
from drgn_hvo.formats.btf_header import parse_header, section
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.memmap.page_spec import parse_page_spec
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.described.description import Description, HugePages, Node, Pages
from drgn_hvo.synth.machine.machine import Machine, build_machine

__all__ = ("GENERATIONS", "SHAPES", "Kernel", "WrongAnswer", "description", "main")

#: One generation for each way in which HVO names its shared tails.
GENERATIONS = ("shared-7.3", "fake-head-6.12", "seed-v5", "fake-head-6.1", "next")

_WORD = 4
_MEMBER_WORDS = 3
_KIND_FLAG = 1 << 31
_FAR = 1 << 20


@dataclass(frozen=True)
class Member:
    """
    A member of a structure in BTF.

    :param place: Of its three words in the blob.
    :param info: Place of the word with the kind flag of its structure.
    """

    struct: str
    name: str
    type_id: int
    bit_offset: int
    place: int
    info: int

    def __str__(self) -> str:
        return f"{self.struct}.{self.name}"


@dataclass(frozen=True)
class WrongAnswer:
    """Where a command did what it must not do."""

    member: str
    shape: str
    command: str
    what: str

    def __str__(self) -> str:
        return f"{self.member} as {self.shape}: {self.command}: {self.what}"


# Words to write, by their place in the blob; none where a shape is the member's own.
_Change = dict[int, int]


class _Types:
    """The blob of a kernel, and types to give its members."""

    def __init__(self, data: bytes) -> None:
        self.btf = Btf(data)
        header, self.byteorder = parse_header(data)
        self._start = section(data, header, "type").start
        self._data = data
        self._by_kind: dict[int, list[int]] = {}
        for type_id in range(1, len(self.btf)):
            self._by_kind.setdefault(self.btf.kind(type_id), []).append(type_id)

    def word(self, place: int) -> int:
        """A word of the blob."""
        return int.from_bytes(self._data[place : place + _WORD], self.byteorder)

    def first(self, *kinds: BtfKind) -> int:
        """The first type of one of these kinds; ``void`` if there is none."""
        return next((i for k in kinds for i in self._by_kind.get(k, ())), 0)

    def integer(self, size: int) -> int:
        """The first integer of a size."""
        integers = self._by_kind.get(BtfKind.INT, ())
        return next((i for i in integers if self.btf.size(i) == size), 0)

    def members(self) -> Iterator[Member]:
        """All members that have a name, of structures and unions."""
        for kind in (BtfKind.STRUCT, BtfKind.UNION):
            for type_id in self._by_kind.get(kind, ()):
                info = self._start + _WORD * (self.btf.position(type_id) + 1)
                for i, member in enumerate(self.btf.members(type_id)):
                    place = info + _WORD * (2 + _MEMBER_WORDS * i)
                    struct = self.btf.name(type_id) or f"(type {type_id})"
                    yield Member(
                        struct,
                        member.name or f"({i})",
                        member.type_id,
                        member.bit_offset,
                        place,
                        info,
                    )

    def size(self, type_id: int) -> Optional[int]:
        """The size of a type that has one by itself."""
        kind = self.btf.kind(type_id)
        while kind in (BtfKind.TYPEDEF, BtfKind.CONST, BtfKind.VOLATILE):
            type_id = self.btf.target(type_id)
            kind = self.btf.kind(type_id)
        return self.btf.size(type_id) if kind == BtfKind.INT else None


def _renamed(types: _Types, member: Member) -> _Change:
    """A name that nobody knows: its last letters."""
    if len(member.name) < 2 or member.name.startswith("("):
        return {}
    skipped = min(2, len(member.name) - 1)
    return {member.place: types.word(member.place) + skipped}


def _array(types: _Types, member: Member) -> _Change:
    """Another array, but not one of the same elements: that is just longer."""
    first, btf = types.first(BtfKind.ARRAY), types.btf
    own = member.type_id
    if btf.kind(own) == BtfKind.ARRAY and btf.array(own)[0] == btf.array(first)[0]:
        return {}
    return {member.place + _WORD: first}


def _as(*kinds: BtfKind) -> Callable[[_Types, Member], _Change]:
    return lambda types, member: {member.place + _WORD: types.first(*kinds)}


def _resized(types: _Types, member: Member) -> _Change:
    wanted = 4 if types.size(member.type_id) != 4 else 8
    return {member.place + _WORD: types.integer(wanted)}


def _bit_field(types: _Types, member: Member) -> _Change:
    """Of all members of a structure with the kind flag, the upper byte is a size."""
    return {
        member.info: types.word(member.info) | _KIND_FLAG,
        member.place + _WORD: types.integer(4),
        member.place + 2 * _WORD: 3 << 24 | member.bit_offset & 0xFFFFFF,
    }


#: Shapes, and the words that give them to a member.
SHAPES: dict[str, Callable[[_Types, Member], _Change]] = {
    "pointer": _as(BtfKind.PTR),
    "array": _array,
    "struct": _as(BtfKind.STRUCT),
    "union": _as(BtfKind.UNION),
    "enum": _as(BtfKind.ENUM),
    "float, or function": _as(BtfKind.FLOAT, BtfKind.FUNC_PROTO),
    "void": lambda _types, member: {member.place + _WORD: 0},
    "no type": lambda types, member: {member.place + _WORD: len(types.btf) + 9},
    "integer": lambda types, member: {member.place + _WORD: types.integer(8)},
    "other size": _resized,
    "bit field": _bit_field,
    "of another name": _renamed,
    "behind the end": lambda _types, member: {
        member.place + 2 * _WORD: member.bit_offset + 8 * _FAR
    },
    "moved by 8 bytes": lambda _types, member: {
        member.place + 2 * _WORD: member.bit_offset + 64
    },
}

# What is read there instead is as good as what was there: it must only not end badly.
_BELIEVABLE = "moved by 8 bytes"


def description(generation: str) -> Description:
    """A small machine with folios in many states."""
    return Description(
        generation=generation,
        nodes=(
            Node(0, ((0, 0x6000),), {"DMA": (1, 0x1000), "DMA32": (0x1000, 0x6000)}),
            Node(1, ((0x6000, 0xA000),), {"DMA32": (0x6000, 0xA000)}),
        ),
        huge_pages=(
            HugePages(0, "DMA32", 9, 4),
            HugePages(0, "DMA32", 9, 2, list="active", surplus=True),
            HugePages(1, "DMA32", 9, 3),
            HugePages(1, "DMA32", 9, 1, optimized=False),
        ),
        pages=(
            Pages(0, "DMA32", "slab", 3, 2),
            Pages(0, "DMA32", "compound", 2, 3),
            Pages(1, "DMA32", "buddy", 4, 2),
        ),
        seed=5,
    )


# What an answer may lack, or say differently, when types say less.
_ABOUT_SOURCES = (
    "evidence",
    "list_by",
    "not_in_dump",
    "notes",
    "reason",
    "undecided",
    "unread",
)

# What is said of a page of which every source was read.
_ALL_WELL = "nothing is wrong with it"


def _differs(right: Any, got: Any, path: str = "") -> Optional[str]:
    """Where an answer says something else than the right one; unknown is no answer."""
    if got is None or got == [] or path.rpartition(".")[2] in _ABOUT_SOURCES:
        return None
    if ".conclusions[" in path:
        # Words that rest on the rest, and say less where that is less.
        return f"{path}: {got!r}" if right != got and _ALL_WELL in got else None
    if isinstance(right, dict) and isinstance(got, dict):
        pairs = [(f"{path}.{key}", right.get(key), got[key]) for key in got]
    elif isinstance(right, list) and isinstance(got, list):
        if len(got) < len(right):
            # The notes say why.
            return None
        if len(right) != len(got):
            return f"{path}: {len(got)} in place of {len(right)}"
        pairs = [(f"{path}[{i}]", r, g) for i, (r, g) in enumerate(zip(right, got))]
    else:
        return None if right == got else f"{path}: {got!r} in place of {right!r}"
    return next((d for p, r, g in pairs if (d := _differs(r, g, p))), None)


class Kernel:
    """
    A synthetic kernel whose types can be changed.

    :param directory: For extracts.
    """

    def __init__(self, generation: str, directory: Path) -> None:
        self.machine: Machine = build_machine(description(generation))
        self._extract = directory / f"{generation}.extract"
        kernel = self.machine.kernel
        self._at = kernel.physical("__start_BTF")
        size = kernel.address("__stop_BTF") - kernel.address("__start_BTF")
        self.types = _Types(self.machine.image.read(self._at, size))
        folio = self.machine.plan.huge[0].first_pfn
        self._specs = [parse_page_spec(str(pfn)) for pfn in (folio, folio + 70, 3)]
        self._commands: dict[str, Callable[[Program], Any]] = {
            "show": lambda prog: show_document(hvo_of(prog), "x", folios=True),
            "check": lambda prog: check_document(
                hvo_of(prog), "x", CheckScope(deep=True)
            ),
            "page": lambda prog: page_document(hvo_of(prog), "x", self._specs),
            "map": self._map,
            "heads": self._heads,
            "extract": self._extracted,
        }
        self._right = {name: self._answer(name)[0] for name in self._commands}

    def _map(self, prog: Program) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            print_map(map_document(hvo_of(prog), "core", self._specs[0]))
        return out.getvalue()

    def _heads(self, prog: Program) -> list[list[int]]:
        first = self.machine.plan.huge[0].first_pfn
        return [part.tolist() for part in hvo_of(prog).heads.range(first, first + 1024)]

    def _extracted(self, prog: Program) -> None:
        """Of an extract, only that it is made or refused."""
        extract_document(prog, "x", str(self._extract), force=True, small=True)

    def _answer(self, name: str) -> tuple[Any, Optional[Exception]]:
        prog = program(self.machine)
        install(prog)
        try:
            return self._commands[name](prog), None
        except Exception as e:
            return None, e

    @contextlib.contextmanager
    def _changed(self, change: _Change) -> Iterator[None]:
        image, order = self.machine.image, self.types.byteorder
        before = {at: image.read(self._at + at, _WORD) for at in change}
        for at, value in change.items():
            image.write(self._at + at, (value % (1 << 32)).to_bytes(_WORD, order))
        try:
            yield
        finally:
            for at, data in before.items():
                image.write(self._at + at, data)

    @contextlib.contextmanager
    def changed_program(self, member: Member, shape: str) -> Iterator[Program]:
        """A program of the kernel with another shape of a member."""
        with self._changed(SHAPES[shape](self.types, member)):
            prog = program(self.machine)
            install(prog)
            yield prog

    @contextlib.contextmanager
    def with_name(self, old: str, new: str) -> Iterator[Program]:
        """A program of the kernel with another name in its BTF, no longer than it."""
        image = self.machine.image
        size = self.machine.kernel.address("__stop_BTF")
        size -= self.machine.kernel.address("__start_BTF")
        before = image.read(self._at, size)
        at = self._at + before.index(b"\0" + old.encode() + b"\0") + 1
        image.write(at, new.encode().ljust(len(old) + 1, b"\0"))
        try:
            prog = program(self.machine)
            install(prog)
            yield prog
        finally:
            image.write(at, old.encode())

    def faults(
        self, member: Member, shape: str, commands: Optional[Sequence[str]] = None
    ) -> Iterator[WrongAnswer]:
        """
        What commands did wrong with another shape of a member.

        :param commands: Their names; by default all.
        """
        change = SHAPES[shape](self.types, member)
        with self._changed(change):
            for name in commands or self._commands:
                got, error = self._answer(name)
                what = self._judge(name, got, error, believable=shape == _BELIEVABLE)
                if what is not None:
                    yield WrongAnswer(str(member), shape, name, what)

    def _judge(
        self, name: str, got: Any, error: Optional[Exception], *, believable: bool
    ) -> Optional[str]:
        if error is not None:
            known = failure(error)
            return None if known else f"{type(error).__name__}: {error}"
        if believable:
            return None
        if name == "show" and not got["notes"]:
            return None if got == self._right[name] else "less, and does not say why"
        if name == "map":
            # A picture; what it shows, the others say in words.
            return None
        if name == "check":
            found = [finding["rule"] for finding in got["findings"]]
            return f"finds {', '.join(found)}" if found else None
        return _differs(self._right[name], got)

    def cases(self) -> list[tuple[Member, str]]:
        """Every member in every shape that is not its own."""
        return [
            (member, shape)
            for member in self.types.members()
            for shape, change in SHAPES.items()
            if any(
                self.types.word(at) != value
                for at, value in change(self.types, member).items()
            )
        ]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """
    Try all cases and print faults.

    :return: 0 if there was none, else 1.
    """
    parser = argparse.ArgumentParser(prog="tools.shapes", description=__doc__)
    parser.add_argument(
        "generations", nargs="*", default=GENERATIONS, help="default: one of each kind"
    )
    parser.add_argument("--every", type=int, default=1, help="try each Nth case only")
    args = parser.parse_args(argv)
    os.environ.setdefault("DRGN_DISABLE_PLUGINS", "*")
    logging.getLogger("drgn").setLevel(logging.CRITICAL)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        for generation in args.generations:
            kernel = Kernel(generation, Path(directory))
            for member, shape in kernel.cases()[:: args.every]:
                counts["cases"] += 1
                for fault in kernel.faults(member, shape):
                    counts["faults"] += 1
                    print(f"{generation}: {fault}", flush=True)
    print(f"{counts['cases']} cases, {counts['faults']} faults")
    return int(counts["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
