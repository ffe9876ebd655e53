# SPDX-License-Identifier: LGPL-2.1-or-later

"""
drgn plugin
-----------

drgn loads this module in every session (entry point ``drgn.plugins``), so it
imports almost nothing. When the target is a Linux kernel, it offers drgn the core's
own types and symbols, and ``%hvo``. Anything else is left alone.

What turns it off: :data:`OFF_SWITCH` in the environment, drgn's own
``DRGN_DISABLE_PLUGINS=hvo``, or, for the finders alone,
:meth:`drgn.Program.set_enabled_type_finders()` and its siblings.
"""

import os

from drgn import Program, ProgramFlags

__all__ = ("OFF_SWITCH", "drgn_prog_set")

#: Environment variable that turns the plugin off if it is not empty.
OFF_SWITCH = "DRGN_HVO_DISABLE"


def drgn_prog_set(prog: Program) -> None:
    """drgn calls this when a program has got its target."""
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL or os.environ.get(OFF_SWITCH):
        return
    # Registers %hvo when it is imported.
    from drgn_hvo.commands.in_drgn import verb_makers
    from drgn_hvo.kernel.finders import install
    from drgn_hvo.session_verbs import extract_verb

    if extract_verb not in verb_makers:
        verb_makers.append(extract_verb)
    install(prog)
    from drgn_hvo.commands.session_start import is_at_terminal, warn_if_drgn_is_wrong

    if is_at_terminal():
        warn_if_drgn_is_wrong(prog)


# After plugins that do not say, with 50: finders of others come before ours. drgn looks
# for this attribute.
drgn_prog_set.drgn_priority = 100  # type: ignore[attr-defined] # functions may have any
