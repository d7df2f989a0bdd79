"""What codes mean here: fixed scales, versions of operators, weights in the file's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.plugin import OpParameters, QuantizedTensor, QuantParams, SchemeError, pack

from .graph import buffer_of
from .site import Site

Meaning = tuple[str, float, int]
"""Type, scale and zero point of codes."""

FIXED: Mapping[tuple[str, str], tuple[float, int]] = {
    ("SOFTMAX", "int8"): (2.0**-8, -128),
    ("LOGISTIC", "int8"): (2.0**-8, -128),
    ("TANH", "int8"): (2.0**-7, 0),
    ("SOFTMAX", "int16"): (2.0**-15, 0),
    ("LOGISTIC", "int16"): (2.0**-15, 0),
    ("TANH", "int16"): (2.0**-15, 0),
}
"""(operator, type) -> scale and zero point that its result must have.

Source: LiteRT 8-bit quantization specification, int8 quantized operator specifications; the int16
ones are what the kernels' ``Prepare`` checks.
"""

_KEEPS_SCALE = ("AVERAGE_POOL_2D", "CONCATENATION")
"""Operators whose inputs and result must have one scale (the same specification)."""

_VERSIONS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "MEAN"), (2, 3)),
    **dict.fromkeys(("SOFTMAX", "LOGISTIC", "TANH", "BATCH_MATMUL"), (2, 3)),
    **dict.fromkeys(("LEAKY_RELU", "GELU", "MAX_POOL_2D", "TRANSPOSE"), (2, 2)),
    **dict.fromkeys(("PAD", "SLICE", "STRIDED_SLICE", "RELU", "RELU6"), (2, 2)),
    **dict.fromkeys(("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"), (2, 2)),
    "TILE": (3, 3),
    "CONV_2D": (3, 4),
    "DEPTHWISE_CONV_2D": (3, 5),
    "TRANSPOSE_CONV": (2, 3),
    "FULLY_CONNECTED": (4, 7),
    "SUB": (3, 5),
    "MUL": (2, 4),
}
"""Operator -> the version that takes int8 activations, and the one for int16; else 1.

The interpreter takes any that it knows; converters and other runtimes ask.
"""


class Codes(NamedTuple):
    """A quantized activation: a new tensor, and what its codes mean."""

    tensor: int
    dtype: str
    scale: float
    zero_point: int

    @property
    def meaning(self) -> Meaning:
        """Equal where two tensors' codes mean the same numbers."""
        return self[1:]


def result_of(site: Site, given: OpParameters, x: Codes) -> Meaning:
    """Return what the codes of a static op's result mean."""
    if site.code in _KEEPS_SCALE:
        return x.meaning
    if (site.code, x.dtype) in FIXED:
        return (x.dtype, *FIXED[site.code, x.dtype])
    params = given.outputs[0] if given.outputs else None
    if params is None:
        raise SchemeError(
            f"op {site.op.name!r} is static, and its output has no parameters"
        )
    return meaning_of(params)


def meaning_of(params: QuantParams) -> Meaning:
    """Return what codes of these parameters mean."""
    scale, zero = np.asarray(params.scale), np.asarray(params.zero_point)
    return params.spec.dtype, float(scale), int(zero)


_PACKED: WeakKeyDictionary[QuantizedTensor, Any] = WeakKeyDictionary()


def packed(weight: QuantizedTensor, site: Site) -> Any:
    """Return a weight's codes as a buffer in the file's layout, made once while it lives."""
    found = _PACKED.get(weight)
    if found is None:
        codes = np.asarray(weight.codes).transpose(np.argsort(site.axes))
        if weight.params.spec.bits < 8:
            codes = np.asarray(pack(codes.reshape(-1), weight.params.spec.bits))
        found = _PACKED[weight] = buffer_of(codes)
    return found


def is_within_six(node: Any, meaning: Meaning) -> bool:
    """Return whether an operator clips at 6 what its codes cannot say."""
    activation = getattr(node.builtinOptions, "fusedActivationFunction", 0)
    dtype, scale, zero = meaning
    highest = (np.iinfo(dtype).max - zero) * scale
    return activation == fb.ActivationFunctionType.RELU6 and highest <= 6.0


def version_of(code: str, meaning: Meaning) -> int:
    """Return the version of an operator that takes such codes."""
    return _VERSIONS.get(code, (1, 1))[meaning[0] == "int16"]
