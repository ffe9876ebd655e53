# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Corelens module
---------------

``hvo`` for Corelens, the report generator of drgn-tools: what HVO did to a kernel,
and the audit. Corelens finds the modules that have been imported::

    python3 -c 'import corelens_hvo; from drgn_tools.corelens import main; main()' \\
        vmcore -M hvo --deep

Corelens has no exit status for findings: they are in the text.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from drgn import Program

if TYPE_CHECKING:
    # drgn-tools is on no package index, and has no type information.
    CorelensModule = object
else:
    try:
        from drgn_tools.corelens import CorelensModule
    except ImportError:
        # Without drgn-tools this is a class that anybody can run.
        CorelensModule = object

__all__ = ("Hvo",)


class Hvo(CorelensModule):
    """
    HugeTLB Vmemmap Optimization: layout, shared tail pages, pools and savings, and an
    integrity audit of them.
    """

    name = "hvo"
    # Types come from the kernel's own BTF where there is no debuginfo.
    need_dwarf = False
    live_ok = True
    run_when = "always"

    def add_args(self, parser: argparse.ArgumentParser) -> None:
        """Options, as those of ``drgn-hvo show`` and ``drgn-hvo check``."""
        parser.add_argument(
            "--folios", action="store_true", help="list every huge page, too"
        )
        parser.add_argument("--deep", action="store_true", help="read all of vmemmap")

    def run(self, prog: Program, args: argparse.Namespace) -> None:
        """Print the report."""
        # What a report does not run must not cost it the import of NumPy.
        from drgn_hvo.commands.check import CheckScope, check_document, print_result
        from drgn_hvo.commands.document import with_dump
        from drgn_hvo.commands.show import show_document
        from drgn_hvo.commands.show_text import print_show
        from drgn_hvo.errors import HvoError
        from drgn_hvo.memmap.hvo import hvo_of

        try:
            found = hvo_of(prog)
            target = str(prog.core_dump_path or "the running kernel")
            shown = show_document(found, target, folios=args.folios)
            print_show(with_dump(shown, prog))
            print()
            scope = CheckScope(deep=args.deep)
            print_result(check_document(found, target, scope), "text")
        except HvoError as e:
            print(f"hvo: {e}")
