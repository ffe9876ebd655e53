# SPDX-License-Identifier: LGPL-2.1-or-later

"""
VMCOREINFO
----------

The note that every kernel writes for its crash dump: ``KEY=VALUE`` lines, see
:linux:`kernel/vmcore_info.c` and
:linux:`Documentation/admin-guide/kdump/vmcoreinfo.rst`.

``SYMBOL(x)`` is not always the address of ``x``:
``VMCOREINFO_SYMBOL_ARRAY()`` prints the *value* of an expression that happens
to be an address for arrays. ``vmemmap`` is a macro, and ``mem_section`` is a
pointer under ``CONFIG_SPARSEMEM_EXTREME``. :data:`VALUE_SYMBOLS` names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import re
from typing import Optional

from drgn_hvo.errors import FormatError

__all__ = ("EXTRACT_KEY", "VALUE_SYMBOLS", "Vmcoreinfo")

#: The key by which ``drgn-hvo extract`` marks what it writes: ``full``, or ``small``
#: if kallsyms and BTF are cut down, too.
EXTRACT_KEY = "DRGN_HVO_EXTRACT"

#: ``SYMBOL()`` entries that hold the value of the expression, not where a
#: variable of that name lies.
VALUE_SYMBOLS = frozenset({"high_memory", "mem_section", "vmemmap"})

_LINE = re.compile(r"([A-Za-z_-]+(?:\([^()\n]+\))?)=(.*)")

_NUMBER = re.compile(r"-?(?:0x)?[0-9a-fA-F]+")

# Everything that a kernel prints fits in one or two pages; makedumpfile and
# crash read 4 KiB to 64 KiB. More is not VMCOREINFO.
_MAX_SIZE = 1 << 20


# Damage changes a line or two. Where the kernel lies, which is anew in each boot, is in
# dozens of lines.
_DAMAGED_LINES = 3

# What tells people most of kernels and boots that differ.
_TELLING = ("OSRELEASE", "BUILD-ID", "KERNELOFFSET")

# No value that a kernel prints is longer.
_MAX_SHOWN = 128


def _shown(value: str) -> str:
    """A value in a message, however long it is."""
    rest = len(value) - _MAX_SHOWN
    return repr(value) if rest <= 0 else f"{value[:_MAX_SHOWN]!r} and {rest} more"


class Vmcoreinfo(Mapping[str, str]):
    """
    Parsed VMCOREINFO.

    Values are kept as text and converted when asked for, so that a broken line
    matters only to those who need it.

    :param data: The note's descriptor.
    :raises FormatError: if there is no line of the right form at all.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) > _MAX_SIZE:
            raise FormatError(f"VMCOREINFO is {len(data)} bytes long, which cannot be")
        self._values: dict[str, list[str]] = {}
        text = data.rstrip(b"\0").decode("ascii", "replace")
        for line in text.split("\n"):
            match = _LINE.fullmatch(line)
            if match:
                values = self._values.setdefault(match[1], [])
                # One more than there may be is enough to refuse it.
                if len(values) < 2 and match[2] not in values:
                    values.append(match[2])
        if not self._values:
            raise FormatError("VMCOREINFO has no line of the form KEY=VALUE")

    def __getitem__(self, key: str) -> str:
        """
        The value of a key, as text.

        :raises KeyError: if there is no such key.
        :raises FormatError: if the key is there with different values.
        """
        values = self._values[key]
        if len(values) > 1:
            raise FormatError(
                f"VMCOREINFO has {key} more than once: {_shown(values[0])} and "
                f"{_shown(values[1])}"
            )
        return values[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def other_boot(self, other: Vmcoreinfo) -> Optional[str]:
        """
        Why *other* cannot be of the same boot of a kernel: lines that differ, more than
        damage explains; ``None`` if it can be.
        """
        keys = [
            key
            for key, values in self._values.items()
            if other._values.get(key, values) != values and key != "CRASHTIME"
        ]
        if len(keys) <= _DAMAGED_LINES:
            return None
        key = next((key for key in _TELLING if key in keys), keys[0])
        mine, theirs = _shown(self._values[key][0]), _shown(other._values[key][0])
        both = f"{key} is {mine} in it and {theirs} in the core"
        return f"{both}, and {len(keys) - 1} more lines differ"

    def _integer(self, key: str, base: int, lowest: int = 0) -> Optional[int]:
        if key not in self._values:
            return None
        value = self[key]
        try:
            # int() takes more than kernels print: spaces, "+" and "_".
            number = int(value if _NUMBER.fullmatch(value) else "", base)
        except ValueError:
            raise FormatError(
                f"VMCOREINFO has {key}={_shown(value)}, not a number"
            ) from None
        if not lowest <= number < 1 << 64:
            raise FormatError(f"VMCOREINFO has {key}={_shown(value)}, out of range")
        return number

    def symbol(self, name: str) -> Optional[int]:
        """``SYMBOL(name)``, an address or a value: see :data:`VALUE_SYMBOLS`."""
        return self._integer(f"SYMBOL({name})", 16)

    def address(self, name: str) -> Optional[int]:
        """Where the variable *name* lies, if ``SYMBOL(name)`` says that."""
        return None if name in VALUE_SYMBOLS else self.symbol(name)

    def addresses(self) -> dict[str, int]:
        """All symbols whose value is where they lie."""
        names = (key[7:-1] for key in self._values if key.startswith("SYMBOL("))
        found = ((name, self.address(name)) for name in names)
        return {name: address for name, address in found if address is not None}

    def number(self, name: str) -> Optional[int]:
        """``NUMBER(name)``, decimal or ``0x…``."""
        return self._integer(f"NUMBER({name})", 0, -(1 << 63))

    def length(self, name: str) -> Optional[int]:
        """``LENGTH(name)``: the number of elements of an array."""
        return self._integer(f"LENGTH({name})", 10)

    def size(self, name: str) -> Optional[int]:
        """``SIZE(name)``: the size of a type in bytes."""
        return self._integer(f"SIZE({name})", 10)

    def offset(self, name: str) -> Optional[int]:
        """``OFFSET(struct.member)`` in bytes."""
        return self._integer(f"OFFSET({name})", 10)

    def integer(self, key: str, base: int = 10) -> Optional[int]:
        """A bare key, such as ``PAGESIZE`` (decimal) or ``KERNELOFFSET`` (hex)."""
        return self._integer(key, base)
