"""Preparation: a model that computes the same with fewer nodes.

Only the session's own copy of the graph changes; tensors that stay as they were are shared with
the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnx_ir import DataType, Graph, Model, Node, Value
from onnx_ir.passes import common as passes

from octavo.core.system.log import get_logger

from .already_quantized import dequantized
from .constants import drop_unused_initializers
from .half import widen
from .rewrites.attention import simplify_masked_softmax
from .rewrites.branches import take_constant_branches
from .rewrites.bypassing import (
    add_from_sum,
    bypass_cast,
    bypass_dropout,
    bypass_identities,
)
from .rewrites.convolutions import fold_affine, fold_batch_norm, fold_pad
from .rewrites.einsum import product_from_einsum
from .rewrites.folding import Folded, fold_constants
from .rewrites.layouts import Layouts
from .rewrites.pooling import pool_from_mean
from .rewrites.products import matrix_on_the_right, plain_gemm
from .rewrites.tables import rows_of_table
from .rewrites.transposes import swap_last_axes
from .scopes import lift_initializers, scopes, walk

logger = get_logger("onnx")

_REWRITES: Mapping[str, Callable[[Node], object]] = {
    "Cast": bypass_cast,
    "Dropout": bypass_dropout,
    "BatchNormalization": fold_batch_norm,
    "Add": fold_affine,
    "Sum": add_from_sum,
    "Mul": fold_affine,
    "Conv": fold_pad,
    "ReduceMean": pool_from_mean,
}

_FORMS: tuple[Mapping[str, Callable[[Node, Layouts], object]], ...] = (
    {"Gemm": plain_gemm, "Einsum": product_from_einsum, "Gather": rows_of_table},
    {"MatMul": matrix_on_the_right},
)
"""Rewrites of operators with a constant, in two rounds.

Those of the first write operators of the second.
"""


def prepare(model: Model) -> Model:
    """Fold what is constant, what stands around convolutions, spatial means and swaps of axes.

    Shapes are inferred.
    """
    # Constants become initializers whatever their size: all rewrites look for weights there.
    lift = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    model = lift(model).model
    widen(model)
    layouts = Layouts()
    _fold(model.graph, layouts)
    # The rewrites ask for ranks and lengths.
    model = infer_shapes(model)
    graph = model.graph
    _rewrite(graph)
    if _bring_into_form(graph, layouts):
        model = infer_shapes(model)
    for scope in scopes(graph):
        simplify_masked_softmax(scope)
        swap_last_axes(scope)
    model = passes.RemoveUnusedNodesPass()(model).model
    lift_initializers(graph)
    drop_unused_initializers(graph)
    # Names are free once what nobody reads is gone.
    layouts.name(graph)
    for node in walk(graph):
        # Exporters leave stack traces on every node: up to 1 % of a model, and paths of the
        # machine that made it.
        node.metadata_props.clear()
        node.doc_string = None
    return model


def _fold(graph: Graph, layouts: Layouts) -> None:
    folded = Folded(graph)
    for scope in scopes(graph):
        fold_constants(scope, folded, layouts.note)
    if take_constant_branches(graph):
        # What a branch computed from constants alone is folded once it stands in the graph.
        for scope in scopes(graph):
            fold_constants(scope, folded, layouts.note)
    for scope in scopes(graph):
        bypass_identities(scope)


def _rewrite(graph: Graph) -> None:
    """Rewrite single operators; what is quantized already is left as it is."""
    for node in list(walk(graph)):
        if node.domain != "":
            continue
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is not None and dequantized(node.inputs[0]) is None:
            rewrite(node)


def _bring_into_form(graph: Graph, layouts: Layouts) -> bool:
    """Bring operators with a constant into the forms that sites know.

    What is quantized already is left as it is.

    Returns:
        Whether anything changed.
    """
    before = _nodes_and_inputs(graph)
    for forms in _FORMS:
        for node in list(walk(graph)):
            if node.domain != "":
                continue
            rewrite = forms.get(node.op_type)
            if rewrite is not None and not any(dequantized(v) for v in node.inputs):
                rewrite(node, layouts)
    return _nodes_and_inputs(graph) != before


def _nodes_and_inputs(graph: Graph) -> list[tuple[Node | Value | None, ...]]:
    return [(node, *node.inputs) for node in walk(graph)]


def infer_shapes(model: Model) -> Model:
    """Infer what can be inferred; where inference fails, shapes stay unknown."""
    for node in walk(model.graph):
        _infer_preprocessing(node)
    try:
        return passes.ShapeInferencePass(strict_mode=False, data_prop=True)(model).model
    except Exception as error:
        # Onnx's inference raises bare errors on models that run well.
        logger.info("shape inference failed, shapes stay unknown: %s", error)
        return model


def _infer_preprocessing(node: Node) -> None:
    """Set the type and shape of what scikit-learn's scalers put out; onnx infers neither."""
    is_scaler = node.domain == "ai.onnx.ml" and node.op_type in ("Scaler", "Normalizer")
    if not is_scaler or node.inputs[0] is None:
        return
    node.outputs[0].type = ir.TensorType(DataType.FLOAT)
    node.outputs[0].shape = node.inputs[0].shape
