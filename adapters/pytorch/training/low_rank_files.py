"""Low-rank updates in the files that peft writes and reads: ``adapter_config.json`` and
``adapter_model.safetensors``. peft itself need not be installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.core.contract.training import LowRank
from octavo.core.errors import ConfigError, SchemeError

from .qlora import LowRankLinear, add_low_rank

_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""Of each tensor's name, for peft's model holds the base model there."""


def save_updates(root: nn.Module, folder: Path) -> None:
    """Write the updates of :class:`~.qlora.LowRankLinear` layers.

    Raises:
        SchemeError: If there is none.
    """
    updates = own_updates(root)
    if not updates:
        raise SchemeError("the model has no low-rank updates: octavo.qlora adds them")
    tensors = {}
    for path, layer in updates.items():
        name = f"{_PREFIX}{path}." if path else _PREFIX
        tensors[f"{name}lora_A.weight"] = layer.down.detach().contiguous()
        tensors[f"{name}lora_B.weight"] = layer.up.detach().contiguous()
    first = next(iter(updates.values()))
    rank = first.down.shape[0]
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": first.gain * rank,
        "lora_dropout": first.dropout.p,
        "target_modules": list(updates),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
    text = json.dumps(settings, indent=2)
    (folder / _CONFIG).write_text(text, encoding="utf-8")


class SaveUpdates:
    """Stands for ``save_pretrained`` of a transformers model with updates: it writes these alone,
    as peft's model does, so that transformers' Trainer has what a checkpoint needs.

    Args:
        root: The model.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root

    def __call__(self, save_directory: str | Path, *_: Any, **__: Any) -> None:
        """Write the updates; what else ``save_pretrained`` takes is about files of whole models."""
        save_updates(self._root, Path(save_directory))


def load_updates(
    candidate: TorchCandidate, folder: Path, *, is_trainable: bool = False
) -> nn.Module:
    """Return a candidate's module with updates that were saved.

    Args:
        candidate: The base.
        folder: What :func:`save_updates` or peft wrote.
        is_trainable: Whether they go on learning.

    Raises:
        ConfigError: If the folder holds none, or they are of another kind than plain LoRA.
        SchemeError: If the base has no such layer.
    """
    settings, tensors = _read(folder)
    paths = sorted({name.rpartition(".lora_")[0] for name in tensors})
    own = tuple(path.removeprefix(_PREFIX) for path in paths)
    asked = LowRank(
        settings["r"], settings["lora_alpha"], settings.get("lora_dropout", 0.0), own
    )
    root = add_low_rank(candidate, asked)
    with torch.no_grad():
        for path, layer in own_updates(root).items():
            for factor, parameter in (("A", layer.down), ("B", layer.up)):
                name = f"{_PREFIX}{path}.lora_{factor}.weight"
                if tensors[name].shape != parameter.shape:
                    raise ConfigError(
                        f"{folder}: {name} has the shape {tuple(tensors[name].shape)}, "
                        f"the model's layer takes {tuple(parameter.shape)}"
                    )
                parameter.copy_(tensors[name])
                parameter.requires_grad_(is_trainable)
    return root


def own_updates(root: nn.Module) -> dict[str, LowRankLinear]:
    """Return the layers with updates, by path."""
    modules = root.named_modules()
    return {path: m for path, m in modules if isinstance(m, LowRankLinear)}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
    except OSError as error:
        raise ConfigError(
            f"{folder} holds no low-rank updates ({error}): give the folder that "
            "octavo.save_adapters or peft's save_pretrained wrote"
        ) from error
    plain: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "use_rslora": (False, None),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
    }
    for key, allowed in plain.items():
        if settings.get(key) not in allowed:
            raise ConfigError(
                f"{folder}: {key} is {settings.get(key)!r}; without peft only plain LoRA of one "
                "rank is read: pip install peft"
            )
    return settings, tensors
