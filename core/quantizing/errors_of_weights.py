"""How far the quantized weights of a model are from its float ones."""

from __future__ import annotations

from collections.abc import Iterator

from array_api_compat import array_namespace

from octavo.core.contract.adapter import OpParameters, Session
from octavo.core.contract.candidate import Candidate
from octavo.core.numerics.affine import Array
from octavo.core.values.graph import Op
from octavo.core.values.recipe import Recipe

from .realize import Realizer


def weight_errors(
    realizer: Realizer, candidate: Candidate
) -> Iterator[tuple[str, float]]:
    """Yield (op, squared error of its weights as a share of their own square), in execution order.

    Weights that the realizer has quantized for the candidate are not quantized again. Ops without a
    weight, and those whose weight is all zeros, are left out.

    Args:
        realizer: It made the candidate.
        candidate: Of its recipe.
    """
    recipe, ledger = candidate.recipe, candidate.ledger
    carried = {}
    for name, scheme in recipe.schemes.items():
        line = ledger.get(name)
        if line is None or not line.applied.is_float:
            carried[name] = scheme
    parameters = realizer.parameters(Recipe(carried, recipe.transforms, recipe.backend))
    if recipe.recovery:
        # What was learned is not the realizer's, and lies on another grid.
        learned = candidate.decided()
        parameters = {n: learned.get(n, own) for n, own in parameters.items()}
    session = realizer.session(recipe.transforms)
    for name, decided in parameters.items():
        op = realizer.opened.view.by_name[name]
        if decided.weight is None:
            continue
        share = _share(op, decided, session)
        if share is not None:
            yield name, share


def _share(op: Op, decided: OpParameters, session: Session) -> float | None:
    """Return the squared error of an op's weights as a share of their square; None for zeros."""
    assert decided.weight is not None
    lost = 0.0
    whole = 0.0
    quantized = (decided.weight, *decided.further)
    for held, codes in zip(op.weights, quantized, strict=True):
        weight = session.tensor(held.name)
        lost += _square(weight - codes.dequantize())
        whole += _square(weight)
    return lost / whole if whole else None


def _square(x: Array) -> float:
    xp = array_namespace(x)
    # Millions of squares are summed, of which the errors are small.
    return float(xp.sum(xp.square(x), dtype=xp.float64))
