"""Weight-only operations: weights packed in blocks along the reduced axis, arithmetic in float.

Source: com.microsoft operators MatMulNBits-1 and GatherBlockQuantized-1 in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.packing import pack as pack_codes
from octavo.core.numerics.tensor import QuantizedTensor

from .packing import cached, tensor

if TYPE_CHECKING:
    from octavo.adapters.onnx.describe.sites import Site

    from .editing import Editor

MS = "com.microsoft"


def _unsigned(weight: QuantizedTensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (codes, scales, zero points) as matrices (channels, ...), codes and zero points shifted to unsigned."""
    spec, axis = weight.params.spec, weight.params.axis
    codes = np.asarray(weight.codes)
    if axis:
        codes = codes.T
    zero = np.asarray(weight.params.zero_point)
    if not spec.dtype.startswith("u"):
        shift = 2 ** (spec.bits - 1)
        codes, zero = codes.astype(np.int16) + shift, zero + shift
    return (
        codes.astype(np.uint8),
        np.asarray(weight.params.scale, np.float32),
        zero.astype(np.uint8),
    )


def matmul_nbits(e: Editor, site: Site, params: OpParameters) -> ir.Node:
    """Write a linear op as MatMulNBits. A dynamic scheme is its accuracy level 4: activations in int8, block by block."""
    weight, op = params.weight, site.op
    assert weight is not None
    assert op.weight is not None
    spec, block = weight.params.spec, _block(op.name, weight)
    features = op.weight.shape[1 - op.weight.channel_axis]

    def pack() -> tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol | None]:
        codes, scales, zero = _unsigned(weight)
        rows, blocks = scales.shape
        padded = np.repeat(zero, block, axis=1)  # codes beyond the last feature stand for 0
        padded[:, :features] = codes
        packed = pack_codes(padded.reshape(rows, blocks, block), spec.bits)
        zeros = (
            None
            if _default_zero(spec.bits, zero)
            else tensor(pack_codes(zero, spec.bits), ir.DataType.UINT8, "zero")
        )
        return (
            tensor(packed, ir.DataType.UINT8, "codes"),
            tensor(scales, ir.DataType.FLOAT, "scale"),
            zeros,
        )

    codes, scales, zeros = cached(weight, "nbits", pack)
    name = op.weight.name
    original = site.node.inputs[0]
    assert original is not None
    inputs: list[ir.Value | None] = [
        e.current(original.name or ""),
        e.shared(f"{name}_quantized", codes),
        e.shared(f"{name}_scale", scales),
    ]
    bias = e.bias(site, params)
    inputs += [e.shared(f"{name}_zero", zeros) if zeros is not None else None, None]
    if bias is not None:
        inputs.append(e.initializer(f"{op.name}_bias", tensor(bias, ir.DataType.FLOAT, "bias")))
    while inputs and inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {
        "K": features,
        "N": op.weight.shape[op.weight.channel_axis],
        "bits": spec.bits,
        "block_size": block,
    }
    attributes["accuracy_level"] = 4 if params.scheme.mode == "dynamic" else 0
    return ir.node("MatMulNBits", inputs, attributes, domain=MS)


def gather_blocks(e: Editor, site: Site, params: OpParameters) -> ir.Node:
    """Write an embedding as GatherBlockQuantized: the table stays packed, rows are unpacked as they are looked up."""
    weight, op = params.weight, site.op
    assert weight is not None
    assert op.weight is not None
    spec, block = weight.params.spec, _block(op.name, weight)

    def pack() -> tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol]:
        codes, scales, zero = _unsigned(weight)
        packed = tensor(pack_codes(codes, spec.bits), ir.DataType.UINT8, "codes")
        return (
            packed,
            tensor(scales, ir.DataType.FLOAT, "scale"),
            tensor(pack_codes(zero, spec.bits), ir.DataType.UINT8, "zero"),
        )

    codes, scales, zeros = cached(weight, "gather", pack)
    name, ids = op.weight.name, site.node.inputs[1]
    assert ids is not None
    inputs = [
        e.shared(f"{name}_quantized", codes),
        e.values[ids.name or ""],
        e.shared(f"{name}_scale", scales),
    ]
    if not _default_zero(spec.bits, _unsigned_zero(weight)):
        inputs.append(e.shared(f"{name}_zero", zeros))
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": spec.bits}
    return ir.node("GatherBlockQuantized", inputs, attributes, domain=MS)


def _unsigned_zero(weight: QuantizedTensor) -> np.ndarray:
    spec = weight.params.spec
    zero = np.asarray(weight.params.zero_point)
    return zero if spec.dtype.startswith("u") else zero + 2 ** (spec.bits - 1)


def _default_zero(bits: int, zero: np.ndarray) -> bool:
    """True if every zero point is the middle code, which the kernels take where none is given."""
    return bool(np.all(zero == 2 ** (bits - 1)))


def _block(name: str, weight: QuantizedTensor) -> int:
    size = weight.params.spec.group_size
    if size is None or size < 16 or size & (size - 1):
        raise SchemeError(
            f"op {name!r}: ONNX Runtime packs weights in groups of 16, 32, 64, ...; {weight.params.spec} is none of these"
        )
    return size
