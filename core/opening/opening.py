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
"""Batches of other shapes than the first that a model is looked at with.

Each costs about a run of it.
"""

HELD = 1.3
"""Times a model's file, what is held at once: the float weights and the quantized ones."""

GIB = 2**30


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
    for card in host.adapters().values():
        if card.claims(model):
            check_memory(model)
            return card
    raise ModelError(
        f"no backend takes a {_kind_of(model)}{_way_out(model, host)}. For another framework, "
        "install its plugin (octavo plugins)"
    )


def _kind_of(model: Any) -> str:
    if isinstance(model, (str, Path)):
        return f"file {Path(model).name!r}"
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _way_out(model: Any, host: PluginHost) -> str:
    """Return what to pass instead of what no backend takes, and what there is to pass."""
    cards = host.adapters().values()

    def is_claimed(other: Any) -> bool:
        return any(card.claims(other) for card in cards)

    instead = remedy(model, is_claimed)
    takes = []
    for card in cards:
        kinds = ", ".join((*card.models, *card.suffixes))
        takes.append(f"{card.name}: {kinds}")
    return f"{instead}. There are: {'; '.join(takes)}"


def check_memory(model: Any, available: int | None = None) -> None:
    """Refuse a model file that cannot fit.

    The float weights and the quantized ones are held at once.

    Args:
        model: A path, or anything else (which is in memory already).
        available: Bytes; None asks the system.

    Raises:
        ModelError: If the file and what lies beside it as external data are larger than the memory
            that is free.
    """
    if not isinstance(model, (str, Path)):
        return
    path = Path(model)
    needed = int(HELD * _stored_bytes(path))
    free = _available_memory() if available is None else available
    if free is not None and needed > free:
        raise ModelError(
            f"{path} needs about {needed / GIB:.1f} GiB to be quantized, and {free / GIB:.1f} GiB "
            "of memory are free; run it on a larger machine, or quantize it in parts"
        )


def _stored_bytes(path: Path) -> int:
    """Return the size of a model's file with what lies beside it, or of its folder."""
    if path.is_file():
        # External data of ONNX lies beside the model under names that begin as the model's does.
        found = path.parent.glob(f"{glob.escape(path.name)}*")
    else:
        found = path.rglob("*")
    return sum(p.stat().st_size for p in found if p.is_file())


def _available_memory() -> int | None:
    try:
        rows = dict(
            line.split(":") for line in Path("/proc/meminfo").read_text().splitlines()
        )
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
                f"backend {settings.kind!r} does not open a {type(model).__name__}; "
                f"{card.name!r} does"
            )
        card = other
    return _opened(card, settings, model, example)


def _opened(
    card: AdapterPart[Adapter],
    settings: PartConfig | None,
    source: Any,
    example: Batch | None,
) -> Opened:
    adapter = card.build(settings)
    named = str(source) if isinstance(source, (str, Path)) else f"a {_kind_of(source)}"
    with raised_as(
        ModelError,
        f"{card.name} cannot open {named}",
        "does it run by itself on the first calibration batch?",
    ):
        session = adapter.open(source, example)
        view = session.describe()
        _check_names(view)
        return Opened(
            card.name, session, view, session.capability(), (), adapter.config
        )


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


def open_all(
    model: Any,
    calibration: Any,
    settings: TuningConfig,
    host: PluginHost,
    stack: ExitStack,
    *,
    need_data: bool = True,
) -> tuple[list[Opened], dict[str, CalibrationData], bool]:
    """Open the model on every backend of the run: its own first, then the others from its export.

    Args:
        model: As for :func:`autotune`.
        calibration: As for :func:`autotune`; None where a run needs none.
        settings: Name the backends.
        host: Plugins.
        stack: Closes what must be kept as long as the backends.
        need_data: Whether there must be calibration data, and a search over it: then the model's
            own backend has no choices where it was not asked for.

    Returns:
        The backends; the calibration data in the form of each; whether there is one backend only.

    Raises:
        ConfigError: If a backend is named twice, or cannot open the model.
        ModelError: If no backend takes the model, or it cannot be opened.
    """
    card = find_adapter(model, host)
    asked = _asked_backends(settings, card, host)
    raw = materialize(calibration) if calibration is not None else None
    example = raw.example() if raw is not None else None
    source = _opened(card, asked.get(card.name), model, example)
    data: dict[str, CalibrationData] = {}
    if raw is not None or need_data:
        own = calibration_data(raw, source.view.inputs, source.view.reading)
        source = _looked_further(source, own)
        data[source.name] = own if _same_framework(card, own.first()) else own.numpy()
    opened = [source]
    for name, config in asked.items():
        if name == source.name:
            continue
        other = _exported(source, model, host.adapters()[name], config, stack)
        opened.append(other)
        if data:
            data[name] = data[source.name].numpy().for_inputs(other.view.inputs)
    if card.name not in asked:
        opened[0] = _noted_as_baseline(source, is_alone=len(opened) == 2)
        if need_data:
            opened[0] = _without_choices(opened[0])
    return opened, data, len(opened) == 1


def _asked_backends(
    settings: TuningConfig, own: AdapterPart[Adapter], host: PluginHost
) -> dict[str, PartConfig]:
    """Return the settings of the backends that are asked for, by name; the model's own if none is.

    Raises:
        ConfigError: If a backend is named twice.
    """
    if not settings.backends:
        return {own.name: own.config.model_validate({"kind": own.name})}
    asked = [host.read("adapters", b) for b in settings.backends]
    names = [a.kind for a in asked]
    if len(set(names)) != len(names):
        raise ConfigError(f"a backend is named twice: {', '.join(names)}")
    return dict(zip(names, asked, strict=True))


def _noted_as_baseline(source: Opened, *, is_alone: bool) -> Opened:
    """Say that the model's own backend only exports the model and gives the baseline."""
    baseline = "it is the float baseline"
    if is_alone:
        baseline = "its float model there is the baseline, beside the one given"
    return replace(
        source, notes=(f"the model's own backend is not searched; {baseline}",)
    )


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
    config: PartConfig,
    stack: ExitStack,
) -> Opened:
    """Open a model on a backend that is not its own.

    From its file if that is an interchange file, else from an export.
    """
    if _reads(card, model):
        return _opened(card, config, model, None)
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
    return _opened(card, config, path, None)


def _reads(card: AdapterPart[Adapter], model: Any) -> bool:
    """Return whether a model is the path of an interchange file that a backend reads.

    It may be another backend's own format.
    """
    return (
        isinstance(model, (str, Path))
        and Path(model).suffix.lstrip(".") in card.accepts
    )


def _same_framework(card: AdapterPart[Adapter], batch: Batch) -> bool:
    """Return whether all arrays of a batch are of the framework of a backend's models."""
    frameworks = {name.split(".")[0] for name in card.models}
    return all(
        type(array).__module__.split(".")[0] in frameworks for array in arrays_in(batch)
    )
