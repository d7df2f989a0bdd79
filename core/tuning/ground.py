"""The model on every backend of a run, with the data and the space of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.core.calibration.data import CalibrationData
from octavo.core.contract.adapter import Opened
from octavo.core.contract.strategy import SuggestsTransforms
from octavo.core.numerics.affine import is_integer
from octavo.core.opening.opening import open_all, open_owner
from octavo.core.opening.spaces import build_space, build_spaces
from octavo.core.opening.speeds import is_fast_first, worth_trying
from octavo.core.quantizing.realize import Realizer
from octavo.core.quantizing.recovering import TrainFn
from octavo.core.storage.history import Earlier, StudyHistory, default_storage
from octavo.core.storage.kept import tidy
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import TuningSpace

from .asked import Asked
from .axes import axes_of
from .bench import Backend
from .fingerprint import fingerprint, of_spaces, shaping
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


_WIDE = (
    "was begun when scales of weights in groups were float32: it goes on with these. Another study "
    "name has the smaller scales of today"
)
_ELSEWHERE = (
    "was begun when a model's own backend opened it for others that read its file: it "
    "goes on"
)


def _earlier_runs(
    asked: Asked, ground: Ground, model: Any, prints: Mapping[str, str]
) -> Iterator[tuple[Ground, Mapping[str, str], str]]:
    """Yield what earlier versions would have made of a run: a study of theirs goes on as that.

    Args:
        asked: What was asked for.
        ground: This run's.
        model: As it was given.
        prints: This run's fingerprint.

    Yields:
        The ground; the fingerprint on it; what is told of such a study.
    """
    before = ground.before_narrow_scales()
    yield before, {**prints, "space": of_spaces(ground.opened, before.spaces)}, _WIDE
    owner = open_owner(model, asked.host, ground.opened[0].name)
    if owner is None:
        return
    opened = (owner, *ground.opened)
    of_model = {**prints, "model": owner.session.fingerprint()}
    for each in (ground, before):
        spaces = {**each.spaces, owner.name: build_space(owner)}
        yield each, {**of_model, "space": of_spaces(opened, spaces)}, _ELSEWHERE


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


def open_history(
    asked: Asked,
    ground: Ground,
    model: Any,
    storage: str | Path | None,
    study: str,
    resume: bool,
) -> tuple[StudyHistory, Ground]:
    """Open the history, which refuses a store that was made for another run.

    Returns:
        It, and the ground that its trials are on: a study of an earlier version goes on in the
        spaces that it had.
    """
    settings = asked.settings
    prints = fingerprint(
        settings,
        ground.opened,
        ground.spaces,
        asked.objectives,
        asked.scores.search,
        data=ground.data[ground.source.name].digest(),
        share=asked.scores.share,
        holdout_fn=asked.scores.holdout is not None,
        baseline=ground.baseline,
    )
    is_loss = settings.accuracy.get("higher_is_better") is False
    lower_is_better = [is_loss, *(o.lower_is_better for o in asked.objectives.values())]
    if not storage:
        tidy()
    known: list[tuple[Earlier, Ground]] = []

    def earlier() -> Iterator[Earlier]:
        for each, its_prints, note in _earlier_runs(asked, ground, model, prints):
            known.append((Earlier(its_prints, axes_of(_searched(each)), note), each))
            yield known[-1][0]

    history = StudyHistory(
        storage or default_storage(),
        name=study,
        fingerprint=prints,
        settings=shaping(settings),
        directions=["minimize" if lower else "maximize" for lower in lower_is_better],
        axes=axes_of(_searched(ground)),
        earlier=earlier,
        resume=resume,
    )
    of_study = [each for found, each in known if found is history.gone_on_as]
    return history, of_study[0] if of_study else ground


def _searched(ground: Ground) -> dict[str, TuningSpace]:
    """Return the spaces that trials may be on, and the float model's own where it is another."""
    source = ground.source.name
    return {
        name: space
        for name, space in ground.spaces.items()
        if space.tunable or name == source
    }


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
