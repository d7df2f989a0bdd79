"""Models that a name and a configuration make again: those of transformers, without running code of
the files' author."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.standins.parameters import loose_weights
from octavo.adapters.pytorch.modules.shared_copy import set_tensor
from octavo.core.errors import MissingFramework, ModelError, UnsafeFile

_ATTENTIONS = ("eager", "sdpa")
"""Attention functions that transformers brings; any other name may lead to code from elsewhere."""


def is_known(module: nn.Module) -> bool:
    """True for a model class that the transformers package itself defines and exports."""
    cls = type(module)
    if not cls.__module__.startswith("transformers.models."):
        return False
    import transformers

    return getattr(transformers, cls.__name__, None) is cls and hasattr(
        module, "config"
    )


def architecture_of(module: nn.Module) -> dict[str, Any] | None:
    """Return what :func:`rebuild` makes a model's float module from, JSON-ready; None where that
    cannot be said.

    It goes into octavo's own file and not into a config.json, which would make the folder look like
    a checkpoint that ``from_pretrained`` reads.
    """
    if not is_known(module):
        return None
    config: Any = module.config
    generation: Any = getattr(module, "generation_config", None)
    kinds: dict[str, list[str]] = {}
    sources = parameters_of_layers(module)
    for path, child in module.named_modules():
        if type(child).__module__.startswith("octavo.") and isinstance(
            weight := getattr(child, "weight", None), torch.Tensor
        ):
            kinds.setdefault(str(weight.dtype).removeprefix("torch."), []).append(
                sources.get(path, path)
            )
    return {
        "class": type(module).__name__,
        "config": json.loads(config.to_json_string(use_diff=False)),
        "generation": None
        if generation is None
        else json.loads(generation.to_json_string()),
        "attention": config._attn_implementation
        if config._attn_implementation in _ATTENTIONS
        else None,
        "dtypes": kinds,
    }


def parameters_of_layers(root: nn.Module) -> dict[str, str]:
    """Return path of a layer that was made for a parameter -> that parameter's name."""
    found: dict[str, str] = {}
    for owner, leaf, place in loose_weights(root):
        prefix = f"{owner}." if owner else ""
        for child in place.layers.values():
            layer = root.get_submodule(f"{prefix}{child}")
            inner = [f".{name}" for name, _ in layer.named_children()]
            found |= {
                f"{prefix}{child}{end}": f"{prefix}{leaf}" for end in ("", *inner)
            }
    return found


def rebuild(facts: Mapping[str, Any], device: str = "cpu") -> nn.Module:
    """Return the float module with the settings that it had, its tensors' numbers left open.

    Args:
        facts: From :func:`architecture_of`.
        device: ``cpu``; or ``meta`` for a module that is only looked at.

    Raises:
        UnsafeFile: If the class is none of transformers' own models.
        ModelError: If the configuration does not fit the class.
        MissingFramework: If transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingFramework(
            f"the saved model is a {facts['class']} of transformers, which is not installed: pip "
            "install transformers, or pass the float module"
        ) from error
    cls = getattr(transformers, str(facts["class"]), None)
    known = (
        isinstance(cls, type)
        and issubclass(cls, transformers.PreTrainedModel)
        and cls.__module__.startswith("transformers.models.")
    )
    if not known or cls is None:
        raise UnsafeFile(
            f"{facts['class']!r} is no model class of transformers {transformers.__version__}; "
            "pass the float module"
        )
    try:
        config = cls.config_class.from_dict(_with_floats(facts["config"]))
        if facts.get("attention") in _ATTENTIONS:
            config._attn_implementation = facts["attention"]
        with _uninitialised(), torch.device(device):
            module: Any = cls(config)
        module.tie_weights()
        for name, paths in facts["dtypes"].items():
            for path in paths:
                _set_dtype(module, path, getattr(torch, name))
        if facts.get("generation") is not None:
            module.generation_config = transformers.GenerationConfig.from_dict(
                dict(facts["generation"])
            )
        made: nn.Module = module
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"a {facts['class']} cannot be made from its saved configuration with transformers "
            f"{transformers.__version__} ({error}); "
            "pass the float module"
        ) from error
    return made


def _with_floats(value: Any) -> Any:
    """Return a configuration with the numbers that JSON lacks, which transformers writes as
    ``{"__float__": "Infinity"}``."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_floats(item) for key, item in value.items()}
    return [_with_floats(item) for item in value] if isinstance(value, list) else value


def _set_dtype(module: nn.Module, path: str, dtype: torch.dtype) -> None:
    # One of a mixture's experts is a slice of a parameter, and no module.
    parameters = dict(module.named_parameters(remove_duplicate=False))
    whole = path if path in parameters else path.rpartition(".")[0]
    name = f"{path}.weight" if path in dict(module.named_modules()) else whole
    owner, _, leaf = name.rpartition(".")
    weight = getattr(module.get_submodule(owner), leaf)
    assert isinstance(weight, torch.Tensor)
    if weight.dtype != dtype:
        set_tensor(module, name, torch.empty_like(weight, dtype=dtype))


@contextmanager
def _uninitialised() -> Iterator[None]:
    """Let transformers' models leave their weights as the memory was: they are read from the files,
    or never used."""
    try:
        home: Any = import_module("transformers.initialization")
    except ImportError:  # transformers 4
        home = import_module("transformers.modeling_utils")
    with home.no_init_weights():
        yield
