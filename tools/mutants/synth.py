# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in ``drgn_hvo/synth/``
-------------------------------

The generator is what many tests measure the reader with: a machine that is not as a
kernel makes it would let the reader be wrong in the same way.
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant

__all__ = ("SYNTH",)

SYNTH = (
    Mutant(
        "synth-free-lists-are-doubly-linked",
        "synth/machine/struct_pages.py::PageWriter._link",
        "self.put(head, self.offsets.lru + 8, before)",
        "self.put(head, self.offsets.lru + 8, following)",
        "back links of free lists would be wrong",
        ("test_synth_oracle.py::test_lists_are_doubly_linked",),
    ),
    Mutant(
        "synth-boot-tails",
        "synth/machine/struct_pages.py::PageWriter.boot_tail",
        "self.put32(rows, self.offsets.refcount, 1)",
        "",
        "shared tails from boot have reference count 1 in real kernels",
        ("test_synth_reader.py::test_gigantic_pages_from_boot",),
    ),
    Mutant(
        "synth-tails-are-read-only",
        "synth/machine/pagetables.py::tail_flags",
        "flags = protections.read_only",
        "flags = protections.kernel",
        "HVO maps shared tails read-only",
        ("test_check_faults.py::test_nothing_in_a_healthy_machine",),
    ),
    Mutant(
        "synth-hpg-optimized",
        "synth/machine/struct_pages.py::PageWriter._hpg",
        "if placed.optimized:",
        "if not placed.optimized:",
        "the flag says whether HVO has remapped a folio",
        ("test_synth_reader.py::test_folios",),
    ),
    Mutant(
        "synth-nodes-in-flags",
        "synth/machine/struct_pages.py::PageWriter.flags",
        "nid << node_shift | zone << zone_shift",
        "zone << zone_shift",
        "every page would lie on node 0",
        ("test_synth_reader.py::test_folios",),
    ),
    Mutant(
        "synth-faults-restore",
        "synth/damage/faults.py::_apply",
        "old = machine.image.read(change.address, len(change.new))",
        "old = change.new",
        "what a fault changed could not be told from what was there",
        ("test_synth_faults.py::test_changes_are_where_they_say",),
    ),
    Mutant(
        "synth-no-room",
        "synth/machine/plan.py::_place",
        "if first < 0:",
        "if first == -2:",
        "huge pages would lie outside of memory",
        ("test_synth_description.py::test_more_pages_than_memory",),
    ),
)
