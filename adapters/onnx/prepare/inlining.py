"""Local functions become part of the graph, so that a weight that they read is a weight like any other."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes import common as passes

from octavo.adapters.onnx.files.message import skeleton
from octavo.core.errors import ModelError

from .opset import unchanged


def inline(model: ir.Model) -> ir.Model:
    """Return a model without local functions.

    A function that was written for another opset than the model is relabelled where its operators mean the same at both,
    and converted on the way otherwise.

    Raises:
        ModelError: If a function calls itself, or cannot be brought to the model's opset.
    """
    if not model.functions:
        return model
    try:
        if all(_agrees(function, model) for function in model.functions.values()):
            return passes.InlinePass()(model).model
        proto, held = skeleton(model)  # weights stay out: protobuf ends at 2 GB
        inlined: ir.Model = ir.from_proto(
            onnx.inliner.inline_local_functions(proto, convert_version=True)
        )
    except Exception as error:  # neither inliner has an error of its own
        raise ModelError(
            f"the model's local functions cannot be inlined: {error}; inline them before the export"
        ) from error
    for name, tensor in held.items():
        if name in inlined.graph.initializers:
            inlined.graph.initializers[name].const_value = tensor
    return inlined


def _agrees(function: ir.Function, model: ir.Model) -> bool:
    """Bring a function to the model's opsets where that changes nothing; False if it stands at others still."""
    for domain, version in function.opset_imports.items():
        own = model.opset_imports.get(domain, version)
        if own != version and not (
            domain == "" and all(unchanged(n, version, own) for n in _standard(function))
        ):
            return False
    function.opset_imports.update(
        (d, v) for d, v in model.opset_imports.items() if d in function.opset_imports
    )
    return True


def _standard(function: ir.Function) -> Iterator[ir.Node]:
    return (
        node
        for node in ir.traversal.RecursiveGraphIterator(function)
        if node.domain in ("", "ai.onnx")
    )
