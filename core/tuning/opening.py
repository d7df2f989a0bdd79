"""Open a model on every backend of a run, and bring the calibration data into each one's form."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.core.calibration.data import CalibrationData, calibration_data
from octavo.core.calibration.raw import materialize
from octavo.core.contract.adapter import Adapter, Batch, Opened
from octavo.core.contract.parts import AdapterPart, PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, ModelError, raised_as, shown
from octavo.core.system.textfiles import absolute
from octavo.core.values.calls import arrays_in
from octavo.core.values.graph import ModelView

from .config import TuningConfig
from .mistaken_models import remedy

OTHERS = 3
"""Batches of other shapes than the first that a model is looked at with: each costs about a run of it."""


def plugin_host(settings: TuningConfig) -> PluginHost:
    """Load plugins as the configuration says."""
    return PluginHost(
        third_party=settings.plugins.autoload,
        allow=settings.plugins.allow,
        deny=settings.plugins.deny,
    )


def find_adapter(model: Any, host: PluginHost) -> AdapterPart[Adapter]:
    """Return the card of the backend that a model belongs to.

    Raises:
        ModelError: If none claims it, or a path does not exist.
    """
    if isinstance(model, (str, Path)) and not absolute(model, "a model").exists():
        raise ModelError(f"{model} does not exist")
    found = [card for card in host.adapters().values() if card.claims(model)]
    if not found:
        cards = host.adapters().values()
        what = (
            f"file {Path(model).name!r}"
            if isinstance(model, (str, Path))
            else f"{type(model).__module__}.{type(model).__qualname__}"
        )
        takes = "; ".join(f"{c.name}: {', '.join((*c.models, *c.suffixes))}" for c in cards)
        way_out = remedy(model, lambda other: any(card.claims(other) for card in cards))
        raise ModelError(
            f"no backend takes a {what}{way_out}. There are: {takes}. For another framework, install its plugin (octavo plugins)"
        )
    check_memory(model)
    return found[0]


def check_memory(model: Any, available: int | None = None) -> None:
    """Refuse a model file that cannot fit: the float weights and the quantized ones are held at once.

    Args:
        model: A path, or anything else (which is in memory already).
        available: Bytes; None asks the system.

    Raises:
        ModelError: If the file and what lies beside it as external data are larger than the memory that is free.
    """
    if not isinstance(model, (str, Path)):
        return
    path = Path(model)
    # External data of ONNX lies beside the model under names that begin as the model's does.
    beside = (
        [p for p in path.parent.glob(f"{glob.escape(path.name)}*") if p.is_file()]
        if path.is_file()
        else [p for p in path.rglob("*") if p.is_file()]
    )
    needed = int(1.3 * sum(p.stat().st_size for p in beside))
    free = _available_memory() if available is None else available
    if free is not None and needed > free:
        raise ModelError(
            f"{path} needs about {needed / 2**30:.1f} GiB to be quantized, and {free / 2**30:.1f} GiB of memory are free; "
            "run it on a larger machine, or quantize it in parts"
        )


def _available_memory() -> int | None:
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


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
    card = find_adapter(model, host)
    settings = host.read("adapters", backend) if backend is not None else None
    if settings is not None and settings.kind != card.name:
        other = host.adapters()[settings.kind]
        if not _reads(other, model):
            raise ConfigError(
                f"backend {settings.kind!r} does not open a {type(model).__name__}; {card.name!r} does"
            )
        card = other
    return _opened(card, settings, model, example)


def _opened(
    card: AdapterPart[Adapter], settings: PartConfig | None, source: Any, example: Batch | None
) -> Opened:
    adapter = card.build(settings)
    named = (
        str(source)
        if isinstance(source, (str, Path))
        else f"a {type(source).__module__}.{type(source).__qualname__}"
    )
    with raised_as(
        ModelError,
        f"{card.name} cannot open {named}",
        "does it run by itself on the first calibration batch?",
    ):
        session = adapter.open(source, example)
        view = session.describe()
        _check_names(view)
        return Opened(card.name, session, view, session.capability(), (), adapter.config)


def _check_names(view: ModelView) -> None:
    """Refuse names that are no texts: rules, recipes and files know ops by name.

    Raises:
        ModelError: If there is one; files hold bytes that are no UTF-8, and callers' graphs anything.
    """
    for op in view.ops:
        for name in (op.name, op.type, *op.inputs, *op.outputs):
            if not isinstance(name, str):
                raise ModelError(
                    f"op {op.name!r} has a name that is no text: {shown(name)}; rename it, or export the model again"
                )


def open_all(
    model: Any,
    calibration: Any,
    settings: TuningConfig,
    host: PluginHost,
    stack: ExitStack,
    *,
    need_data: bool = True,
) -> tuple[list[Opened], dict[str, CalibrationData], bool]:
    """Open the model on every backend of the run: its own first, then the others from its export."""
    card = find_adapter(model, host)
    asked = (
        [host.read("adapters", b) for b in settings.backends]
        if settings.backends
        else [card.config.model_validate({"kind": card.name})]
    )
    names = [a.kind for a in asked]
    if len(set(names)) != len(names):
        raise ConfigError(f"a backend is named twice: {', '.join(names)}")
    raw = materialize(calibration) if calibration is not None else None
    example = raw.example() if raw is not None else None
    own = asked[names.index(card.name)] if card.name in names else None
    source = _opened(card, own, model, example)
    data: dict[str, CalibrationData] = {}
    if raw is not None or need_data:
        data[source.name] = calibration_data(raw, source.view.inputs, source.view.reading)
        source = _looked_further(source, data[source.name])
        if not _same_framework(card, data[source.name].first()):
            data[source.name] = data[source.name].numpy()
    opened = [source]
    for config in asked:
        name = config.kind
        if name == source.name:
            continue
        opened.append(_exported(source, model, host.adapters()[name], config, stack))
        if data:
            data[name] = data[source.name].numpy().for_inputs(opened[-1].view.inputs)
    if card.name not in names:
        # The model's own backend is not searched: it only exports and gives the baseline.
        alone = len(opened) == 2
        baseline = (
            "its float model there is the baseline, beside the one given"
            if alone
            else "it is the float baseline"
        )
        opened[0] = replace(source, notes=(f"the model's own backend is not searched; {baseline}",))
        if need_data:
            opened = [_without_choices(opened[0]), *opened[1:]]
    return opened, data, len(opened) == 1


def _looked_further(opened: Opened, data: CalibrationData) -> Opened:
    """Let a session look at some batches that differ from the example: they may take other branches of the model."""
    others = data.others(OTHERS)
    session = opened.session.further(others) if others else opened.session
    if session is opened.session:
        return opened
    return replace(opened, session=session, view=session.describe())


def _without_choices(opened: Opened) -> Opened:
    return replace(opened, capability=replace(opened.capability, offers={}))


def _exported(
    source: Opened, model: Any, card: AdapterPart[Adapter], config: PartConfig, stack: ExitStack
) -> Opened:
    """Open a model on a backend that is not its own: from its file if that is an interchange file, else from an export."""
    if _reads(card, model):
        return _opened(card, config, model, None)
    formats = [f for f in card.accepts if f"export:{f}" in source.capability.features]
    if not formats:
        raise ConfigError(
            f"{source.name!r} exports nothing that {card.name!r} opens ({', '.join(card.accepts) or 'no interchange format'}); "
            f"leave {card.name!r} out of backends"
        )
    path = (
        Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octavo-")))
        / f"model.{formats[0]}"
    )
    source.session.export(formats[0], path)
    return _opened(card, config, path, None)


def _reads(card: AdapterPart[Adapter], model: Any) -> bool:
    """True for the path of an interchange file that a backend reads, whether or not it is the backend's own format."""
    return isinstance(model, (str, Path)) and Path(model).suffix.lstrip(".") in card.accepts


def _same_framework(card: AdapterPart[Adapter], batch: Batch) -> bool:
    roots = {m.split(".")[0] for m in card.models}
    return all(type(array).__module__.split(".")[0] in roots for array in arrays_in(batch))
