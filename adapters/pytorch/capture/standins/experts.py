"""Mixtures of experts of transformers as linear layers.

Their experts are slices of three-dimensional parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import skeleton

from .layers_for_uses import linear_over

Tensor = torch.Tensor
_Group = tuple[str, tuple[str, ...]]
_WEIGHTS = ("gate_up_proj", "down_proj")
_SMALL = {
    "gate_up_proj": (3, 32, 16),
    "down_proj": (3, 16, 16),
    "gate_up_proj_bias": (3, 32),
    "down_proj_bias": (3, 16),
}
"""Shapes of the parameters on which a module is tried: 3 experts of 16 features."""


class Experts(nn.Module):
    """Computes what a transformers experts module computes.

    Each expert does with two linear layers over views of the parameters.

    Args:
        module: One that :func:`is_experts` knows.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # The gate may read any setting of the module.
        for name, value in module.__dict__.items():
            if not name.startswith("_") and name != "training":
                self.__dict__[name] = value
        for name, child in module.named_children():
            self.add_module(name, child)
        kind: Any = type(module)
        self._gate = kind._apply_gate
        self.gate_up_proj = _layers(module, "gate_up_proj")
        self.down_proj = _layers(module, "down_proj")
        self.train(module.training)

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """Return the weighted sum of what each token's experts make of it: (tokens, features).

        Args:
            hidden_states: (tokens, features).
            top_k_index: Each token's experts, (tokens, k).
            top_k_weights: Their weights, (tokens, k).
        """
        if torch.compiler.is_compiling():
            return self._all_experts(hidden_states, top_k_index, top_k_weights)
        result = torch.zeros_like(hidden_states)
        count = len(self.gate_up_proj)
        for i in torch.unique(top_k_index).tolist():
            # The number of experts itself stands for one of another machine.
            if i >= count:
                continue
            token, place = torch.where(top_k_index == i)
            y = self._expert(i, hidden_states[token])
            share = top_k_weights[token, place, None]
            y = y * share
            result.index_add_(0, token, y.to(result.dtype))
        return result

    def _all_experts(
        self, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """Let all experts run, most with weight 0.

        While a program is compiled it is not known which are met.
        """
        result = torch.zeros_like(x)
        for i in range(len(self.gate_up_proj)):
            is_own = top_k_index == i
            share = (top_k_weights * is_own).sum(-1, keepdim=True)
            y = self._expert(i, x)
            y = y * share
            result = result + y.to(result.dtype)
        return result

    def _expert(self, index: int, x: Tensor) -> Tensor:
        gate_and_up = self.gate_up_proj[index](x)
        inner = self._gate(self, gate_and_up)
        y: Tensor = self.down_proj[index](inner)
        return y


def _layers(module: Any, name: str) -> nn.ModuleList:
    """Return each expert's part of a parameter as a layer."""
    packed = getattr(module, name)
    weight = packed.detach()
    if module.is_transposed:
        weight = weight.transpose(1, 2)
    packed_bias = getattr(module, f"{name}_bias", None)
    made = nn.ModuleList()
    for i in range(weight.shape[0]):
        own = _like(packed, weight[i])
        bias = None
        if packed_bias is not None:
            bias = _like(packed_bias, packed_bias.detach()[i])
        layer = linear_over(own, bias)
        made.append(layer)
    return made


def _like(packed: Tensor, part: Tensor) -> nn.Parameter:
    """Return a part of a parameter as one that is trained if the whole is."""
    return nn.Parameter(part, requires_grad=packed.requires_grad)


def is_experts(module: nn.Module) -> bool:
    """Return whether :class:`Experts` reproduces an experts module of transformers.

    That is established by running both on small weights.
    """
    if not _looks_like_experts(module):
        return False
    generator = torch.Generator().manual_seed(0)
    twin = _small_twin(module, generator)
    x = torch.randn(6, 16, generator=generator)
    share = torch.rand(6, 2, generator=generator)
    # Every expert, as first and as second choice.
    index = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0], [2, 1]])
    with torch.no_grad():
        # A module that only looks like one may fail in any of these ways.
        try:
            standin = Experts(twin)
            own = standin(x, index, share)
            theirs = twin(x, index, share)
            return torch.allclose(own, theirs, rtol=1e-3, atol=1e-3)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return False


def _parameter_names(module: nn.Module) -> list[str]:
    """Return the names of an experts module's parameters."""
    names = list(_WEIGHTS)
    if getattr(module, "has_bias", False):
        names += [f"{name}_bias" for name in _WEIGHTS]
    return names


def _looks_like_experts(module: nn.Module) -> bool:
    has_gate = getattr(module, "has_gate", False)
    has_norm = getattr(module, "has_post_expert_norm", True)
    if not has_gate or has_norm:
        return False
    own = dict(module.named_parameters(recurse=False))
    expected = _parameter_names(module)
    if set(own) != set(expected):
        return False
    down = own["down_proj"]
    return down.ndim == 3 and down.is_floating_point()


def _small_twin(module: Any, generator: torch.Generator) -> nn.Module:
    """Return a skeleton with small random parameters in the place of the module's own."""
    twin = skeleton(module)
    for name in _parameter_names(module):
        small = torch.randn(_SMALL[name], generator=generator)
        if module.is_transposed and small.ndim == 3:
            small = small.transpose(1, 2).contiguous()
        twin._parameters[name] = nn.Parameter(small)
    if hasattr(twin, "num_experts"):
        twin.__dict__["num_experts"] = 3
    return twin


def expert_groups(root: nn.Module) -> Iterator[_Group]:
    """Yield (name, paths of linear layers) for all first and all second layers of each mixture.

    They take one decision.
    """
    for path, module in root.named_modules():
        if not isinstance(module, Experts):
            continue
        for name in _WEIGHTS:
            stem = _joined(path, name)
            count = len(module.gate_up_proj)
            layers = [f"{stem}.{i}" for i in range(count)]
            yield stem, tuple(layers)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def unreached(root: nn.Module) -> Iterator[str]:
    """Yield names of weights with three axes that no layer holds.

    What multiplies by them is not seen.
    """
    for path, module in root.named_modules():
        if type(module).__module__.startswith(("torch.nn.", "octavo.")):
            continue
        for name, held in module.named_parameters(recurse=False):
            # With an axis of one it is no matrix for each of several.
            if held.ndim != 3 or min(held.shape) <= 1:
                continue
            if held.is_floating_point():
                yield _joined(path, name)


def packed_experts(root: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Yield the parameters of mixtures whose layers are float.

    They are named and held as by the original modules.
    """
    for stem, paths in expert_groups(root):
        layers = [root.get_submodule(p) for p in paths]
        kinds = {type(layer) for layer in layers}
        if kinds != {nn.Linear}:
            continue
        path = stem.rpartition(".")[0]
        mixture: Any = root.get_submodule(path)
        weights = [layer.weight for layer in layers]
        yield stem, _stacked(weights, turned=mixture.is_transposed)
        if layers[0].bias is not None:
            biases = [layer.bias for layer in layers]
            yield f"{stem}_bias", _stacked(biases)


def _stacked(parts: list[Any], *, turned: bool = False) -> Tensor:
    """Return the experts' parts of a parameter as one, each matrix turned if asked for."""
    own = [part.detach() for part in parts]
    if turned:
        own = [part.t() for part in own]
    return torch.stack(own)
