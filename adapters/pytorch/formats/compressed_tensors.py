"""Export to the compressed-tensors format, which transformers and vLLM read.

Format: https://github.com/vllm-project/compressed-tensors. ``int-quantized`` keeps int8 codes of
    ops
whose inputs are quantized too; ``pack-quantized`` keeps the codes of weight-only ops as one stream
of bits in int32 words, zero points packed along the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.core.contract.adapter import OpParameters
from octavo.core.values.json_form import canonical_json
from octavo.core.values.scheme import QuantSpec

from .checkpoint import Checkpoint
from .compressed_layout import PACKED, Plan, expert_parts, is_decoded
from .integer_matrix import IntegerMatrix, words

Tensor = torch.Tensor


def export(result: Any, folder: Path) -> None:
    """Write a checkpoint that transformers loads where compressed-tensors is installed.

    A tied embedding and head that share their codes are written once; where they do not, the file
    says that nothing is tied (``tie_word_embeddings``) and holds both.

    Args:
        result: A result, a quantized model or a candidate of the torch backend: a model of
            transformers.
        folder: Made where it is missing.

    Raises:
        SchemeError: If an op's scheme has no place in the format; the message names the op and the
            remedy.
    """
    file = Checkpoint.of(result, "compressed-tensors")
    decided = file.candidate.parameters
    rows = {name: _op(file, name, parameters) for name, parameters in decided.items()}
    decoded = is_decoded(file, _schemes(rows))
    # How the file is read decides how embeddings are stored, and only then the whole is laid out.
    if not decoded:
        tables = [name for name in rows if isinstance(file.module(name), nn.Embedding)]
        rows |= {name: _table(file, name, decided[name]) for name in tables}
    plan = Plan.of(file, _schemes(rows), decoded)
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


def _schemes(rows: Mapping[str, _Row]) -> dict[str, str]:
    return {name: canonical_json(row.scheme) for name, row in rows.items()}


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _op(file: Checkpoint, name: str, parameters: OpParameters) -> _Row:
    module = file.module(name)
    if module is not None:
        _check_layer(file, name, module)
    parts = (name,) if module is not None else expert_parts(file, name)
    weight = file.weight(name, parameters)
    if parameters.scheme.mode == "weight_only":
        return _packed_row(file, name, weight, parts)
    if module is None:
        file.refuse(
            name,
            "readers join experts in float, so that their inputs stay float",
            "use a weight_only scheme for experts",
        )
    return _byte_row(file, name, weight, parameters)


def _check_layer(file: Checkpoint, name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        return
    has_gptq = is_transposed_linear(module)
    remedy = "export gptq, which holds it, or keep it float" if has_gptq else ""
    kind = type(module).__name__
    why = f"readers take nn.Linear and nn.Embedding layers, and this is a {kind}"
    file.refuse(name, why, remedy)


def _packed_row(
    file: Checkpoint, name: str, weight: IntegerMatrix, parts: Sequence[str]
) -> _Row:
    """Return the row of an op whose input stays float.

    Args:
        file: What is written.
        name: The op.
        weight: Its weight.
        parts: Names of the matrices that it is read from, joined along the outputs.
    """
    if not weight.symmetric:
        if _strategy(weight) == "tensor":
            why = "one zero point for a whole tensor is not packed"
            file.refuse(name, why, "use channel or group:N granularity")
        if file.module(name) is None:
            why = "transformers reads no zero points of experts"
            file.refuse(name, why, "make its weight symmetric")
    # A gate and its up-projection are one slice here, and two matrices in the file.
    height = weight.codes.shape[0] // len(parts)
    tensors: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        own = weight.rows(slice(i * height, (i + 1) * height))
        tensors |= _below(part, _packed(own))
    return _Row({**_scheme(weight), "format": PACKED}, tensors)


def _byte_row(
    file: Checkpoint, name: str, weight: IntegerMatrix, parameters: OpParameters
) -> _Row:
    """Return the row of an op whose input is quantized too."""
    spec = parameters.scheme.input
    assert spec is not None
    if spec.bits != 8 or spec.reduce_range:
        file.refuse(
            name,
            f"inputs of {spec} are not those of int-quantized files",
            "use int8 or uint8 inputs in their full range",
        )
    scheme = {**_scheme(weight), "format": "int-quantized"}
    tensors = _bytes(weight)
    dynamic = parameters.scheme.mode == "dynamic"
    scheme["input_activations"] = _arguments(
        8, spec.symmetric, spec.granularity, dynamic=dynamic
    )
    if not dynamic:
        tensors |= _static_input(parameters, spec)
    return _Row(scheme, _below(name, tensors))


def _table(file: Checkpoint, name: str, parameters: OpParameters) -> _Row:
    """Return an embedding that stays compressed.

    It is stored as bytes, because transformers initialises packed ones by a weight that they lack.
    """
    weight = file.weight(name, parameters)
    if weight.bits != 8:
        file.refuse(
            name,
            "transformers (5.23) reads an embedding of less than 8 bits only where all ops have "
            "one weight_only scheme",
            "give it int8, or give every op this scheme, or keep it float",
        )
    scheme = {**_scheme(weight), "format": "naive-quantized"}
    return _Row(scheme, _below(name, _bytes(weight)))


def _scheme(weight: IntegerMatrix) -> dict[str, Any]:
    arguments = _arguments(
        weight.bits,
        weight.symmetric,
        _strategy(weight),
        dynamic=False,
        group=weight.group,
    )
    return {"weights": arguments, "input_activations": None, "output_activations": None}


def _strategy(weight: IntegerMatrix) -> str:
    if weight.group:
        return "group"
    return "tensor" if weight.has_one_scale else "channel"


def _bytes(weight: IntegerMatrix) -> dict[str, Tensor]:
    # The format's bytes are signed.
    middle = 2 ** (weight.bits - 1)
    tensors = {
        "weight": (weight.codes - middle).to(torch.int8),
        "weight_scale": _scales(weight),
    }
    if not weight.symmetric:
        tensors["weight_zero_point"] = (weight.zero_point - middle).to(torch.int8)
    return tensors


def _arguments(
    bits: int,
    symmetric: bool,
    strategy: str,
    *,
    dynamic: bool,
    group: int | None = None,
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
    """Return scales in the format's shapes.

    They are (1,) for a tensor, (outputs, 1) for channels, (outputs, groups) for groups.
    """
    is_for_all = weight.scale.numel() == 1 and weight.codes.shape[0] != 1
    return weight.scale.reshape(1) if is_for_all else weight.scale


def _packed(weight: IntegerMatrix) -> dict[str, Tensor]:
    tensors = {
        "weight_packed": words(weight.codes, weight.bits),
        "weight_scale": _scales(weight),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if not weight.symmetric:
        tensors["weight_zero_point"] = words(
            weight.zero_point.t().contiguous(), weight.bits
        ).t()
    return tensors


def _static_input(parameters: OpParameters, spec: QuantSpec) -> dict[str, Tensor]:
    found = parameters.inputs[0]
    assert found is not None
    tensors = {"input_scale": torch.as_tensor(found.scale).reshape(1).float()}
    if not spec.symmetric:
        # The format's codes are signed: uint8 codes lie 128 lower there.
        shift = 128 if spec.dtype.startswith("u") else 0
        zero_point = torch.as_tensor(found.zero_point).reshape(1).to(torch.int32)
        tensors["input_zero_point"] = (zero_point - shift).to(torch.int8)
    return tensors
