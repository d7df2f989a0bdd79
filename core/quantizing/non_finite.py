"""Weights that hold NaN or Inf, found before the first trial."""

from __future__ import annotations

from collections.abc import Mapping

from array_api_compat import array_namespace

from octavo.core.contract.adapter import Opened
from octavo.core.errors import NonFiniteWeight
from octavo.core.numerics.affine import Array
from octavo.core.values.space import TuningSpace


def non_finite_ops(opened: Opened, space: TuningSpace) -> Mapping[str, str]:
    """Return tunable op -> what is wrong with its weight; each tensor is looked at once."""
    verdicts: dict[str, bool] = {}
    found: dict[str, str] = {}
    names = [name for unit in space.tunable for name in unit.ops]
    for name in names:
        for weight in opened.view.by_name[name].weights:
            if weight.name not in verdicts:
                verdicts[weight.name] = _is_finite(opened.session.tensor(weight.name))
            if not verdicts[weight.name]:
                found[name] = f"weight {weight.name!r} holds NaN or Inf"
    return found


def refuse(found: Mapping[str, str]) -> None:
    """Raise for the first op of :func:`non_finite_ops`.

    Raises:
        NonFiniteWeight: If there is one; the message names the tensor and the op.
    """
    for name, why in found.items():
        raise NonFiniteWeight(
            f"{why} (op {name!r}): repair it, keep the op in float with a rule, "
            "or set non_finite to 'float'"
        )


def _is_finite(array: Array) -> bool:
    if 0 in array.shape:
        return True
    xp = array_namespace(array)
    # NaN and Inf survive into the extremes; no temporary of the weight's size is made.
    return bool(xp.isfinite(xp.max(array)) & xp.isfinite(xp.min(array)))
