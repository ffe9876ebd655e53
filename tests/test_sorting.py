# SPDX-License-Identifier: LGPL-2.1-or-later

"""What sorts page frames, against NumPy: also where there is nothing to sort."""

from unittest import mock

from hypothesis import given, strategies as st
import numpy as np
import pytest

from drgn_hvo.kernel import arrays
from drgn_hvo.kernel.arrays import distinct, distinct_index

INT64 = np.iinfo(np.int64)
ANY = st.integers(int(INT64.min), int(INT64.max))
# Of base pages of 52 bits of physical address; so few of them that some are equal.
PFNS = st.integers(0, (1 << 40) - 1) | st.integers(0, 5)
NUMBERS = st.lists(PFNS) | st.lists(PFNS).map(sorted) | st.lists(ANY | PFNS)
NUMBERS |= st.sets(PFNS).map(sorted)


def array(numbers):
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize("many", [1, 1 << 17])
@given(numbers=NUMBERS)
def test_order(many, numbers):
    with mock.patch.object(arrays, "_MANY", many):
        found = arrays.order_of(array(numbers))
    assert np.array_equal(found, np.argsort(array(numbers), kind="stable"))


@given(NUMBERS)
def test_distinct(numbers):
    assert distinct(array(numbers)).tolist() == sorted(set(numbers))


@given(NUMBERS)
def test_distinct_with_places(numbers):
    values, index = distinct_index(array(numbers))
    assert values.tolist() == sorted(set(numbers))
    assert values[index].tolist() == numbers
