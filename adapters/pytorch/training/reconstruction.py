"""Block reconstruction: the rounding of a whole transformer block is learned from what the block puts out.

Cheng et al. 2024, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (AutoRound): offsets v in
[-1/2, 1/2] are added before rounding, scales are learned beside them, block after block, each fed with what the quantized
blocks before it put out. Only one block's activations and offsets are alive at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.blocks import blocks_of
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import frozen, set_submodule, skeleton
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.training import Reconstruction
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams, integer_range, is_integer
from octavo.core.numerics.tensor import QuantizedTensor

from .straight_through import grouped, round_to_grid

Tensor = torch.Tensor


class LearnedLinear(nn.Module):
    """A linear layer whose weight lies on a grid and whose rounding and scales can be learned."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, start: QuantizedTensor, *, transposed: bool
    ) -> None:
        super().__init__()
        params = start.params
        self.spec = params.spec
        self.transposed = transposed
        stored = start.codes
        self.code_type = stored.dtype
        matrix, codes = (t.t().contiguous() if transposed else t for t in (weight.float(), stored))
        # A copy: it is learned in place, and the start's is the realizer's, which other trials use.
        scale, zero = params.scale.to(torch.float32, copy=True), params.zero_point.float()
        if scale.ndim == 1 and matrix.ndim == 2:
            scale, zero = scale[:, None], zero[:, None]
        self.shape = matrix.shape
        self.weight = grouped(matrix, scale)
        codes = grouped(codes, scale).float()
        self.scale = nn.Parameter(
            scale[..., None]
            if (scale.ndim == 2 and scale.shape[1] > 1) or self.weight.ndim == 3
            else scale
        )
        self.zero = zero[..., None] if self.scale.ndim == 3 else zero
        ratio = self.weight / self.scale.detach()
        # Where the start's algorithm rounded otherwise than to nearest, its choice is the centre.
        centre = codes - self.zero
        self.offset = nn.Parameter(centre + (ratio - centre).clamp(-0.49, 0.49) - ratio)
        self.bias = None if bias is None else bias.detach()

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, (outputs, inputs)."""
        return round_to_grid(self.weight, self.scale, self.zero, self.spec, self.offset).view(
            self.shape
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return nn.functional.linear(x, self.quantized_weight(), self.bias)

    @torch.no_grad()
    def result(self, start: QuantizedTensor) -> QuantizedTensor:
        """Return the learned codes and scales in the form of ``start``."""
        low, high = integer_range(self.spec)
        scale = self.scale.detach()
        codes = (
            (torch.round(self.weight / scale + self.offset) + self.zero)
            .clamp(low, high)
            .view(self.shape)
            .to(self.code_type)
        )
        params: QuantParams = replace(
            start.params, scale=scale.reshape(start.params.scale.shape).clone()
        )
        return QuantizedTensor(codes.t().contiguous() if self.transposed else codes, params)


def learn_or_leave(
    modules: Sequence[LearnedLinear], cost: Callable[[], float], learn: Callable[[], None]
) -> None:
    """Learn, and go back to the start where all batches together say that it was better."""
    start = [(m.offset.detach().clone(), m.scale.detach().clone()) for m in modules]
    with torch.no_grad():
        before = cost()
    learn()
    with torch.no_grad():
        if not cost() < before:
            for module, (offset, scale) in zip(modules, start, strict=True):
                module.offset.copy_(offset)
                module.scale.copy_(scale)


class _Inputs:
    """What each block is called with, batch by batch; the hidden state of the first block only."""

    def __init__(self, root: nn.Module, paths: Sequence[str], calls: Iterable[Call]) -> None:
        self.rest: dict[str, list[Call]] = {p: [] for p in paths}
        self.hidden: list[Tensor] = []
        twin = skeleton(root)
        for path in paths:
            twin.get_submodule(path).register_forward_pre_hook(
                self._hook(path, path == paths[0]), with_kwargs=True
            )
        with torch.no_grad():
            for args, kwargs in calls:
                twin(*args, **kwargs)

    def _hook(self, path: str, first: bool) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args:
                raise SchemeError(
                    f"block {path!r} is called without a positional hidden state and cannot be reconstructed by itself"
                )
            if first:
                self.hidden.append(args[0].detach())
            # A cache would remember one block's keys for the next call.
            self.rest[path].append(
                (args[1:], {k: None if "past_key" in k else v for k, v in kwargs.items()})
            )

        return hook


def reconstruct(
    root: nn.Module,
    layers: Mapping[str, Layer],
    parameters: Mapping[str, OpParameters],
    calls: Iterable[Call],
    settings: Reconstruction,
) -> dict[str, OpParameters]:
    """Learn the rounding of every weight-only linear layer that lies in a repeated block.

    Args:
        root: The float model; not changed.
        layers: Op name -> layer.
        parameters: Where to start from (round to nearest, GPTQ, ...).
        calls: Calibration batches.
        settings: How long and how fast.

    Returns:
        ``parameters`` with the learned weights in place.

    Raises:
        SchemeError: If no layer can be learned.
    """
    wanted = learnable(layers, parameters)
    paths = blocks_of(root, (layers[n] for n in wanted))
    if not paths:
        raise SchemeError(
            "there is no repeated block with an integer weight-only linear layer to reconstruct"
        )
    inputs = _Inputs(root, paths, calls)
    learned = dict(parameters)
    exact = quantized = inputs.hidden
    for path in paths:
        inside = {n: p for n, p in wanted.items() if layers[n].path.startswith(f"{path}.")}
        rest = inputs.rest.pop(path)
        exact, quantized, found = _block(
            root.get_submodule(path), path, layers, inside, exact, quantized, rest, settings
        )
        learned.update(found)
    return learned


def learnable(
    layers: Mapping[str, Layer], parameters: Mapping[str, OpParameters]
) -> dict[str, OpParameters]:
    """Return what can be learned: linear layers with integer weights of their own and float activations.

    A weight that an embedding looks up too stays as it is: what a head learns for itself would be a second copy.
    """
    users = Counter(id(p.weight) for p in parameters.values())
    return {n: p for n, p in parameters.items() if _fits(layers[n], p) and users[id(p.weight)] == 1}


def _fits(layer: Layer, parameters: OpParameters) -> bool:
    weight = parameters.weight
    fits = (
        layer.op.type == "linear"
        and not (layer.norm or layer.functional)
        and parameters.scheme.mode == "weight_only"
        and weight is not None
    )
    return fits and is_integer(weight.params.spec) and weight.extra is None  # type: ignore[union-attr]


def _block(
    block: nn.Module,
    path: str,
    layers: Mapping[str, Layer],
    parameters: Mapping[str, OpParameters],
    exact: Sequence[Tensor],
    quantized: Sequence[Tensor],
    rest: Sequence[Call],
    settings: Reconstruction,
) -> tuple[list[Tensor], list[Tensor], dict[str, OpParameters]]:
    """Learn one block; return its float outputs, its quantized outputs and the learned parameters."""
    twin = frozen(block)
    made: dict[str, LearnedLinear] = {}
    for name, decided in parameters.items():
        inner = layers[name].path[len(path) + 1 :]
        old = twin.get_submodule(inner)
        assert isinstance(old.weight, Tensor)
        assert decided.weight is not None
        bias = getattr(old, "bias", None)
        made[name] = LearnedLinear(
            old.weight.detach(), bias, decided.weight, transposed=is_transposed_linear(old)
        )
        set_submodule(twin, inner, made[name])
    with torch.no_grad():
        targets = [_run(block, x, call) for x, call in zip(exact, rest, strict=True)]

    def cost() -> float:
        outputs = (_run(twin, x, call) for x, call in zip(quantized, rest, strict=True))
        return sum(
            float(((y.float() - t.float()) ** 2).sum())
            for y, t in zip(outputs, targets, strict=True)
        )

    if made:
        modules = list(made.values())
        learn_or_leave(
            modules, cost, lambda: _descend(twin, modules, quantized, targets, rest, settings)
        )
    found = {}
    for name, module in made.items():
        start = parameters[name].weight
        assert start is not None
        found[name] = replace(parameters[name], weight=module.result(start))
    with torch.no_grad():
        outputs = [_run(twin, x, call) for x, call in zip(quantized, rest, strict=True)]
    return targets, outputs, found


def _run(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    return next(tensors_in(block(hidden, *call[0], **call[1])))


def _descend(
    block: nn.Module,
    modules: Sequence[LearnedLinear],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    rest: Sequence[Call],
    settings: Reconstruction,
) -> None:
    """Move offsets and scales down the squared error of the block's output."""
    # Each layer's scales move in steps of their own size.
    groups = [
        {"params": [m.scale], "lr": settings.scale_rate * float(m.scale.detach().abs().mean())}
        for m in modules
    ]
    offsets = {"params": [m.offset for m in modules], "lr": settings.rate}
    optimizer = torch.optim.Adam([offsets, *groups], betas=(0.9, 0.95))
    random = torch.Generator().manual_seed(settings.seed)
    size = float(torch.stack([(t.float() ** 2).mean() for t in targets]).mean())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0 - i / settings.iterations)
    with torch.enable_grad():
        for _ in range(settings.iterations):
            index = int(torch.randint(len(inputs), (1,), generator=random))
            with torch.autocast(
                "cpu", torch.bfloat16, enabled=settings.half and inputs[index].device.type == "cpu"
            ):
                y = _run(block, inputs[index], rest[index])
            loss = ((y.float() - targets[index].float()) ** 2).mean() / max(size, 1e-20)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
