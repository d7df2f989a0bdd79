"""Local functions become part of the graph, so that a weight that they read is like any other."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir import Model, Node
from onnx_ir.passes import common as passes

from octavo.adapters.onnx.files.message import refill, skeleton
from octavo.core.errors import ModelError

from .opset import is_unchanged


def inline(model: Model) -> Model:
    """Return a model without local functions.

    A function that was written for another opset than the model is relabelled where its operators
    mean the same at both, and converted on the way otherwise.

    Raises:
        ModelError: If a function calls itself, or cannot be brought to the model's opset.
    """
    if not model.functions:
        return model
    try:
        if all(_agrees(function, model) for function in model.functions.values()):
            return passes.InlinePass()(model).model
        return _inline_converting(model)
    except Exception as error:  # neither inliner has an error of its own
        raise ModelError(
            f"the model's local functions cannot be inlined: {error}; inline them before the export"
        ) from error


def _inline_converting(model: Model) -> Model:
    """Inline functions of other opsets with onnx's own inliner, which converts their operators."""
    proto, held = skeleton(model)  # weights stay out: protobuf ends at 2 GB
    message = onnx.inliner.inline_local_functions(proto, convert_version=True)
    inlined: Model = ir.from_proto(message)
    refill(inlined, held)
    return inlined


def _agrees(function: ir.Function, model: Model) -> bool:
    """Bring a function to the model's opsets where that changes nothing; False where it does."""
    for domain, version in function.opset_imports.items():
        own = model.opset_imports.get(domain, version)
        if own == version:
            continue
        if domain != "" or not _is_same_at(function, version, own):
            return False
    shared = {
        d: v for d, v in model.opset_imports.items() if d in function.opset_imports
    }
    function.opset_imports.update(shared)
    return True


def _is_same_at(function: ir.Function, version: int, other: int) -> bool:
    return all(is_unchanged(node, version, other) for node in _standard_nodes(function))


def _standard_nodes(function: ir.Function) -> Iterator[Node]:
    for node in ir.traversal.RecursiveGraphIterator(function):
        if node.domain in ("", "ai.onnx"):
            yield node
