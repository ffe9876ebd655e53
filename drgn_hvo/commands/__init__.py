# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Commands
--------

One file a command: the document that ``--json`` prints, and the text made from it.
"""

__all__ = ()
