"""Choosing how to see a model: its traced graph where that is the same function, else its module
tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.capture.graph.tracing import (
    checked,
    said,
    traced_graph,
    why_not_traced,
)
from octavo.adapters.pytorch.capture.standins.layers_for_uses import obstacle, why_float
from octavo.adapters.pytorch.capture.standins.parameters import (
    from_json,
    known_uses,
    loose_parameters,
    uses_of,
    with_layers,
)
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.run.batches import Call, copied_call, takes
from octavo.core.errors import DataError
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import shown

from .capture import Capture
from .layers import find_layers
from .links import InputMaps
from .module_tree import ModuleCapture
from .trace import Trace
from .watching import watched_run


def capture_of(
    root: nn.Module, call: Call | None, how: Literal["auto", "modules"]
) -> Capture:
    """Look at a model.

    A traced graph is taken only if it was run on the example and gave the module's own outputs, bit
    for bit up to
    rounding: tracing follows one branch of Python's control flow and must not silently drop the
    others.

    Args:
        root: A skeleton.
        call: The example, or None.
        how: ``modules`` takes no graph.
    """
    remark = ""
    if how == "auto":
        graph, why = _graph_capture(root, call)
        if graph is not None:
            return graph
        remark = f"layers are replaced one by one, nothing is fused: {why}"
    root, reasons = _with_parameters(root, call)
    seen = example_trace(root, call) if call is not None else None
    return ModuleCapture(root, seen, remark, reasons=reasons)


def _graph_capture(
    root: nn.Module, call: Call | None
) -> tuple[GraphCapture | None, str]:
    """Return a model's traced graph; None and why where that is not to be taken."""
    why = why_not_traced(root, call)
    if why:
        return None, why
    try:
        twin, graph = traced_graph(root)
        shapes = checked(twin, graph, call) if call is not None else {}
        capture = GraphCapture(twin, graph, shapes)
        why = _missed(root, capture, call) if call is not None else ""
    except Exception as error:
        return None, f"its graph cannot be traced ({said(error)})"
    return (None, why) if why else (capture, "")


_SHARE = 0.1
"""A graph that leaves so much of a model's weights in float, which its modules would not, is not
worth what it fuses."""


def _missed(root: nn.Module, capture: GraphCapture, call: Call) -> str:
    """Return that a graph shows too little of the products by parameters; empty where it shows
    enough of them."""
    weights = [weight for op in capture.ops for weight in op.weights]
    claimed = {name for weight in weights for name in (weight.name, *weight.made_of)}
    every = loose_parameters(capture.root)
    loose = {name: held for name, _, _, held in every if name not in claimed}
    if not loose:
        return ""
    seen = uses_of(root, call)
    found = sum(op.parameters for op in capture.ops)
    lost = []
    for name, held in loose.items():
        use = seen.get(name)
        # Beside a graph's layer, what else reads the parameter would hold it in float.
        if use is None or (found and use.reads):
            continue
        if any(not obstacle(form, held) for form in use.forms):
            lost.append(name)
    if sum(loose[name].numel() for name in lost) <= _SHARE * found:
        return ""
    return f"its graph shows no layer for the products by {', '.join(lost)}"


def _with_parameters(
    root: nn.Module, call: Call | None
) -> tuple[nn.Module, Mapping[str, str]]:
    """Return a skeleton with layers for the parameters that the example's run multiplies by, and
    why others have none."""
    reasons: dict[str, str] = {}
    wanted = known_uses(root)
    if call is not None:
        try:
            seen = uses_of(root, call)
        except Exception:
            # It does not run over stand-ins: what its parameters do is not seen.
            return (
                root,
                {},
            )
        wanted = {name: use.forms for name, use in seen.items() if use.forms}
        held = dict(root.named_parameters(remove_duplicate=False))
        reasons = {name: why_float(use, held[name]) for name, use in seen.items()}
    return (with_layers(skeleton(root), wanted) if wanted else root), reasons


def capture_again(
    root: nn.Module, facts: Mapping[str, Any], factors: InputMaps
) -> Capture:
    """Look at a model in the way that was written down when it was saved."""
    if facts["kind"] == "graph":
        twin, graph = traced_graph(root)
        shapes = {name: tuple(shape) for name, shape in facts["shapes"].items()}
        return GraphCapture(twin, graph, shapes, factors)
    trace = facts["trace"]
    seen = Trace.from_json(trace) if trace is not None else None
    return ModuleCapture(root, seen, facts["why"], factors)


def ready_for(root: nn.Module, facts: Mapping[str, Any]) -> nn.Module:
    """Return a skeleton with every module that a saved model may name."""
    if facts["kind"] == "graph":
        return traced_graph(root)[0]
    return with_layers(skeleton(root), from_json(facts.get("parameters", {})))


def example_trace(root: nn.Module, call: Call) -> Trace:
    """Watch the whole example: a part of it could take another branch of the model's.

    Raises:
        DataError: If the model does not run on it.
    """
    try:
        return watched_run(root, find_layers(root).keys(), copied_call(call))
    except Exception as error:
        args, kwargs = call
        wanted = takes(root)
        given = shown(Given(*args, **kwargs), wanted.positional)
        raise DataError(
            f"the model, which takes {wanted}, does not run on the first batch ({given}): "
            f"{said(error)}"
        ) from error
