# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Encodings of compound page tails
--------------------------------

How a tail struct page names its head, as pure arithmetic on 64-bit words: no
drgn, no memory. HVO exists on 64-bit kernels only, so a word is 64 bits.

Bit 0 of the word (``compound_head``, since v7.1 ``compound_info``) marks a
tail. The other bits are the address of the head (a *pointer*) or, since Linux
kernel commit 8c846c879e22 ("mm: rework compound_head() for power-of-2
sizeof(struct page)") (in v7.1), the bits that the address of the tail shares
with the address of the head (a *mask*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    BoolArray = npt.NDArray[np.bool_]
    WordArray = npt.NDArray[np.uint64]

__all__ = (
    "ALL_ONES",
    "BITS_PER_LONG",
    "Geometry",
    "are_masks",
    "are_pointers",
    "compound_head",
    "compound_heads",
    "compound_info_has_mask",
    "fixed_fake_infos",
    "is_mask",
    "is_pointer",
    "is_poisoned",
    "is_tail",
    "mask_order",
    "max_folio_order",
    "page_fixed_fake_head",
    "prep_compound_tail",
    "set_compound_head",
    "tail_mapping",
)

#: Of every kernel that has HVO.
BITS_PER_LONG = 64

# 16 GiB, the largest huge page of any port.
_MAX_FOLIO_SHIFT = 34

#: A struct page that page_init_poison() filled and nobody initialised, and the
#: answer of the bulk functions for "no head here".
ALL_ONES = (1 << BITS_PER_LONG) - 1


def _order_base_2(n: int) -> int:
    """Mirror of ``order_base_2()``: the smallest ``k`` with ``2**k >= n``."""
    return (n - 1).bit_length()


def _is_power_of_2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True)
class Geometry:
    """
    The two sizes that every formula here depends on.

    :param page_size: ``PAGE_SIZE`` in bytes.
    :param struct_page_size: ``sizeof(struct page)`` in bytes.
    :raises ValueError: if no kernel can have these sizes.
    """

    page_size: int
    struct_page_size: int

    def __post_init__(self) -> None:
        if not (_is_power_of_2(self.page_size) and 4096 <= self.page_size <= 1 << 18):
            raise ValueError(f"{self.page_size} is not a page size")
        if self.struct_page_size % 8 or not 32 <= self.struct_page_size <= 512:
            raise ValueError(f"{self.struct_page_size} is not a sizeof(struct page)")

    @property
    def page_shift(self) -> int:
        """``PAGE_SHIFT``."""
        return self.page_size.bit_length() - 1

    @property
    def power_of_2(self) -> bool:
        """Whether struct pages never straddle a page: HVO needs that."""
        return _is_power_of_2(self.struct_page_size)

    @property
    def pages_per_slice(self) -> int:
        """How many struct pages one page of vmemmap holds (whole ones)."""
        return self.page_size // self.struct_page_size

    @property
    def largest_order(self) -> int:
        """
        The largest order that any kernel has: huge pages end at 16 GiB, see
        :func:`max_folio_order()`. A larger one is damage.
        """
        return _MAX_FOLIO_SHIFT - self.page_shift

    @property
    def vmemmap_tail_min_order(self) -> int:
        """
        ``VMEMMAP_TAIL_MIN_ORDER``: the smallest order with a page of tails to
        share, ``ilog2(2 * PAGE_SIZE / sizeof(struct page))``.
        """
        return (2 * self.page_size // self.struct_page_size).bit_length() - 1

    def nr_vmemmap_tails(self, max_order: int) -> int:
        """
        ``NR_VMEMMAP_TAILS``: the length of ``vmemmap_tails[]``.

        :param max_order: ``MAX_FOLIO_ORDER``.
        """
        return max(0, max_order - self.vmemmap_tail_min_order + 1)

    def vmemmap_align(self, max_order: int) -> int:
        """
        ``MAX_FOLIO_VMEMMAP_ALIGN``: what masks need the struct page of PFN 0
        to be aligned to, in bytes.

        :param max_order: ``MAX_FOLIO_ORDER``.
        """
        return self.struct_page_size << max_order

    def slices(self, order: int) -> int:
        """How many pages of vmemmap the struct pages of one folio fill."""
        return max(1, (self.struct_page_size << order) // self.page_size)


def max_folio_order(
    page_shift: int,
    *,
    gigantic: bool = True,
    hugetlb: bool = True,
    sparsemem_vmemmap: bool = True,
    max_page_order: int = 10,
    section_size_bits: int = 27,
    pud_shift: int = 30,
) -> int:
    """
    Mirror of ``MAX_FOLIO_ORDER`` (:linux:`include/linux/mmzone.h`, v7.1) for
    64-bit kernels.

    Prefer the array length in the target's own types: this is for targets
    that are being made up, and for saying what a length means.

    :param gigantic: ``CONFIG_HAVE_GIGANTIC_FOLIOS``.
    :param hugetlb: ``CONFIG_HUGETLB_PAGE``.
    :param sparsemem_vmemmap: ``CONFIG_SPARSEMEM_VMEMMAP``.
    """
    if not gigantic:
        return max_page_order
    if not sparsemem_vmemmap:
        return section_size_bits - page_shift
    if hugetlb:
        return _MAX_FOLIO_SHIFT - page_shift
    return pud_shift - page_shift


def compound_info_has_mask(geometry: Geometry, hvo_built: bool) -> bool:
    """
    Mirror of ``compound_info_has_mask()`` (:linux:`include/linux/page-flags.h`,
    v7.1): a build-time property, true with HVO switched off too.

    :param hvo_built: ``CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP``.
    """
    return hvo_built and geometry.power_of_2


def set_compound_head(geometry: Geometry, head: int, order: int, has_mask: bool) -> int:
    """
    Mirror of ``set_compound_head()``: the word of a tail.

    :param head: Address of the head's struct page (unused for masks).
    :param order: Order of the compound page (unused for pointers).
    :raises ValueError: if a word cannot hold a mask for this order.
    """
    if not has_mask:
        return head | 1
    shift = order + _order_base_2(geometry.struct_page_size)
    if not 0 < order <= BITS_PER_LONG - 1 - _order_base_2(geometry.struct_page_size):
        raise ValueError(f"no mask for order {order}")
    return (ALL_ONES << shift & ALL_ONES) | 1


def tail_mapping(illegal_pointer_value: int) -> int:
    """
    Mirror of ``TAIL_MAPPING``.

    :param illegal_pointer_value: ``CONFIG_ILLEGAL_POINTER_VALUE``: 0 on
        LoongArch, 0x5deadbeef0000000 on ppc64, 0xdead000000000000 elsewhere.
    """
    return illegal_pointer_value + 0x400


def prep_compound_tail(
    geometry: Geometry,
    head: int,
    order: int,
    has_mask: bool,
    illegal_pointer_value: int = 0xDEAD << 48,
) -> tuple[int, int]:
    """
    Mirror of ``prep_compound_tail()``: the two words that it writes.

    :return: The word that names the head, and ``mapping``.
    """
    word = set_compound_head(geometry, head, order, has_mask)
    return word, tail_mapping(illegal_pointer_value)


def is_tail(info: int) -> bool:
    """Mirror of ``PageTail()`` for one word: bit 0, but not poison."""
    return bool(info & 1) and info != ALL_ONES


def is_poisoned(info: int) -> bool:
    """Whether the struct page was never initialised: neither head nor tail."""
    return info == ALL_ONES


def mask_order(geometry: Geometry, info: int) -> Optional[int]:
    """
    The order that a mask word stands for.

    :return: ``None`` if *info* is no mask that ``set_compound_head()`` writes.
    """
    if not is_tail(info) or not geometry.power_of_2:
        return None
    span = (1 << BITS_PER_LONG) - (info & ~1)
    order = span.bit_length() - 1 - _order_base_2(geometry.struct_page_size)
    # A word of 1 has no bit of a mask at all.
    if not _is_power_of_2(span) or order < 1 or span > ALL_ONES:
        return None
    return order


def is_mask(geometry: Geometry, info: int, max_order: int) -> bool:
    """
    The one-word mask test.

    Minus a power of two of at most ``sizeof(struct page) << max_order`` lies in
    the top of the address space, where no supported architecture has vmemmap
    (x86-64 0xffd4…, arm64 ends at -1 GiB, ppc64 0xc00c…, s390 low), so no
    pointer passes.

    :param max_order: ``MAX_FOLIO_ORDER``.
    """
    order = mask_order(geometry, info)
    return order is not None and order <= max_order


def are_masks(geometry: Geometry, infos: WordArray, max_order: int) -> BoolArray:
    """
    Tell masks of compound heads from other words: :func:`is_mask()` over an array.

    :param infos: Words, ``uint64``, of any shape.
    :param max_order: ``MAX_FOLIO_ORDER``.
    """
    import numpy as np

    if not geometry.power_of_2:
        return np.zeros(infos.shape, dtype=np.bool_)
    one = np.uint64(1)
    # Minus the mask; 0 for a word of 1, which has no bit of a mask at all, and 2 for
    # all ones, which is no order's.
    span = np.uint64(0) - (infos & ~one)
    size = geometry.struct_page_size
    masks: BoolArray = (
        ((infos & one) != 0)
        & ((span & (span - one)) == 0)
        & (span >= np.uint64(size << 1))
        & (span <= np.uint64(size << max_order))
    )
    return masks


def is_pointer(geometry: Geometry, info: int, base: int, end: int) -> bool:
    """
    Whether *info* can be a tail's pointer to its head.

    :param base: Address of the struct page of PFN 0.
    :param end: End of vmemmap (exclusive), above *base*, at most ``2**64``.
    """
    head = info - 1
    return (
        is_tail(info)
        and base <= head < end
        and (head - base) % geometry.struct_page_size == 0
    )


def are_pointers(
    geometry: Geometry, infos: WordArray, base: int, end: int
) -> BoolArray:
    """
    Tell pointers to heads from other words: :func:`is_pointer()` over an array.

    :param infos: Words, ``uint64``, of any shape.
    :param base: Address of the struct page of PFN 0.
    :param end: End of vmemmap (exclusive), above *base*, at most ``2**64``.
    """
    import numpy as np

    one = np.uint64(1)
    # What lies below wraps around, to beyond the end. All ones is never aligned.
    offsets = infos - one - np.uint64(base)
    pointers: BoolArray = (
        ((infos & one) != 0)
        & (offsets <= np.uint64(end - base - 1))
        & (offsets % np.uint64(geometry.struct_page_size) == 0)
    )
    return pointers


def compound_head(page: int, info: int, has_mask: bool) -> int:
    """
    Mirror of ``_compound_head()``, branchless in the word, for one page.

    :param page: Address of the struct page.
    :param info: Its word.
    :return: Address of the head; *page* itself if it is no tail;
        :data:`ALL_ONES` if the struct page was never initialised.
    """
    if is_poisoned(info):
        return ALL_ONES
    # All ones for a page that is no tail, the word itself for a tail. Bit 0 of
    # the mask does no harm: the address of a struct page is even.
    mask = ((info & 1) - 1) & ALL_ONES | info
    if has_mask:
        return page & mask
    tail = -(info & 1) & ALL_ONES
    return (page & ~tail) | ((info & ~1) & tail)


def page_fixed_fake_head(
    page: int, info: int, has_PG_head: bool, next_info: int, has_mask: bool
) -> int:
    """
    Mirror of ``page_fixed_fake_head()`` (v5.18 to v7.0), for both encodings.

    HVO maps the page of vmemmap that holds the head over the pages behind it,
    so the first struct page of each of them reads as a head. The real head is
    what the struct page behind it says. Since Linux kernel commit e7d324850bfc
    ("mm: hugetlb: free the 2nd vmemmap page associated with each HugeTLB
    page") (in v5.18).

    :param page: Address of the struct page, the first one in its page of
        vmemmap.
    :param info: Its word.
    :param has_PG_head: Whether its flags have ``PG_head``.
    :param next_info: The word of the struct page behind it.
    :return: Address of the head, as :func:`compound_head()`.
    """
    if has_PG_head and not info & 1 and is_tail(next_info):
        # page + 1 lies below the end of the same folio, so a mask may be
        # applied to either address.
        return compound_head(page, next_info, has_mask)
    return compound_head(page, info, has_mask)


def compound_heads(pages: WordArray, infos: WordArray, has_mask: bool) -> WordArray:
    """
    Find heads: :func:`compound_head()` over arrays of one shape, of dtype uint64.

    :return: Addresses of the heads; :data:`ALL_ONES` where the struct page was
        never initialised.
    """
    import numpy as np

    tail = infos & np.uint64(1)
    # In place: a temporary array costs more than an operation on it.
    if has_mask:
        heads = tail
        heads -= np.uint64(1)
        heads |= infos
        heads &= pages
    else:
        heads = np.where(tail != 0, infos - np.uint64(1), pages)
    if infos.size and infos.max() == ALL_ONES:
        heads[infos == np.uint64(ALL_ONES)] = np.uint64(ALL_ONES)
    return heads


def fixed_fake_infos(
    infos: WordArray, next_infos: WordArray, PG_heads: WordArray
) -> WordArray:
    """
    Find the words that name heads: :func:`page_fixed_fake_head()` over arrays of one
    shape, of dtype uint64.

    :param infos: The words of struct pages that are the first ones in their pages of
        vmemmap.
    :param next_infos: The words of the struct pages behind them.
    :param PG_heads: Non-zero where the struct page has ``PG_head``.
    :return: For :func:`compound_heads()`; where there is a copy of a head, the word
        behind it.
    """
    import numpy as np

    one = np.uint64(1)
    fake = (
        (PG_heads != 0)
        & ((infos & one) == 0)
        & ((next_infos & one) != 0)
        & (next_infos != np.uint64(ALL_ONES))
    )
    return np.where(fake, next_infos, infos)
