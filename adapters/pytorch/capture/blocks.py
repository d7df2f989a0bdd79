"""The repeated blocks of a model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .layers import Layer


def blocks_of(root: nn.Module, layers: Iterable[Layer]) -> list[str]:
    """Return the paths of the repeated blocks that hold the layers: the items of the outermost lists of modules."""
    lists = [p for p, m in root.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    outer = [p for p in lists if not any(p.startswith(f"{q}.") for q in lists if q != p)]
    found: dict[str, None] = {}
    for layer in layers:
        for path in outer:
            if layer.path.startswith(f"{path}."):
                found[f"{path}.{layer.path[len(path) + 1 :].split('.')[0]}"] = None
    return list(found)
