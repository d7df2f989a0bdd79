"""Carrying a recipe out: quantized operations take the place of float ones in a clone of the graph.

Static schemes are written as QuantizeLinear/DequantizeLinear pairs in the places where ONNX Runtime
fuses them into integer kernels, so that codes flow from operation to operation: through residual
adds, pooling and reshapes. A matrix product whose result stays float, and every dynamic one, is
written as MatMulIntegerToFloat, which takes the bias along.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.describe.sites import Sites
from octavo.core.contract.adapter import OpParameters

from .activations import CodesEditor
from .dynamic import write_dynamic
from .finishing import finish
from .flow import let_codes_flow
from .half_precision import Islands
from .nodes import Emitted
from .static import write_static
from .weight_only import write_weight_only


def emit(
    model: ir.Model, sites: Sites, parameters: Mapping[str, OpParameters]
) -> tuple[ir.Model, Mapping[str, Emitted]]:
    """Carry the parameters of every op out.

    Args:
        model: The prepared model; not changed. Every tensor is shared with it.
        sites: Its operations.
        parameters: What the core decided, by op name; ops left out stay float.

    Returns:
        The quantized model, and what was written for each op.

    Raises:
        SchemeError: If parameters are missing, or a weight cannot be packed.
    """
    editor = CodesEditor(model, sites, parameters)
    let_codes_flow(editor)
    islands = Islands(editor)
    emitted: dict[str, Emitted] = {}
    for name, given in parameters.items():
        site = sites.sites[name]
        emitted[name] = _write(editor, islands, site, given)
    # Which islands touch is known once all are written.
    islands.join()
    return finish(editor, emitted), emitted


def _write(
    editor: CodesEditor, islands: Islands, site: Site, params: OpParameters
) -> Emitted:
    mode = params.scheme.mode
    if mode == "cast":
        return islands.write(site, params)
    if mode == "static":
        return write_static(editor, site, params)
    is_grouped = params.weight is not None and params.weight.params.spec.group_size
    # MatMulNBits quantizes activations by itself: a dynamic scheme is one of its accuracy levels.
    if mode == "weight_only" or is_grouped:
        return write_weight_only(editor, site, params)
    return write_dynamic(editor, site, params)
