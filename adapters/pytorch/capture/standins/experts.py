"""Mixtures of experts of transformers, whose experts are slices of three-dimensional parameters, as linear layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import skeleton

Tensor = torch.Tensor


class Experts(nn.Module):
    """Computes what a transformers experts module computes, each expert with two linear layers over views of the parameters.

    Args:
        module: One that :func:`is_experts` knows.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(
            {k: v for k, v in module.__dict__.items() if not k.startswith("_") and k != "training"}
        )
        for name, child in module.named_children():
            self.add_module(name, child)
        kind: Any = type(module)
        self._gate = kind._apply_gate
        self.gate_up_proj = _layers(module, "gate_up_proj")
        self.down_proj = _layers(module, "down_proj")
        self.train(module.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of what each token's experts make of it: (tokens, features).

        Args:
            hidden_states: (tokens, features).
            top_k_index: Each token's experts, (tokens, k).
            top_k_weights: Their weights, (tokens, k).
        """
        result = torch.zeros_like(hidden_states)
        count = len(self.gate_up_proj)
        if (
            torch.compiler.is_compiling()
        ):  # which experts are met is not known yet: all of them run, most with weight 0
            for i in range(count):
                share = (top_k_weights * (top_k_index == i)).sum(-1, keepdim=True)
                result = result + (self._expert(i, hidden_states) * share).to(result.dtype)
            return result
        for i in torch.unique(top_k_index).tolist():
            if i < count:  # the number of experts itself stands for one of another machine
                token, place = torch.where(top_k_index == i)
                y = self._expert(i, hidden_states[token]) * top_k_weights[token, place, None]
                result.index_add_(0, token, y.to(result.dtype))
        return result

    def _expert(self, index: int, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj[index](self._gate(self, self.gate_up_proj[index](x)))
        return y


def is_experts(module: nn.Module) -> bool:
    """True for an experts module of transformers that :class:`Experts` reproduces, established by running both on small weights."""
    own = dict(module.named_parameters(recurse=False))
    usual = (getattr(module, "has_gate", False), getattr(module, "has_post_expert_norm", True))
    names = {
        "gate_up_proj",
        "down_proj",
        *(("gate_up_proj_bias", "down_proj_bias") if getattr(module, "has_bias", False) else ()),
    }
    if (
        usual != (True, False)
        or set(own) != names
        or own["down_proj"].ndim != 3
        or not own["down_proj"].is_floating_point()
    ):
        return False
    twin, generator = skeleton(module), torch.Generator().manual_seed(0)
    shapes = {
        "gate_up_proj": (3, 32, 16),
        "down_proj": (3, 16, 16),
        "gate_up_proj_bias": (3, 32),
        "down_proj_bias": (3, 16),
    }
    for name in names:
        small = torch.randn(shapes[name], generator=generator)
        turned = module.is_transposed and small.ndim == 3
        twin._parameters[name] = nn.Parameter(
            small.transpose(1, 2).contiguous() if turned else small
        )
    if hasattr(twin, "num_experts"):
        twin.__dict__["num_experts"] = 3
    x, share = torch.randn(6, 16, generator=generator), torch.rand(6, 2, generator=generator)
    index = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0], [2, 1]])
    with torch.no_grad():
        try:
            return torch.allclose(
                Experts(twin)(x, index, share), twin(x, index, share), rtol=1e-3, atol=1e-3
            )
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return False


def expert_groups(root: nn.Module) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Yield (name, paths of linear layers) for all first and all second layers of each mixture: they take one decision."""
    for path, module in root.named_modules():
        if isinstance(module, Experts):
            for name in ("gate_up_proj", "down_proj"):
                stem = f"{path}.{name}" if path else name
                yield stem, tuple(f"{stem}.{i}" for i in range(len(module.gate_up_proj)))


def unreached(root: nn.Module) -> Iterable[str]:
    """Yield names of weights with three axes that no layer holds: what multiplies by them is not seen."""
    for path, module in root.named_modules():
        if not type(module).__module__.startswith(("torch.nn.", "octavo.")):
            for name, held in module.named_parameters(recurse=False):
                if held.ndim == 3 and min(held.shape) > 1 and held.is_floating_point():
                    yield f"{path}.{name}" if path else name


def packed_experts(root: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Yield the parameters of mixtures whose layers are float, as the original modules name and hold them."""
    for stem, paths in expert_groups(root):
        layers = [root.get_submodule(p) for p in paths]
        turned = root.get_submodule(stem.rpartition(".")[0]).is_transposed
        if all(type(layer) is nn.Linear for layer in layers):
            for name, leaf in ((stem, "weight"), (f"{stem}_bias", "bias")):
                parts = [getattr(layer, leaf) for layer in layers]
                if parts[0] is not None:
                    yield (
                        name,
                        torch.stack(
                            [
                                p.detach().t() if turned and p.ndim == 2 else p.detach()
                                for p in parts
                            ]
                        ),
                    )


def _layers(module: Any, name: str) -> nn.ModuleList:
    weight, bias = getattr(module, name).detach(), getattr(module, f"{name}_bias", None)
    weight = weight.transpose(1, 2) if module.is_transposed else weight
    made = nn.ModuleList()
    for i in range(weight.shape[0]):
        layer = nn.Linear(weight.shape[2], weight.shape[1], bias is not None, device="meta")
        layer.weight = nn.Parameter(weight[i], requires_grad=getattr(module, name).requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach()[i], requires_grad=bias.requires_grad)
        made.append(layer)
    return made
