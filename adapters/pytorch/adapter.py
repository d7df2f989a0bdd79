"""The PyTorch backend's entrance."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.census import Reads, census
from octavo.adapters.pytorch.capture.choosing import (
    capture_again,
    capture_of,
    ready_for,
)
from octavo.adapters.pytorch.capture.description import Background
from octavo.adapters.pytorch.capture.standins.attention import bypassed
from octavo.adapters.pytorch.capture.standins.experts import unreached
from octavo.adapters.pytorch.capture.standins.modules import (
    with_plain_weights,
    with_stand_ins,
)
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.modules.wrapping import opened
from octavo.adapters.pytorch.observe.lending import why_not_lent
from octavo.adapters.pytorch.run.batches import Call, run_once, takes, to_call
from octavo.adapters.pytorch.run.device_offload import Lender
from octavo.core.calibration.reading import choose_reading
from octavo.core.contract.adapter import Adapter, Batch
from octavo.core.contract.parts import PartConfig
from octavo.core.errors import DeviceError, ModelError
from octavo.core.values.capability import Capability

from . import TorchConfig
from .candidate import GIVEN, TorchCandidate, given_candidate
from .files.architecture import rebuild
from .files.restoring import restore
from .files.saved import Saved, read
from .offers import capability
from .opening import open_root, read_model
from .samples import sample
from .session import TorchSession


class TorchAdapter(Adapter):
    """Opens ``nn.Module`` objects."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__(config)
        assert isinstance(config, TorchConfig)
        self._settings = config

    def open(self, source: Any, example: Batch | None = None) -> TorchSession:
        """Open a module.

        Raises:
            ModelError: If it is no module, or a file that holds no architecture.
            UnsafeFile: If reading a file would run code that it contains.
            DeviceError: If the device is not there.
            DataError: If the example does not fit the model.
        """
        model = self._model(source)
        home = _device_of(model)
        device = self._device(home)
        given = open_root(model)
        plain, root = _prepared(given)
        reading, batch = None, None
        if example is not None:
            reading = choose_reading(
                example, takes(root), partial(run_once, root, home)
            )
            batch = reading(example, 0)
        call = to_call(batch, root, home) if batch is not None else None
        reads = Reads() if call is not None else None
        capture = self._seen(root, call, reads)
        notes = []
        if device != home:
            why = why_not_lent(capture, call, device)
            if why:
                notes.append(f"the whole model was moved to {device}: {why}")
                given = open_root(given, device)
                plain, root = _prepared(given)
                call = to_call(batch, root, device) if batch is not None else None
                capture = self._seen(root, call, reads)
            else:
                capture = capture.lent_by(Lender(device))
        notes += _notes(root, capture)
        counted = census(plain, reads, branches=capture.has_branches)
        background = Background(given, plain, counted, reads, reading)
        return TorchSession(capture, device, call, tuple(notes), background)

    def capability(self) -> Capability:
        """Return what runs on the configured device; ``auto`` answers for CUDA where
        there is one."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return capability(
            automatic if self._settings.device == "auto" else self._settings.device
        )

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a module of one layer and a batch for it."""
        return sample(kind)

    def load(self, folder: Path, model: Any = None) -> TorchCandidate:
        """Read what ``Candidate.save`` wrote.

        Args:
            folder: The folder.
            model: The float module, whose tensors may hold anything, or a function that makes one.
                None where the files name the architecture (a model of transformers).
        """
        saved = read(folder)
        found = self._model(_given_or_made(model, saved, folder))
        device = self._device(_device_of(found))
        root = open_root(found, device)
        if saved.facts == GIVEN:
            restore(root, saved, device)
            return given_candidate(root, device)
        root = ready_for(with_stand_ins(with_plain_weights(root)), saved.facts)
        restore(root, saved, device)
        session = TorchSession(
            capture_again(root, saved.facts, saved.factors), device, None
        )
        if saved.recipe.schemes:
            session.refuse_unoffered(saved.parameters)
            candidate = session.carry_out(saved.recipe, saved.parameters)
        else:
            candidate = session.reference()
        return candidate.with_ledger(candidate.ledger, saved.recipe)

    def _model(self, source: Any) -> nn.Module:
        """Return the module of a source, out of what it is wrapped in."""
        is_module = isinstance(source, nn.Module | torch.export.ExportedProgram)
        return opened(
            source if is_module else read_model(source, trust=self._settings.trust)
        )

    def _device(self, own: torch.device) -> torch.device:
        """Return where candidates of a model run whose tensors are on ``own``."""
        wanted = self._settings.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise DeviceError(
                "device 'cuda' was asked for and torch sees no CUDA device; "
                "use device 'auto' or 'cpu'"
            )
        if wanted == "auto":
            return own
        device = torch.device(wanted)
        # "cuda" is any of them: the model stays on the one where it is.
        return own if device.index is None and device.type == own.type else device

    def _seen(self, root: nn.Module, call: Call | None, reads: Reads | None) -> Capture:
        """Look at a model, and note which tensors its runs read."""
        with reads or nullcontext():
            return capture_of(root, call, self._settings.capture)


def _device_of(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _prepared(given: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return skeletons of a model with plain weights, and with stand-ins too."""
    plain = with_plain_weights(skeleton(given))
    return plain, with_stand_ins(skeleton(plain))


def _notes(root: nn.Module, capture: Capture) -> list[str]:
    """Return which weights stay float because no layer holds them."""
    notes = []
    for path, kind in bypassed(root).items():
        notes.append(
            f"{path or 'the model'} ({kind}) reads its layers' weights and may never call them: "
            "they stay float"
        )
    bare = ", ".join(unreached(capture.root))
    if bare:
        notes.append(f"weights of three axes that no layer holds stay float: {bare}")
    return notes


def _given_or_made(model: Any, saved: Saved, folder: Path) -> Any:
    """Return the float module that goes with saved files.

    Raises:
        ModelError: If it is neither given nor can be made.
    """
    is_module = isinstance(model, nn.Module | torch.export.ExportedProgram)
    if callable(model) and not is_module:
        model = model()
    if model is None and saved.architecture is not None:
        model = rebuild(saved.architecture)
    if model is None:
        raise ModelError(
            f"{folder} holds tensors and a recipe but no architecture: "
            "pass the float module, or a function that makes it"
        )
    return model
