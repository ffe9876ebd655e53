# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Machines with wrong words
-------------------------

A synthetic machine whose words can be changed one by one, and what an audit says then.
"""

from dataclasses import dataclass

from drgn_hvo.commands.check import CheckScope, check_document
from drgn_hvo.kernel.finders import install
from drgn_hvo.memmap.hvo import hvo_of
from drgn_hvo.synth.containers.elf import program
from drgn_hvo.synth.damage.faults import make_machine
from drgn_hvo.synth.damage.targets import Targets
from tests.synth_support import describe

__all__ = ("Case", "mending_pause")


@dataclass
class Case:
    """A machine, and where its words are."""

    targets: Targets

    @classmethod
    def of(cls, name, faults=(), **changes):
        machine, _ = make_machine(describe(name, **changes), faults)
        return cls(Targets(machine))

    @property
    def image(self):
        return self.targets.machine.image

    def groups(self, **wanted):
        """Groups of huge pages with these properties."""
        return [
            placed
            for placed in self.targets.plan.huge
            if all(getattr(placed.group, k) == v for k, v in wanted.items())
        ]

    def field(self, pfn, member):
        return self.targets.page_field(pfn, member)

    def flip(self, address, bits, size=8):
        value = int.from_bytes(self.image.read(address, size), "little") ^ bits
        return self.put(address, value, size)

    def put(self, address, value, size=8):
        self.image.write(address, value.to_bytes(size, "little"))
        return address

    def flag(self, name):
        return self.targets.plan.structures.page_flag(name)

    def entry(self, pfn, slice_=0):
        return self.targets.machine.slice_entry(pfn, slice_)

    @property
    def prog(self):
        prog = program(self.targets.machine)
        install(prog)
        return prog

    def check(self, **scope):
        return check_document(hvo_of(self.prog), "core", CheckScope(**scope))

    def first(self, **scope):
        """Rule and place of the first finding."""
        findings = self.check(**scope)["findings"]
        assert findings
        return findings[0]["rule"], int(findings[0]["physical_address"] or "0", 0)


def mending_pause(machine, applied, reads):
    """
    What stands for ``time.sleep()`` between readings of a running kernel, and undoes a
    fault in one of these pauses.

    :param reads: In which of them.
    :return: The seconds of all pauses so far, and what to call.
    """
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == reads:
            for change, old in applied.changes:
                machine.image.write(change.address, old)

    return pauses, pause
