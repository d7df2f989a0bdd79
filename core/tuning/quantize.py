"""Quantize without a search: a named scheme, a recipe, or rules."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from octavo.core.calibration.data import CalibrationData
from octavo.core.contract.adapter import Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import DataError, ModelError, raised_as
from octavo.core.opening.alternatives import only_one
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.grammar.named import NamedScheme
from octavo.core.opening.opening import open_all, plugin_host
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.rule_schemes import read_schemes
from octavo.core.opening.spaces import build_space
from octavo.core.opening.speeds import slower
from octavo.core.quantizing.realize import Realizer
from octavo.core.quantizing.recovering import TrainFn
from octavo.core.results.comparing import Origin
from octavo.core.results.result import Quantized
from octavo.core.results.saved_recipes import Scheme, read_scheme
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT
from octavo.core.values.space import TuningSpace, Unit

from .progress import CALIBRATION, OPENING, QUANTIZING
from .telling.phases import Phases
from .telling.remarks import Remarks
from .telling.wanted import listeners


def quantize_model(
    model: Any,
    scheme: str | Path | Recipe | TuningConfig | Mapping[str, Any] = "int8-static",
    calibration: Any = None,
    *,
    backend: str | Mapping[str, Any] | None = None,
    host: PluginHost | None = None,
    progress: bool | None = None,
    train_fn: TrainFn | None = None,
    simulated: bool = False,
) -> Quantized:
    """Quantize without a search.

    Args:
        model: As for :func:`autotune`.
        scheme: A named scheme, ``format[+method...]`` (``int8-static``, ``int4-weight-only+gptq``,
            ``int8-static+smoothquant(alpha=0.75)``, or a plain name such as ``awq``), a
            :class:`Recipe`, a saved one (a result's folder, its ``octavo.json``, or a JSON file of
            ``Recipe.to_json()``), or a configuration whose rules say what each op takes (its first
            choice), and with at most one alternative of transforms.
        calibration: As for :func:`autotune`; needed where a scheme asks for ranges found in
            calibration.
        backend: The backend; None for the model's own, or what a recipe says of it (a saved one
            its backend, one of a search over settings these).
        host: Plugins.
        progress: Whether a :class:`~octavo.ProgressDisplay` shows how it goes: None does on a
            terminal and in a notebook.
        train_fn: For a recipe whose recovery asks for ``qat``: as for :func:`autotune`.
        simulated: Also carry out schemes that no kernel of the backend runs, such as
            ``w2a4-static``: values are rounded, arithmetic is float, and the ledger says so.

    Returns:
        The quantized model with its ledger. Its ``compare()`` sets it beside the float model: size,
        latency, difference of the outputs.
    """
    remarks = Remarks()
    with remarks.heard():
        asked = read_scheme(scheme, host) if isinstance(scheme, (str, Path)) else scheme
    if isinstance(asked, Recipe):
        # A saved recipe knows the backend that it was made for; one of a search over settings of a
        # backend knows these.
        is_saved = isinstance(scheme, (str, Path))
        has_settings = asked.backend != asked.adapter
        if is_saved or has_settings:
            backend = backend or asked.backend or None
    config = asked if isinstance(asked, (TuningConfig, Mapping)) else None
    settings = TuningConfig.read(config)
    if simulated:
        settings = TuningConfig.read(settings, simulated=True)
    only_one("transforms", settings.combinations)
    if backend is not None:
        settings = TuningConfig.read(settings, backends=(backend,))
    phases = Phases(listeners((), progress), ahead=(QUANTIZING,))
    with remarks.heard(), ExitStack() as stack:
        stack.callback(phases.close)
        with phases.within(OPENING):
            host = host or plugin_host(settings)
            read_schemes(settings.rules, host)  # a mistake need not wait for the model
            found = open_all(model, calibration, settings, host, stack, need_data=False)
            target = found.backends[-1]
            batches = found.data.get(target.name)
            recipe, space, notes = _what_is_asked(asked, target, settings, host)
        realizer = Realizer(
            target,
            space,
            host,
            non_finite=settings.non_finite,
            gram_bytes=settings.gram_bytes,
            train_fn=train_fn,
        )
        realizer.recovering.check(recipe, has_data=batches is not None)
        if batches is None and realizer.probes():
            what = (
                f"scheme {str(asked)!r}" if isinstance(asked, NamedScheme) else "this"
            )
            raise DataError(
                f"{what} needs calibration data, and there is none: give calibration=, some "
                "batches of the model's inputs"
            )
        with raised_as(ModelError, f"{target.name} cannot quantize this model"):
            if found.data or realizer.probes():
                _calibrate(realizer, batches, phases)
            with phases.within(QUANTIZING):
                candidate = realizer.candidate(recipe)
                coverage = realizer.coverage(candidate)
        slow = slower(target, host.adapters()[target.name], recipe)
        left_out = batches.notes if batches is not None else ()
        known = (*target.notes, *notes, *left_out, *slow, coverage.summary())
        said = tuple(dict.fromkeys((*known, *remarks.texts)))
        made_with = target.settings.to_save() if target.settings else {}
        origin = Origin(target, batches, realizer.session(recipe.transforms))
        return Quantized(
            candidate, found.native, said, coverage, made_with, origin=origin
        )


def _calibrate(
    realizer: Realizer, batches: CalibrationData | None, phases: Phases
) -> None:
    """Run the calibration pass, and tell how many batches are done."""
    kept = batches.batches if batches is not None else ()
    phase = phases.begin(CALIBRATION, None if kept is None else len(kept))
    try:
        realizer.calibrate(phases.each(phase, batches) if batches is not None else ())
    finally:
        phases.end(phase)


def _what_is_asked(
    scheme: Scheme,
    target: Opened,
    settings: TuningConfig,
    host: PluginHost,
) -> tuple[Recipe, TuningSpace, tuple[str, ...]]:
    """Return the recipe of a scheme, the space that calibration looks at, and notes."""
    space = build_space(
        target,
        settings.rules,
        transforms=settings.combinations,
        require=settings.require,
        simulated=settings.simulated,
        scales=isinstance(scheme, NamedScheme) and scheme.format.names_scales,
        host=host,
    )
    notes = space.notes
    if isinstance(scheme, Recipe):
        recipe = Recipe(scheme.schemes, scheme.transforms, target.name, scheme.recovery)
    elif isinstance(scheme, NamedScheme):
        recipe = preset_recipe(scheme, space, target, host)
        notes = (*notes, *scheme.remarks)
    else:
        # A configuration's rules say what each op takes: its first choice.
        return space.recipe(space.first(), space.transforms[-1]), space, space.notes
    return recipe, _space_of(recipe, target), notes


def _space_of(recipe: Recipe, opened: Opened) -> TuningSpace:
    """Return a space that holds just one recipe.

    So calibration observes what it needs and no more.
    """
    units = []
    for op in opened.view.ops:
        named = (recipe[op.name],) if op.name in recipe.schemes else ()
        choices = (*named, FLOAT)
        units.append(
            Unit(op.name, op.type, (op.name,), choices, parameters=op.parameters)
        )
    alternatives = ((), recipe.transforms) if recipe.transforms else ((),)
    return TuningSpace(opened.name, tuple(units), alternatives)
