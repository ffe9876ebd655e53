# SPDX-License-Identifier: LGPL-2.1-or-later

"""Kernels that have few symbols and types, or none."""

import drgn
from drgn import Architecture, Platform

from drgn_hvo.kernel.finders import install
from tests.kallsyms_support import BASE, TABLES, Image

__all__ = ("NOWHERE", "TABLE_NAMES", "UTS", "kernel", "kernel_with")

#: A symbol and its address.
UTS = ("Dinit_uts_ns", 0xFFFF_FFFF_8110_0000)

#: The tables of kallsyms, without what all names begin with.
TABLE_NAMES = ("num_syms", "names", "token_table", "token_index", "offsets")
#: Lines of VMCOREINFO that name tables where there is no memory.
NOWHERE = "\n".join(f"SYMBOL(kallsyms_{t})=ffffffff90000000" for t in TABLE_NAMES)


def kernel(vmcoreinfo="", memory=b"", address=TABLES, byteorder="little"):
    """A kernel of which there is only this VMCOREINFO and this memory."""
    prog = drgn.Program(Platform(Architecture.X86_64))
    prog.set_linux_kernel_custom(
        "OSRELEASE=7.2.13\nPAGESIZE=4096\nKERNELOFFSET=0\n"
        "SYMBOL(swapper_pg_dir)=ffffffff83000000\nNUMBER(phys_base)=0\n"
        f"SYMBOL(init_uts_ns)=ffffffff81100000\n{vmcoreinfo}\n",
        False,
    )
    prog.add_memory_segment(
        address,
        len(memory) or 1,
        lambda at, size, offset, physical: bytes(memory[offset : offset + size]),
        False,
    )
    install(prog)
    return prog


def kernel_with(symbols, btf=None, **replaced):
    """A kernel with a symbol table and, perhaps, BTF."""
    if btf is not None:
        start = 0xFFFF_FFFF_8100_8000
        symbols = [
            *symbols,
            ("D__start_BTF", start),
            ("D__stop_BTF", start + len(btf)),
        ]
    image = Image([("T_stext", BASE), *symbols], "place")
    where = {"_stext": BASE, **image.symbols, **replaced}
    prog = kernel(
        "\n".join(f"SYMBOL({name})={value:x}" for name, value in where.items()),
        image.memory,
    )
    if btf is not None:
        prog.add_memory_segment(
            start, len(btf), lambda a, n, o, p: btf[o : o + n], False
        )
    return prog
