# SPDX-License-Identifier: LGPL-2.1-or-later

"""
drgn-hvo synth and drgn-hvo faults
----------------------------------

What these commands of the generator do; their options are in the command line.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from drgn_hvo.commands.document import envelope
from drgn_hvo.progress import progress
from drgn_hvo.synth.containers.output import write_machine
from drgn_hvo.synth.damage.faults import FAULTS, AppliedFault, Fault, make_machine
from drgn_hvo.synth.described.description_file import load_description
from drgn_hvo.synth.described.generations import GENERATIONS

if TYPE_CHECKING:
    from drgn_hvo.commands.catalogue_reports import (
        AppliedFaultEntry,
        FaultsReport,
        KnownFaultEntry,
        SynthReport,
    )

__all__ = ("run_faults", "run_synth")


def run_synth(args: argparse.Namespace) -> int:
    """
    Write a core, and report what faults changed.

    :return: The exit status.
    :raises UsageError: if the description or the output file is no good.
    """
    description = load_description(args.description)
    machine, applied = make_machine(description, args.faults)
    total = sum(extent.count for extent in machine.image.extents)
    with progress(total, "page") as bar:

        def written(frames: int) -> None:
            bar.update(frames)

        write_machine(
            machine, args.output, args.container, force=args.force, progress=written
        )
    if applied:
        document: SynthReport = {
            **envelope(),
            "target": str(args.output),
            "faults": [_applied_fault(fault) for fault in applied],
        }
        print(json.dumps(document, indent=1))
    return 0


def _applied_fault(applied: AppliedFault) -> AppliedFaultEntry:
    fault = applied.fault
    return {
        "fault": fault.name,
        "what": fault.what,
        "rule": fault.rule,
        "consequences": list(fault.consequences),
        "changes": [
            {
                "physical_address": f"{change.address:#x}",
                "old": old.hex(),
                "new": change.new.hex(),
                "what": change.what,
            }
            for change, old in applied.changes
        ],
    }


def _known_fault(fault: Fault) -> KnownFaultEntry:
    return {
        "name": fault.name,
        "what": fault.what,
        "rule": fault.rule,
        "consequences": list(fault.consequences),
        "generations": [g.name for g in GENERATIONS if fault.possible(g)],
    }


def run_faults(args: argparse.Namespace) -> int:
    """
    List the faults.

    :return: The exit status.
    """
    if args.format == "json":
        document: FaultsReport = {
            **envelope(),
            "faults": [_known_fault(fault) for fault in FAULTS],
        }
        print(json.dumps(document, indent=1))
        return 0
    width = max(len(fault.name) for fault in FAULTS)
    for fault in FAULTS:
        rule = fault.rule or "not in the dump"
        print(f"{fault.name:{width}}  {fault.what} ({rule})")
    return 0
