"""The model on every backend of a run, with the data and the space of each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from octavo.core.calibration.data import CalibrationData
from octavo.core.contract.adapter import Opened
from octavo.core.contract.strategy import SuggestsTransforms
from octavo.core.numerics.affine import is_integer
from octavo.core.opening.opening import open_all
from octavo.core.opening.spaces import build_spaces
from octavo.core.opening.speeds import is_fast_first, worth_trying
from octavo.core.quantizing.realize import Realizer
from octavo.core.quantizing.recovering import TrainFn
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import TuningSpace

from .asked import Asked
from .bench import Backend
from .settling import Settling


@dataclass(frozen=True)
class Ground:
    """The model, opened on every backend of the run.

    Attributes:
        opened: The one that the model is opened on as it was given comes first.
        data: By backend.
        spaces: By backend.
        baseline: Name of the backend whose float model is the baseline.
        native: Score functions are given the backend's own model.
    """

    opened: tuple[Opened, ...]
    data: Mapping[str, CalibrationData]
    spaces: Mapping[str, TuningSpace]
    baseline: str
    native: bool

    @property
    def source(self) -> Opened:
        """The backend whose float model is the baseline."""
        return next(each for each in self.opened if each.name == self.baseline)

    def before_narrow_scales(self) -> Ground:
        """Return the same with the spaces that octavo 0.1 had: scales of integers in groups were
        float32 then."""
        spaces = {name: _wide_scales(space) for name, space in self.spaces.items()}
        return replace(self, spaces=spaces)

    @property
    def guarded(self) -> Opened:
        """The first backend that has a choice."""
        for opened in self.opened:
            if self.spaces[opened.name].tunable:
                return opened
        return self.source


def _wide_scales(space: TuningSpace) -> TuningSpace:
    units = []
    for unit in space.units:
        choices = dict.fromkeys(map(_wide_scale, unit.choices))
        units.append(replace(unit, choices=tuple(choices)))
    return replace(space, units=tuple(units))


def _wide_scale(scheme: OpScheme) -> OpScheme:
    weight = scheme.weight
    if weight is None or weight.group_size is None:
        return scheme
    # Double quantization of nf4 was offered then.
    narrow = ("float16", "uint8") if is_integer(weight) else ("float16",)
    if weight.scale_dtype not in narrow:
        return scheme
    return scheme.variant(weight=weight.model_copy(update={"scale_dtype": None}))


def open_ground(
    asked: Asked, model: Any, calibration: Any, arrays: bool, stack: ExitStack
) -> Ground:
    """Open the model on every backend, and build the spaces."""
    settings = asked.settings
    found = open_all(model, calibration, settings, asked.host, stack)
    opened = found.backends
    suggested: Mapping[str, PartChoice] = {}
    if settings.transforms is None and isinstance(asked.strategy, SuggestsTransforms):
        suggested = asked.strategy.suggested
    spaces = build_spaces(
        opened,
        settings.rules,
        transforms=settings.combinations,
        require=settings.require,
        suggested=suggested,
        simulated=settings.simulated,
        host=asked.host,
    )
    native = found.native and not arrays
    return Ground(tuple(opened), found.data, spaces, found.baseline, native)


def build_backends(
    asked: Asked, ground: Ground, train_fn: TrainFn | None = None
) -> dict[str, Backend]:
    """Return what the run's steps work with on each backend, by its name."""
    settings = asked.settings
    found = {}
    for opened in ground.opened:
        name = opened.name
        space = ground.spaces[name]
        realizer = Realizer(
            opened,
            space,
            asked.host,
            non_finite=settings.non_finite,
            gram_bytes=settings.gram_bytes,
            train_fn=train_fn,
        )
        searched = space
        left_out: tuple[str, ...] = ()
        if is_fast_first(asked.objectives):
            searched, left_out = worth_trying(opened, space, settings.rules)
        found[name] = Backend(
            opened,
            space,
            searched,
            realizer,
            ground.data[name],
            left_out,
            Settling(opened, space, asked.remarks.tell),
        )
    return found
