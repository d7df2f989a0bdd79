"""A model after its transforms: the rescaled session, and what calibration would have seen of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.adapter import Session
from octavo.core.contract.calibrator import Probe
from octavo.core.numerics.channels import Changes, Factors, chained, channel_maps, is_online
from octavo.core.numerics.rows import rows_of
from octavo.core.values.graph import ModelView
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
    """

    session: Session
    statistics: Statistics
    before: Prepared | None = None
    ops: frozenset[str] = frozenset()
    online: frozenset[str] = frozenset()
    changes: Changes = field(default_factory=dict)
    seers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)

    def states(self) -> Iterator[Prepared]:
        """Yield this state and those before it, the last transform's first."""
        state: Prepared | None = self
        while state is not None:
            yield state
            state = state.before

    def seen_by(self, op: str, value: str) -> Statistics:
        """Return what calibration saw of ``value`` as ``op`` meets it; whoever a transform leaves out meets what was there before."""
        seen = self
        for state in self.states():
            if value in state.seers:
                if op in state.seers[value]:
                    break
                assert state.before is not None
                seen = state.before
        return seen.statistics


def rescaled(
    before: Prepared,
    factors: Mapping[str, Factors],
    view: ModelView,
    wanted: Collection[Probe],
    observe: Callable[[tuple[Probe, ...], Changes], Statistics],
) -> Prepared:
    """Return the state after one more rescaling; its statistics are derived from those before it.

    Args:
        before: The state before.
        factors: Name of a ``rescale`` group -> factors.
        view: The model.
        wanted: What somebody may ask of the new statistics.
        observe: (probes, changed values) -> statistics; called only for what is wanted and cannot be derived.
    """
    seeing: dict[str, frozenset[str]] = {}
    changes = dict(before.changes)
    statistics = before.statistics
    missing: list[Probe] = []
    touched, inside = set(before.ops), set(before.online)
    for group, change in channel_maps(view.groups, factors):
        online = is_online(group, change, already=group.name in inside)
        inside |= {group.name} if online else set()
        values = frozenset((group.value,)) if online else values_between(view, group)
        # A convolution's channels stay on axis 1 of all that follows, a pooled and flattened sample included.
        names = group.members if online else (group.producer, *group.members)
        ends = (view.by_name[n] for n in names if n in view.by_name)
        rows = next((r for op in ends if (r := rows_of(op)) is not None), None)
        axis = rows.channel_axis if rows is not None else -1
        for value in values:
            mine = frozenset(group.members) if online else seers(view, group, value, values)
            seeing[value] = seeing.get(value, frozenset()) | mine
            touched |= mine
            changes[value] = (chained((*changes.get(value, ((), axis))[0], change)), axis)
        touched.update(group.members)
        statistics, lost = statistics.rescaled(dict.fromkeys(values, change))
        missing += lost
    again = tuple(probe for probe in missing if probe in wanted)
    if again:
        statistics = statistics.replaced(observe(again, changes))
    return Prepared(
        before.session.rescale(factors),
        statistics,
        before,
        frozenset(touched),
        frozenset(inside),
        changes,
        seeing,
    )
