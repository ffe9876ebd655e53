# SPDX-License-Identifier: LGPL-2.1-or-later

"""What can go wrong, as one line that says what to do."""

__all__ = ("GuestError", "MissingError")


class GuestError(Exception):
    """The guest did not do what it was told, or not in time."""


class MissingError(Exception):
    """The host lacks something: a program, a package, a kernel."""
