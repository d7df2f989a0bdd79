"""Exact integer products at the edge of what float32 holds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.adapters.numpy.kernels.quantized.integer import (
    EXACT,
    exact_blocks,
    integer_product,
)


def test_sums_at_the_bound_are_exact_and_one_beyond_is_cut() -> None:
    # 255 * 127 * 518 = 16,775,430 <= 2**24 = 16,777,216 < 255 * 127 * 519.
    assert exact_blocks(np.full((518, 1), 127), 255) == (0, 518)
    assert exact_blocks(np.full((519, 1), 127), 255) == (0, 518, 519)


@pytest.mark.parametrize("depth", [518, 519, 1036, 4000])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(depth: int, sign: int) -> None:
    x = np.full((3, depth), 255, np.float32)
    w = np.full((depth, 2), 127 * sign, np.float32)
    w[:, 1] = -w[:, 0]
    w[-1, 0] -= sign  # an odd sum beyond 2**24 has no float32
    result = integer_product(x, w, exact_blocks(w, 255))
    assert np.array_equal(
        result.astype(np.int64), x.astype(np.int64) @ w.astype(np.int64)
    )


def test_a_float32_product_without_blocks_would_round() -> None:
    x, w = np.full((1, 4000), 255, np.float32), np.full((4000, 1), 127, np.float32)
    w[-1] = 126
    assert int(x.astype(np.int64).dot(w.astype(np.int64))[0, 0]) > EXACT
    assert len(exact_blocks(w, 255)) > 2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 700),
    st.integers(1, 5),
    st.sampled_from([127, 128, 255]),
    st.integers(0, 2**32 - 1),
)
def test_products_equal_integer_arithmetic(
    m: int, k: int, n: int, largest: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-largest, largest + 1, (m, k))
    w = rng.integers(-255, 256, (k, n))
    blocks = exact_blocks(w, largest)
    assert blocks[0] == 0
    assert blocks[-1] == k
    for a, b in pairwise(blocks):
        assert np.abs(w[a:b]).sum(axis=0).max() * largest <= EXACT
    result = integer_product(x.astype(np.float32), w.astype(np.float32), blocks)
    assert np.array_equal(result.astype(np.int64), x @ w)
