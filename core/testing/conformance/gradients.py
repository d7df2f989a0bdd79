"""The promise, where an adapter makes it, that gradients repeat and Hessian products are linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.adapter import Opened
from octavo.core.numerics.arrays import to_numpy

from .case import AdapterCase, check_close_to_largest, check_equal, like


class Gradients:
    """``Session.gradients``."""

    def test_gradients_repeat(self, case: AdapterCase, opened: Opened) -> None:
        """An array for each batch and weight, the same for the same seed."""
        weights = _weights(opened)
        first = _collect(case, opened, weights, seed=1)
        again = _collect(case, opened, weights, seed=1)
        for name in weights:
            check_equal(first[name], again[name])

    def test_hessian_products_are_linear(
        self, case: AdapterCase, opened: Opened
    ) -> None:
        """H(2v) = 2 Hv, and v . Hv > 0 over all weights together."""
        weights = _weights(opened)
        random = np.random.default_rng(0)
        along = {}
        for name, weight in weights.items():
            drawn = random.normal(size=tuple(weight.shape))
            along[name] = like(drawn.astype(np.float32), weight)
        twice_along = {name: 2 * v for name, v in along.items()}
        once = _collect(case, opened, weights, along=along)
        twice = _collect(case, opened, weights, along=twice_along)
        curvature = 0.0
        for name in weights:
            doubled = [2 * product for product in once[name]]
            check_close_to_largest(doubled, twice[name], 1e-5)
            v = to_numpy(along[name])
            for product in once[name]:
                curvature += float((product * v).sum())
        assert curvature > 0


def _weights(opened: Opened) -> dict[str, Any]:
    """Return the weights of ops within reach, or skip the test."""
    names: dict[str, None] = {}
    for op in opened.view.ops:
        if op.weight and not op.out_of_reach:
            names[op.weight.name] = None
    if "gradients" not in opened.capability.features or not names:
        pytest.skip("the adapter offers no gradients, or the model has no weights")
    return {name: opened.session.tensor(name) for name in names}


def _collect(
    case: AdapterCase, opened: Opened, weights: Mapping[str, Any], **options: Any
) -> dict[str, list[np.ndarray]]:
    """Return every array that ``gradients`` gives, by weight, after looking at their shapes."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in weights}

    def keep(name: str, gradient: Any) -> None:
        found[name].append(to_numpy(gradient).copy())

    count = opened.session.gradients(case.batches, list(weights), keep, **options)
    assert count == len(case.batches)
    for name, arrays in found.items():
        assert len(arrays) == count, name
        shape = tuple(weights[name].shape)
        for array in arrays:
            assert array.shape == shape, name
    return found
