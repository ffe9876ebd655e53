# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Errors
------

Every failure that the user can understand or repair is an :class:`HvoError`
whose text is one line. Anything else that escapes is a bug of drgn-hvo.

None of them is a :exc:`LookupError`: drgn's helpers read that as "this kernel
was built without it" and go on with a wrong answer.
"""

__all__ = (
    "DetectionError",
    "FormatError",
    "HvoError",
    "NotInDumpError",
    "TargetError",
    "UnavailableError",
    "UsageError",
)


class HvoError(Exception):
    """Base class: the text is one line that a user can act on."""


class UsageError(HvoError):
    """The command line or a page specification cannot be understood."""


class TargetError(HvoError):
    """The target cannot be opened, or is not a Linux kernel core."""


class FormatError(HvoError):
    """VMCOREINFO, kallsyms, BTF or a page table is damaged or unknown."""


class UnavailableError(HvoError):
    """A type or a variable exists, or may exist, but cannot be offered."""


class NotInDumpError(HvoError):
    """The memory that is needed is not in the dump."""


class DetectionError(HvoError):
    """Two sources disagree about the layout of the kernel."""
