# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a tail word means, against PFN arithmetic: the head of page ``pfn`` in a
naturally aligned folio is ``pfn - pfn % 2**order``, whatever the encoding.
"""

import math

from hypothesis import example, given, strategies as st
import numpy as np
import pytest

from drgn_hvo.formats.tail_words import (
    ALL_ONES,
    Geometry,
    are_masks,
    are_pointers,
    compound_head,
    compound_heads,
    compound_info_has_mask,
    fixed_fake_infos,
    is_mask,
    is_pointer,
    is_poisoned,
    is_tail,
    mask_order,
    max_folio_order,
    page_fixed_fake_head,
    prep_compound_tail,
    set_compound_head,
    tail_mapping,
)

GIB = 1 << 30
TIB = 1 << 40
X86 = Geometry(4096, 64)
PAGE_SIZES = (4096, 16384, 65536)
SIZES = range(32, 136, 8)
POWERS = (32, 64, 128)

geometries = st.builds(Geometry, st.sampled_from(PAGE_SIZES), st.sampled_from(SIZES))
mask_geometries = st.builds(
    Geometry, st.sampled_from(PAGE_SIZES), st.sampled_from(POWERS)
)


@st.composite
def x86_vmemmaps(draw):
    """Any place where x86-64 can have vmemmap: KASLR moves it by 1 GiB."""
    low, high, size = draw(
        st.sampled_from(
            [
                (0xFFFF_8880_0000_0000, 0xFFFF_FE00_0000_0000, TIB),
                (0xFF11_0000_0000_0000, 0xFFFF_FC00_0000_0000, 64 * TIB),
            ]
        )
    )
    base = low + GIB * draw(st.integers(0, (high - size - low) // GIB))
    return base, base + size


@st.composite
def pages(draw, geometry_strategy=mask_geometries, max_order=22):
    """A geometry, a vmemmap base, an order and a PFN."""
    geometry = draw(geometry_strategy)
    base = draw(x86_vmemmaps())[0]
    return geometry, base, draw(st.integers(1, max_order)), draw(st.integers(0, 2**33))


def expected_head(geometry, base, order, pfn):
    return base + (pfn - pfn % 2**order) * geometry.struct_page_size


@given(pages())
def test_mask_gives_the_head_of_every_page_of_a_folio(page):
    geometry, base, order, pfn = page
    head = expected_head(*page)
    word = set_compound_head(geometry, head, order, has_mask=True)
    address = base + pfn * geometry.struct_page_size
    assert compound_head(address, word, has_mask=True) == head


@given(pages(geometries))
def test_pointer_gives_the_head_of_every_page_of_a_folio(page):
    geometry, base, order, pfn = page
    head = expected_head(*page)
    word = set_compound_head(geometry, head, order, has_mask=False)
    assert word == head + 1
    address = base + pfn * geometry.struct_page_size
    assert compound_head(address, word, has_mask=False) == head


@given(pages(geometries), st.booleans(), st.integers(0, 2**63 - 1))
def test_page_with_bit_0_clear_is_its_own_head(page, has_mask, half_word):
    geometry, base, _, pfn = page
    address = base + pfn * geometry.struct_page_size
    assert compound_head(address, 2 * half_word, has_mask) == address
    assert not is_tail(2 * half_word)


@given(pages(geometries), st.booleans())
def test_poisoned_page_is_neither_head_nor_tail(page, has_mask):
    geometry, base, _, pfn = page
    address = base + pfn * geometry.struct_page_size
    assert compound_head(address, ALL_ONES, has_mask) == ALL_ONES == 2**64 - 1
    assert is_poisoned(ALL_ONES)
    assert not is_tail(ALL_ONES)
    assert mask_order(geometry, ALL_ONES) is None
    assert not is_mask(geometry, ALL_ONES, 22)
    # The pointer would be to the very end of the address space.
    assert not is_pointer(geometry, ALL_ONES, 0, 2**64)


@pytest.mark.parametrize("size", POWERS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_mask_word_and_order_for_every_order(page_size, size):
    geometry = Geometry(page_size, size)
    for order in range(1, 23):
        word = set_compound_head(geometry, 0, order, has_mask=True)
        assert word == 2**64 - size * 2**order + 1
        assert mask_order(geometry, word) == order
        assert is_mask(geometry, word, 22)
        assert is_mask(geometry, word, order)
        assert not is_mask(geometry, word, order - 1)


@given(st.integers(0, 2**64 - 1), mask_geometries)
@example(1, X86)
@example(2**63 + 1, X86)
def test_only_words_that_the_kernel_writes_are_masks(word, geometry):
    size = geometry.struct_page_size
    written = {2**64 - size * 2**k + 1: k for k in range(1, 64) if size * 2**k < 2**64}
    assert mask_order(geometry, word) == written.get(word)


@given(
    st.integers(1, 57).map(lambda order: 2**64 - 64 * 2**order + 1),
    st.integers(0, 63),
)
def test_mask_with_one_bit_flipped_is_another_order_or_none(word, bit):
    flipped = word ^ 1 << bit
    order = mask_order(X86, flipped)
    assert order is None or (2**64 - 64 * 2**order + 1 == flipped and order < 58)


@pytest.mark.parametrize("size", [s for s in SIZES if s not in POWERS])
def test_no_mask_without_a_power_of_two(size):
    geometry = Geometry(4096, size)
    assert not geometry.power_of_2
    for order in range(1, 23):
        # set_compound_head() rounds the size up, and nobody calls it so.
        word = set_compound_head(geometry, 0, order, has_mask=True)
        assert word == 2**64 - 2 ** (order + math.ceil(math.log2(size))) + 1
        assert mask_order(geometry, word) is None
        assert not is_mask(geometry, word, 22)


@pytest.mark.parametrize("order", [-1, 0, 58, 64])
def test_mask_for_an_impossible_order_is_refused(order):
    with pytest.raises(ValueError, match="no mask"):
        set_compound_head(X86, 0, order, has_mask=True)


@given(x86_vmemmaps(), st.data(), geometries)
def test_no_word_is_both_a_mask_and_a_pointer(vmemmap, data, geometry):
    base, end = vmemmap
    size = geometry.struct_page_size
    for order in range(1, 23):
        mask = 2**64 - size * 2**order + 1
        assert not is_pointer(geometry, mask, base, end)
    pfn = data.draw(st.integers(0, (end - base) // size - 1))
    pointer = base + pfn * size + 1
    assert is_pointer(geometry, pointer, base, end)
    assert not is_mask(geometry, pointer, 22)


@st.composite
def words_near_bounds(draw):
    """A geometry, a largest order, a vmemmap, and words at and about every bound."""
    geometry = draw(geometries)
    size = geometry.struct_page_size
    max_order = draw(st.integers(1, 30))
    base = 4096 * draw(
        st.one_of(
            st.integers(0, 2**52 - 2**20), st.just(0xFFD4_0000_0000_0), st.just(0)
        )
    )
    end = min(base + size * draw(st.integers(1, 2**40)), 2**64)
    bounds = [0, 1, base, base + size, end, end - size, 2**63, 2**64 - 1]
    bounds += [2**64 - (size << order) for order in range(64)]
    word = st.one_of(
        st.builds(
            lambda bound, steps, by: (bound + steps + by * size) % 2**64,
            st.sampled_from(bounds),
            st.integers(-3, 3),
            st.integers(-2, 2),
        ),
        st.integers(0, 2**64 - 1),
    )
    return geometry, max_order, base, end, draw(st.lists(word, min_size=1, max_size=40))


@given(words_near_bounds())
@example((X86, 22, 0, 2**64, [0, 1, 2, 3, 65, 2**64 - 1, 2**64 - 63, 2**64 - 127]))
@example((X86, 1, 2**63, 2**64, [2**64 - 127, 2**64 - 255, 2**63 - 63, 2**63 + 1]))
def test_words_in_arrays_are_told_apart_as_single_words_are(drawn):
    geometry, max_order, base, end, words = drawn
    infos = np.array(words, dtype=np.uint64)
    masks = are_masks(geometry, infos, max_order)
    pointers = are_pointers(geometry, infos, base, end)
    assert masks.tolist() == [is_mask(geometry, word, max_order) for word in words]
    assert pointers.tolist() == [
        is_pointer(geometry, word, base, end) for word in words
    ]
    assert are_masks(geometry, infos.reshape(1, -1), max_order).shape == (1, len(words))


@given(x86_vmemmaps(), st.data(), geometries)
def test_pointer_must_be_to_a_struct_page_in_vmemmap(vmemmap, data, geometry):
    base, end = vmemmap
    size = geometry.struct_page_size
    word = data.draw(st.integers(base - 4 * size, end + 4 * size))
    expected = (word - 1) in range(base, end, size) and word % 2 == 1
    assert is_pointer(geometry, word, base, end) == expected


@given(
    geometries,
    x86_vmemmaps(),
    st.lists(st.tuples(st.integers(0, 2**33), st.integers(0, 23)), max_size=50),
    st.booleans(),
)
def test_arrays_are_decoded_as_single_pages_are(geometry, vmemmap, drawn, has_mask):
    """Order 0 stands for no tail, order 23 for poison."""
    if not geometry.power_of_2:
        has_mask = False
    size, base = geometry.struct_page_size, vmemmap[0]
    addresses, words, heads = [], [], []
    for pfn, order in drawn:
        head = expected_head(geometry, base, order, pfn)
        addresses.append(base + pfn * size)
        if order == 0:
            words.append(0xFFFF_8880_0000_1230)
            heads.append(base + pfn * size)
        elif order == 23:
            words.append(2**64 - 1)
            heads.append(2**64 - 1)
        else:
            words.append(2**64 - size * 2**order + 1 if has_mask else head + 1)
            heads.append(head)
    bulk = compound_heads(
        np.array(addresses, dtype=np.uint64), np.array(words, dtype=np.uint64), has_mask
    )
    assert bulk.dtype == np.uint64
    assert bulk.tolist() == heads
    assert heads == [compound_head(*page, has_mask) for page in zip(addresses, words)]


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=40),
    st.booleans(),
)
def test_arrays_of_any_words_are_decoded_as_single_pages_are(words, has_mask):
    addresses = [0xFFFF_EA00_0000_0000 + 64 * i for i in range(len(words))]
    bulk = compound_heads(
        np.array(addresses, dtype=np.uint64), np.array(words, dtype=np.uint64), has_mask
    )
    assert bulk.tolist() == [
        compound_head(*page, has_mask) for page in zip(addresses, words)
    ]


@st.composite
def mirrored_folios(draw):
    """vmemmap of a folio whose first page is mapped again behind itself."""
    geometry, base, order, pfn = draw(pages(max_order=12))
    order = max(order, geometry.vmemmap_tail_min_order)
    has_mask = draw(st.booleans())
    size = geometry.struct_page_size
    head = expected_head(geometry, base, order, pfn)
    tail = 2**64 - size * 2**order + 1 if has_mask else head + 1
    per_slice = geometry.page_size // size
    first_slice = [draw(st.sampled_from([0, head, 0xDEAD_0000_0000_0100]))]
    first_slice += [tail] * (per_slice - 1)
    slices = size * 2**order // geometry.page_size
    addresses = head + size * np.arange(2**order, dtype=np.uint64)
    words = np.array(first_slice * slices, dtype=np.uint64)
    shape = (slices, per_slice)
    return head, has_mask, addresses.reshape(shape), words.reshape(shape)


@given(mirrored_folios())
def test_fake_heads_lead_to_the_real_head(folio):
    head, has_mask, addresses, words = folio
    before = words.copy()
    flags = np.full(len(addresses), 1 << 6, dtype=np.uint64)
    infos = fixed_fake_infos(words[:, 0], words[:, 1], flags)
    assert (compound_heads(addresses[:, 0], infos, has_mask) == head).all()
    assert (compound_heads(addresses[:, 1:], words[:, 1:], has_mask) == head).all()
    assert (words == before).all()
    for row in range(len(addresses)):
        first = int(addresses[row, 0])
        word, behind = words[row, :2].tolist()
        assert page_fixed_fake_head(first, word, True, behind, has_mask) == head
        # What one sees who does not know of fake heads.
        assert compound_head(first, word, has_mask) == first


@given(mirrored_folios())
def test_first_page_without_PG_head_is_no_fake_head(folio):
    _, has_mask, addresses, words = folio
    flags = np.zeros(len(words), dtype=np.uint64)
    infos = fixed_fake_infos(words[:, 0], words[:, 1], flags)
    heads = compound_heads(addresses[:, 0], infos, has_mask)
    assert (heads == addresses[:, 0]).all()
    page = int(addresses[-1, 0])
    word, behind = words[-1, :2].tolist()
    assert page_fixed_fake_head(page, word, False, behind, has_mask) == page


@pytest.mark.parametrize("behind", [0, 0xFFFF_EA00_0000_0040, ALL_ONES])
@pytest.mark.parametrize("has_mask", [False, True])
def test_head_with_no_tail_behind_it_is_a_head(has_mask, behind):
    page = 0xFFFF_EA00_0000_1000
    assert page_fixed_fake_head(page, 0, True, behind, has_mask) == page
    first, next_, flag = np.array([[0], [behind], [64]], dtype=np.uint64)
    heads = compound_heads(
        np.array([page], dtype=np.uint64),
        fixed_fake_infos(first, next_, flag),
        has_mask,
    )
    assert int(heads[0]) == page


@pytest.mark.parametrize(
    ("order", "word"),
    [
        (7, 0xFFFF_FFFF_FFFF_E001),
        (9, 0xFFFF_FFFF_FFFF_8001),
        (18, 0xFFFF_FFFF_FF00_0001),
        (22, 0xFFFF_FFFF_F000_0001),
    ],
)
def test_mask_words_of_real_kernels(order, word):
    assert set_compound_head(X86, 0, order, has_mask=True) == word


@pytest.mark.parametrize(
    ("page", "word", "head"),
    [
        (0xFFFF_EA00_0405_7FC0, 0xFFFF_FFFF_FFFF_8001, 0xFFFF_EA00_0405_0000),
        (0xFFFF_EA00_04FF_FFC0, 0xFFFF_FFFF_FF00_0001, 0xFFFF_EA00_0400_0000),
    ],
)
def test_heads_that_a_running_kernel_had(page, word, head):
    assert compound_head(page, word, has_mask=True) == head


@pytest.mark.parametrize(
    ("page_size", "config", "min_order", "max_order", "length", "pmd_order", "index"),
    [
        (4096, {}, 7, 22, 16, 9, 2),
        (4096, {}, 7, 22, 16, 18, 11),
        (4096, {"gigantic": False, "max_page_order": 10}, 7, 10, 4, 9, 2),
        (16384, {"gigantic": False, "max_page_order": 11}, 9, 11, 3, 11, 2),
        (65536, {"gigantic": False, "max_page_order": 13}, 11, 13, 3, 13, 2),
        # Too small to share a page of tails: there is no array.
        (65536, {"gigantic": False, "max_page_order": 8}, 11, 8, 0, None, None),
    ],
)
def test_vmemmap_tails_of_each_architecture(
    page_size, config, min_order, max_order, length, pmd_order, index
):
    geometry = Geometry(page_size, 64)
    assert max_folio_order(geometry.page_shift, **config) == max_order
    assert geometry.vmemmap_tail_min_order == min_order
    assert geometry.nr_vmemmap_tails(max_order) == length
    if pmd_order is not None:
        assert pmd_order - geometry.vmemmap_tail_min_order == index


@pytest.mark.parametrize(
    ("config", "order"),
    [
        ({"gigantic": False, "max_page_order": 11, "hugetlb": False}, 11),
        ({"sparsemem_vmemmap": False}, 15),
        ({"sparsemem_vmemmap": False, "section_size_bits": 28}, 16),
        ({"hugetlb": False}, 18),
        ({"hugetlb": False, "pud_shift": 32}, 20),
    ],
)
def test_max_folio_order_of_other_configurations(config, order):
    assert max_folio_order(12, **config) == order


@given(geometries)
def test_min_order_is_the_first_with_a_page_of_tails_to_share(geometry):
    order = geometry.vmemmap_tail_min_order
    if geometry.power_of_2:
        assert geometry.slices(order - 1) == 1
        assert geometry.slices(order) == 2
    assert geometry.struct_page_size * 2**order <= 2 * geometry.page_size
    assert geometry.struct_page_size * 2 ** (order + 1) > 2 * geometry.page_size


@given(geometries, st.integers(0, 22))
def test_sizes_of_vmemmap(geometry, order):
    size = geometry.struct_page_size
    assert 2**geometry.page_shift == geometry.page_size
    assert geometry.pages_per_slice * size <= geometry.page_size
    assert (geometry.pages_per_slice + 1) * size > geometry.page_size
    assert geometry.slices(order) == max(1, size * 2**order // geometry.page_size)
    assert geometry.vmemmap_align(order) == size * 2**order


def test_vmemmap_alignment_of_x86():
    assert X86.vmemmap_align(22) == 256 << 20


@given(geometries)
def test_masks_need_hvo_and_a_power_of_two(geometry):
    power = geometry.struct_page_size in POWERS
    assert compound_info_has_mask(geometry, hvo_built=True) is power
    assert compound_info_has_mask(geometry, hvo_built=False) is False


@pytest.mark.parametrize(
    ("illegal", "mapping"),
    [
        (0xDEAD_0000_0000_0000, 0xDEAD_0000_0000_0400),
        (0x5DEA_DBEE_F000_0000, 0x5DEA_DBEE_F000_0400),
        (0, 0x400),
    ],
)
def test_tail_mapping_of_each_architecture(illegal, mapping):
    assert tail_mapping(illegal) == mapping
    assert prep_compound_tail(X86, 0, 9, True, illegal) == (2**64 - 2**15 + 1, mapping)


def test_prep_compound_tail_of_the_usual_architectures():
    head = 0xFFFF_EA00_0405_0000
    assert prep_compound_tail(X86, head, 9, False) == (head + 1, 0xDEAD_0000_0000_0400)


@pytest.mark.parametrize("page_size", [-4096, 0, 1, 2048, 4095, 12288, 1 << 19])
def test_impossible_page_size_is_refused(page_size):
    with pytest.raises(ValueError, match="page size"):
        Geometry(page_size, 64)


@pytest.mark.parametrize("size", [-64, 0, 1, 24, 33, 60, 520, 4096])
def test_impossible_struct_page_is_refused(size):
    with pytest.raises(ValueError, match="struct page"):
        Geometry(4096, size)
