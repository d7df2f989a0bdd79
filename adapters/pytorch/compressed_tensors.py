"""Export to the compressed-tensors format, which transformers and vLLM read.

Format: https://github.com/vllm-project/compressed-tensors. ``int-quantized`` keeps int8 codes of ops whose inputs are quantized
too; ``pack-quantized`` keeps the codes of weight-only ops as one stream of bits in int32 words, zero points packed along the outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.core.adapter import OpParameters
from octavo.core.scheme import QuantSpec, canonical_json

from .checkpoint import Checkpoint, IntegerMatrix, words

Tensor = torch.Tensor


def export(result: Any, folder: Path) -> None:
    """Write a checkpoint that ``AutoModel....from_pretrained`` loads where compressed-tensors is installed.

    Args:
        result: A result, a quantized model or a candidate of the torch backend: a model of transformers.
        folder: Made where it is missing.

    Raises:
        SchemeError: If an op's scheme has no place in the format; the message names the op and the remedy.
    """
    file = Checkpoint.of(result, "compressed-tensors")
    tensors = file.floats()
    groups: dict[str, list[str]] = {}
    for name, parameters in file.candidate.parameters.items():
        scheme, own = _op(file, name, parameters)
        groups.setdefault(canonical_json(scheme), []).append(name)
        tensors.update({f"{name}.{key}": tensor for key, tensor in own.items()})
    file.write(folder, tensors, _configuration(file, groups))


def _op(file: Checkpoint, name: str, parameters: OpParameters) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return one op's scheme as the configuration says it, and its tensors."""
    scheme = parameters.scheme
    weight = file.weight(name, parameters)
    strategy = "group" if weight.group else "tensor" if weight.scale.shape[0] == 1 else "channel"
    row: dict[str, Any] = {
        "weights": _arguments(weight.bits, weight.symmetric, strategy, dynamic=False, group=weight.group),
        "input_activations": None,
        "output_activations": None,
    }
    if scheme.mode == "weight_only":
        if strategy == "tensor" and not weight.symmetric:
            file.refuse(name, "one zero point for a whole tensor is not packed", "use channel or group:N granularity")
        return {**row, "format": "pack-quantized"}, _packed(weight)
    middle = 2 ** (weight.bits - 1)
    tensors = {"weight": (weight.codes - middle).to(torch.int8), "weight_scale": _scales(weight)}
    if not weight.symmetric:
        tensors["weight_zero_point"] = (weight.zero_point - middle).to(torch.int8)
    spec = scheme.input
    assert spec is not None
    if spec.bits != 8 or spec.reduce_range:
        file.refuse(name, f"inputs of {spec} are not those of int-quantized files", "use int8 or uint8 inputs in their full range")
    dynamic = scheme.mode == "dynamic"
    row["input_activations"] = _arguments(8, spec.symmetric, spec.granularity, dynamic=dynamic)
    if not dynamic:
        tensors |= _static_input(parameters, spec)
    return {**row, "format": "int-quantized"}, tensors


def _arguments(bits: int, symmetric: bool, strategy: str, *, dynamic: bool, group: int | None = None) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group, "dynamic": dynamic}


def _scales(weight: IntegerMatrix) -> Tensor:
    """Return scales in the format's shapes: (1,) for a tensor, (outputs, 1) for channels, (outputs, groups) for groups."""
    return weight.scale.reshape(1) if weight.scale.numel() == 1 and weight.codes.shape[0] != 1 else weight.scale


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
        tensors["input_zero_point"] = (torch.as_tensor(found.zero_point).reshape(1).to(torch.int32) - shift).to(torch.int8)
    return tensors


def _configuration(file: Checkpoint, groups: dict[str, list[str]]) -> dict[str, Any]:
    linears = [path for path, module in file.empty.named_modules() if isinstance(module, nn.Linear)]
    quantized = {name for names in groups.values() for name in names}
    schemes = [json.loads(key) for key in groups]
    formats = {scheme["format"] for scheme in schemes}
    zeros = next((n for scheme, names in zip(schemes, groups.values(), strict=True) if _has_packed_zeros(scheme) for n in names), None)
    if zeros is not None and len(schemes) > 1:
        why = "transformers reads packed zero points only where all quantized ops have one scheme"
        file.refuse(zeros, why, "make its weight symmetric, or give every op this scheme")
    return {
        "quant_method": "compressed-tensors",
        "format": next(iter(formats)) if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": ["Linear"] if len(groups) == 1 else names, **scheme}
            for i, (scheme, names) in enumerate(zip(schemes, groups.values(), strict=True))
        },
        "ignore": [path for path in linears if path not in quantized],
        "kv_cache_scheme": None,
        # Unpacked as they are read: left packed until the first call, zero points have no room (compressed-tensors 0.20), and
        # classes that initialise their layers by hand (T5) fail to load (transformers 5.23). That reading knows one scheme.
        **({"dequantize": True} if formats == {"pack-quantized"} and len(schemes) == 1 else {}),
    }


def _has_packed_zeros(scheme: dict[str, Any]) -> bool:
    return scheme["format"] == "pack-quantized" and not scheme["weights"]["symmetric"]
