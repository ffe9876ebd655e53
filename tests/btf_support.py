# SPDX-License-Identifier: LGPL-2.1-or-later

"""BTF, written by hand from the format's documentation alone."""

import struct

__all__ = (
    "ARRAY",
    "BOOL",
    "CHAR",
    "CONST",
    "DATASEC",
    "DECL_TAG",
    "ENUM",
    "ENUM64",
    "FLOAT",
    "FUNC",
    "FUNC_PROTO",
    "FWD",
    "INT",
    "PTR",
    "RESTRICT",
    "SIGNED",
    "STRUCT",
    "TYPEDEF",
    "TYPE_TAG",
    "UNION",
    "VAR",
    "VOLATILE",
    "Writer",
)

# fmt: off
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(
    11, 20)
# fmt: on
SIGNED, CHAR, BOOL = 1, 2, 4


class Writer:
    """Writes BTF, one type after the other; each method gives the type's ID."""

    def __init__(self, order="<"):
        self.order = order
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def words(self, *words):
        return struct.pack(f"{self.order}{len(words)}I", *(w % 2**32 for w in words))

    def string(self, text):
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text.encode()) - 1

    def raw(self, kind, name, size_or_type, *rest, vlen=0, flag=0):
        name = name if isinstance(name, int) else self.string(name)
        info = flag << 31 | kind << 24 | vlen
        self.types += self.words(name, info, size_or_type, *rest)
        self.count += 1
        return self.count

    def int(self, name, size, encoding=0, bits=None, offset=0):
        bits = 8 * size if bits is None else bits
        return self.raw(INT, name, size, encoding << 24 | offset << 16 | bits)

    def ref(self, kind, target, name=""):
        return self.raw(kind, name, target)

    def array(self, element, index, length):
        return self.raw(ARRAY, "", 0, element, index, length)

    def compound(self, kind, name, size, *members, flag=0):
        """Members are (name, type, bit offset) or, with *flag*, also a bit size."""
        words = []
        for member, type_id, offset, *bits in members:
            offset |= bits[0] << 24 if bits else 0
            words += [self.string(member), type_id, offset]
        return self.raw(kind, name, size, *words, vlen=len(members), flag=flag)

    def enum(self, name, size, *values, flag=0):
        words = [w for n, v in values for w in (self.string(n), v)]
        return self.raw(ENUM, name, size, *words, vlen=len(values), flag=flag)

    def enum64(self, name, *values, flag=0):
        words = [w for n, v in values for w in (self.string(n), v, v >> 32)]
        return self.raw(ENUM64, name, 8, *words, vlen=len(values), flag=flag)

    def proto(self, target, *params):
        words = [w for n, t in params for w in (self.string(n), t)]
        return self.raw(FUNC_PROTO, "", target, *words, vlen=len(params))

    def blob(self, layout=None):
        """*layout*: (once, for each element) in bytes, by kind."""
        size, extra, tail = 24, b"", b""
        if layout is not None:
            size = 32
            tail = b"".join(struct.pack(f"{self.order}BBH", *k, 0) for k in layout)
            strings_end = len(self.types) + len(self.strings)
            extra = self.words(strings_end, len(tail))
        header = struct.pack(f"{self.order}HBB", 0xEB9F, 1, 0) + self.words(
            size, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + extra + self.types + self.strings + tail
