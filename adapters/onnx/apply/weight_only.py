"""Weight-only operations: weights packed in blocks along the reduced axis, arithmetic in float.

Source: com.microsoft operators MatMulNBits-1 and GatherBlockQuantized-1 in ONNX Runtime's
ContribOperators.md.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Node, TensorProtocol, Value

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.packing import pack as pack_codes
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Weight

from .editing import Editor
from .nodes import MS, Emitted, dequantize_linear, without_trailing_gaps
from .packing import ScaleTensors, cached, scale_tensors, tensor, weight_tensors
from .repairs import add_repair
from .widening import (
    shared_blocks,
    shared_packed_zeros,
    shared_scale,
    shared_weight,
)


def write_weight_only(e: Editor, site: Site, params: OpParameters) -> Emitted:
    """Write an op whose weight is stored in codes, and multiplied in float or block by block."""
    assert params.weight is not None
    spec = params.weight.params.spec
    if spec.group_size is None:
        return _write_decoded(e, site, params)
    is_table = site.kind == "embedding"
    if is_table:
        node = gather_blocks(e, site, params)
    else:
        node = matmul_nbits(e, site, params)
    e.replace(site, [node], until=site.before_activation)
    add_repair(e, site, params, node)
    return Emitted(site.name)


def _write_decoded(e: Editor, site: Site, params: OpParameters) -> Emitted:
    """Store the weights of an op in codes, and write them back to float before it."""
    assert site.weight is not None and params.weight is not None
    node = e.nodes[site.name]
    weights = (params.weight, *params.further)
    pairs = zip(site.op.weights, weights, strict=True)
    for offset, (held, weight) in enumerate(pairs):
        packed = weight_tensors(weight)
        name = f"{site.name}_weight_{offset}"
        decoded = dequantize_linear(
            shared_weight(e, held.name, packed),
            name=f"{name}_DequantizeLinear",
            result=name,
            axis=packed.axis,
        )
        e.before(node, [decoded])
        # Further weights stand right behind the first one.
        place = site.weight + offset
        node.replace_input_with(place, decoded.outputs[0])
    return Emitted(site.name)


class _Blocks(NamedTuple):
    """A weight in blocks: packed codes, scales, and zero points where they are not the middle.

    Codes are packed row by row, and zero points too where a row of them is whole bytes; else they
    are one stream of bits.
    """

    codes: TensorProtocol
    scales: ScaleTensors
    zeros: TensorProtocol | None


def _blocks(weight: QuantizedTensor) -> _Blocks:
    """Return a weight's tensors."""
    codes, zero = _unsigned(weight)
    bits = weight.params.spec.bits
    packed_codes = _packed(codes, bits, "codes")
    factors = scale_tensors(weight)
    if _is_default_zero(bits, zero):
        return _Blocks(packed_codes, factors, None)
    is_whole = zero.shape[1] * bits % 8 == 0
    packed_zeros = _packed(zero if is_whole else zero.reshape(-1), bits, "zero")
    return _Blocks(packed_codes, factors, packed_zeros)


def _packed(codes: np.ndarray, bits: int, name: str) -> TensorProtocol:
    """Return codes packed into whole bytes."""
    whole = pack_codes(codes, bits)
    return tensor(whole, DataType.UINT8, name)


def _is_default_zero(bits: int, zero: np.ndarray) -> bool:
    """True if every zero point is the middle code, which the kernels take where none is given."""
    middle = 2 ** (bits - 1)
    return bool(np.all(zero == middle))


