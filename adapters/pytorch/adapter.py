"""The PyTorch backend's entrance."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.census import Reads, census
from octavo.adapters.pytorch.capture.choosing import capture_again, capture_of, ready_for
from octavo.adapters.pytorch.capture.standins.attention import bypassed
from octavo.adapters.pytorch.capture.standins.experts import unreached
from octavo.adapters.pytorch.capture.standins.modules import with_plain_weights, with_stand_ins
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.modules.wrapping import opened
from octavo.adapters.pytorch.observe.lending import why_not_lent
from octavo.adapters.pytorch.run.batches import Call, run_once, takes, to_call
from octavo.adapters.pytorch.run.device_offload import Lender
from octavo.core.calibration.reading import choose
from octavo.core.contract.adapter import Adapter, Batch
from octavo.core.contract.parts import PartConfig
from octavo.core.errors import DeviceError, ModelError, UnsafeFile
from octavo.core.values.capability import Capability

from . import TorchConfig
from .candidate import TorchCandidate
from .offers import capability
from .samples import sample
from .session import GIVEN, TorchSession, given_candidate, open_root


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
        given, home = self._root(source, move=False)
        device = self._device(home)
        plain, notes = with_plain_weights(skeleton(given)), []
        root = with_stand_ins(skeleton(plain))
        reading = (
            choose(example, takes(root), partial(run_once, root, home))
            if example is not None
            else None
        )
        batch = reading(example, 0) if reading is not None else None
        call = to_call(batch, root, home) if batch is not None else None
        reads = Reads() if call is not None else None
        capture = _seen(root, call, self._settings.capture, reads)
        if device != home:
            why = why_not_lent(capture, call, device)
            if not why:
                capture = capture.lent_by(Lender(device))
            else:
                notes.append(f"the whole model was moved to {device}: {why}")
                given = open_root(given, device)
                plain = with_plain_weights(skeleton(given))
                root = with_stand_ins(skeleton(plain))
                call = to_call(batch, root, device) if batch is not None else None
                capture = _seen(root, call, self._settings.capture, reads)
        notes += [
            f"{path or 'the model'} ({kind}) reads its layers' weights and may never call them: they stay float"
            for path, kind in bypassed(root).items()
        ]
        if bare := list(unreached(capture.root)):
            notes.append(f"weights of three axes that no layer holds stay float: {', '.join(bare)}")
        counted = census(plain, reads, branches=capture.facts()["kind"] == "modules")
        session = TorchSession(capture, device, call, tuple(notes), given, counted, reading, plain)
        session.reads = reads
        return session

    def capability(self) -> Capability:
        """Return what runs on the configured device; ``auto`` answers for CUDA where there is one."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return capability(automatic if self._settings.device == "auto" else self._settings.device)

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a module of one layer and a batch for it."""
        return sample(kind)

    def load(self, folder: Path, model: Any = None) -> TorchCandidate:
        """Read what ``Candidate.save`` wrote.

        Args:
            folder: The folder.
            model: The float module, whose tensors may hold anything, or a function that makes one. None where the files name the
                architecture (a model of transformers).
        """
        from octavo.adapters.pytorch.files.architecture import rebuild

        from .files.restoring import restore
        from .files.saved import read

        saved = read(folder)
        if not isinstance(model, nn.Module | torch.export.ExportedProgram) and callable(model):
            model = model()
        if model is None and saved.architecture is not None:
            model = rebuild(saved.architecture)
        if model is None:
            raise ModelError(
                f"{folder} holds tensors and a recipe but no architecture: pass the float module, or a function that makes it"
            )
        root, device = self._root(model)
        if saved.facts == GIVEN:
            restore(root, saved, device)
            return given_candidate(root, device)
        root = ready_for(with_stand_ins(with_plain_weights(root)), saved.facts)
        restore(root, saved, device)
        session = TorchSession(capture_again(root, saved.facts, saved.factors), device, None)
        candidate = (
            session.apply(saved.recipe, saved.parameters)
            if saved.recipe.schemes
            else session.reference()
        )
        return candidate.with_ledger(candidate.ledger, saved.recipe)

    def _root(self, source: Any, *, move: bool = True) -> tuple[nn.Module, torch.device]:
        """Return a skeleton of the model and the device of its tensors: where candidates run, if they may ``move``."""
        claimed = isinstance(source, nn.Module | torch.export.ExportedProgram)
        model = opened(source if claimed else read_model(source, trust=self._settings.trust))
        own = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
        device = self._device(own)
        return (open_root(model, device), device) if move else (open_root(model), own)

    def _device(self, own: torch.device) -> torch.device:
        """Return where candidates of a model run whose tensors are on ``own``."""
        if self._settings.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError(
                "device 'cuda' was asked for and torch sees no CUDA device; use device 'auto' or 'cpu'"
            )
        device = own if self._settings.device == "auto" else torch.device(self._settings.device)
        return own if device.index is None and device.type == own.type else device


def _seen(
    root: nn.Module, call: Call | None, how: Literal["auto", "modules"], reads: Reads | None
) -> Capture:
    """Look at a model, and note which tensors its runs read."""
    with reads or nullcontext():
        return capture_of(root, call, how)


def read_model(source: Any, *, trust: bool) -> nn.Module:
    """Read a module from a file, without running code that a stranger put into it.

    Raises:
        ModelError: If the file holds tensors only, or is damaged.
        UnsafeFile: If it is a pickle, or a ``.pt2`` that was not declared trustworthy.
    """
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        raise ModelError(f"the torch backend opens nn.Module objects, not {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    if path.suffix == ".pt2":
        if not trust:
            raise UnsafeFile(
                f"reading {path.name} may run code of its author; if you trust it, set trust = true in the torch backend's settings"
            )
        program: nn.Module = torch.export.load(str(path)).module()
        return program
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnsafeFile(
            f"{path.name} is damaged, or a pickle that would run code when it is read: build the module yourself, load a state_dict "
            f"(torch.load(..., weights_only=True)) into it, and pass the module ({str(error).splitlines()[0]})"
        ) from error
    kind = "a state_dict" if isinstance(found, Mapping) else type(found).__name__
    raise ModelError(
        f"{path.name} holds {kind} and no architecture: load it into a module and pass the module"
    )
