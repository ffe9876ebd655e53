#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Print what ``drgn-hvo check`` says of every fault in every generation, as Markdown.

Each cell is the rule of the first finding; behind a plus sign, the consequences. A
cell that is not what the table of faults says is in bold.
"""

from __future__ import annotations

from pathlib import Path
import sys

from drgn_hvo.audit.rules import RULES
from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.errors import UsageError
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import FAULTS, Fault, make_machine
from drgn_hvo.synth.described.description import Description
from drgn_hvo.synth.described.description_file import load_description
from drgn_hvo.synth.described.generations import GENERATIONS


def cell(fault: Fault, description: Description) -> str:
    """What the audit says of a fault in a machine."""
    if not fault.possible(description.kernel_generation):
        return ""
    try:
        machine, _ = make_machine(description, [fault.name])
    except UsageError:
        return "(nothing to damage in this machine)"
    deep = {rule.id for rule in RULES if rule.deep}
    scope = CheckScope(deep=fault.rule in deep)
    doc = check_document(hvo_of(program(machine)), "core", scope)
    rules = [finding["rule"] for finding in doc["findings"]]
    if not rules:
        text = "clean" if doc["complete"] else "incomplete"
        return text if fault.rule is None else f"**{text}**"
    first, others = rules[0], set(rules[1:])
    text = " + ".join([f"`{first}`", *(f"`{rule}`" for rule in sorted(others))])
    as_told = first == fault.rule and others <= set(fault.consequences)
    return text if as_told else f"**{text}**"


def main() -> int:
    """Print the table."""
    samples = Path(__file__).resolve().parents[1] / "sample_vmcores"
    described = {
        g.name: load_description(samples / f"{g.name}.toml") for g in GENERATIONS
    }
    print("# Faults and the rules that notice them\n")
    print("Made by `python contrib/fault_matrix.py > docs/fault-matrix.md`.\n")
    print(f"| fault | {' | '.join(described)} |")
    print(f"|---|{'---|' * len(described)}")
    for fault in FAULTS:
        # The core breaks off in its file, so there is nothing to see in memory.
        if fault.name == "truncated":
            continue
        cells = [cell(fault, description) for description in described.values()]
        print(f"| `{fault.name}` | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
