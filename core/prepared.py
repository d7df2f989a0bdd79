"""A model after its transforms: the rescaled session, and what calibration would have seen of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .adapter import Session
from .graph import ModelView
from .numerics.affine import Array
from .numerics.rows import rows_of
from .statistics import Probe, Statistics
from .topology import seers, values_between


@dataclass(frozen=True, slots=True)
class Prepared:
    """A session after a tuple of transforms.

    Attributes:
        session: The rescaled session.
        statistics: As its ops see their inputs.
        changed: Names of the ops and values that differ from the original's.
        divided: Value -> (all factors so far, shape (channels,); channel axis).
        seers: Divided value -> the ops that meet it divided; for every other op it is still the original's.
    """

    session: Session
    statistics: Statistics
    changed: frozenset[str] = frozenset()
    divided: Mapping[str, tuple[Array, int]] = field(default_factory=dict)
    seers: Mapping[str, frozenset[str]] = field(default_factory=dict)


def rescaled(
    before: Prepared,
    factors: Mapping[str, Array],
    view: ModelView,
    observe: Callable[[tuple[Probe, ...], Mapping[str, tuple[Array, int]]], Statistics],
) -> Prepared:
    """Return the state after one more rescaling; its statistics are derived from those before it.

    Args:
        before: The state before.
        factors: Name of a ``rescale`` group -> factors.
        view: The model.
        observe: (probes, divided values) -> statistics; called only for what cannot be derived.
    """
    if not factors:
        return before
    divided: dict[str, Array] = {}
    axes: dict[str, int] = {}
    seeing = dict(before.seers)
    changed = set(before.changed)
    for group in view.groups:
        if group.name in factors:
            # A convolution's channels stay on axis 1 of all that follows, a pooled and flattened sample included.
            ends = (view.by_name[n] for n in (group.producer, *group.members) if n in view.by_name)
            rows = next((r for op in ends if (r := rows_of(op)) is not None), None)
            values = values_between(view, group)
            for value in values:
                seeing[value] = seeing.get(value, frozenset()) | seers(view, group, value, values)
                axes[value] = rows.channel_axis if rows is not None else -1
                divided[value] = divided[value] * factors[group.name] if value in divided else factors[group.name]
            changed |= {*group.members, group.producer, *values}
    together = dict(before.divided)
    for value, f in divided.items():
        together[value] = (together[value][0] * f if value in together else f, axes[value])
    statistics, missing = before.statistics.rescaled(divided)
    if missing:
        statistics = statistics.replaced(observe(missing, together))
    return Prepared(before.session.rescale(factors), statistics, frozenset(changed), together, seeing)
