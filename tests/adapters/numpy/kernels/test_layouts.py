"""Quantizing keeps its numbers whatever the memory order of what it reads."""

import itertools

import numpy as np
import pytest

from octavo.adapters.numpy.graph import Node
from octavo.adapters.numpy.kernels.quantized.centred_codes import (
    dynamic_quantize,
    quantize,
)
from octavo.adapters.numpy.kernels.registry import Build

ARRAY = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_codes_do_not_depend_on_the_memory_order(order: tuple[int, ...]) -> None:
    x = ARRAY.transpose(order)
    scale, zero = np.float32(0.05), np.int32(128)
    static = quantize(
        Build(Node("octavo.Quantize", ("x",), ("y",), "q", {"low": 0, "high": 255}))
    )
    expected = np.clip(np.rint(x / scale), -128, 127)
    np.testing.assert_array_equal(static(x, scale, zero, empty=np.empty), expected)
    for granularity in ("tensor", "token"):
        attributes = {
            "low": -127,
            "high": 127,
            "symmetric": 1,
            "granularity": granularity,
        }
        codes, scales = dynamic_quantize(
            Build(Node("octavo.DynamicQuantize", ("x",), ("y", "s"), "q", attributes))
        )(x, empty=np.empty)
        assert np.abs(codes * scales - x).max() <= 0.5001 * np.max(scales)
