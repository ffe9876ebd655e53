# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Mistakes in ``drgn_hvo/kernel/``
--------------------------------
"""

from __future__ import annotations

from tools.mutants.mutant import Mutant

__all__ = ("KERNEL",)

KERNEL = (
    Mutant(
        "kernel-entry-bits-majority",
        "kernel/entry_bits.py::EntryBitsWatch.odd",
        "siblings[bits ^ plain] < siblings[usual]",
        "siblings[bits ^ plain] > siblings[usual]",
        "no entry would differ from its siblings",
        ("test_entry_bits.py::test_each_bit_at_each_level",),
    ),
    Mutant(
        "kernel-entry-bits-accessed",
        "formats/page_table_formats.py::PageTableFormat.shared_bits",
        "own |= self.accessed | self.dirty | self.protections.write_protected",
        "",
        "what a processor sets in an entry would be damage",
        ("test_entry_bits.py::test_what_the_processor_and_HVO_change",),
    ),
    Mutant(
        "kernel-bit-fields-are-words",
        "kernel/shapes.py::_member_fault",
        "member.bit_field_size is not None or member.bit_offset % 8",
        "member.bit_offset % 8",
        "a bit field would be read as if it were a word",
        ("test_shapes.py::test_a_bit_field_is_no_word",),
    ),
    Mutant(
        "kernel-arrays-of-anything",
        "kernel/shapes.py::_fits",
        "return bool(found.length) and _fits(found.type, shape.element)",
        "return True",
        "an array of other elements would be read as if it were the known one",
        ("test_shapes.py::test_an_array_of_something_else_is_not_that_array",),
    ),
    Mutant(
        "kernel-upper-tables-protect",
        "kernel/pagetables.py::_split",
        "decoded.writable & entries.writable",
        "decoded.writable",
        "permissions of upper page tables count for all that is below them",
        ("test_walk.py::test_pages_are_mapped_as_all_levels_say_together",),
    ),
    Mutant(
        "kernel-tables-named-twice",
        "kernel/pagetables.py::_without_repeats",
        "return tables.take(~repeats)",
        "return tables",
        "tables that lead back to themselves would make the walk grow without end",
        ("test_walk.py::test_tables_that_lead_back_to_themselves_are_left_out",),
    ),
    Mutant(
        "kernel-missing-tables-are-told",
        "kernel/pagetables.py::_read_entries",
        "for i in suspect.nonzero()[0].tolist():",
        "for i in ():",
        "a page table that the dump lacks would read as 'not mapped'",
        ("test_walk.py::test_a_table_that_the_dump_lacks_is_no_hole",),
    ),
    Mutant(
        "kernel-runs-have-one-permission",
        "kernel/pagetables.py::_compress",
        "joined &= writable[1:] == writable[:-1]",
        "",
        "a writable entry among read-only ones would not be seen",
        ("test_walk.py::test_pages_are_mapped_as_all_levels_say_together",),
    ),
    Mutant(
        "kernel-runs-have-one-step",
        "kernel/pagetables.py::_compress",
        "joined[1:] &= ~joined[:-1] | (delta[1:] == delta[:-1])",
        "",
        "frames behind a change from shared to own ones would be wrong",
        ("test_walk.py::test_pages_are_mapped_as_all_levels_say_together",),
    ),
    Mutant(
        "kernel-range-ends-inside-a-table",
        "kernel/pagetables.py::_read_entries",
        "low = max(0, limits[0] - int(tables.va[0])) >> shift",
        "low = 0",
        "what is mapped in front of vmemmap would be part of it",
        ("test_walk.py::test_pages_are_mapped_as_all_levels_say_together",),
    ),
    Mutant(
        "kernel-frames-one-of-many",
        "kernel/frames.py::FrameReader._fill",
        "self._fill(data, present, pfn + middle - first, middle, last)",
        "self._fill(data, present, pfn + middle - first, middle, last - 1)",
        "one missing frame would take its neighbours with it",
        ("test_walk.py::test_a_missing_frame_takes_no_neighbour_with_it",),
    ),
    Mutant(
        "kernel-frames-live-read-again",
        "kernel/frames.py::FrameReader.read",
        "and not self.is_live",
        "",
        "what a running kernel changed would be what it was at the first look",
        ("test_bounds.py::test_only_of_a_dump_is_a_frame_what_it_was",),
    ),
    Mutant(
        "kernel-frames-byteorder",
        "kernel/frames.py::FrameReader.__init__",
        'self.u64 = np.dtype(f"{order}u8")',
        'self.u64 = np.dtype(">u8")',
        "every word would have its bytes the wrong way round",
        (
            "test_reads.py::test_each_frame_of_vmemmap_is_read_once[fake-head-6.1-False]",
        ),
    ),
    Mutant(
        "kernel-ranges-joined",
        "kernel/arrays.py::joined",
        "first[1:] > reached[:-1]",
        "first[1:] > last[:-1]",
        "a range inside an earlier, longer one would begin a new one",
        ("test_reads.py::test_ranges_are_joined_and_taken_out",),
    ),
    Mutant(
        "kernel-ranges-taken-out",
        "kernel/arrays.py::without",
        "& ~_covers(*holes, edges)",
        "",
        "holes would stay in what they were taken out of",
        ("test_reads.py::test_ranges_are_joined_and_taken_out",),
    ),
    Mutant(
        "kernel-vmemmap-sources-disagree",
        "kernel/bound.py::Kernel.vmemmap",
        "if len(set(known.values())) > 1:",
        "if len(set(known.values())) > 3:",
        "of two places of vmemmap one would be guessed",
        ("test_bounds.py::test_two_places_of_vmemmap_are_none",),
    ),
    Mutant(
        "kernel-struct-page-sources-disagree",
        "kernel/bound.py::Kernel._struct_page",
        "for what in _NOTED if noted is not None else ():",
        'for what in ("size",) if noted is not None else ():',
        "types that are not of this kernel would be believed",
        ("test_bounds.py::test_types_that_are_not_of_this_kernel_are_refused",),
    ),
    Mutant(
        "kernel-two-symbols-of-one-name",
        "kernel/core_sources.py::CoreSources.address",
        "if len({entry.address for entry in entries}) > 1:",
        "if len({entry.address for entry in entries}) > 2:",
        "of two static symbols of one name the first would be read",
        ("test_finders.py::test_two_symbols_of_one_name_are_loud",),
    ),
    Mutant(
        "kernel-no-variables-in-kallsyms",
        "kernel/core_sources.py::CoreSources.address",
        "if not self.has_data_symbols():",
        "if False:",
        "where kallsyms lists functions only, every variable would not exist",
        (
            "test_finders.py::"
            "test_kernel_with_functions_only_in_kallsyms_cannot_tell_about_variables",
        ),
    ),
)
