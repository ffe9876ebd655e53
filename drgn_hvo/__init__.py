# SPDX-License-Identifier: LGPL-2.1-or-later

"""
HugeTLB Vmemmap Optimization for drgn
-------------------------------------

``drgn_hvo`` explains what HugeTLB Vmemmap Optimization (HVO) did to the struct
page array of a kernel: on a live system, or in the vmcore of one that died,
with or without debuginfo.

It exports the helpers of :mod:`drgn_hvo.helpers`. A drgn session that has the plugin
imports this package and may need none of them, so each comes when it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drgn_hvo.helpers.compound import (
        PageHead as PageHead,
        PageHuge as PageHuge,
        PageSnapshot as PageSnapshot,
        PageTail as PageTail,
        compound_head as compound_head,
        compound_heads as compound_heads,
        compound_info_has_mask as compound_info_has_mask,
        compound_order as compound_order,
        page_folio as page_folio,
        snapshot_page as snapshot_page,
    )
    from drgn_hvo.helpers.hugetlb import (
        HugetlbFolioHolders as HugetlbFolioHolders,
        HugetlbFolioMapping as HugetlbFolioMapping,
        VmemmapFrames as VmemmapFrames,
        folio_vmemmap_frames as folio_vmemmap_frames,
        for_each_hugetlb_folio as for_each_hugetlb_folio,
        hugetlb_folio_holders as hugetlb_folio_holders,
        hugetlb_vmemmap_optimized as hugetlb_vmemmap_optimized,
        validate_hugetlb_folio as validate_hugetlb_folio,
        vmemmap_saved as vmemmap_saved,
    )
    from drgn_hvo.helpers.mmzone import (
        page_to_nid as page_to_nid,
        page_zone as page_zone,
        page_zonenum as page_zonenum,
    )
    from drgn_hvo.helpers.moments import (
        HugetlbChanges as HugetlbChanges,
        HugetlbSnapshot as HugetlbSnapshot,
        hugetlb_changes as hugetlb_changes,
        snapshot_hugetlb as snapshot_hugetlb,
    )
    from drgn_hvo.helpers.slab import page_slab as page_slab
    from drgn_hvo.helpers.vmemmap import (
        VmemmapTail as VmemmapTail,
        for_each_folio_on_vmemmap_tail as for_each_folio_on_vmemmap_tail,
        for_each_vmemmap_tail as for_each_vmemmap_tail,
        validate_shared_tail as validate_shared_tail,
        vmemmap_tails as vmemmap_tails,
    )

__version__ = "1.0.0"

# The module of drgn_hvo.helpers that each helper is in.
_HELPERS = {
    "HugetlbChanges": "moments",
    "HugetlbFolioHolders": "hugetlb",
    "HugetlbFolioMapping": "hugetlb",
    "HugetlbSnapshot": "moments",
    "PageHead": "compound",
    "PageHuge": "compound",
    "PageSnapshot": "compound",
    "PageTail": "compound",
    "VmemmapFrames": "hugetlb",
    "VmemmapTail": "vmemmap",
    "compound_head": "compound",
    "compound_heads": "compound",
    "compound_info_has_mask": "compound",
    "compound_order": "compound",
    "folio_vmemmap_frames": "hugetlb",
    "for_each_folio_on_vmemmap_tail": "vmemmap",
    "for_each_hugetlb_folio": "hugetlb",
    "for_each_vmemmap_tail": "vmemmap",
    "hugetlb_changes": "moments",
    "hugetlb_folio_holders": "hugetlb",
    "hugetlb_vmemmap_optimized": "hugetlb",
    "page_folio": "compound",
    "page_slab": "slab",
    "page_to_nid": "mmzone",
    "page_zone": "mmzone",
    "page_zonenum": "mmzone",
    "snapshot_hugetlb": "moments",
    "snapshot_page": "compound",
    "validate_hugetlb_folio": "hugetlb",
    "validate_shared_tail": "vmemmap",
    "vmemmap_saved": "hugetlb",
    "vmemmap_tails": "vmemmap",
}

__all__ = ("__version__", *_HELPERS)


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HELPERS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        helper: object = getattr(
            import_module(f"{__name__}.helpers.{_HELPERS[name]}"), name
        )
        # Found here from now on.
        globals()[name] = helper
        return helper


def __dir__() -> list[str]:
    return sorted({*globals(), *_HELPERS})
