"""peft on a quantized base: its own LoRA layer over octavo's stored weights.

peft has third parties bring a layer class of their own for layer types it does not know (its guide
"Custom models"); this is that class, and what registers it. :mod:`~.qlora` does the same without
peft.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.core.contract.training import LowRank
from octavo.core.errors import MissingFramework, SchemeError

from .qlora import chosen, frozen_base

try:
    import peft
    from peft.tuners.lora import Linear
except ImportError as error:
    raise MissingFramework(
        f"peft is not installed ({error}): pip install peft; "
        "or let octavo's own layers hold the updates: library='octavo'"
    ) from error

Tensor = torch.Tensor
_DEVICE = "_octavo_device"
"""Name of a parameter that is there while peft looks at a model."""
_FROM_NOTHING = (True, False, "gaussian", "orthogonal")
"""Ways to start an update that do not read the base's weight."""


class LoraWeightOnly(Linear):
    """peft's LoRA layer whose base stays in few bits.

    It cannot be merged, because the base has no room for an update.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base's output and the update, then what the base's activation function makes
        of both."""
        base: Any = self.base_layer
        then = base.then
        # It stays the base's own, for whoever takes the adapter off again.
        base.then = ""
        try:
            y: Tensor = super().forward(x, *args, **kwargs)
        finally:
            base.then = then
        return post(then, y)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, WeightOnlyLinear)
        return module.weight_codes.features, module.weight_codes.rows

    def merge(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            SchemeError: Always; the message says what to do.
        """
        raise SchemeError(
            "the base's weight is stored in few bits and takes no update: octavo.merge_adapters "
            "returns a float model that computes the same, to keep or to quantize that; "
            "octavo.convert keeps the updates beside the base"
        )


def peft_model(candidate: TorchCandidate, config: Any) -> Any:
    """Return peft's model over a candidate; only the updates are trainable.

    Args:
        candidate: A candidate with weight-only linear layers (nf4 with double quantization for
            QLoRA); not changed.
        config: A ``peft.LoraConfig``; without ``target_modules``, every weight-only linear layer
            gets an update.

    Returns:
        What ``peft.get_peft_model`` returns: it trains, saves its adapters and generates as any
        other.

    Raises:
        SchemeError: If there is no such layer, or the configuration reads the base's weight (DoRA,
            PiSSA, LoftQ, ...).
    """
    base, found = _base(candidate)
    settings = _registered(config)
    if settings.target_modules is None:
        settings.target_modules = _exactly(base, list(found))
    with _some_parameter(base):
        return peft.get_peft_model(base, settings)


def peft_by_settings(candidate: TorchCandidate, settings: LowRank) -> Any:
    """Return peft's model over a candidate, as octavo's own settings say.

    Raises:
        SchemeError: As for :func:`peft_model`.
    """
    base, found = _base(candidate)
    targets = _exactly(base, chosen(found, settings.ops))
    predicts_tokens = hasattr(base, "prepare_inputs_for_generation")
    config = peft.LoraConfig(
        r=settings.rank,
        # peft declares whole numbers, and divides what it is given.
        lora_alpha=settings.alpha,  # type: ignore[arg-type,unused-ignore]
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM" if predicts_tokens else None,
    )
    with _some_parameter(base):
        return peft.get_peft_model(base, _registered(config))


def _base(
    candidate: TorchCandidate,
) -> tuple[nn.Module, dict[str, WeightOnlyLinear]]:
    base, found = frozen_base(candidate)
    if "" in found:
        raise SchemeError(
            "the model is a single layer, and peft replaces layers within a model: use "
            "library='octavo', or wrap the float model in nn.Sequential"
        )
    return base, found


def _exactly(base: nn.Module, paths: Sequence[str]) -> list[str] | str:
    """Return what peft takes for the names of layers, so that it takes these and no others.

    peft takes names by their ends: ``q_proj`` for each layer's, and ``0`` for any child of that
    name. Short names are what other tools know; where they say too much, a pattern says it all.
    """
    wanted = set(paths)
    names = [name for name, _ in base.named_modules()]
    for listed in (sorted({p.rpartition(".")[2] for p in paths}), sorted(wanted)):
        ends = tuple(f".{name}" for name in listed)
        taken = {n for n in names if n in listed or n.endswith(ends)}
        if taken == wanted:
            return listed
    return "|".join(re.escape(path) for path in sorted(wanted))


@contextmanager
def _some_parameter(base: nn.Module) -> Iterator[None]:
    """Let a model have a parameter while peft looks at it: it asks the first one for its device,
    and where every weight is quantized there is none."""
    device = next((b.device for b in base.buffers()), torch.device("cpu"))
    parameter = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
    base.register_parameter(_DEVICE, parameter)
    try:
        yield
    finally:
        del base._parameters[_DEVICE]


def load_peft_model(
    candidate: TorchCandidate, folder: str | Path, **options: Any
) -> Any:
    """Return peft's model over a candidate with the adapters that ``save_pretrained`` wrote.

    Args:
        candidate: As for :func:`peft_model`.
        folder: The adapters' folder.
        **options: For ``peft.PeftModel.from_pretrained`` (``is_trainable=True``).
    """
    config = _registered(peft.LoraConfig.from_pretrained(str(folder)))
    base, _ = _base(candidate)
    with _some_parameter(base):
        return peft.PeftModel.from_pretrained(
            base, str(folder), config=config, **options
        )


def _registered(config: Any) -> Any:
    """Return a copy of a configuration that knows the layer."""
    start = config.init_lora_weights
    if config.use_dora or start not in _FROM_NOTHING:
        fitting = ", ".join(map(repr, _FROM_NOTHING))
        raise SchemeError(
            f"use_dora={config.use_dora}, init_lora_weights={start!r}: these read the base's "
            "weight, which is stored in few bits; "
            f"use plain LoRA with init_lora_weights one of {fitting}"
        )
    settings = copy.copy(config)
    # peft's guide "Custom models" names this method, private as it is, as the way.
    settings._register_custom_module({WeightOnlyLinear: LoraWeightOnly})
    return settings
