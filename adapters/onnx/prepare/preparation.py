"""Preparation: a model that computes the same with fewer nodes.

Only the session's own copy of the graph changes; tensors that stay as they were are shared with the source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .already_quantized import dequantized
from .attention import simplify_masked_softmax
from .branches import take_constant_branches
from .building import Layouts
from .convolutions import fold_affine, fold_batch_norm, fold_pad, pool_from_mean
from .einsum import product_from_einsum
from .folding import (
    Folded,
    add_from_sum,
    bypass_dropout,
    bypass_identities,
    drop_unused_initializers,
    fold_constants,
)
from .half import widen
from .products import matrix_on_the_right, plain_gemm
from .scopes import lift_initializers, scopes, walk
from .tables import rows_of_table
from .transposes import swap_last_axes

logger = logging.getLogger(__name__)


_REWRITES: Mapping[str, Callable[[ir.Node], object]] = {
    "Dropout": bypass_dropout,
    "BatchNormalization": fold_batch_norm,
    "Add": fold_affine,
    "Sum": add_from_sum,
    "Mul": fold_affine,
    "Conv": fold_pad,
    "ReduceMean": pool_from_mean,
}


def prepare(model: ir.Model) -> ir.Model:
    """Fold what is constant, what stands around convolutions, spatial means and swaps of axes; infer shapes."""
    model = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(
        model
    ).model
    widen(model)
    layouts, folded = Layouts(), Folded(model.graph)
    for scope in scopes(model.graph):
        fold_constants(scope, folded, layouts.note)
    if take_constant_branches(model.graph):
        for scope in scopes(model.graph):
            fold_constants(scope, folded, layouts.note)
    for scope in scopes(model.graph):
        bypass_identities(scope)
    model = infer_shapes(model)
    graph = model.graph
    for node in list(walk(graph)):
        if node.domain == "" and node.op_type in _REWRITES and dequantized(node.inputs[0]) is None:
            _REWRITES[node.op_type](node)
    if _bring_into_form(graph, layouts):
        model = infer_shapes(model)
    for scope in scopes(graph):
        simplify_masked_softmax(scope)
        swap_last_axes(scope)
    model = passes.RemoveUnusedNodesPass()(model).model
    lift_initializers(graph)
    drop_unused_initializers(graph)
    layouts.name(graph)
    for node in walk(graph):
        # Exporters leave stack traces on every node: up to 1 % of a model, and paths of the machine that made it.
        node.metadata_props.clear()
        node.doc_string = None
    return model


_FORMS: tuple[Mapping[str, Callable[[ir.Node, Layouts], object]], ...] = (
    {"Gemm": plain_gemm, "Einsum": product_from_einsum, "Gather": rows_of_table},
    {"MatMul": matrix_on_the_right},
)
"""Rewrites of operators with a constant, in two rounds: those of the first write operators of the second."""


def _bring_into_form(graph: ir.Graph, layouts: Layouts) -> bool:
    """Bring operators with a constant into the forms that sites know; return whether anything changed.

    What is quantized already is left as it is.
    """
    before = [(node, *node.inputs) for node in walk(graph)]
    for forms in _FORMS:
        for node in list(walk(graph)):
            if (
                node.domain == ""
                and node.op_type in forms
                and not any(dequantized(v) for v in node.inputs)
            ):
                forms[node.op_type](node, layouts)
    return before != [(node, *node.inputs) for node in walk(graph)]


def infer_shapes(model: ir.Model) -> ir.Model:
    """Infer what can be inferred; where inference fails, shapes stay unknown and nothing else changes."""
    for node in walk(model.graph):
        if (
            node.domain == "ai.onnx.ml"
            and node.op_type in ("Scaler", "Normalizer")
            and node.inputs[0] is not None
        ):
            node.outputs[0].type, node.outputs[0].shape = (
                ir.TensorType(ir.DataType.FLOAT),
                node.inputs[0].shape,
            )  # onnx infers neither
    try:
        return passes.ShapeInferencePass(strict_mode=False, data_prop=True)(model).model
    except Exception as error:  # onnx's inference raises bare errors on models that run well
        logger.info("shape inference failed, shapes stay unknown: %s", error)
        return model
