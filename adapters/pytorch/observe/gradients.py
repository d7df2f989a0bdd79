"""Gradients of a float model's own predictions, one weight at a time, without labels.

Two quantities of one loss, the distance of the outputs to the float outputs, whose Hessian at the
float weights is H:

* a draw of the gradient g that a label sampled from the model's own prediction causes: E[g g^T] = H
  (the Fisher matrix);
* H v, the change of the loss's gradient along a direction, by a second backward pass (Pearlmutter
  1994).

The distance is the caller's (:mod:`octavo.core.contract.output_metric`), or the plain one: |y -
y0|^2 / (2 |y0 - mean y0|^2), and for a language model, whose output has a column for each row of
its vocabulary, the Kullback-Leibler divergence of its predictions, a mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.shared_copy import (
    named_tensors,
    set_tensor,
    skeleton,
)
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.contract.output_metric import OutputMetric, plain
from octavo.core.errors import SchemeError

from .folded_weights import folded_gain

Tensor = torch.Tensor
TensorSink = Callable[[str, Tensor], None]


def gradients(
    capture: Capture,
    calls: Iterable[Call],
    tensors: Iterable[str],
    sink: TensorSink,
    seed: int,
    along: Mapping[str, Tensor],
    metric: OutputMetric | None = None,
) -> int:
    """Hand one array for each batch and tensor to ``sink``, as soon as the backward pass has it.

    Nothing is kept.

    Args:
        capture: The float model; neither it nor its gradients are changed.
        calls: Batches.
        tensors: Names of weights.
        sink: Takes (name, float32 array of the weight's shape).
        seed: Of the sampled labels.
        along: Tensor -> direction: hand over Hessian-vector products. Empty: hand over draws of the
            gradient.
        metric: The distance of the outputs over these batches; None for the plain one.

    Returns:
        The number of batches.

    Raises:
        SchemeError: If no output depends on a tensor in a way that can be differentiated.
    """
    gains = {name: folded_gain(capture, name) for name in tensors}
    root = _watched_copy(capture, gains)
    watched = {name: _parameter(root, name) for name in gains}
    directions: dict[Tensor, Tensor] = {}
    for name, direction in along.items():
        parameter = watched[name]
        stored = _as_stored(direction, gains[name])
        directions[parameter] = stored.to(parameter.dtype)
    hooks: list[RemovableHandle] = []
    for name, parameter in watched.items():
        add_hook: Any = parameter.register_post_accumulate_grad_hook
        stream = _stream(name, gains[name], sink)
        hooks.append(add_hook(stream))
    vocabulary = _vocabulary(capture.layers.values())
    count = 0
    try:
        for args, kwargs in calls:
            # Fused attention has no second derivative.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                result = root(*args, **kwargs)
                outputs = [y for y in tensors_in(result) if y.is_floating_point()]
                _check_depends(outputs, gains)
                by = metric or plain([y.detach() for y in outputs], vocabulary)
                loss = _Loss(outputs, by, count)
                if directions:
                    loss.backward_along(directions)
                else:
                    loss.backward_of_draw(seed)
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
    return count


def _watched_copy(capture: Capture, wanted: Iterable[str]) -> nn.Module:
    """Return a skeleton of the float model of which the named weights alone ask for gradients."""
    root = skeleton(capture.root)
    named = set(wanted)
    for name, tensor in named_tensors(capture.root).items():
        # Own parameters over the same memory: the user's collect no gradients.
        is_named = name in named
        set_tensor(root, name, tensor.detach(), trained=is_named)
    install(root, capture.layers, capture.factors)
    return root


def _check_depends(outputs: Iterable[Tensor], wanted: Iterable[str]) -> None:
    if not any(y.requires_grad for y in outputs):
        names = ", ".join(wanted)
        raise SchemeError(
            f"the outputs do not depend on {names} in a way that torch can differentiate"
        )


def _as_stored(direction: Tensor, gain: Tensor | None) -> Tensor:
    """Return a direction of a weight as ops use it as one of the weight that the model holds."""
    return direction if gain is None else direction / gain


@dataclass(frozen=True, slots=True)
class _Loss:
    """The distance of one batch's outputs to themselves.

    Attributes:
        outputs: Every floating-point one.
        metric: How they are compared.
        batch: Number of the batch.
    """

    outputs: list[Tensor]
    metric: OutputMetric
    batch: int

    def backward_of_draw(self, seed: int) -> None:
        """Fill the gradients of what is watched with a draw of g."""
        counted = []
        starts = []
        for place in self.metric.counted:
            y = self.outputs[place]
            if not y.requires_grad:
                continue
            start = self.metric.draw(place, y.detach(), self.batch, seed)
            counted.append(y)
            starts.append(start.to(y.dtype))
        torch.autograd.backward(counted, starts)

    def backward_along(self, directions: Mapping[Tensor, Tensor]) -> None:
        """Fill the gradients of what is watched with H v."""
        watched = list(directions)
        own = [y.detach() for y in self.outputs]
        loss = self.metric.distance(self.outputs, own, self.batch)
        found = torch.autograd.grad(loss, watched, create_graph=True, allow_unused=True)
        pairs = zip(found, directions.values(), strict=True)
        dots = [(g * v).sum() for g, v in pairs if g is not None]
        torch.stack(dots).sum().backward(inputs=watched)  # type: ignore[no-untyped-call]


def _vocabulary(layers: Iterable[Layer]) -> int:
    """Return the rows of the largest embedding; 0 if there is none."""
    most = 0
    for layer in layers:
        weight = layer.op.weight
        if layer.op.type == "embedding" and weight is not None:
            most = max(most, weight.shape[0])
    return most


def _parameter(root: nn.Module, name: str) -> nn.Parameter:
    path, _, leaf = name.rpartition(".")
    found = getattr(root.get_submodule(path), leaf)
    assert isinstance(found, nn.Parameter)
    return found


def _stream(
    name: str, gain: Tensor | None, sink: TensorSink
) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        found = parameter.grad.detach().float()
        # Let go of at once: the model's gradients together may be as large as the model.
        parameter.grad = None
        if gain is not None:
            found = found / gain
        sink(name, found)

    return hook
