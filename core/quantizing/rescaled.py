"""A model after its transforms: the rescaled session, and what calibration would see of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.adapter import Session
from octavo.core.contract.calibrator import Probe
from octavo.core.numerics.channels import (
    Change,
    Changes,
    ChannelMap,
    Factors,
    chained,
    channel_maps,
    is_online,
)
from octavo.core.numerics.rows import rows_of
from octavo.core.values.graph import Group, ModelView
from octavo.core.values.scheme import PartChoice
from octavo.core.values.topology import seers, values_between


@dataclass(frozen=True, slots=True)
class Prepared:
    """A session after a tuple of transforms.

    Attributes:
        session: The rescaled session.
        statistics: As the ops of the last transform's groups see their inputs; see :meth:`seen_by`.
        before: The state before the last transform; None for the model as it was opened.
        ops: Ops whose weights differ from the original's.
        online: Groups whose members change what they read.
        changes: What all transforms so far did to values.
        seers: Value that the last transform changed -> the ops that meet it changed.
        remarks: Op -> what a transform could not do for it, for the ledger.
        steps: Op -> the transforms that changed what it reads, writes or multiplies, in order.
    """

    session: Session
    statistics: Statistics
    before: Prepared | None = None
    ops: frozenset[str] = frozenset()
    online: frozenset[str] = frozenset()
    changes: Changes = field(default_factory=dict)
    seers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, tuple[PartChoice, ...]] = field(default_factory=dict)

    def states(self) -> Iterator[Prepared]:
        """Yield this state and those before it, the last transform's first."""
        state: Prepared | None = self
        while state is not None:
            yield state
            state = state.before

    def seen_by(self, op: str, value: str) -> Statistics:
        """Return what calibration saw of ``value`` as ``op`` meets it."""
        return self.met_by(op, value).statistics

    def change(self, op: str, value: str) -> Change:
        """Return what was done to the original model's ``value`` before ``op`` meets it."""
        return self.met_by(op, value).changes.get(value, ((), -1))

    def met_by(self, op: str, value: str) -> Prepared:
        """Return the state whose ``value`` is what ``op`` meets.

        Whoever a transform leaves out meets what was there before.
        """
        seen = self
        for state in self.states():
            if value in state.seers:
                if op in state.seers[value]:
                    break
                assert state.before is not None
                seen = state.before
        return seen


def rescaled(
    choice: PartChoice,
    before: Prepared,
    factors: Mapping[str, Factors],
    view: ModelView,
    wanted: Collection[Probe],
    observe: Callable[[tuple[Probe, ...], Changes], Statistics],
) -> Prepared:
    """Return the state after one more rescaling.

    Its statistics are derived from those before it.

    Args:
        choice: The transform.
        before: The state before.
        factors: Name of a ``rescale`` group -> factors.
        view: The model.
        wanted: What somebody may ask of the new statistics.
        observe: (probes, changed values) -> statistics; called only for what is wanted and cannot
            be derived.
    """
    effect = _Effect(before)
    for group, change in channel_maps(view.groups, factors):
        effect.take(view, group, change)
    statistics = effect.statistics
    # What nobody may ask for is not worth another pass over the data.
    again = tuple(probe for probe in effect.missing if probe in wanted)
    if again:
        statistics = statistics.replaced(observe(again, effect.changes))
    return Prepared(
        before.session.rescale(factors),
        statistics,
        before,
        ops=before.ops | effect.touched,
        online=frozenset(effect.online),
        changes=effect.changes,
        seers=effect.seers,
        steps={
            **before.steps,
            **{op: (*before.steps.get(op, ()), choice) for op in effect.touched},
        },
    )


class _Effect:
    """What one rescaling does, group by group; the attributes are those of :class:`Prepared`.

    Attributes:
        touched: Ops that it changes.
        missing: Probes whose observers cannot be derived.
    """

    def __init__(self, before: Prepared) -> None:
        self.statistics = before.statistics
        self.missing: list[Probe] = []
        self.touched: set[str] = set()
        self.online = set(before.online)
        self.changes = dict(before.changes)
        self.seers: dict[str, frozenset[str]] = {}

    def take(self, view: ModelView, group: Group, change: ChannelMap) -> None:
        """Change the channels of one group's value."""
        online = is_online(group, change, already=group.name in self.online)
        if online:
            self.online.add(group.name)
        values = frozenset((group.value,)) if online else values_between(view, group)
        axis = _channel_axis(view, group, online=online)
        for value in values:
            mine = (
                frozenset(group.members)
                if online
                else seers(view, group, value, values)
            )
            self.seers[value] = self.seers.get(value, frozenset()) | mine
            self.touched |= mine
            earlier, _ = self.changes.get(value, ((), axis))
            self.changes[value] = (chained((*earlier, change)), axis)
        self.touched.update(group.members)
        self.statistics, lost = self.statistics.rescaled(dict.fromkeys(values, change))
        self.missing += lost


def _channel_axis(view: ModelView, group: Group, *, online: bool) -> int:
    """Return where the channels of a group's value lie.

    A convolution's channels stay on axis 1 of all that follows, a pooled and flattened sample
    included.
    """
    names = group.members if online else (group.producer, *group.members)
    for name in names:
        op = view.by_name.get(name)
        rows = rows_of(op) if op is not None else None
        if rows is not None:
            return rows.channel_axis
    return -1
