# SPDX-License-Identifier: LGPL-2.1-or-later

"""Kallsyms, written by a small encoder of our own."""

import struct

from drgn_hvo.formats.kallsyms import Kallsyms, KallsymsTables

__all__ = ("BASE", "BIG", "TABLES", "TOKENS", "Image", "ReadError", "compress")

BASE = 0xFFFF_FFFF_8100_0000
TABLES = 0xFFFF_FFFF_8200_0000

# Every character of a symbol, and substrings that the kernel's own tables have.
TOKENS = {ord(c): c for c in map(chr, range(33, 127))}
TOKENS.update(enumerate(("__", "init", "page", "Tfo", "ab", "ba", "huge", "_tail"), 1))
TOKENS.update({200: "struct", 254: "lookup"})
BIG = "T" + "".join(f"very{chr(97 + i % 26)}" for i in range(60))


def compress(text):
    """The longest token first; what comes out need not be optimal."""
    by_length = sorted(TOKENS.items(), key=lambda token: -len(token[1]))
    codes = []
    while text:
        code, token = next(t for t in by_length if text.startswith(t[1]))
        codes.append(code)
        text = text[len(token) :]
    size = len(codes)
    length = [size] if size < 128 else [size & 0x7F | 0x80, size >> 7]
    return bytes(length + codes)


class ReadError(Exception):
    """What the reader raises."""


class Image:
    """Tables in memory, as the kernel's linker script places them."""

    def __init__(self, symbols, mode, order="little", align=8, behind_marks=b""):
        e = {"little": "<", "big": ">"}[order]
        self.order = order
        self.memory = bytearray()
        self.symbols = {}
        self.requested = 0
        self.place("kallsyms_num_syms", struct.pack(f"{e}I4x", len(symbols)))
        names, marks = b"", []
        for i, (name, _) in enumerate(symbols):
            if i % 256 == 0:
                marks.append(len(names))
            names += compress(name)
        self.place("kallsyms_names", names + bytes(-len(names) % align))
        table = struct.pack(f"{e}{len(marks)}I", *marks)
        self.place("kallsyms_markers", table + bytes(-len(table) % align))
        self.place("kallsyms_seqs_of_names", behind_marks)
        tokens, index = b"", []
        for code in range(256):
            index.append(len(tokens))
            tokens += TOKENS.get(code, "").encode() + b"\0"
        self.place("kallsyms_token_table", tokens + bytes(-len(tokens) % 8))
        self.place("kallsyms_token_index", struct.pack(f"{e}256H", *index))
        here = TABLES + len(self.memory)
        addresses = [address for _, address in symbols]
        if mode == "absolute":
            data = struct.pack(f"{e}{len(addresses)}Q", *addresses)
            self.place("kallsyms_addresses", data)
        else:
            data = b"".join(
                struct.pack(f"{e}i", self.offset(mode, address, here + 4 * i))
                if mode != "base"
                else struct.pack(f"{e}I", address - BASE)
                for i, address in enumerate(addresses)
            )
            self.place("kallsyms_offsets", data + bytes(-len(data) % 8))
        if mode in ("base", "percpu"):
            self.place("kallsyms_relative_base", struct.pack(f"{e}Q", BASE))

    @staticmethod
    def offset(mode, address, place):
        if mode == "place":
            return address - place
        # percpu: positive offsets are absolute, the others count down.
        return address if address < 1 << 31 else BASE - 1 - address

    def place(self, name, data):
        self.symbols[name] = TABLES + len(self.memory)
        self.memory += data

    def read(self, address, size):
        self.requested += size
        start = address - TABLES
        if not 0 <= start <= start + size <= len(self.memory):
            raise ReadError(f"{address:#x}")
        return bytes(self.memory[start : start + size])

    def load(self, **known):
        known = known or {"_stext": BASE}
        tables = KallsymsTables.read(self.read, self.symbols, self.order)
        return Kallsyms(tables, {**known, **self.symbols})
