"""Gradients of a float model's own predictions, one weight at a time, without labels.

Two quantities of one loss, the distance of the outputs to the float outputs, whose Hessian at the float weights is H:

* a draw of the gradient g that a label sampled from the model's own prediction causes: E[g g^T] = H (the Fisher matrix);
* H v, the change of the loss's gradient along a direction, by a second backward pass (Pearlmutter 1994).

The distance is |y - y0|^2 / (2 |y0 - mean y0|^2); for a language model, whose output has a column for each row of its vocabulary,
it is the Kullback-Leibler divergence of its predictions, a mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod, sqrt

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.folding import channel_gain, over_weight
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.shared_copy import named_tensors, set_tensor, skeleton
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.errors import SchemeError

Tensor = torch.Tensor


def gradients(
    capture: Capture,
    calls: Iterable[Call],
    tensors: Iterable[str],
    sink: Callable[[str, Tensor], None],
    seed: int,
    along: Mapping[str, Tensor],
) -> int:
    """Hand one array for each batch and tensor to ``sink``, as soon as the backward pass has it; nothing is kept.

    Args:
        capture: The float model; neither it nor its gradients are changed.
        calls: Batches.
        tensors: Names of weights.
        sink: Takes (name, float32 array of the weight's shape).
        seed: Of the sampled labels.
        along: Tensor -> direction: hand over Hessian-vector products. Empty: hand over draws of the gradient.

    Returns:
        The number of batches.

    Raises:
        SchemeError: If no output depends on a tensor in a way that can be differentiated.
    """
    root = skeleton(capture.root)
    wanted = {name: _gain(capture, name) for name in tensors}
    for name, tensor in named_tensors(capture.root).items():
        # Own parameters over the same memory: the user's collect no gradients.
        set_tensor(root, name, tensor.detach(), trained=name in wanted)
    install(root, capture.layers, capture.factors)
    own = {name: _parameter(root, name) for name in wanted}
    hooks = [
        p.register_post_accumulate_grad_hook(_stream(name, wanted[name], sink))  # type: ignore[no-untyped-call]
        for name, p in own.items()
    ]
    directions: dict[Tensor, Tensor] = {}
    for name, v in along.items():
        gain = wanted[name]
        directions[own[name]] = (v if gain is None else v / gain).to(own[name].dtype)
    vocabulary = _vocabulary(capture.layers.values())
    generator, count = torch.Generator().manual_seed(seed), 0
    try:
        for args, kwargs in calls:
            # Fused attention has no second derivative.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                outputs = [y for y in tensors_in(root(*args, **kwargs)) if y.is_floating_point()]
                if not any(y.requires_grad for y in outputs):
                    raise SchemeError(
                        f"the outputs do not depend on {', '.join(wanted)} in a way that torch can differentiate"
                    )
                _backward(outputs, directions, vocabulary, generator)
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
    return count


def _backward(
    outputs: list[Tensor],
    directions: Mapping[Tensor, Tensor],
    vocabulary: int,
    generator: torch.Generator,
) -> None:
    """Fill the gradients of what is watched with a draw of g, or with H v."""
    language = [y for y in outputs if y.ndim == 3 and y.shape[-1] == vocabulary]
    given = language or outputs
    power = (
        1.0
        if language
        else max(
            sum(
                float((y.detach().float() - y.detach().float().mean()).square().sum())
                for y in given
            ),
            1e-30,
        )
    )
    if not directions:
        torch.autograd.backward(
            given, [_draw(y.detach(), bool(language), power, generator).to(y.dtype) for y in given]
        )
        return
    loss = torch.stack([_distance(y, bool(language), power) for y in given]).sum()
    found = torch.autograd.grad(loss, list(directions), create_graph=True, allow_unused=True)
    dots = [(g * v).sum() for g, v in zip(found, directions.values(), strict=True) if g is not None]
    torch.stack(dots).sum().backward(inputs=list(directions))  # type: ignore[no-untyped-call]


def _draw(y: Tensor, language: bool, power: float, generator: torch.Generator) -> Tensor:
    """Return the gradient at the outputs for a label that is sampled from the prediction."""
    if not language:
        return torch.randn(y.shape, generator=generator).to(y.device) / sqrt(power)
    flat = torch.softmax(y.float(), -1).reshape(-1, y.shape[-1])
    labels = torch.multinomial(flat.cpu(), 1, generator=generator).to(y.device)
    found: Tensor = flat.scatter_add(
        1, labels, torch.full_like(labels, -1, dtype=flat.dtype)
    ).reshape(y.shape)
    return found / sqrt(prod(y.shape[:-1]))


def _distance(y: Tensor, language: bool, power: float) -> Tensor:
    own = y.detach().float()
    if language:
        odds, own = torch.log_softmax(y.float(), -1), torch.log_softmax(own, -1)
        terms, size = own.exp() * (own - odds), float(prod(y.shape[:-1]))
    else:
        terms, size = (y.float() - own).square(), 2 * power
    return torch.sum(terms) / size


def _vocabulary(layers: Iterable[Layer]) -> int:
    """Return the rows of the largest embedding; 0 if there is none."""
    return max(
        (
            layer.op.weight.shape[0]
            for layer in layers
            if layer.op.type == "embedding" and layer.op.weight
        ),
        default=0,
    )


def _parameter(root: nn.Module, name: str) -> nn.Parameter:
    path, _, leaf = name.rpartition(".")
    found = getattr(root.get_submodule(path), leaf)
    assert isinstance(found, nn.Parameter)
    return found


def _gain(capture: Capture, name: str) -> Tensor | None:
    """Return what a folded batch norm multiplies a weight with, one factor for each output channel; None where there is none."""
    for layer in capture.layers.values():
        if layer.norm and name == f"{layer.path}.weight":
            gain = channel_gain(capture.root.get_submodule(layer.norm))
            # A channel that the norm silences has no weight as the op uses it.
            return over_weight(
                torch.where(gain == 0, torch.inf, gain), capture.root.get_submodule(layer.path)
            )
    return None


def _stream(
    name: str, gain: Tensor | None, sink: Callable[[str, Tensor], None]
) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        found = parameter.grad.detach().float()
        parameter.grad = None
        sink(name, found if gain is None else found / gain)

    return hook


__all__ = ["gradients"]
