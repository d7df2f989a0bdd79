"""What tests of every room need: sessions as the core works on them, and a preset carried out on
one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.core.contract.adapter import Batch, Candidate, Opened, Session
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer

if TYPE_CHECKING:
    from octavo.adapters.pytorch.session import TorchSession


def as_opened(session: Session) -> Opened:
    """Return a session with what it says of itself, under its backend's name."""
    capability = session.capability()
    return Opened(capability.backend, session, session.describe(), capability)


def torch_session(model: Any, batch: Any = None, **settings: Any) -> TorchSession:
    """Return a session of a PyTorch model; settings are those of the backend."""
    from octavo.adapters.pytorch import TorchConfig
    from octavo.adapters.pytorch.adapter import TorchAdapter

    return TorchAdapter(TorchConfig(**settings)).open(model, batch)


def opened_torch(model: Any, batch: Any, **settings: Any) -> Opened:
    """Return a PyTorch model as the core works on it; settings are those of the backend."""
    return as_opened(torch_session(model, batch, **settings))


def opened_on(backend: str, model: Any, batch: Batch, folder: Path) -> Opened:
    """Return a PyTorch model as a backend works on it: others than PyTorch read its ONNX export.

    Args:
        backend: Its name.
        model: The module.
        batch: Tensors or arrays that the model takes.
        folder: Where the export goes, under a name of its own.
    """
    opened = opened_torch(model, batch)
    if backend == "torch":
        return opened
    file = folder / f"model-{len(list(folder.iterdir()))}.onnx"
    opened.session.export("onnx", file)
    adapter = PluginHost(third_party=False).adapters()[backend].build()
    given = tuple(np.asarray(x) for x in batch)
    return as_opened(adapter.open(str(file), given))


def preset_candidate(
    opened: Opened,
    preset: str,
    batches: Sequence[Batch] = (),
    rules: Sequence[Rule] = (),
) -> Candidate:
    """Return a model with a preset carried out; without batches there is no calibration."""
    space = build_space(opened, rules)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    if batches:
        realizer.calibrate(batches)
    return realizer.candidate(preset_recipe(preset, space, opened))
