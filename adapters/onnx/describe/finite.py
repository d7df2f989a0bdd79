"""Parameters that must be finite: looked at when a model is opened, named as the model names them.

A weight that may be quantized is left to the core, whose ``non_finite`` setting can keep its op in
float. Whatever else holds NaN or Inf (a bias, a norm's scale, a weight out of reach) makes every
candidate useless.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import constant
from octavo.adapters.onnx.prepare.scopes import walk
from octavo.core.errors import NonFiniteWeight

from .sites import Sites

_PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}
"""Constants that are no masks, whose infinities may be meant."""


def refuse_non_finite(sites: Sites) -> None:
    """Refuse a prepared graph with a parameter that no setting can work around.

    Raises:
        NonFiniteWeight: If one holds NaN or Inf; the message names the tensor and the op.
    """
    for node in walk(sites.graph):
        if node.domain == "":
            indices = _PARAMETERS.get(node.op_type, ())
        else:
            indices = ()
        for index in indices:
            if index < len(node.inputs):
                _refuse(node.inputs[index], node.name)
    initializers = sites.graph.initializers
    for name, site in sites.sites.items():
        if site.bias is not None:
            _refuse(initializers.get(site.bias), name)
        if site.op.weight is not None and site.op.out_of_reach:
            _refuse(initializers.get(site.op.weight.name), name)


def _refuse(value: ir.Value | None, op: str | None) -> None:
    array = constant(value)
    if value is None or array is None or array.dtype.kind != "f":
        return
    if not np.isfinite(array).all():
        raise NonFiniteWeight(
            f"tensor {value.name!r} of op {op!r} holds NaN or Inf; "
            "repair it and export the model again"
        )
