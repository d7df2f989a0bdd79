"""Local functions become part of the graph, so that a weight that they read is a weight like any other."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes import common as passes

from octavo.core.errors import ModelError

from .runtime import skeleton


def inline(model: ir.Model) -> ir.Model:
    """Return a model without local functions.

    A function that was written for another opset than the model is converted on the way.

    Raises:
        ModelError: If a function calls itself, or cannot be brought to the model's opset.
    """
    if not model.functions:
        return model
    try:
        if not any(_differs(function, model) for function in model.functions.values()):
            return passes.InlinePass()(model).model
        proto, held = skeleton(model)  # weights stay out: protobuf ends at 2 GB
        inlined: ir.Model = ir.from_proto(onnx.inliner.inline_local_functions(proto, convert_version=True))
    except Exception as error:  # neither inliner has an error of its own
        raise ModelError(f"the model's local functions cannot be inlined: {error}; inline them before the export") from error
    for name, tensor in held.items():
        if name in inlined.graph.initializers:
            inlined.graph.initializers[name].const_value = tensor
    return inlined


def _differs(function: ir.Function, model: ir.Model) -> bool:
    imports = model.opset_imports
    return any(imports.get(domain, version) != version for domain, version in function.opset_imports.items())
