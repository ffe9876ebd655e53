# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Damaged copies of real cores
----------------------------

A program that reads the memory of another one, with some bytes replaced, some
frames missing, and another VMCOREINFO: damage without copying a file.
"""

import drgn

from drgn_hvo.formats.vmcoreinfo import Vmcoreinfo
from drgn_hvo.kernel.core_sources import core_sources
from drgn_hvo.kernel.finders import install

START_KERNEL_MAP = 0xFFFFFFFF80000000
END = 1 << 46


class Overlay:
    """
    What to change.

    :param patches: Bytes by physical address.
    :param missing: Ranges of physical addresses that the dump lacks.
    """

    def __init__(self, base, vmcoreinfo=None, patches=None, missing=()):
        self.base = base
        self.patches = patches or {}
        self.missing = missing
        note = base["VMCOREINFO"].string_()
        self.prog = drgn.Program(base.platform)
        self.prog.add_memory_segment(0, END, self._read, True)
        self.prog.set_linux_kernel_custom(
            note if vmcoreinfo is None else vmcoreinfo, False
        )

    def _read(self, address, count, offset, physical):
        for start, end in self.missing:
            if address < end and start < address + count:
                raise drgn.FaultError("not in this dump", address)
        data = bytearray(self.base.read(address, count, physical=True))
        for start, new in self.patches.items():
            first, last = max(start, address), min(start + len(new), address + count)
            if first < last:
                data[first - address : last - address] = new[
                    first - start : last - start
                ]
        return bytes(data)


def vmcoreinfo_text(base):
    return base["VMCOREINFO"].string_().decode()


def image_to_phys(base, address):
    """Where an address of the kernel image lies in physical memory."""
    phys_base = Vmcoreinfo(base["VMCOREINFO"].string_()).number("phys_base")
    return address - START_KERNEL_MAP + phys_base


def without_symbols(base):
    """
    A program whose VMCOREINFO does not name kallsyms, and in which neither kallsyms nor
    BTF can be found by what it looks like.
    """
    text = base["VMCOREINFO"].string_()
    known = Vmcoreinfo(text).addresses()
    lines = [line for line in text.split(b"\n") if b"kallsyms" not in line]
    index = image_to_phys(base, known["kallsyms_token_index"])
    whole = Overlay(base).prog
    install(whole)
    btf = image_to_phys(base, core_sources(whole).address("__start_BTF"))
    patches = {index: bytes(512), btf: bytes(24)}
    return Overlay(base, b"\n".join(lines), patches=patches).prog
