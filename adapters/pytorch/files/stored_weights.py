"""Quantized weights, parameters of activations and channel maps as rows of JSON and
named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from octavo.core.errors import ModelError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.channels import ChannelMap
from octavo.core.numerics.low_rank import Repair
from octavo.core.numerics.packing import pack, unpack
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

Tensor = torch.Tensor
Row = dict[str, Any]
_SCALES = {
    "e8m0": torch.float8_e8m0fnu,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Narrow format of scales -> torch's type for it."""


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor of its own memory, in C order: safetensors writes memory as it lies."""
    return tensor.detach().cpu().contiguous().clone()


def write_map(key: str, change: ChannelMap, tensors: dict[str, Tensor]) -> Row:
    """Add a channel map's vectors to ``tensors``; return its row."""
    for name, array in (("scale", change.scale), ("shift", change.shift)):
        if array is not None:
            tensors[f"{key}:{name}"] = plain(array)
    return {"rotation": change.rotation}


def read_map(
    key: str, row: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> ChannelMap:
    """Return what :func:`write_map` wrote."""
    scale = tensors.get(f"{key}:scale")
    shift = tensors.get(f"{key}:shift")
    return ChannelMap(scale, shift, row["rotation"])


def write_params(params: QuantParams | None) -> Row | None:
    """Return an activation's parameters, which are single numbers, as a row."""
    if params is None:
        return None
    spec = params.spec.model_dump(exclude_defaults=True)
    return {
        "scale": float(params.scale),
        "zero_point": int(params.zero_point),
        "spec": spec,
    }


def read_params(row: Mapping[str, Any] | None) -> QuantParams | None:
    """Return what :func:`write_params` wrote."""
    if row is None:
        return None
    scale = torch.tensor(row["scale"])
    zero_point = torch.tensor(row["zero_point"], dtype=torch.int32)
    spec = QuantSpec.model_validate(row["spec"])
    return QuantParams(scale, zero_point, spec)


def write_weight(key: str, weight: QuantizedTensor, tensors: dict[str, Tensor]) -> Row:
    """Add a weight's codes, scales and the like to ``tensors``, codes below a byte packed; return
    its row."""
    params = weight.params
    spec = params.spec
    row: Row = {
        "spec": spec.model_dump(exclude_defaults=True),
        "axis": params.axis,
        "shape": list(weight.shape),
    }
    codes = weight.codes
    if spec.bits < 8:
        row["packed"] = spec.bits
        row["dtype"] = str(codes.dtype).removeprefix("torch.")
        codes = pack(codes, spec.bits)
    held = {"codes": codes, "scale": _narrowest(params.scale, spec)}
    if bool((params.zero_point != 0).any()):
        held["zero_point"] = _narrow_zero_point(params.zero_point, spec)
    for name, value in (weight.extra or {}).items():
        held[f"extra:{name}"] = torch.as_tensor(value)
    if weight.repair is not None:
        row["repair_axis"] = weight.repair.axis
        held |= {"left": weight.repair.left, "right": weight.repair.right}
    for name, tensor in held.items():
        tensors[f"op:{key}:{name}"] = plain(tensor)
    return row


def read_weight(
    key: str, row: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> QuantizedTensor:
    """Return what :func:`write_weight` wrote.

    Raises:
        ModelError: If the codes have another type than their format.
    """
    spec = QuantSpec.model_validate(row["spec"])
    codes = _read_codes(key, row, tensors)
    _check_codes(key, codes, spec)
    scale = tensors[f"op:{key}:scale"].to(torch.float32)
    zero_point = tensors.get(f"op:{key}:zero_point", torch.zeros_like(scale))
    params = QuantParams(scale, zero_point.to(torch.int32), spec, row["axis"])
    prefix = f"op:{key}:extra:"
    extra: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            extra[name.removeprefix(prefix)] = tensor
    codes = codes.reshape(row["shape"])
    return QuantizedTensor(
        codes, params, extra or None, _read_repair(key, row, tensors)
    )


def _read_repair(
    key: str, row: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Repair | None:
    """Return a weight's repair; None where it has none.

    Raises:
        ModelError: If its factors are not those of a product of the weight's shape.
    """
    if "repair_axis" not in row:
        return None
    found = Repair(
        tensors[f"op:{key}:left"], tensors[f"op:{key}:right"], row["repair_axis"]
    )
    shape: list[int] = row["shape"]
    rows = shape[found.axis]
    wanted = (rows, prod(shape) // max(1, rows))
    are_matrices = found.left.ndim == 2 and found.right.ndim == 2
    ends = (found.left.shape[0], found.right.shape[-1])
    if are_matrices and ends == wanted and found.rank == found.right.shape[0]:
        return found
    raise ModelError(
        f"the repair of {key!r} has the shapes {tuple(found.left.shape)} and "
        f"{tuple(found.right.shape)}, which multiply to no {wanted}; the file is damaged: "
        "save the model again"
    )


def _read_codes(
    key: str, row: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Tensor:
    codes = tensors[f"op:{key}:codes"]
    if "packed" not in row:
        return codes
    bits = row["packed"]
    columns = row["shape"][-1]
    dtype = row["dtype"]
    unpacked: Tensor = unpack(codes, bits, columns, signed=dtype == "int8")
    return unpacked.to(getattr(torch, dtype))


def _narrowest(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Return scales in the format that the spec names for them, where that holds them exactly."""
    name = "e8m0" if spec.dtype.startswith("mx") else spec.scale_dtype
    dtype = _SCALES.get(name or "")
    if dtype is None:
        return scale
    narrow = scale.to(dtype)
    is_exact = torch.equal(narrow.to(torch.float32), scale)
    return narrow if is_exact else scale


def _narrow_zero_point(zero_point: Tensor, spec: QuantSpec) -> Tensor:
    # A zero point is a code, so a byte holds it wherever a byte holds the codes.
    if spec.bits > 8:
        return zero_point
    is_unsigned = spec.dtype.startswith("u")
    return zero_point.to(torch.uint8 if is_unsigned else torch.int8)


def _check_codes(key: str, codes: Tensor, spec: QuantSpec) -> None:
    """Refuse codes of another type than their format has.

    Kernels would refuse them later, in the first forward.

    Raises:
        ModelError: If the file was changed.
    """
    wanted = None
    if spec.bits <= 8:
        wanted = {"int": torch.int8, "uin": torch.uint8}.get(spec.dtype[:3])
    is_number = codes.dtype is not torch.bool and not codes.dtype.is_complex
    if is_number and wanted in (None, codes.dtype):
        return
    raise ModelError(
        f"the codes of {key!r} are {codes.dtype}, which {spec.dtype} is not; "
        "the file is damaged: save the model again"
    )
