"""What calibration must observe: the probes that schemes and transforms of a space ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Literal

from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.contract.algorithm import NeedsConfig
from octavo.core.contract.calibrator import Probe
from octavo.core.numerics.rows import rows_of
from octavo.core.values.graph import Group, ModelView, Op, Weight
from octavo.core.values.scheme import MINMAX, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace
from octavo.core.values.topology import shared_scales

from .chains import check_chain
from .input_features import feature_probes

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost

_CHANNELS_FIRST = ("conv", "conv_transpose", "max_pool", "avg_pool", "batch_norm")
"""Op types whose activations have their channels on axis 1; all others have them last."""


class ProbePlan:
    """Tells what any recipe of a space could need of calibration.

    Args:
        view: The model.
        space: Its schemes and transforms.
        host: Knows what algorithms and transforms need.

    Attributes:
        sharing: Value -> all values that share its scale; values that share with none are left out.
    """

    def __init__(self, view: ModelView, space: TuningSpace, host: PluginHost) -> None:
        self._view = view
        self._space = space
        self._host = host
        self.sharing = shared_scales(view)

    def after(self, transforms: tuple[PartChoice, ...]) -> tuple[Probe, ...]:
        """Return what schemes, and transforms that may follow, ask of the statistics after
        ``transforms``."""
        wanted = dict.fromkeys(self._probes_of_schemes())
        ranged = frozenset(
            probe.value for probe in wanted if probe.calibrator == MINMAX
        )
        for choice in self._that_may_follow(transforms):
            wanted.update(dict.fromkeys(self._probes_of_transform(choice, ranged)))
        return tuple(wanted)

    def _that_may_follow(
        self, transforms: tuple[PartChoice, ...]
    ) -> Iterable[PartChoice]:
        n = len(transforms)
        longer = [more[n:] for more in self._space.transforms if more[:n] == transforms]
        return dict.fromkeys(chain.from_iterable(longer))

    def _probes_of_schemes(self) -> Iterable[Probe]:
        for unit in self._space.tunable:
            for op in (self._view.by_name[name] for name in unit.ops):
                for scheme in unit.choices:
                    yield from self._probes_of(op, scheme)

    def _probes_of(self, op: Op, scheme: OpScheme) -> Iterable[Probe]:
        if scheme.mode == "static":
            if scheme.input is not None:
                yield from self._range_probes(op, scheme, scheme.input, op.inputs)
            if scheme.output is not None:
                yield from self._range_probes(op, scheme, scheme.output, op.outputs)
        if scheme.weight is not None and op.weight is not None:
            needs = self.needs_of(scheme)
            for user in self.users(op.weight) if needs else ():
                yield from feature_probes(user, needs)

    def _range_probes(
        self, op: Op, scheme: OpScheme, spec: QuantSpec, values: Iterable[str]
    ) -> Iterable[Probe]:
        axis = axis_of(op, spec)
        for value in values:
            for together in self.sharing.get(value, (value,)):
                yield Probe(together, scheme.calibrator, axis)

    def _probes_of_transform(
        self, choice: PartChoice, ranged: Collection[str]
    ) -> Iterable[Probe]:
        needs = self.needs("transforms", choice)
        for group, member in self._rescaled_members():
            yield from feature_probes(member, needs & FEATURE_OBSERVERS.keys())
            rows = rows_of(member)
            if rows is not None and (group.value in ranged or "channel_range" in needs):
                # Channel ranges give the rescaled value's range without a second pass.
                yield Probe(group.value, MINMAX, rows.channel_axis)

    def _rescaled_members(self) -> Iterable[tuple[Group, Op]]:
        for group in self._view.groups:
            for member in group.members if group.kind == "rescale" else ():
                yield group, self._view.by_name[member]

    def needs_of(self, scheme: OpScheme) -> frozenset[str]:
        """Return what a scheme's weight algorithms need together.

        Raises:
            SchemeError: If one that follows another cannot go on from it.
        """
        check_chain(scheme, self._host)
        needs = (self.needs("algorithms", choice) for choice in scheme.algorithms)
        return frozenset(chain.from_iterable(needs))

    def weights_that_need(self, need: str) -> tuple[str, ...]:
        """Return the names of the weights for which some scheme's algorithm has this need."""
        found: dict[str, None] = {}
        for unit in self._space.tunable:
            schemes = [scheme for scheme in unit.choices if scheme.weight]
            if any(need in self.needs_of(scheme) for scheme in schemes):
                for name in unit.ops:
                    weights = self._view.by_name[name].weights
                    found.update((weight.name, None) for weight in weights)
        return tuple(found)

    def needs(
        self, kind: Literal["algorithms", "transforms"], choice: PartChoice
    ) -> frozenset[str]:
        """Return what an algorithm or a transform needs with its settings."""
        settings = self._host.read(kind, choice.table())
        needs = self._host.part(kind, choice.kind).needs
        return settings.needs(needs) if isinstance(settings, NeedsConfig) else needs

    def users(self, weight: Weight) -> tuple[Op, ...]:
        """Every op that uses a weight."""
        return tuple(
            o for o in self._view.ops if any(w.name == weight.name for w in o.weights)
        )


def axis_of(op: Op, spec: QuantSpec) -> int | None:
    """Return the channel axis of an op's activations where ``spec`` has a range for each channel.

    None where it has one range for all.
    """
    if spec.granularity != "channel":
        return None
    return 1 if op.type in _CHANNELS_FIRST else -1
