"""What becomes of trained low-rank updates: merged into a float model, or kept beside the codes of
the quantized base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from octavo.adapters.pytorch.apply.input_maps import multipliers
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.shared_copy import (
    named_tensors,
    set_submodule,
    set_tensor,
)
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.low_rank import Repair
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.sizes import without_repairs

from .low_rank_files import own_updates

Tensor = torch.Tensor


@dataclass(frozen=True)
class Update:
    """An update of one layer: x down^T up^T is added to its output.

    Attributes:
        down: float32 (rank, inputs).
        up: float32 (outputs, rank), the gain taken in.
    """

    down: Tensor
    up: Tensor


def updates_of(native: nn.Module) -> dict[str, Update]:
    """Return the updates of a model by the path of their layer in the base, octavo's or peft's.

    Of peft's, those of the active adapters, side by side.

    Raises:
        SchemeError: If there is none.
    """
    found = {
        path: Update(layer.down.detach(), layer.up.detach() * layer.gain)
        for path, layer in own_updates(native).items()
    }
    if hasattr(native, "peft_config"):
        of_peft: Any = native
        base = of_peft.base_model.model
        for path, layer in base.named_modules():
            if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
                found[path] = _of_peft(layer)
    if not found:
        raise SchemeError("the model has no low-rank updates: octavo.qlora adds them")
    return found


def _of_peft(layer: Any) -> Update:
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    downs = [layer.lora_A[name].weight.detach().float() for name in active]
    ups = [
        layer.lora_B[name].weight.detach().float() * layer.scaling[name]
        for name in active
    ]
    return Update(torch.cat(downs), torch.cat(ups, 1))


def kept(
    candidate: TorchCandidate, native: nn.Module, capture: Capture
) -> tuple[Recipe, dict[str, OpParameters]]:
    """Return recipe and parameters of a base with the updates as repairs of its weights.

    Args:
        candidate: The base.
        native: The trained model.
        capture: The float model.
    """
    parameters = dict(candidate.parameters)
    schemes = dict(candidate.recipe.schemes)
    for name, update in _by_op(native, capture).items():
        decided = parameters[name]
        old = decided.weight
        assert old is not None
        right = _on_changed_input(update.down, name, capture)
        left = update.up
        if old.repair is not None:
            left = torch.cat([old.repair.left.float(), left], 1)
            right = torch.cat([old.repair.right.float(), right])
        repair = Repair(left, right, old.params.axis or 0)
        weight = QuantizedTensor(old.codes, old.params, old.extra, repair)
        schemes[name] = _repaired(decided.scheme, repair.rank)
        parameters[name] = replace(decided, scheme=schemes[name], weight=weight)
    asked = candidate.recipe
    recipe = Recipe(schemes, asked.transforms, asked.backend, asked.recovery)
    return recipe, parameters


def _repaired(scheme: OpScheme, rank: int) -> OpScheme:
    """Return a scheme that says of a repair of that rank: sizes are known by it."""
    plain = without_repairs(scheme)
    options = (("dtype", "float32"), ("rank", rank))
    repair = PartChoice(kind="low_rank", options=options)
    return plain.variant(refined_by=(*plain.refined_by, repair))


def merged(
    root: nn.Module,
    candidate: TorchCandidate,
    native: nn.Module,
    capture: Capture,
    base: Literal["quantized", "float"],
) -> nn.Module:
    """Write the sums of weights and updates into a float model, and return it.

    Args:
        root: A skeleton of the float model, of its own.
        candidate: The base that was trained over.
        native: The trained model.
        capture: The float model.
        base: What the updates are added to.
    """
    updates = _by_op(native, capture)
    for name in updates:
        if capture.layers[name].is_tied:
            raise SchemeError(
                f"op {name!r} shares its weight with another op, which has no such update: keep "
                "the updates over the base, or leave the op out of them"
            )
    if base == "quantized":
        for name, decided in candidate.parameters.items():
            bias = candidate.biases[name]
            _write_base(root, capture.layers[name], decided, bias)
    tensors = named_tensors(root)
    for name, update in updates.items():
        weight = capture.layers[name].op.weight
        assert weight is not None
        product = update.up @ _on_changed_input(update.down, name, capture)
        if weight.channel_axis:
            product = product.t()
        old = tensors[weight.name].detach()
        set_tensor(root, weight.name, (old.float() + product).to(old.dtype))
    return root


def _write_base(
    root: nn.Module, layer: Layer, decided: OpParameters, bias: Tensor | None
) -> None:
    """Write what an op's codes stand for into the float model."""
    tensors = named_tensors(root)
    held = [w for w in (decided.weight, *decided.further) if w is not None]
    for described, weight in zip(layer.op.weights, held, strict=True):
        dtype = tensors[described.name].dtype
        set_tensor(root, described.name, weight.dequantize().to(dtype))
    if bias is not None:
        module = root.get_submodule(layer.path)
        parameter = nn.Parameter(bias.detach().clone(), requires_grad=False)
        module.register_parameter("bias", parameter)
    if layer.norm:
        set_submodule(root, layer.norm, nn.Identity())


def _by_op(native: nn.Module, capture: Capture) -> Mapping[str, Update]:
    """Return the updates by op."""
    at = {layer.path: name for name, layer in capture.layers.items()}
    return {at[path]: update for path, update in updates_of(native).items()}


def _on_changed_input(down: Tensor, name: str, capture: Capture) -> Tensor:
    """Return the factor that reads an op's input for one that reads what the op makes of it first.

    Raises:
        SchemeError: If it does more than multiply.
    """
    own = capture.factors.get(name, ())
    if not own:
        return down
    factors = multipliers(own)
    if factors is None:
        raise SchemeError(
            f"op {name!r} turns its input first, and its update reads the input itself: save the "
            "updates beside the base, or train over a base without that transform"
        )
    return down / factors
