"""Matrix products on integers with a float result, in one kernel: MatMulIntegerToFloat."""

from __future__ import annotations

import onnx_ir as ir

from octavo.adapters.onnx.describe.site import Site
from octavo.core.contract.adapter import OpParameters

from .activations import Codes, CodesEditor
from .nodes import MS, Emitted, without_trailing_gaps
from .packing import weight_tensors
from .widening import shared_scale, shared_zero

PRODUCTS = ("linear", "batched_linear")
"""Op types that are written as a product of codes."""


def write_integer_product(
    e: CodesEditor, site: Site, params: OpParameters, x: Codes
) -> Emitted:
    """Write ``y = MatMulIntegerToFloat(x, w) + bias``."""
    assert params.weight is not None
    held = site.held
    is_transposed = held.channel_axis == 0
    weight = weight_tensors(params.weight, transposed=is_transposed)
    # The kernel takes (features, outputs): "kn" tells these codes from those of a Gemm.
    tag = "kn" if is_transposed else ""
    codes = e.shared(f"{held.name}{tag}_quantized", weight.codes)
    scale = shared_scale(e, held.name, weight.scale)
    zero = shared_zero(e, held.name, weight)
    inputs: list[ir.Value | None] = [x.codes, codes, x.scale, scale, x.zero_point, zero]
    bias = e.bias(site, params)
    if bias is not None:
        inputs.append(e.float_bias(site, bias))
    given = without_trailing_gaps(inputs)
    product = ir.node("MatMulIntegerToFloat", given, domain=MS)
    e.replace(site, [product], until=site.before_activation)
    return Emitted(site.name)
