"""Export to the compressed-tensors format, which transformers and vLLM read.

Format: https://github.com/vllm-project/compressed-tensors. ``int-quantized`` keeps int8 codes of ops whose inputs are quantized
too; ``pack-quantized`` keeps the codes of weight-only ops as one stream of bits in int32 words, zero points packed along the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.core.contract.adapter import OpParameters
from octavo.core.values.json_form import canonical_json
from octavo.core.values.scheme import QuantSpec

from .checkpoint import Checkpoint, IntegerMatrix, words
from .compressed_layout import Plan, expert_parts, is_decoded

Tensor = torch.Tensor


def export(result: Any, folder: Path) -> None:
    """Write a checkpoint that ``AutoModel....from_pretrained`` loads where compressed-tensors is installed.

    A tied embedding and head that share their codes are written once; where they do not, the file says that nothing is tied
    (``tie_word_embeddings``) and holds both.

    Args:
        result: A result, a quantized model or a candidate of the torch backend: a model of transformers.
        folder: Made where it is missing.

    Raises:
        SchemeError: If an op's scheme has no place in the format; the message names the op and the remedy.
    """
    file = Checkpoint.of(result, "compressed-tensors")
    rows = {
        name: _op(file, name, parameters) for name, parameters in file.candidate.parameters.items()
    }
    decoded = is_decoded(file, {name: canonical_json(row.scheme) for name, row in rows.items()})
    if not decoded:
        tables = [name for name in rows if isinstance(file.module(name), nn.Embedding)]
        rows |= {name: _table(file, name, file.candidate.parameters[name]) for name in tables}
    plan = Plan.of(file, {name: canonical_json(row.scheme) for name, row in rows.items()}, decoded)
    tensors = file.floats()
    for name, row in rows.items():
        if name not in plan.once:
            tensors.update(row.tensors)
    file.write(folder, tensors, plan.configuration(), untied=plan.untied)


@dataclass(frozen=True)
class _Row:
    """One op's scheme as the configuration says it, and its tensors."""

    scheme: dict[str, Any]
    tensors: dict[str, Tensor]


def _op(file: Checkpoint, name: str, parameters: OpParameters) -> _Row:
    module = file.module(name)
    if module is not None and not isinstance(module, nn.Linear | nn.Embedding):
        remedy = (
            "export gptq, which holds it, or keep it float" if is_transposed_linear(module) else ""
        )
        file.refuse(
            name,
            f"readers take nn.Linear and nn.Embedding layers, and this is a {type(module).__name__}",
            remedy,
        )
    parts = (name,) if module is not None else expert_parts(file, name)
    weight = file.weight(name, parameters)
    row = _scheme(weight)
    strategy = row["weights"]["strategy"]
    if parameters.scheme.mode == "weight_only":
        if strategy == "tensor" and not weight.symmetric:
            file.refuse(
                name,
                "one zero point for a whole tensor is not packed",
                "use channel or group:N granularity",
            )
        if module is None and not weight.symmetric:
            file.refuse(
                name, "transformers reads no zero points of experts", "make its weight symmetric"
            )
        height = weight.codes.shape[0] // len(parts)
        packed = [
            (part, _packed(weight.rows(slice(i * height, (i + 1) * height))))
            for i, part in enumerate(parts)
        ]
        return _Row(
            {**row, "format": "pack-quantized"},
            {f"{part}.{key}": t for part, own in packed for key, t in own.items()},
        )
    if module is None:
        file.refuse(
            name,
            "readers join experts in float, so that their inputs stay float",
            "use a weight_only scheme for experts",
        )
    tensors = _bytes(weight)
    spec = parameters.scheme.input
    assert spec is not None
    if spec.bits != 8 or spec.reduce_range:
        file.refuse(
            name,
            f"inputs of {spec} are not those of int-quantized files",
            "use int8 or uint8 inputs in their full range",
        )
    dynamic = parameters.scheme.mode == "dynamic"
    row["input_activations"] = _arguments(8, spec.symmetric, spec.granularity, dynamic=dynamic)
    if not dynamic:
        tensors |= _static_input(parameters, spec)
    return _Row(
        {**row, "format": "int-quantized"},
        {f"{name}.{key}": tensor for key, tensor in tensors.items()},
    )


def _table(file: Checkpoint, name: str, parameters: OpParameters) -> _Row:
    """Return an embedding that stays compressed: as bytes, because transformers initialises packed ones by a weight that they lack."""
    weight = file.weight(name, parameters)
    if weight.bits != 8:
        why = "transformers (5.23) reads an embedding of less than 8 bits only where all ops have one weight_only scheme"
        file.refuse(name, why, "give it int8, or give every op this scheme, or keep it float")
    return _Row(
        {**_scheme(weight), "format": "naive-quantized"},
        {f"{name}.{key}": tensor for key, tensor in _bytes(weight).items()},
    )


def _scheme(weight: IntegerMatrix) -> dict[str, Any]:
    strategy = "group" if weight.group else "tensor" if weight.scale.shape[0] == 1 else "channel"
    arguments = _arguments(
        weight.bits, weight.symmetric, strategy, dynamic=False, group=weight.group
    )
    return {"weights": arguments, "input_activations": None, "output_activations": None}


def _bytes(weight: IntegerMatrix) -> dict[str, Tensor]:
    middle = 2 ** (weight.bits - 1)
    tensors = {"weight": (weight.codes - middle).to(torch.int8), "weight_scale": _scales(weight)}
    if not weight.symmetric:
        tensors["weight_zero_point"] = (weight.zero_point - middle).to(torch.int8)
    return tensors


def _arguments(
    bits: int, symmetric: bool, strategy: str, *, dynamic: bool, group: int | None = None
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group,
        "dynamic": dynamic,
    }


def _scales(weight: IntegerMatrix) -> Tensor:
    """Return scales in the format's shapes: (1,) for a tensor, (outputs, 1) for channels, (outputs, groups) for groups."""
    return (
        weight.scale.reshape(1)
        if weight.scale.numel() == 1 and weight.codes.shape[0] != 1
        else weight.scale
    )


def _packed(weight: IntegerMatrix) -> dict[str, Tensor]:
    tensors = {
        "weight_packed": words(weight.codes, weight.bits),
        "weight_scale": _scales(weight),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if not weight.symmetric:
        tensors["weight_zero_point"] = words(weight.zero_point.t().contiguous(), weight.bits).t()
    return tensors


def _static_input(parameters: OpParameters, spec: QuantSpec) -> dict[str, Tensor]:
    found = parameters.inputs[0]
    assert found is not None
    tensors = {"input_scale": torch.as_tensor(found.scale).reshape(1).float()}
    if not spec.symmetric:
        # The format's codes are signed: uint8 codes lie 128 lower there.
        shift = 128 if spec.dtype.startswith("u") else 0
        tensors["input_zero_point"] = (
            torch.as_tensor(found.zero_point).reshape(1).to(torch.int32) - shift
        ).to(torch.int8)
    return tensors