def _unsigned(weight: QuantizedTensor) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes, zero points) as matrices (channels, ...).

    Codes and zero points are shifted to unsigned: the kernels know no signed codes.
    """
    params = weight.params
    spec = params.spec
    codes = np.asarray(weight.codes)
    if params.axis:
        codes = codes.T
    zero = np.asarray(params.zero_point)
    is_signed = not spec.dtype.startswith("u")
    if is_signed:
        shift = 2 ** (spec.bits - 1)
        # int16: the shifted codes of int8 go up to 255.
        codes = codes.astype(np.int16) + shift
        zero = zero + shift
    return codes.astype(np.uint8), zero.astype(np.uint8)


def _block_size(name: str, weight: QuantizedTensor) -> int:
    spec = weight.params.spec
    size = spec.group_size
    # A power of two has one bit set, which no smaller number shares.
    is_power_of_two = size is not None and not size & (size - 1)
    if size is None or size < 16 or not is_power_of_two:
        raise SchemeError(
            f"op {name!r}: ONNX Runtime packs weights in groups of 16, 32, 64, ...; "
            f"{spec} is none of these"
        )
    return size


def _operands(site: Site, params: OpParameters) -> tuple[QuantizedTensor, Weight, int]:
    """Return an op's quantized weight, the weight that it stands for, and its block size."""
    weight = params.weight
    assert weight is not None
    block = _block_size(site.name, weight)
    return weight, site.held, block


def matmul_nbits(e: Editor, site: Site, params: OpParameters) -> Node:
    """Write a linear op as MatMulNBits.

    A dynamic scheme is its accuracy level 4: activations in int8, block by block.
    """
    weight, held, block = _operands(site, params)
    features = held.shape[1 - held.channel_axis]
    outputs = held.shape[held.channel_axis]
    bits = weight.params.spec.bits
    packed: _Blocks = cached(weight, "blocks", lambda: _blocks(weight))
    whole = (outputs, -(-features // block), block * bits // 8)
    x = name_of(site.input_value(0))
    inputs = [
        e.current(x),
        _codes_in_blocks(e, held.name, weight, whole),
        shared_scale(e, held.name, packed.scales),
        _shared_zeros(e, held.name, packed, weight),
        None,  # g_idx, an order of the features; none here
        _shared_bias(e, site, params),
    ]
    is_dynamic = params.scheme.mode == "dynamic"
    attributes = {
        "K": features,
        "N": outputs,
        "bits": bits,
        "block_size": block,
        "accuracy_level": 4 if is_dynamic else 0,
    }
    given = without_trailing_gaps(inputs)
    return ir.node("MatMulNBits", given, attributes, domain=MS)


def _codes_in_blocks(
    e: Editor, name: str, weight: QuantizedTensor, shape: tuple[int, int, int]
) -> Value:
    """Return a weight's codes as MatMulNBits takes them: (rows, blocks, bytes of a block)."""
    packed: _Blocks = cached(weight, "blocks", lambda: _blocks(weight))
    is_whole = packed.codes.nbytes == prod(shape)
    # A table of the same codes takes them by row: one tensor of the file serves both.
    if not is_whole or e.is_table(weight):
        return shared_blocks(e, name, packed.codes, shape)
    codes = packed.codes.numpy()
    stacked = cached(
        weight, "stacked", lambda: tensor(codes.reshape(shape), DataType.UINT8, "codes")
    )
    return e.shared(f"{name}_quantized", stacked)


def _shared_bias(e: Editor, site: Site, params: OpParameters) -> Value | None:
    bias = e.bias(site, params)
    if bias is None:
        return None
    return e.float_bias(site, bias)


def _shared_zeros(
    e: Editor, name: str, packed: _Blocks, weight: QuantizedTensor
) -> Value | None:
    if packed.zeros is None:
        return None
    rows, blocks = np.shape(weight.params.zero_point)
    bits = weight.params.spec.bits
    return shared_packed_zeros(e, name, packed.zeros, (rows, blocks), bits)


def gather_blocks(e: Editor, site: Site, params: OpParameters) -> Node:
    """Write an embedding as GatherBlockQuantized.

    The table stays packed, rows are unpacked as they are looked up.
    """
    weight, held, block = _operands(site, params)
    bits = weight.params.spec.bits
    packed: _Blocks = cached(weight, "blocks", lambda: _blocks(weight))
    ids = site.node.inputs[1]
    assert ids is not None
    inputs = [
        e.shared(f"{held.name}_quantized", packed.codes),
        e.values[name_of(ids)],
        shared_scale(e, held.name, packed.scales),
        _shared_zeros(e, held.name, packed, weight),
    ]
    attributes = {
        "gather_axis": 0,
        "quantize_axis": 1,
        "block_size": block,
        "bits": bits,
    }
    given = without_trailing_gaps(inputs)
    return ir.node("GatherBlockQuantized", given, attributes, domain=MS)
