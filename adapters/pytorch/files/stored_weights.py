"""Quantized weights, parameters of activations and channel maps as rows of JSON and
named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from octavo.core.errors import ModelError
from octavo.core.numerics.affine import (
    QuantParams,
    integer_range,
    is_integer,
    middle_code,
)
from octavo.core.numerics.affine import narrow as narrow_codes
from octavo.core.numerics.channels import ChannelMap
from octavo.core.numerics.low_rank import Repair
from octavo.core.numerics.packing import pack_stream, unpack, unpack_stream
from octavo.core.numerics.scales import HALVES, scale_of
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

Tensor = torch.Tensor
Row = dict[str, Any]
_SCALES = {
    "e8m0": (torch.float8_e8m0fnu,),
    "float16": (torch.float16, torch.bfloat16),
    "bfloat16": (torch.bfloat16,),
}
"""Narrow format of scales -> torch's types for it."""


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
    """Add a weight's codes, scales and the like to ``tensors``; return its row.

    What is below a byte lies packed, all of it as one stream of bits, so that a file holds the
    bytes that :func:`octavo.core.values.sizes.stored_bytes` tells. Zero points that the spec
    implies are left out, and so are scales that codes over a second level stand for.
    """
    params = weight.params
    spec = params.spec
    codes = weight.codes
    row: Row = {
        "spec": spec.model_dump(exclude_defaults=True),
        "axis": params.axis,
        "shape": list(weight.shape),
        "dtype": _name_of(codes),
    }
    held = {"codes": _packed(codes, spec)}
    if weight.extra is not None and _amounts_to(weight.extra, params.scale):
        held |= {f"extra:{name}": value for name, value in weight.extra.items()}
    elif spec.dtype not in HALVES:
        # Numbers of 16 bits stand for themselves.
        held["scale"] = _narrowest(params.scale, spec)
    zero_point = _zero_point_held(params)
    if zero_point is not None:
        row["zero_point"] = _name_of(zero_point)
        is_code = zero_point.dtype != torch.int32
        held["zero_point"] = _packed(zero_point, spec) if is_code else zero_point
    if weight.repair is not None:
        row["repair_axis"] = weight.repair.axis
        held |= {"left": weight.repair.left, "right": weight.repair.right}
    for name, tensor in held.items():
        tensors[f"op:{key}:{name}"] = plain(torch.as_tensor(tensor))
    return row


def _name_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _packed(codes: Tensor, spec: QuantSpec) -> Tensor:
    """Return codes below a byte as one stream of bits, others as they are."""
    packed: Tensor = pack_stream(codes, spec.bits) if spec.bits < 8 else codes
    return packed


def _amounts_to(second: Mapping[str, Any], scale: Tensor) -> bool:
    """Return whether a second level stands for exactly these scales."""
    if "scale_codes" not in second:
        return False
    return torch.equal(scale_of(dict(second)), scale)


def _zero_point_held(params: QuantParams) -> Tensor | None:
    """Return the zero points that a file must hold, in the codes' type; None for none.

    Where one is no code, which no scheme offered here makes, they are int32.
    """
    spec, zero_point = params.spec, params.zero_point
    if not is_integer(spec):
        return None
    if spec.symmetric and bool((zero_point == middle_code(spec)).all()):
        return None
    low, high = integer_range(spec.whole())
    is_code = bool(((zero_point >= low) & (zero_point <= high)).all())
    narrow: Tensor = narrow_codes(zero_point, spec.whole())
    return narrow if is_code else zero_point.to(torch.int32)


def read_weight(
    key: str, row: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> QuantizedTensor:
    """Return what :func:`write_weight` wrote, or what it wrote before format 3 of the file: codes
    packed row by row, a byte for each zero point, scales beside their second level.

    Raises:
        ModelError: If the codes have another type than their format.
    """
    spec = QuantSpec.model_validate(row["spec"])
    is_of_rows = "packed" in row or "dtype" not in row
    codes = _codes_of_rows(key, row, tensors) if is_of_rows else None
    if codes is None:
        codes = _unpacked(tensors[f"op:{key}:codes"], spec, row["dtype"], row["shape"])
    _check_codes(key, codes, spec)
    prefix = f"op:{key}:extra:"
    extra: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            extra[name.removeprefix(prefix)] = tensor
    scale = _read_scale(tensors.get(f"op:{key}:scale"), extra, spec)
    zero_point = _read_zero_point(key, row, tensors, scale, spec)
    params = QuantParams(scale, zero_point, spec, row["axis"])
    codes = codes.reshape(row["shape"])
    return QuantizedTensor(
        codes, params, extra or None, _read_repair(key, row, tensors)
    )


def _read_scale(
    held: Tensor | None, second: dict[str, Tensor], spec: QuantSpec
) -> Tensor:
    """Return the scales that a file holds, or those that it leaves to the reader; float32."""
    if held is not None:
        return held.to(torch.float32)
    if spec.dtype in HALVES:
        return torch.ones(())
    scale: Tensor = scale_of(second)
    return scale


def _unpacked(
    held: Tensor, spec: QuantSpec, dtype: str, shape: Sequence[int]
) -> Tensor:
    """Undo :func:`_packed`."""
    if spec.bits >= 8:
        return held
    count = prod(shape)
    codes: Tensor = unpack_stream(held, spec.bits, count, signed=dtype == "int8")
    return codes.to(getattr(torch, dtype)).reshape(tuple(shape))


def _read_zero_point(
    key: str,
    row: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    scale: Tensor,
    spec: QuantSpec,
) -> Tensor:
    """Return the zero points that a file holds, or those that the spec implies; int32, shaped as
    the scales."""
    held = tensors.get(f"op:{key}:zero_point")
    shape = tuple(scale.shape)
    if held is None:
        is_older = "packed" in row or "dtype" not in row
        implied = 0 if is_older or not is_integer(spec) else middle_code(spec)
        return torch.full(shape, implied, dtype=torch.int32)
    dtype = row.get("zero_point")
    if dtype not in (None, "int32"):
        held = _unpacked(held, spec, dtype, shape)
    return held.to(torch.int32)


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


def _codes_of_rows(
    key: str, row: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Tensor:
    """Return codes as files before format 3 hold them: each row of the last axis packed."""
    codes = tensors[f"op:{key}:codes"]
    if "packed" not in row:
        return codes
    bits = row["packed"]
    columns = row["shape"][-1]
    dtype = row["dtype"]
    unpacked: Tensor = unpack(codes, bits, columns, signed=dtype == "int8")
    return unpacked.to(getattr(torch, dtype))


def _narrowest(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Return scales in the format that the spec names for them, where that holds them exactly.

    Scales in float16 are bfloat16 where float16 does not reach: of the same width.
    """
    name = "e8m0" if spec.dtype.startswith("mx") else spec.scale_dtype
    for dtype in _SCALES.get(name or "", ()):
        narrow = scale.to(dtype)
        if torch.equal(narrow.to(torch.float32), scale):
            return narrow
    return scale


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
