# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Types of kernel variables
-------------------------

BTF describes every type of a kernel but hardly any variable. This table says
what kernel source says of the variables that drgn's memory management helpers
and we need. Array lengths come from the target: from an array of the same
length in BTF, from an enumerator, or from VMCOREINFO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

__all__ = (
    "VARIABLES",
    "ArrayMember",
    "Enumerator",
    "LengthSource",
    "Variable",
    "VmcoreinfoLength",
)


@dataclass(frozen=True)
class ArrayMember:
    """The length of a member that is declared with the same macro."""

    type_name: str
    member: str


@dataclass(frozen=True)
class Enumerator:
    """The value of an enumerator."""

    name: str


@dataclass(frozen=True)
class VmcoreinfoLength:
    """``LENGTH(name)``."""

    name: str


LengthSource = Union[ArrayMember, Enumerator, VmcoreinfoLength]


@dataclass(frozen=True)
class Variable:
    """
    A kernel variable.

    :param type_name: Its C type; of an element, if it is an array.
    :param source: Where the kernel defines it.
    :param lengths: For an array, where its length can be found, best first.
    :param in_extracts: Whether ``drgn-hvo extract`` keeps any of it.
    """

    type_name: str
    source: str
    lengths: Optional[tuple[LengthSource, ...]] = None
    in_extracts: bool = True


_MAX_NUMNODES = ArrayMember("struct hstate", "nr_huge_pages_node")
_HUGE_MAX_HSTATE = ArrayMember("struct hugetlb_cgroup", "hugepage")

VARIABLES: dict[str, Variable] = {
    # HugeTLB.
    "hstates": Variable("struct hstate", "mm/hugetlb.c", (_HUGE_MAX_HSTATE,)),
    "hugetlb_max_hstate": Variable("int", "mm/hugetlb.c"),
    "default_hstate_idx": Variable("unsigned int", "mm/hugetlb.c"),
    "hugetlb_cma": Variable(
        "struct cma *",
        "mm/hugetlb_cma.c, before v6.15 mm/hugetlb.c",
        (_MAX_NUMNODES,),
        in_extracts=False,
    ),
    "hugetlb_lock": Variable("spinlock_t", "mm/hugetlb.c"),
    "vmemmap_optimize_enabled": Variable("_Bool", "mm/hugetlb_vmemmap.c"),
    "hugetlb_optimize_vmemmap_key": Variable(
        "struct static_key_false", "mm/hugetlb_vmemmap.c"
    ),
    # Whether the kernel is still booting.
    "system_state": Variable("enum system_states", "init/main.c"),
    # Nodes and zones.
    "node_data": Variable(
        "struct pglist_data *",
        "mm/numa.c",
        (VmcoreinfoLength("node_data"), _MAX_NUMNODES),
    ),
    "contig_page_data": Variable("struct pglist_data", "mm/memblock.c"),
    "node_states": Variable(
        "nodemask_t", "mm/page_alloc.c", (Enumerator("NR_NODE_STATES"),)
    ),
    "nr_node_ids": Variable("unsigned int", "mm/page_alloc.c"),
    "nr_online_nodes": Variable("unsigned int", "mm/page_alloc.c"),
    # The memory map.
    "vmemmap_base": Variable("unsigned long", "arch/x86/kernel/head64.c"),
    "page_offset_base": Variable("unsigned long", "arch/x86/kernel/head64.c"),
    "vmalloc_base": Variable("unsigned long", "arch/x86/kernel/head64.c"),
    "mem_map": Variable("struct page *", "mm/memory.c"),
    "max_mapnr": Variable("unsigned long", "mm/memory.c"),
    "max_pfn": Variable("unsigned long", "mm/memblock.c"),
    "max_low_pfn": Variable("unsigned long", "mm/memblock.c"),
    "min_low_pfn": Variable("unsigned long", "mm/memblock.c"),
    "high_memory": Variable("void *", "mm/memory.c"),
    "__highest_present_section_nr": Variable("unsigned long", "mm/sparse.c"),
    "memblock": Variable("struct memblock", "mm/memblock.c", in_extracts=False),
    "num_poisoned_pages": Variable(
        "atomic_long_t", "mm/memory-failure.c", in_extracts=False
    ),
    "_totalram_pages": Variable("atomic_long_t", "mm/page_alloc.c"),
    "vm_node_stat": Variable(
        "atomic_long_t", "mm/vmstat.c", (Enumerator("NR_VM_NODE_STAT_ITEMS"),)
    ),
    "vm_zone_stat": Variable(
        "atomic_long_t", "mm/vmstat.c", (Enumerator("NR_VM_ZONE_STAT_ITEMS"),)
    ),
    # Address spaces and tasks.
    "init_mm": Variable("struct mm_struct", "mm/init-mm.c"),
    "init_task": Variable("struct task_struct", "init/init_task.c", in_extracts=False),
    "init_pid_ns": Variable("struct pid_namespace", "kernel/pid.c", in_extracts=False),
    "init_uts_ns": Variable(
        "struct uts_namespace", "init/version.c", in_extracts=False
    ),
    # Mounts and cgroups.
    "super_blocks": Variable("struct list_head", "fs/super.c", in_extracts=False),
    "root_h_cgroup": Variable(
        "struct hugetlb_cgroup *", "mm/hugetlb_cgroup.c", in_extracts=False
    ),
    # The log; a static pointer, prb_dynamic or prb_static.
    "prb": Variable(
        "struct printk_ringbuffer *", "kernel/printk/printk.c", in_extracts=False
    ),
    "pgdir_shift": Variable("unsigned int", "arch/x86/kernel/head64.c"),
    "ptrs_per_p4d": Variable("unsigned int", "arch/x86/kernel/head64.c"),
    "__pgtable_l5_enabled": Variable("unsigned int", "arch/x86/kernel/head64.c"),
    "sme_me_mask": Variable("u64", "arch/x86/mm/mem_encrypt_identity.c"),
    "physvirt_offset": Variable("s64", "arch/arm64/mm/init.c (v5.4 to v5.10)"),
    "memstart_addr": Variable("s64", "arch/arm64/mm/init.c"),
    "saved_command_line": Variable("char *", "init/main.c"),
    "jiffies_64": Variable("u64", "kernel/time/timer.c"),
    # Loaded modules.
    "modules": Variable("struct list_head", "kernel/module/main.c", in_extracts=False),
}
