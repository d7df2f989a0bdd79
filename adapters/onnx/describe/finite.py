"""Parameters of norms and recurrent layers, which must be finite: no op names them, so the core
cannot look at them."""

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
    """Refuse a prepared graph with a parameter beside those of its ops that is not finite.

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


def _refuse(value: ir.Value | None, op: str | None) -> None:
    array = constant(value)
    if value is None or array is None or array.dtype.kind != "f":
        return
    if not np.isfinite(array).all():
        raise NonFiniteWeight(
            f"tensor {value.name!r} of op {op!r} holds NaN or Inf; "
            "repair it and export the model again"
        )
