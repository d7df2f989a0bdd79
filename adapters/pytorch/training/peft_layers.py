"""peft on a quantized base: its own LoRA layer over octavo's stored weights.

peft has third parties bring a layer class of their own for layer types it does not know (its guide
"Custom models"); this is that class, and what registers it. :mod:`~.qlora` does the same without
peft.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.core.errors import MissingFramework, SchemeError

from .qlora import frozen_base

try:
    import peft
    from peft.tuners.lora import Linear
except ImportError as error:
    raise MissingFramework(
        f"peft is not installed ({error}): pip install peft; "
        "or give octavo.core.contract.training.LowRank"
    ) from error

_FROM_NOTHING = (True, False, "gaussian", "orthogonal")
"""Ways to start an update that do not read the base's weight."""


class LoraWeightOnly(Linear):
    """peft's LoRA layer whose base stays in few bits.

    It cannot be merged, because the base has no room for an update.
    """

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, WeightOnlyLinear)
        return module.weight_codes.features, module.weight_codes.rows

    def merge(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            SchemeError: Always; the message says what to do.
        """
        raise SchemeError(
            "the base's weight is stored in few bits and takes no update: merge the adapter into "
            "the float model "
            "(PeftModel.from_pretrained(float_model, folder).merge_and_unload()) and quantize that"
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
    base, paths = frozen_base(candidate)
    settings = _registered(config)
    if settings.target_modules is None:
        settings.target_modules = set(paths)
    return peft.get_peft_model(base, settings)


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
    base, _ = frozen_base(candidate)
    return peft.PeftModel.from_pretrained(base, str(folder), config=config, **options)


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
