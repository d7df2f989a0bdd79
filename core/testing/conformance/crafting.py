"""Decisions that the kit makes itself, where it knows what two of them must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.core.contract.adapter import Batch, Candidate, OpParameters
from octavo.core.numerics.affine import QuantParams, integer_range
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

from .case import like, outputs
from .visible import Bench

PRODUCTS = frozenset({"linear", "conv", "conv_transpose"})
"""Types whose result is linear in one activation and one weight."""


class Crafted:
    """One op under one scheme, whose decisions the kit changes.

    Args:
        bench: Where the op stands.
        op: An op of a type in :data:`PRODUCTS`.
        scheme: One of its offers.
    """

    def __init__(self, bench: Bench, op: Op, scheme: OpScheme) -> None:
        self.bench = bench
        self.op = op
        self.scheme = scheme
        recipe, self._others = bench.decisions(op, scheme)
        self.recipe: Recipe = recipe
        self.decided: OpParameters = self._others[op.name]

    @property
    def what(self) -> str:
        """The op and its scheme in words."""
        return f"{self.op.name} ({self.op.type}) as [{self.scheme}]"

    def run(
        self, decided: OpParameters, batches: Sequence[Batch] | None = None
    ) -> np.ndarray:
        """Return all outputs of the model under changed decisions, flat.

        Args:
            decided: For the op.
            batches: None for those of the case.
        """
        given = self.bench.case.batches if batches is None else batches
        found = outputs(self.applied(decided), given)
        return np.concatenate([y.ravel() for y in found])

    def applied(self, decided: OpParameters) -> Candidate:
        """Return the model under changed decisions."""
        changed = {**self._others, self.op.name: decided}
        return self.bench.opened.session.apply(self.recipe, changed)

    # The weight

    @property
    def weight(self) -> QuantizedTensor:
        """What was decided for the weight."""
        assert self.decided.weight is not None
        return self.decided.weight

    def with_codes(self, codes: np.ndarray, params: QuantParams) -> OpParameters:
        """Return the decisions with another weight."""
        native = like(codes.astype(to_numpy(self.weight.codes).dtype), self._native)
        return replace(self.decided, weight=QuantizedTensor(native, params))

    def without_products(self) -> OpParameters:
        """Return the decisions with a weight of zeros: the op writes its bias."""
        return self.with_codes(self.zero_codes(), self.weight.params)

    def zero_codes(self) -> np.ndarray:
        """Return the zero point of each element of the weight, int64."""
        params = self.weight.params
        ones = replace(params, scale=params.scale * 0 + 1)
        zeros = QuantizedTensor(self.weight.codes * 0, ones)
        return -np.asarray(to_numpy(zeros.dequantize())).astype(np.int64)

    def spread(self, factors: np.ndarray) -> np.ndarray:
        """Return factors of the scales, one for each element of the weight."""
        params = self.weight.params
        plain = QuantParams(
            like(factors.astype(np.float32), params.scale),
            params.zero_point * 0,
            params.spec,
            params.axis,
        )
        ones = QuantizedTensor(self.weight.codes * 0 + 1, plain)
        return np.asarray(to_numpy(ones.dequantize())).astype(np.int64)

    def scaled(self, factors: np.ndarray) -> QuantParams:
        """Return the weight's parameters with other scales."""
        params = self.weight.params
        made = to_numpy(params.scale) * factors.astype(np.float32)
        return replace(params, scale=like(np.asarray(made, np.float32), params.scale))

    # The input

    def with_input(self, scale: float, zero_point: int) -> OpParameters:
        """Return the decisions with another grid of the input."""
        params = self.decided.inputs[0]
        assert params is not None
        grid = QuantParams(
            like(np.asarray(scale, np.float32), params.scale),
            like(np.asarray(zero_point, np.int32), params.zero_point),
            params.spec,
            params.axis,
        )
        return replace(self.decided, inputs=(grid, *self.decided.inputs[1:]))

    def grid(self) -> tuple[float, int, int, int]:
        """Return scale, zero point, smallest and largest code of the input."""
        params = self.decided.inputs[0]
        assert params is not None
        low, high = integer_range(params.spec)
        zero_point = int(to_numpy(params.zero_point))
        return float(to_numpy(params.scale)), zero_point, low, high

    # The bias

    def with_bias(self, bias: np.ndarray) -> OpParameters:
        """Return the decisions with a corrected bias."""
        native = like(bias.astype(np.float32), self._native)
        return replace(self.decided, bias=native)

    def own_bias(self) -> np.ndarray:
        """Return the model's own bias."""
        assert self.op.bias is not None
        return np.asarray(to_numpy(self.bench.opened.session.tensor(self.op.bias)))

    @property
    def _native(self) -> Any:
        return self.weight.codes
