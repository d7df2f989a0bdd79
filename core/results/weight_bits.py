"""How many bits a weight takes in a saved model, with all that goes with its code."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.values.coverage import Coverage
from octavo.core.values.graph import ModelView
from octavo.core.values.ledger import Applied
from octavo.core.values.sizes import scheme_bytes


def bits_per_weight(
    view: ModelView | None, ledger: Mapping[str, Applied], coverage: Coverage
) -> dict[str, float]:
    """Return bits of the file for an average weight: codes, scales, zero points and repairs.

    Args:
        view: The model's ops; None where they are not known.
        ledger: What became of them.
        coverage: Which weights stay float, and in how many bits.

    Returns:
        ``quantized``: over the weights of the ops that are quantized, each tensor once for every
        form in which the file has it. ``all``: over all weights of the model, those kept in float
        among them. Empty where the ops are not known or the model has no weights.
    """
    if view is None or not coverage.total:
        return {}
    held: dict[tuple[object, ...], tuple[int, int]] = {}
    for op in view.ops:
        line = ledger.get(op.name)
        if line is None or line.applied.weight is None:
            continue
        scheme = line.applied
        for weight in op.weights:
            axis = weight.channel_axis
            form = (weight.name, axis, scheme.weight, scheme.algorithms)
            held[form] = (scheme_bytes(scheme, weight.shape, axis), weight.size)
    used = 8 * sum(own for own, _ in held.values())
    kept = sum(row.bits * row.elements for row in coverage.rows if row.is_float)
    found = {"all": (used + kept) / coverage.total}
    if held:
        found["quantized"] = used / sum(size for _, size in held.values())
    return found
