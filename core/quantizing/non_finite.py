"""Weights that hold NaN or Inf, found when a model is opened and before the first trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from array_api_compat import array_namespace

from octavo.core.contract.adapter import Opened, Session
from octavo.core.errors import NonFiniteWeight
from octavo.core.numerics.affine import Array
from octavo.core.values.capability import Capability
from octavo.core.values.graph import ModelView
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


def refuse_parameters(session: Session, view: ModelView, offered: Capability) -> None:
    """Refuse a model with a parameter that no setting can work around.

    Those are biases, gains and shifts of norms that the view names, and weights of ops that stay
    float whatever is asked: they spoil every candidate. A weight that may be quantized is left to
    :func:`non_finite_ops`, since its op can be kept out of the way.

    Args:
        session: Gives the tensors; each is looked at once.
        view: Names them.
        offered: Says which ops can be quantized.

    Raises:
        NonFiniteWeight: If one holds NaN or Inf; the message names the tensor and the op.
    """
    looked_at: set[str] = set()
    for tensor, owner in _parameters(view, offered):
        if tensor in looked_at:
            continue
        looked_at.add(tensor)
        if not _is_finite(session.tensor(tensor)):
            raise NonFiniteWeight(
                f"tensor {tensor!r} of {owner!r} holds NaN or Inf; "
                "repair the model, or export it again"
            )


def _parameters(view: ModelView, offered: Capability) -> Iterator[tuple[str, str]]:
    """Yield (tensor, op or group that it belongs to)."""
    for op in view.ops:
        if op.bias is not None:
            yield op.bias, op.name
        is_float_only = len(offered.for_op(op, simulated=True)) == 1
        for weight in op.weights if is_float_only else ():
            yield weight.name, op.name
    for group in view.groups:
        for name in filter(None, (group.gain, group.shift)):
            yield name, group.producer


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
