"""One value that some linear ops read, as transforms see it: a view, weights, statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.core.calibration.calibrators.minmax import MinMax, MinMaxConfig
from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.calibrator import Observer, Probe
from octavo.core.contract.plugins import PluginHost
from octavo.core.numerics.channels import EVERY
from octavo.core.numerics.rows import Rows
from octavo.core.values.graph import Group, ModelView, Op, Weight
from octavo.core.values.scheme import MINMAX, PartChoice

HOST = PluginHost(third_party=False)
GROUP = "value -> 0"


def _observer(probe: Probe) -> Observer:
    if probe.rows is not None:
        return FEATURE_OBSERVERS[probe.calibrator.kind](probe.rows)
    return MinMax(MinMaxConfig(), probe.axis)


def view_of(weights: Sequence[np.ndarray], **group: Any) -> ModelView:
    """Return a model of linear ops that read ``value``; weights have shape (outputs, inputs)."""
    ops = tuple(
        Op(str(i), "linear", ("value",), (f"out{i}",), Weight(str(i), w.shape))
        for i, w in enumerate(weights)
    )
    names = tuple(op.name for op in ops)
    settings: dict[str, Any] = {"takes": EVERY, **group}
    channels = weights[0].shape[1]
    return ModelView(
        ops,
        (Group(GROUP, "rescale", names, "", channels, "value", **settings),),
    )


def factors_of(
    kind: str,
    x: np.ndarray,
    weights: Sequence[np.ndarray],
    tensors: dict[str, np.ndarray] | None = None,
    group: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return what a transform chooses for inputs (rows, channels) and the weights that read them;
    None where it leaves the group alone."""
    view = view_of(weights, **(group or {}))
    names = ("gram", "channel_range", "channel_mean")
    probes = [Probe("value", PartChoice(kind=n), None, Rows()) for n in names]
    statistics = Statistics([*probes, Probe("value", MINMAX, -1)], _observer)
    for part in np.array_split(x, 2):
        statistics.update("value", part)
    held = {str(i): w for i, w in enumerate(weights)} | (tensors or {})
    part = HOST.part("transforms", kind)
    made: Any = part.build(part.config(kind=kind, **options))
    found = made.factors(view, held.__getitem__, statistics, view.by_name)
    return found.get(GROUP)
