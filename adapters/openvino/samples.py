"""Models of one op, by which schemes are tried and timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from octavo.plugin import Batch

_SIZE = 64
_ROWS = 8


def sample(kind: str, *, largest: bool = False) -> tuple[Any, Batch] | None:
    """Return a model of one op of a type and a batch for it; None where there is none.

    Args:
        kind: The op's type.
        largest: All weights and inputs are of one size and sign.
    """
    if kind not in _MAKERS:
        return None
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        if largest:
            return np.ones(shape, np.float32)
        drawn = random.normal(size=shape)
        # Sums are as large as what they are made of: one range holds both.
        return (drawn / math.sqrt(max(1, math.prod(shape[1:])))).astype(np.float32)

    inputs, made = _MAKERS[kind](draw)
    batch = tuple(_drawn(port, draw) for port in inputs)
    return ov.Model([made.output(0)], inputs, kind), batch


Draw = Callable[..., np.ndarray]


def _drawn(port: Any, draw: Draw) -> np.ndarray:
    shape = [d.get_length() for d in port.get_partial_shape()]
    if port.get_element_type() == ov.Type.i64:
        return np.arange(shape[0], dtype=np.int64)
    return draw(*shape)


def _input(*shape: int, name: str = "x", dtype: Any = np.float32) -> Any:
    made = ops.parameter(list(shape), dtype, name=name)
    made.output(0).set_names({name})
    return made


def _linear(draw: Draw) -> tuple[list[Any], Any]:
    x = _input(_ROWS, 2 * _SIZE)
    weight = ops.constant(draw(_SIZE, 2 * _SIZE))
    return [x], ops.matmul(x, weight, False, True)


def _conv(draw: Draw) -> tuple[list[Any], Any]:
    x = _input(1, 16, 8, 8)
    weight = ops.constant(draw(16, 16, 3, 3))
    return [x], ops.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1])


def _conv_transpose(draw: Draw) -> tuple[list[Any], Any]:
    x = _input(1, 16, 8, 8)
    weight = ops.constant(draw(16, 16, 3, 3))
    one = [1, 1]
    return [x], ops.convolution_backprop_data(x, weight, [2, 2], None, one, one, one)


def _matmul(draw: Draw) -> tuple[list[Any], Any]:
    a, b = _input(1, 4, _ROWS, _SIZE, name="a"), _input(1, 4, _SIZE, _ROWS, name="b")
    return [a, b], ops.matmul(a, b, False, False)


def _embedding(draw: Draw) -> tuple[list[Any], Any]:
    ids = _input(_ROWS, name="ids", dtype=np.int64)
    return [ids], ops.gather(ops.constant(draw(32, 2 * _SIZE)), ids, ops.constant(0))


def _two(make: Callable[[Any, Any], Any]) -> Callable[[Draw], tuple[list[Any], Any]]:
    def made(draw: Draw) -> tuple[list[Any], Any]:
        # Between convolutions, as it stands in models: alone it is compiled into a graph of floats.
        [x], before = _conv(draw)
        weight = ops.constant(draw(16, 32 if make is _concat else 16, 3, 3))
        one = [1, 1]
        made = ops.convolution(make(x, before), weight, one, one, one, one)
        return [x], made

    return made


def _concat(a: Any, b: Any) -> Any:
    return ops.concat([a, b], 1)


def _avg_pool(draw: Draw) -> tuple[list[Any], Any]:
    x = _input(1, 16, 8, 8)
    two, none = [2, 2], [0, 0]
    return [x], ops.avg_pool(x, two, none, none, two, True)


def _recurrent(gates: int) -> Callable[[Draw], tuple[list[Any], Any]]:
    def made(draw: Draw) -> tuple[list[Any], Any]:
        x = _input(2, 5, 32)
        state = ops.constant(np.zeros((2, 1, 32), np.float32))
        w, r = (ops.constant(draw(1, gates * 32, 32)) for _ in range(2))
        bias = ops.constant(np.zeros((1, gates * 32), np.float32))
        steps = ops.constant(np.array([5, 5]))
        if gates == 3:
            return [x], ops.gru_sequence(x, state, steps, w, r, bias, 32, "forward")
        states = (state, state)
        return [x], ops.lstm_sequence(x, *states, steps, w, r, bias, 32, "forward")

    return made


_MAKERS: dict[str, Callable[[Draw], tuple[list[Any], Any]]] = {
    "linear": _linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "matmul": _matmul,
    "embedding": _embedding,
    "add": _two(ops.add),
    "mul": _two(ops.multiply),
    "concat": _two(_concat),
    "avg_pool": _avg_pool,
    "lstm": _recurrent(4),
    "gru": _recurrent(3),
}
