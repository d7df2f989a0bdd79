"""Sessions after transforms, each made once from the one before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from octavo.core.contract.adapter import Opened
from octavo.core.contract.transform import Rescaling
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import ChannelMap, Factors
from octavo.core.system.log import remark
from octavo.core.values.graph import Group, ModelView
from octavo.core.values.scheme import PartChoice
from octavo.core.values.space import TuningSpace

from .observing import Observation
from .probing import ProbePlan
from .rescaled import Prepared, rescaled

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost

Transforms = tuple[PartChoice, ...]


class TransformedSessions:
    """The states of one model, by the transforms that were applied to it.

    Args:
        opened: The session.
        space: Its tunable ops may be rescaled.
        host: Builds transforms by name.
        plan: What is observed for them.
        observation: What calibration saw.
    """

    def __init__(
        self,
        opened: Opened,
        space: TuningSpace,
        host: PluginHost,
        plan: ProbePlan,
        observation: Observation,
    ) -> None:
        self._opened = opened
        self._space = space
        self._host = host
        self._plan = plan
        self._observation = observation
        self._states: dict[Transforms, Prepared] = {}

    def forget(self) -> None:
        """Drop every state: calibration saw something new."""
        self._states.clear()

    def after(self, transforms: Transforms) -> Prepared:
        """Return the state after ``transforms``; it is made once.

        Raises:
            SchemeError: If the backend lacks what a transform needs.
            DataError: If a value must be observed again, and the data can be read only once.
        """
        if transforms not in self._states:
            self._states[transforms] = (
                self._extended(transforms) if transforms else self._first()
            )
        return self._states[transforms]

    def _first(self) -> Prepared:
        seen = self._observation.statistics
        return Prepared(self._opened.session, seen or self._observation.nothing())

    def _extended(self, transforms: Transforms) -> Prepared:
        before = self.after(transforms[:-1])
        choice = transforms[-1]
        self._check_offered(choice)
        settings = self._host.read("transforms", choice.table())
        rescaling: Rescaling = self._host.part("transforms", choice.kind).build(
            settings
        )
        factors = self._factors(rescaling, choice, before)
        wanted = frozenset(self._plan.after(transforms))
        after = rescaled(
            choice,
            before,
            factors,
            self._opened.view,
            wanted,
            lambda probes, changes: self._observation.after(choice, probes, changes),
        )
        return replace(after, remarks=self._remarks(rescaling, choice, before.remarks))

    def check_required(self) -> None:
        """Refuse transforms of every recipe that the backend cannot carry out, before any work.

        Raises:
            SchemeError: If it lacks what one of them needs.
        """
        for choice in self._space.required:
            self._check_offered(choice)

    def _check_offered(self, choice: PartChoice) -> None:
        steps = [
            n
            for n in self._plan.needs("transforms", choice)
            if n.startswith("rescale:")
        ]
        lacking = sorted({"rescale", *steps} - self._opened.capability.features)
        if lacking:
            raise SchemeError(
                f"{self._opened.name} offers no {', '.join(lacking)}, which {choice} needs; "
                "leave that transform out of the configuration"
            )

    def _factors(
        self, rescaling: Rescaling, choice: PartChoice, before: Prepared
    ) -> Mapping[str, Factors]:
        view = self._opened.view
        free = {
            name: view.by_name[name]
            for unit in self._space.tunable
            for name in unit.ops
        }
        factors = rescaling.factors(
            view, norms_as_read(view, before), before.statistics, free
        )
        if not factors:
            rescalable = (g for g in view.groups if g.kind == "rescale")
            reasons = dict.fromkeys(map(rescaling.passes_over, rescalable))
            why = "; ".join(("the recipe runs without it", *filter(None, reasons)))
            remark(
                f"transform {choice} found nothing to rescale on {self._opened.name}: {why}",
                "quantizing",
            )
        return factors

    def _remarks(
        self, rescaling: Rescaling, choice: PartChoice, before: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Return op -> what this transform and those before it could not do for it."""
        remarks = dict(before)
        for group in self._opened.view.groups:
            if group.kind != "rescale":
                continue
            why = _why_left(rescaling, group)
            if not why:
                continue
            why = f"{choice.kind}: {why}"
            for name in group.members:
                remarks[name] = "; ".join(filter(None, (remarks.get(name), why)))
        return remarks


def _why_left(rescaling: Rescaling, group: Group) -> str:
    """Return what a transform does not change over a group, and why; empty if it changes all."""
    left = sorted(rescaling.carries - group.takes)
    if left:
        takes = ", ".join(sorted(group.takes))
        return f"no {', '.join(left)} over {group.name}, which takes {takes}"
    why = rescaling.passes_over(group)
    return f"nothing over {group.name}: {why}" if why else ""


def norms_as_read(view: ModelView, before: Prepared) -> Callable[[str], Array]:
    """Return ``Session.tensor``, but with norms' gains and shifts as members meet the value.

    Where members change a value by steps of their own, the norm that writes it stays as it was.
    """
    *_, opened = before.states()
    group_of: dict[str, Group] = {}
    for group in view.groups:
        if group.kind == "rescale" and group.gain and group.value in before.changes:
            group_of[group.gain] = group
            group_of[group.shift] = group

    def tensor(name: str) -> Array:
        group = group_of.get(name)
        if group is None:
            return before.session.tensor(name)
        array = opened.session.tensor(name)
        maps, _ = before.changes[group.value]
        is_gain = name == group.gain
        # A gain that is stored as what is added to one is divided as the norm multiplies by it.
        one_more = 1.0 if is_gain and group.offset else 0.0
        array = array + one_more
        for change in maps:
            array = ChannelMap(change.scale, None if is_gain else change.shift).apply(
                array
            )
        return array - one_more

    return tensor
