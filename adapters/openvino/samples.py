"""Models of one op, by which schemes are tried and timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from octavo.plugin import Batch

_IMAGE, _KERNEL = (1, 16, 8, 8), (16, 16, 3, 3)
_ONE, _TWO, _NONE = [1, 1], [2, 2], [0, 0]
_ROWS, _WIDTH, _STEPS = 8, 64, 5

Shape = tuple[int, ...]


def _conv(x: Any, weight: Any) -> Any:
    return ops.convolution(x, weight, _ONE, _ONE, _ONE, _ONE)


def _between(make: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Between convolutions, as it stands in models: alone it becomes part of a graph of floats."""
    return lambda x, first, second: _conv(make(x, _conv(x, first)), second)


def _recurrent(make: Callable[..., Any], states: int) -> Callable[..., Any]:
    def made(x: Any, w: Any, r: Any) -> Any:
        hidden = r.get_output_shape(0)[-1]
        state = ops.constant(np.zeros((2, 1, hidden), np.float32))
        bias = ops.constant(np.zeros(w.get_output_shape(0)[:2], np.float32))
        steps = ops.constant(np.full(2, x.get_output_shape(0)[1]))
        return make(x, *[state] * states, steps, w, r, bias, hidden, "forward")

    return made


_MODELS: dict[str, tuple[tuple[Shape, ...], tuple[Shape, ...], Callable[..., Any]]] = {
    "linear": (
        ((_ROWS, 2 * _WIDTH),), ((_WIDTH, 2 * _WIDTH),),
        lambda x, w: ops.matmul(x, w, False, True),
    ),
    "conv": ((_IMAGE,), (_KERNEL,), _conv),
    "conv_transpose": (
        (_IMAGE,), (_KERNEL,),
        lambda x, w: ops.convolution_backprop_data(x, w, _TWO, None, _ONE, _ONE, _ONE),
    ),
    "matmul": (
        ((1, 4, _ROWS, _WIDTH), (1, 4, _WIDTH, _ROWS)), (),
        lambda a, b: ops.matmul(a, b, False, False),
    ),
    "embedding": (
        (), ((32, 2 * _WIDTH),),
        lambda ids, table: ops.gather(table, ids, ops.constant(0)),
    ),
    "add": ((_IMAGE,), (_KERNEL, _KERNEL), _between(ops.add)),
    "mul": ((_IMAGE,), (_KERNEL, _KERNEL), _between(ops.multiply)),
    "concat": (
        (_IMAGE,), (_KERNEL, (16, 32, 3, 3)), _between(lambda a, b: ops.concat([a, b], 1))
    ),
    "avg_pool": (
        (_IMAGE,), (), lambda x: ops.avg_pool(x, _TWO, _NONE, _NONE, _TWO, True),
    ),
    "lstm": (
        ((2, _STEPS, _WIDTH),), ((1, 4 * _WIDTH, _WIDTH),) * 2, _recurrent(ops.lstm_sequence, 2),
    ),
    "gru": (
        ((2, _STEPS, _WIDTH),), ((1, 3 * _WIDTH, _WIDTH),) * 2, _recurrent(ops.gru_sequence, 1),
    ),
}  # fmt: skip
"""Op type -> shapes of its inputs, of its weights, and what makes it of both."""


def sample(
    kind: str, *, largest: bool = False, times: int = 1
) -> tuple[Any, Batch] | None:
    """Return a model of one op of a type and a batch for it; None where there is none.

    Args:
        kind: The op's type.
        largest: All weights and inputs are of one size and sign.
        times: How many times larger its axes are, those of a kernel left out.
    """
    if kind not in _MODELS:
        return None
    random = np.random.default_rng(0)

    def draw(shape: Shape) -> np.ndarray:
        if largest:
            return np.ones(shape, np.float32)
        # Sums are as large as what they are made of: one range holds both.
        drawn = random.normal(size=shape) / math.sqrt(max(1, math.prod(shape[1:])))
        return drawn.astype(np.float32)

    def grown(shapes: tuple[Shape, ...]) -> list[Shape]:
        return [tuple(n if n < 4 else n * times for n in shape) for shape in shapes]

    shapes, weights, make = _MODELS[kind]
    batch = [draw(shape) for shape in grown(shapes)] or [np.arange(_ROWS)]
    inputs = [ops.parameter(array.shape, array.dtype) for array in batch]
    for place, port in enumerate(inputs):
        port.output(0).set_names({f"x{place}"})
    made = make(*inputs, *[ops.constant(draw(shape)) for shape in grown(weights)])
    return ov.Model([made.output(0)], inputs, kind), tuple(batch)
