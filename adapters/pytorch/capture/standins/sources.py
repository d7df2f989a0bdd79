"""Which parameter of the model a layer was made for."""

from __future__ import annotations

from torch import nn

_SOURCE = "octavo_source"


def note_source(layer: nn.Module, leaf: str) -> None:
    """Note of which attribute of its owner a layer holds the parameter, wholly or in part."""
    for module in layer.modules():
        module.__dict__[_SOURCE] = leaf


def parameter_of(path: str, module: nn.Module) -> tuple[str, ...]:
    """Return the parameter that a layer was made for; nothing for a layer of the model's own."""
    leaf = module.__dict__.get(_SOURCE)
    if leaf is None:
        return ()
    # Layers for one parameter are called w_layer and, where it holds many matrices, w_layer.0,
    # w_layer.1 and so on.
    parts = path.split(".")
    while not parts[-1].startswith(f"{leaf}_layer"):
        parts.pop()
    owner = parts[:-1]
    name = ".".join([*owner, leaf])
    return (name,)
