"""Open a model on every backend of a run, and bring the calibration data into each one's form."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.core.calibration.data import CalibrationData, calibration_data
from octavo.core.calibration.raw import materialize
from octavo.core.contract.adapter import Adapter, Batch, Opened
from octavo.core.contract.parts import AdapterPart, PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, ModelError, OctavoError, raised_as, shown
from octavo.core.quantizing.non_finite import refuse_parameters
from octavo.core.values.calls import arrays_in
from octavo.core.values.graph import ModelView
from octavo.core.values.recipe import adapter_of

from .backends import (
    AskedBackend,
    Written,
    as_given,
    asked_backends,
    baseline_of,
    beside,
    kinds_of,
    only_backend,
)
from .choosing import check_memory as check_memory
from .choosing import find_adapter as find_adapter
from .choosing import kind_of, reads
from .config import TuningConfig

OTHERS = 3
"""Batches of other shapes than the first that a model is looked at with.

Each costs about a run of it.
"""


def plugin_host(settings: TuningConfig) -> PluginHost:
    """Load plugins as the configuration says."""
    return PluginHost(
        third_party=settings.plugins.autoload,
        allow=settings.plugins.allow,
        deny=settings.plugins.deny,
    )


def open_model(
    model: Any,
    host: PluginHost,
    *,
    backend: str | Mapping[str, Any] | None = None,
    example: Batch | None = None,
) -> Opened:
    """Open a model on its own backend.

    Args:
        model: As for :func:`autotune`.
        host: Plugins.
        backend: Settings of that backend, or its name.
        example: One batch, for shapes.
    """
    if backend is None:
        card = find_adapter(model, host)
        return _opened(card, card.name, None, model, example)
    asked = only_backend(backend, host)
    owner = find_adapter(model, host, (asked.kind,))
    card = host.adapters()[asked.kind]
    if not reads(card, model):
        raise ConfigError(
            f"backend {asked.kind!r} does not open a {type(model).__name__}; "
            f"{owner.name!r} does"
        )
    return _opened(card, card.name, asked.settings, model, example)


def open_owner(model: Any, host: PluginHost, opened: str) -> Opened | None:
    """Open a model on the backend that it belongs to, without choices, where another one opened it.

    Args:
        model: As for :func:`autotune`.
        host: Plugins.
        opened: The backend that opened it.

    Returns:
        None where that is its own, or this one cannot be opened here.
    """
    try:
        card = find_adapter(model, host)
        if card.name == adapter_of(opened):
            return None
        return _without_choices(_opened(card, card.name, None, model, None))
    except OctavoError:
        return None


def open_given(
    model: Any,
    host: PluginHost,
    backends: Sequence[Written] = (),
    example: Batch | None = None,
) -> Opened:
    """Open a model as a run over some backends opens it as it was given.

    Args:
        model: As for :func:`autotune`.
        host: Plugins.
        backends: Those of the run; none for the model's own.
        example: One batch, for shapes.
    """
    card = find_adapter(model, host, kinds_of(backends, host))
    first = as_given(card, asked_backends(backends or (card.name,), host), host)
    return _opened(card, first.name, first.settings, model, example)


def _opened(
    card: AdapterPart[Adapter],
    name: str,
    settings: PartConfig | None,
    source: Any,
    example: Batch | None,
) -> Opened:
    adapter = card.build(settings)
    named = str(source) if isinstance(source, (str, Path)) else f"a {kind_of(source)}"
    with raised_as(
        ModelError,
        f"{card.name} cannot open {named}",
        "does it run by itself on the first calibration batch?",
    ):
        session = adapter.open(source, example)
        view = session.describe()
        _check_names(view)
        offered = session.capability()
        refuse_parameters(session, view, offered)
        return Opened(name, session, view, offered, (), adapter.config)


def _check_names(view: ModelView) -> None:
    """Refuse names that are no texts: rules, recipes and files know ops by name.

    Raises:
        ModelError: If there is one; files hold bytes that are no UTF-8, and callers' graphs
            anything.
    """
    for op in view.ops:
        for name in (op.name, op.type, *op.inputs, *op.outputs):
            if not isinstance(name, str):
                raise ModelError(
                    f"op {op.name!r} has a name that is no text: {shown(name)}; "
                    "rename it, or export the model again"
                )


@dataclass(frozen=True)
class Openings:
    """A model, opened on every backend of a run.

    Attributes:
        backends: The one that the model is opened on as it was given comes first.
        data: Calibration data in the form of each, by name; empty where a run needs none.
        baseline: Name of the backend whose float model everything is measured against.
        native: Whether all of them are one backend's: score functions are given its own models.
    """

    backends: list[Opened]
    data: dict[str, CalibrationData]
    baseline: str
    native: bool


def open_all(
    model: Any,
    calibration: Any,
    settings: TuningConfig,
    host: PluginHost,
    stack: ExitStack,
    *,
    need_data: bool = True,
) -> Openings:
    """Open the model on every backend of the run.

    As it was given on the first; on others from its file where they read it, else from its export.

    Args:
        model: As for :func:`autotune`.
        calibration: As for :func:`autotune`; None where a run needs none.
        settings: Name the backends and the baseline.
        host: Plugins.
        stack: Closes what must be kept as long as the backends.
        need_data: Whether there must be calibration data, and a search over it: then a backend has
            no choices where it was not asked for.

    Raises:
        ConfigError: If a backend is named twice with the same settings, or cannot open the model.
        ModelError: If no backend takes the model, or it cannot be opened.
    """
    tables = settings.backends or ()
    card = find_adapter(model, host, kinds_of(tables, host))
    if not need_data:
        for table in tables:
            only_backend(table, host)  # nothing compares several values of a setting
    baseline_asked = settings.baseline if need_data else None
    asked = asked_backends(tables or (card.name,), host, baseline_asked)
    first = as_given(card, asked, host)
    raw = materialize(calibration) if calibration is not None else None
    example = raw.example() if raw is not None else None
    source = _opened(card, first.name, first.settings, model, example)
    data: dict[str, CalibrationData] = {}
    if raw is not None or need_data:
        own = calibration_data(raw, source.view.inputs, source.view.reading)
        source = _looked_further(source, own)
        data[source.name] = own if _same_framework(card, own.first()) else own.numpy()
    opened = [source]
    for wanted in beside(first, asked):
        if wanted.kind == card.name:
            other = _opened(card, wanted.name, wanted.settings, model, example)
            if data:
                data[wanted.name] = data[source.name]
                other = _looked_further(other, data[source.name])
        else:
            other = _exported(
                source, model, host.adapters()[wanted.kind], wanted, stack
            )
            if data:
                numpy = data[source.name].numpy()
                data[wanted.name] = numpy.for_inputs(other.view.inputs)
        opened.append(other)
    baseline = baseline_of(source.name, asked)
    searched = {each.name for each in asked.searched}
    found = [
        o if o.name in searched else _unsearched(o, baseline, need_data) for o in opened
    ]
    native = len({adapter_of(each.name) for each in opened}) == 1
    return Openings(found, data, baseline, native)


def _unsearched(opened: Opened, baseline: str, is_search: bool) -> Opened:
    """Return a backend that only exports the model or gives the baseline, without choices."""
    if opened.name == baseline:
        what = "it is the float baseline"
    else:
        what = (
            f"its float model there is told beside the baseline, which is on {baseline}"
        )
    note = f"{opened.name} is not searched; {what}"
    if not is_search:
        return replace(opened, notes=(note,))
    return _without_choices(replace(opened, notes=(note,)))


def _looked_further(opened: Opened, data: CalibrationData) -> Opened:
    """Let a session look at some batches that differ from the example.

    They may take other branches of the model.
    """
    others = data.others(OTHERS)
    session = opened.session.further(others) if others else opened.session
    if session is opened.session:
        return opened
    return replace(opened, session=session, view=session.describe())


def _without_choices(opened: Opened) -> Opened:
    return replace(opened, capability=replace(opened.capability, offers={}))


def _exported(
    source: Opened,
    model: Any,
    card: AdapterPart[Adapter],
    asked: AskedBackend,
    stack: ExitStack,
) -> Opened:
    """Open a model on a backend that is not its own.

    From its file if it reads that, else from an export.
    """
    if reads(card, model):
        return _opened(card, asked.name, asked.settings, model, None)
    formats = [f for f in card.accepts if f"export:{f}" in source.capability.features]
    if not formats:
        accepted = ", ".join(card.accepts) or "no interchange format"
        raise ConfigError(
            f"{source.name!r} exports nothing that {card.name!r} opens ({accepted}); "
            f"leave {card.name!r} out of backends"
        )
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="octavo-"))
    path = Path(folder) / f"model.{formats[0]}"
    source.session.export(formats[0], path)
    return _opened(card, asked.name, asked.settings, path, None)


def _same_framework(card: AdapterPart[Adapter], batch: Batch) -> bool:
    """Return whether all arrays of a batch are of the framework of a backend's models."""
    frameworks = {name.split(".")[0] for name in card.models}
    return all(
        type(array).__module__.split(".")[0] in frameworks for array in arrays_in(batch)
    )
