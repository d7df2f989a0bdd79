"""A model that is broken on purpose: a score that calls it better points the wrong way, whatever
its name.

The weights of the widest op are shuffled, along both of their first axes, and the model is scored
once. What is better than the float model by more than a candidate may be worse is a loss that was
taken for a score, or does not measure the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.contract.adapter import Candidate, OpParameters
from octavo.core.contract.quantizer import Quantizer
from octavo.core.numerics.affine import Array
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import Unit

from .yardstick import Yardstick

CHEAP = 5.0
"""Seconds that an evaluation of the float model may take for the broken model to be scored as well:
it is a check, not the work."""

SHUFFLES = 3
"""So many shuffles must all score better. A model that knows nothing yet may gain by
one of them."""


def broken_model(realizer: Quantizer, seed: int) -> tuple[str, Candidate] | None:
    """Return the name of the widest op and a model with its weights shuffled; None where no weight
    can be quantized.

    Args:
        realizer: Calibrated.
        seed: Of the shuffle.
    """
    found = _widest(realizer.space.tunable)
    if found is None:
        return None
    unit, scheme = found
    recipe = realizer.space.recipe({unit.name: scheme})
    random = np.random.default_rng(seed)
    parameters = {
        name: _with_shuffled_weights(own, random)
        for name, own in realizer.parameters(recipe).items()
    }
    return unit.ops[0], realizer.session().apply(recipe, parameters)


def _with_shuffled_weights(
    own: OpParameters, random: np.random.Generator
) -> OpParameters:
    weight = None if own.weight is None else _shuffled(own.weight, random)
    further = tuple(_shuffled(other, random) for other in own.further)
    return replace(own, weight=weight, further=further)


def called_better(yardstick: Yardstick, metrics: Mapping[str, float]) -> bool:
    """True if scores are better than the float model's by more than is tolerated the other way, and
    by more than noise."""
    criterion = yardstick.criterion
    own = criterion.judge(yardstick.baseline, yardstick.baseline).margin
    gained = criterion.judge(metrics, yardstick.baseline).margin - own
    # A good score is refused by chance in one of a hundred runs at most.
    noise = yardstick.noise.needed(1, 0.01)
    return gained > own + noise


def refusal(op: str, yardstick: Yardstick, metrics: Mapping[str, float]) -> str:
    """Return what is wrong with a score that calls a broken model better, and the ways out."""
    baseline = yardstick.baseline
    both = [name for name in metrics if name in baseline]
    shown = ", ".join(f"{n} {metrics[n]:.6g} against {baseline[n]:.6g}" for n in both)
    return (
        f"the score calls a broken model better: with the weights of {op!r} shuffled it is "
        f"{shown} of the float model. "
        "It reads like a loss: say higher_is_better=False (Python), higher_is_better = false "
        "under [accuracy], or "
        "--lower-is-better; or, if higher_is_better is said already, the other way. Where the "
        "score is right after "
        "all, accuracy.guard = false turns this check off"
    )


def _widest(units: tuple[Unit, ...]) -> tuple[Unit, OpScheme] | None:
    """Return the unit with the most weights, and its finest scheme of them."""
    for unit in sorted(units, key=lambda u: -u.parameters):
        schemes = [s for s in unit.choices if s.weight is not None]
        if schemes:
            return unit, max(schemes, key=lambda s: s.weight_bits)
    return None


def _shuffled(weight: QuantizedTensor, random: np.random.Generator) -> QuantizedTensor:
    """Return a weight with its codes in another order; scales stay where they are."""
    codes: Array = weight.codes
    xp = array_namespace(codes)
    for axis in range(min(2, len(codes.shape))):
        order = random.permutation(codes.shape[axis])
        codes = xp.take(codes, xp.asarray(order, device=device(codes)), axis=axis)
    return QuantizedTensor(codes, weight.params, weight.extra)
