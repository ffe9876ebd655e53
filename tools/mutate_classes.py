# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is changed in inputs, and how
----------------------------------

A table of classes: each makes the changes of one case, and runs a command on an input
with some of them; for :mod:`tools.mutate_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import random
from typing import Optional

from drgn_hvo import cli
from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.machine.machine import Machine, build_machine
from tools.mutate_qmp import answers, monitor
from tools.mutate_run import judge, opened_as, silence
from tools.shapes import description

__all__ = ("CLASSES", "Inputs", "leftovers")

_CONTAINERS = ("elf", "kdump", "flattened")
_GENERATIONS = ("shared-7.3", "fake-head-6.12", "seed-v5", "fake-head-6.1", "next")

#: A change of an input: where, and what to put there.
_Change = tuple[int, bytes]

_ODD = (
    *(0, 1, 2, 7, 8, 0x7F, 0x80, 0xFFF, 0x1000, 1 << 31, (1 << 32) - 1, 1 << 52),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 8, (1 << 64) - 1),
)

_TEXTS = (
    *(b"", b"a\0b", b"-1", b"0", b"ffffffffffffffff", b"9" * 6000, b"\x1b[31mred"),
    *(b"x\ny", b"\xff\xfe", b"0x10", b"1_0", b"%s%n", b"18446744073709551616"),
)


class Inputs:
    """
    Inputs to change.

    :param directory: For files.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._seed = seed
        self._machines: dict[str, Machine] = {}
        self._files: dict[str, bytes] = {}

    def random(self, kind: str, number: int) -> random.Random:
        """The random numbers of one case."""
        return random.Random(f"{self._seed} {kind} {number}")

    def machine(self, generation: str) -> Machine:
        """A machine, made once."""
        if generation not in self._machines:
            self._machines[generation] = build_machine(description(generation))
        return self._machines[generation]

    def file(self, container: str) -> bytes:
        """A core as a file, made once."""
        if container not in self._files:
            path = self._directory / "core"
            described = self._directory / "machine.toml"
            described.write_text(_TOML)
            with silence():
                cli.main(
                    ["synth", str(described), "-o", str(path), "--force",
                     "--container", container]
                )  # fmt: skip
            self._files[container] = path.read_bytes()
        return self._files[container]

    def path(self, name: str) -> Path:
        """A file of a case."""
        return self._directory / name


_TOML = """\
generation = "shared-7.3"
seed = 3
[[node]]
id = 0
ranges = [[0x0, 0x4000]]
zones = { DMA = [1, 0x1000], DMA32 = [0x1000, 0x4000] }
[[huge_pages]]
node = 0
zone = "DMA32"
order = 9
count = 3
"""

# The commands that one case runs, of which it takes some.
_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("show", "TARGET", "--folios"),
    ("show", "TARGET", "--json", "--folios"),
    ("check", "TARGET"),
    ("check", "TARGET", "--deep"),
    ("page", "TARGET", "0x1000", "0x1046"),
    ("map", "TARGET", "0x1000"),
    ("who", "TARGET", "0x1000"),
    ("sharers", "TARGET", "0x1000"),
    ("diff", "TARGET", "TARGET"),
)

# One class: makes the changes of a case, and runs it with some of them.
_Run = Callable[[Sequence[_Change], Sequence[str]], Optional[str]]
_Made = tuple[list[_Change], _Run, Sequence[tuple[str, ...]]]
_Maker = Callable[[Inputs, random.Random], _Made]


def _vmcoreinfo(inputs: Inputs, noise: random.Random) -> _Made:
    machine = inputs.machine(noise.choice(_GENERATIONS))
    lines = machine.vmcoreinfo.split(b"\n")
    changes: list[_Change] = []
    for _ in range(noise.choice((1, 1, 2, 5))):
        at = noise.randrange(len(lines))
        key, _, value = lines[at].partition(b"=")
        odd = b"%x" % noise.choice(_ODD) if noise.random() < 0.5 else b""
        text = odd or noise.choice(_TEXTS)
        line = noise.choice((key + b"=" + text, b"", value, key * 40, key + b"=", text))
        changes.append((at, line))

    def run(kept: Sequence[_Change], argv: Sequence[str]) -> Optional[str]:
        changed = list(lines)
        for at, line in kept:
            changed[at] = line
        before = machine.vmcoreinfo
        object.__setattr__(machine, "vmcoreinfo", b"\n".join(changed))
        try:
            with opened_as(lambda: program(machine)):
                return judge(argv)
        finally:
            object.__setattr__(machine, "vmcoreinfo", before)

    return changes, run, _COMMANDS


def _word(noise: random.Random, old: int, machine: Machine) -> int:
    page = machine.plan.space.page_address(noise.randrange(machine.plan.kernel_pfn))
    return noise.choice(
        (
            *(old ^ 1 << noise.randrange(64), noise.choice(_ODD), page, page | 1),
            *(noise.getrandbits(64), old + 8, old - 4096, old << 12, old & 0xFFFFFFFF),
        )
    ) % (1 << 64)


def _memory(
    places: Callable[[Machine, random.Random], int], heads: bool = False
) -> _Maker:
    """
    Changes of words.

    :param heads: Whether the heads of all pages are asked for, and nothing else.
    """

    def make(inputs: Inputs, noise: random.Random) -> _Made:
        machine = inputs.machine(noise.choice(_GENERATIONS))
        changes: list[_Change] = []
        for _ in range(noise.choice((1, 2, 5, 20))):
            at = places(machine, noise) & -8
            if not machine.image.has(at >> 12):
                continue
            old = int.from_bytes(machine.image.read(at, 8), "little")
            changes.append((at, _word(noise, old, machine).to_bytes(8, "little")))

        def run(kept: Sequence[_Change], argv: Sequence[str]) -> Optional[str]:
            before = [(at, machine.image.read(at, 8)) for at, _ in kept]
            for at, data in kept:
                machine.image.write(at, data)
            try:
                with opened_as(lambda: program(machine)):
                    return judge(argv)
            finally:
                for at, data in reversed(before):
                    machine.image.write(at, data)

        if heads:
            out = str(inputs.path("heads"))
            return changes, run, [("heads", "TARGET", "-o", out, "--force")]
        extract = ("extract", "TARGET", "-o", str(inputs.path("extract")), "--force")
        return changes, run, (*_COMMANDS, extract, (*extract, "--small"))

    return make


def _symbol(name: str, size: int) -> Callable[[Machine, random.Random], int]:
    def place(machine: Machine, noise: random.Random) -> int:
        return machine.kernel.physical(name) + noise.randrange(0, size, 8)

    return place


def _btf(machine: Machine, noise: random.Random) -> int:
    start = machine.kernel.physical("__start_BTF")
    size = machine.kernel.address("__stop_BTF") - machine.kernel.address("__start_BTF")
    return start + noise.randrange(size)


def _kallsyms(machine: Machine, noise: random.Random) -> int:
    first = machine.kernel.physical("kallsyms_num_syms")
    last = machine.kernel.physical("kallsyms_token_index") + 2048
    return first + noise.randrange(last - first)


def _head(machine: Machine, noise: random.Random) -> int:
    placed = noise.choice(machine.plan.huge)
    pfn = noise.choice(list(placed.heads())) + noise.randrange(0, 64)
    return machine.page_physical(pfn) + noise.randrange(0, 64, 8)


def _lists(machine: Machine, noise: random.Random) -> int:
    placed = noise.choice(machine.plan.huge)
    pfn = noise.choice(list(placed.heads()))
    return machine.page_physical(pfn) + noise.choice((8, 16, 40))


def _table(machine: Machine, noise: random.Random) -> int:
    if noise.random() < 0.3:
        # The root is one of the first tables; the kernel's half of it is used.
        note = Vmcoreinfo(machine.vmcoreinfo)
        top = note.address("init_top_pgt") or note.address("swapper_pg_dir") or 0
        root = machine.plan.space.image_physical(top)
        return root + noise.randrange(0, 4096, 8)
    placed = noise.choice(machine.plan.huge)
    pfn = noise.choice(list(placed.heads()))
    return machine.slice_entry(pfn, noise.randrange(8))


def _zones(machine: Machine, noise: random.Random) -> int:
    pointer = machine.kernel.physical("node_data") + 8 * noise.randrange(2)
    address = int.from_bytes(machine.image.read(pointer, 8), "little")
    size = machine.plan.structures.pglist_data.size
    return address - machine.plan.space.direct(0) + noise.randrange(0, size, 8)


def _table_or_zone(machine: Machine, noise: random.Random) -> int:
    return noise.choice((_table, _zones))(machine, noise)


def _text_of(kind: str, name: str, argv: tuple[str, ...]) -> _Maker:
    def make(inputs: Inputs, noise: random.Random) -> _Made:
        base = {"log": _LOG, "toml": _TOML.encode()}[kind]
        changes = [
            (noise.randrange(len(base)), noise.choice((*_TEXTS, noise.randbytes(3))))
            for _ in range(noise.choice((1, 2, 6)))
        ]

        def run(kept: Sequence[_Change], argv: Sequence[str]) -> Optional[str]:
            data = bytearray(base)
            for at, text in sorted(kept, reverse=True):
                data[at : at + noise_free(at)] = text
            inputs.path(name).write_bytes(bytes(data))
            return judge(argv)

        return changes, run, [tuple(w.replace("FILE", str(inputs.path(name)))
                                    .replace("OUT", str(inputs.path("made")))
                                    for w in argv)]  # fmt: skip

    return make


def noise_free(at: int) -> int:
    """How much a change of a text takes the place of, by where it is."""
    return at % 7


_LOG = (
    b"[   12.5] BUG: Bad page state in process kdamond  pfn:3c05\n"
    b"[   12.5] page: refcount:0 mapcount:0 mapping:0000000000000000 index:0x1\n"
    b"[   12.5] flags: 0xfffffc0000000(node=0|zone=1|lastcpupid=0x1fffff)\n"
    b"[   12.5] raw: 000fffffc0000000 ffffea0000f00001 dead000000000400 00000000\n"
    b"[   12.6] BUG: unable to handle page fault for address: ffffea0000f01000\n"
    b"[   12.6] #PF: supervisor write access in kernel mode\n"
    b"[   12.6] PGD 7ffd3067 PUD 7ffd2067 PMD 7ff9e067 PTE 8000000001234161\n"
    b"[   12.6] Oops: 0003 [#1] PREEMPT SMP NOPTI\n"
    b"[   12.6] RIP: 0010:free_pcppages_bulk+0x120/0x3b0\n"
    b"[   12.6] Call Trace:\n[   12.6]  <TASK>\n[   12.6]  free_unref_page+0x1/0x2\n"
)


def _restore(core: Path, base: bytes, changes: Sequence[_Change]) -> None:
    """Undo changes of a file."""
    with core.open("r+b") as file:
        for at, new in changes:
            file.seek(at)
            file.write(base[at : at + len(new)])
        file.truncate(len(base))


def _file_of(container: str) -> _Maker:
    def make(inputs: Inputs, noise: random.Random) -> _Made:
        base = inputs.file(container)
        changes: list[_Change] = []
        for _ in range(noise.choice((1, 2, 6))):
            near = noise.choice((512, 4096, 8192, 16384, len(base)))
            value = noise.choice(_ODD).to_bytes(8, "little")
            size = noise.choice((1, 2, 4, 8))
            changes.append((noise.randrange(min(near, len(base))), value[:size]))
        cut = noise.randrange(len(base)) if noise.random() < 0.1 else len(base)

        def run(kept: Sequence[_Change], argv: Sequence[str]) -> Optional[str]:
            core = inputs.path(f"{container}.core")
            if not core.exists() or cut < len(base):
                core.write_bytes(base[:cut])
            with core.open("r+b") as file:
                for at, new in kept:
                    file.seek(at)
                    file.write(new)
            try:
                return judge(argv)
            finally:
                if cut < len(base):
                    core.unlink()
                else:
                    _restore(core, base, kept)

        path = str(inputs.path(f"{container}.core"))
        return (
            changes,
            run,
            [tuple(path if w == "TARGET" else w for w in argv) for argv in _COMMANDS],
        )

    return make


# Of command lines, right and wrong.
_WORDS = (
    *("show", "check", "page", "map", "heads", "who", "sharers", "oops", "rules"),
    *("--json", "-o"),
    *("--deep", "--rules", "folio-list", "--assume", "vmemmap=0", "encoding=mask"),
    *("--pfns", "0-1", "0x1000", "-1", "TARGET", "--format", "ktap", "--targets-from"),
    *("\x1b[31m", "a\nb", "9" * 5000, "ffffea0000040000", "1-2-3", "phys:", "pfn:"),
    *("", "--jobs", "0", "--timeout", "nan"),
)


def _arguments(inputs: Inputs, noise: random.Random) -> _Made:
    machine = inputs.machine("shared-7.3")
    first = noise.choice(("show", "check", "page", "map", "heads", "oops"))
    chosen = [first, "TARGET", *noise.choices(_WORDS, k=noise.randrange(6))]

    def run(_kept: Sequence[_Change], argv: Sequence[str]) -> Optional[str]:
        here = os.getcwd()
        os.chdir(inputs.path("."))
        try:
            with opened_as(lambda: program(machine)):
                return judge(argv)
        finally:
            os.chdir(here)

    return [], run, [tuple(chosen)]


def _qmp(inputs: Inputs, noise: random.Random) -> _Made:
    said = answers(noise)
    socket = inputs.path("qmp")

    def run(_kept: Sequence[_Change], argv: Sequence[str]) -> Optional[str]:
        with monitor(socket, said):
            return judge(argv)

    target = f"qemu:{socket}"
    return [], run, [("show", target), ("check", target), ("check", target, "--json")]


#: What is changed, by name.
CLASSES: dict[str, _Maker] = {
    "vmcoreinfo": _vmcoreinfo,
    "kallsyms": _memory(_kallsyms),
    "btf": _memory(_btf),
    "page-tables": _memory(_table),
    "zones": _memory(_zones),
    "pools": _memory(_symbol("hstates", 2048)),
    "counts": _memory(_symbol("init_uts_ns", 4096)),
    "lists": _memory(_lists),
    "struct-pages": _memory(_head),
    "log": _text_of("log", "log", ("oops", "FILE")),
    "toml": _text_of("toml", "toml", ("synth", "FILE", "-o", "OUT", "--force")),
    "elf": _file_of("elf"),
    "kdump": _file_of("kdump"),
    "flattened": _file_of("flattened"),
    "heads": _memory(_table_or_zone, heads=True),
    "arguments": _arguments,
    "qmp": _qmp,
}


def leftovers(directory: Path) -> Optional[str]:
    """Files that nobody asked for."""
    ours = {"core", "machine.toml", "extract", "log", "toml", "made", "heads"}
    ours |= {f"{container}.core" for container in _CONTAINERS}
    # "heads TARGET -o oops" writes a file of that name.
    ours |= set(_WORDS)
    odd = [one.name for one in directory.iterdir() if one.name not in ours]
    return f"leaves {', '.join(sorted(odd))} behind" if odd else None
