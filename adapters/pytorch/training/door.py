"""What the torch backend learns from data, behind the contract's door.

Each part is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from torch import nn

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.modules.wrapping import inside
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.adapters.pytorch.run.batches import Call
from octavo.core.contract.adapter import Batch, Candidate, OpParameters, Session
from octavo.core.contract.training import (
    Distillation,
    LowRank,
    Qat,
    QatModel,
    Reconstruction,
    Training,
)
from octavo.core.errors import ConfigError, SchemeError
from octavo.core.values.recipe import Recipe


class TorchTraining(Training):
    """Learns over one session's float model.

    Args:
        capture: The float model where it is.
        whole: Returns the same as a whole where candidates run.
        calls: Returns batches as calls of the model.
        over: Returns a session over another skeleton of the same structure.
    """

    def __init__(
        self,
        capture: Capture,
        whole: Callable[[], Capture],
        calls: Callable[[Iterable[Batch]], Iterable[Call]],
        over: Callable[[nn.Module], Session],
    ) -> None:
        self._capture = capture
        self._whole = whole
        self._calls = calls
        self._over = over

    def reconstruct(
        self,
        parameters: Mapping[str, OpParameters],
        batches: Iterable[Batch],
        settings: Reconstruction | None = None,
    ) -> dict[str, OpParameters]:
        """Learn the rounding of weight-only linear layers block by block."""
        from .reconstruction import reconstruct

        calls, whole = self._calls(batches), self._whole()
        return reconstruct(
            _float_root(whole),
            whole.layers,
            parameters,
            calls,
            settings or Reconstruction(),
        )

    def distill(
        self,
        parameters: Mapping[str, OpParameters],
        batches: Iterable[Batch],
        settings: Distillation | None = None,
        teacher: Any = None,
    ) -> dict[str, OpParameters]:
        """Learn scales and rounding of all weight-only linear layers together.

        They are learned from the float model's predictions, or a teacher's.
        """
        from .distillation import distill

        calls, whole = self._calls(batches), self._whole()
        root = _float_root(whole)
        return distill(
            root,
            whole.layers,
            parameters,
            calls,
            settings or Distillation(),
            root if teacher is None else skeleton(inside(teacher)),
        )

    def prepare_qat(
        self,
        recipe: Recipe,
        parameters: Mapping[str, OpParameters],
        settings: Qat | None = None,
        batches: Iterable[Batch] = (),
    ) -> QatModel:
        """Return a copy whose layers learn their step sizes (LSQ) while it is trained.

        Batch norms are folded in and frozen.
        """
        from .qat import TorchQatModel

        calls, capture = self._calls(batches), self._whole()
        return TorchQatModel(capture, recipe, parameters, self._over, settings, calls)

    def add_low_rank(self, candidate: Candidate, settings: LowRank | Any = None) -> Any:
        """Return a candidate's module with trainable updates on its weight-only linear layers.

        For settings of peft it is peft's model.
        """
        base = _torch_candidate(candidate)
        if settings is None or isinstance(settings, LowRank):
            return _with_updates(base, settings or LowRank())
        from .peft_layers import peft_model

        return peft_model(base, settings)

    def load_low_rank(self, candidate: Candidate, folder: Path, **options: Any) -> Any:
        """Return a model over a candidate, with updates that were saved: peft's where that is
        installed."""
        base = _torch_candidate(candidate)
        if not _has_peft():
            from .low_rank_files import load_updates

            return load_updates(base, folder, **options)
        from .peft_layers import load_peft_model

        return load_peft_model(base, folder, **options)

    def save_low_rank(self, native: Any, folder: Path) -> None:
        """Write the updates as peft does."""
        from .low_rank_files import save_updates

        trained: Any = inside(native)
        if hasattr(trained, "peft_config"):
            trained.save_pretrained(str(folder))
        else:
            save_updates(trained, folder)

    def merge_low_rank(
        self, candidate: Candidate, native: Any, base: Literal["quantized", "float"]
    ) -> nn.Module:
        """Return a float model with the updates added to its weights."""
        from .low_rank_results import merged

        whole = self._whole()
        root = self._over(whole.root).reference().native
        return merged(root, _torch_candidate(candidate), inside(native), whole, base)

    def keep_low_rank(self, candidate: Candidate, native: Any) -> Candidate:
        """Return the base with the updates as low-rank repairs of its weights."""
        from .low_rank_results import kept

        base = _torch_candidate(candidate)
        recipe, parameters = kept(base, inside(native), self._capture)
        return self._over(self._capture.root).apply(recipe, parameters)


def _float_root(capture: Capture) -> nn.Module:
    """Return the float model, whose rescaled layers change their inputs as they must."""
    if not capture.factors:
        return capture.root
    root = skeleton(capture.root)
    install(root, capture.layers, capture.factors)
    return root


def _torch_candidate(candidate: Candidate) -> TorchCandidate:
    if not isinstance(candidate, TorchCandidate):
        raise SchemeError(
            "low-rank updates go over a candidate of the torch backend, "
            f"not {type(candidate).__name__}"
        )
    return candidate


def _has_peft() -> bool:
    return find_spec("peft") is not None


def _with_updates(base: TorchCandidate, settings: LowRank) -> Any:
    """Return the model with updates in the layers of the library that is asked for.

    Raises:
        ConfigError: If there is no such library.
    """
    libraries = ("auto", "octavo", "peft")
    if settings.library not in libraries:
        raise ConfigError(
            f"library is one of {', '.join(libraries)}, not {settings.library!r}"
        )
    # peft has no place for the update of a model that is itself a layer.
    is_layer = isinstance(base.module, WeightOnlyLinear)
    by_peft = settings.library == "auto" and _has_peft() and not is_layer
    if settings.library == "peft" or by_peft:
        from .peft_layers import peft_by_settings

        return peft_by_settings(base, settings)
    from .low_rank_files import SaveUpdates
    from .qlora import add_low_rank

    root = add_low_rank(base, settings)
    if callable(getattr(type(root), "save_pretrained", None)):
        root.__dict__["save_pretrained"] = SaveUpdates(root)
    return root
