"""Feeding: what a model takes goes in, and everything else is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.plugin import Call, DataError, InputInfo, feed

X = InputInfo("x", (None, 3))
IDS = InputInfo("ids", (2,), "int64")
ONE = np.arange(6, dtype=np.float32).reshape(2, 3)
TWO = np.array([4, 5], np.int64)


@pytest.mark.parametrize(
    "batch",
    [
        (ONE, TWO),
        [ONE, TWO],
        {"ids": TWO, "x": ONE},
        Call(ONE, TWO),
        Call(ONE, ids=TWO),
        {"x": ONE.tolist(), "ids": TWO.tolist()},
        (ONE.astype(np.float64), TWO.astype(np.int32)),
    ],
)
def test_each_way_to_write_a_batch_gives_the_same_arrays(batch: Any) -> None:
    fed = feed(batch, (X, IDS))
    assert list(fed) == ["x", "ids"]
    assert (fed["x"].dtype, fed["ids"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(fed["x"], ONE)
    np.testing.assert_array_equal(fed["ids"], TWO)


def test_one_array_is_a_batch_of_a_model_with_one_input() -> None:
    assert feed(ONE, (X,))["x"] is ONE, "what fits is not copied"


def test_tensors_of_torch_are_taken() -> None:
    torch = pytest.importorskip("torch")
    fed = feed((torch.ones(2, 3, dtype=torch.bfloat16),), (X,))
    np.testing.assert_array_equal(fed["x"], np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"x": ONE}, "lacks input 'ids'"),
        ((ONE,), "lacks input 'ids'.*ids: int64 \\(2\\), got x"),
        ({"x": ONE, "idz": TWO}, "'idz'.*did you mean 'ids'"),
        ((ONE, TWO, TWO), "holds 3 arrays, the model takes 2"),
        (Call(ONE, TWO, TWO), "holds 3 arrays, the model takes 2"),
        (Call(ONE, x=ONE), "'x' is given in order and by name"),
        ((ONE, TWO.astype(np.float32)), "'ids' takes int64, got float32"),
        ((ONE, np.array(["a", "b"])), "'ids' takes int64, got <U1"),
        ((ONE[:, :2], TWO), "'x' takes shape \\(any, 3\\), got \\(2, 2\\)"),
        ((ONE[0], TWO), "'x' takes shape \\(any, 3\\), got \\(3,\\)"),
        (([[1.0, 2.0], [3.0]], TWO), "'x'"),
    ],
)
def test_what_does_not_fit_is_refused(batch: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        feed(batch, (X, IDS))


def test_numbers_that_would_wrap_around_are_refused() -> None:
    small = InputInfo("token", (None,), "uint8")
    assert feed((np.array([255]),), (small,))["token"].dtype == np.uint8
    for number in (256, -1):
        with pytest.raises(DataError, match="'token' takes uint8"):
            feed((np.array([number]),), (small,))


def test_narrow_floats_go_in_and_unknown_types_and_shapes_are_left_alone() -> None:
    half = feed((ONE,), (InputInfo("x", None, "bfloat16"),))["x"]
    np.testing.assert_array_equal(half.astype(np.float32), ONE)
    odd = InputInfo("x", None, "a type of its own")
    assert feed((ONE,), (odd,))["x"] is ONE


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_beyond_a_narrow_type_are_refused(dtype: str) -> None:
    narrow = InputInfo("x", (2,), dtype)
    fed = feed((np.array([1.0, np.inf]),), (narrow,))["x"]
    np.testing.assert_array_equal(fed, np.array([1, np.inf], dtype))
    with pytest.raises(DataError, match=f"'x' takes {dtype}, got float64 with numbers"):
        feed((np.array([1.0, 1e300]),), (narrow,))
