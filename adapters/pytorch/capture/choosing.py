"""Choosing how to see a model: its traced graph where that is the same function, else its module tree."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import fx, nn

from octavo.adapters.pytorch.capture.standins.functional import layers_of_calls
from octavo.adapters.pytorch.capture.standins.layers_for_uses import obstacle, why_float
from octavo.adapters.pytorch.capture.standins.modules import STAND_INS
from octavo.adapters.pytorch.capture.standins.parameters import (
    from_json,
    known_uses,
    loose_parameters,
    uses_of,
    with_layers,
)
from octavo.adapters.pytorch.modules.kinds import kind_of
from octavo.adapters.pytorch.modules.shared_copy import has_hooks, skeleton
from octavo.adapters.pytorch.run.batches import Call, copied_call, parameters_of, takes, tensors_in
from octavo.core.errors import DataError
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import shown

from .capture import Capture
from .layers import find_layers
from .links import Factors
from .module_tree import ModuleCapture
from .trace import Trace
from .traced import GraphCapture
from .watching import watched_run


def capture_of(root: nn.Module, call: Call | None, how: Literal["auto", "modules"]) -> Capture:
    """Look at a model.

    A traced graph is taken only if it was run on the example and gave the module's own outputs, bit for bit up to
    rounding: tracing follows one branch of Python's control flow and must not silently drop the others.
    """
    why = "graph capture was turned off" if how == "modules" else _obstacle(root, call)
    if not why:
        try:
            twin, graph = _traced_graph(root)
            shapes = _checked(twin, graph, call) if call is not None else {}
            capture = GraphCapture(twin, graph, shapes)
            why = _missed(root, capture, call)
            if not why:
                return capture
        except Exception as error:
            why = f"its graph cannot be traced ({_said(error)})"
    remark = f"layers are replaced one by one, nothing is fused: {why}" if how != "modules" else ""
    root, reasons = _with_parameters(root, call)
    seen = example_trace(root, call) if call is not None else None
    made = ModuleCapture(root, seen, remark)
    made.reasons = reasons
    return made


_SHARE = 0.1
"""A graph that leaves so much of a model's weights in float, which its modules would not, is not worth what it fuses."""


def _missed(root: nn.Module, capture: GraphCapture, call: Call | None) -> str:
    """Return that a graph shows too little of the products by parameters; empty where it shows enough of them."""
    weights = [weight for op in capture.ops for weight in op.weights]
    claimed = {name for weight in weights for name in (weight.name, *weight.made_of)}
    every = ((name, held) for name, _, _, held in loose_parameters(capture.root))
    loose = {name: held for name, held in every if name not in claimed}
    if not loose or call is None:
        return ""
    seen = uses_of(root, call)
    found = sum(op.parameters for op in capture.ops)
    lost = [
        name
        for name, held in loose.items()
        if name in seen
        and any(not obstacle(form, held) for form in seen[name].forms)
        # Beside a graph's layer, what else reads the parameter would hold it in float.
        and not (found and seen[name].reads)
    ]
    if sum(loose[n].numel() for n in lost) <= _SHARE * found:
        return ""
    return f"its graph shows no layer for the products by {', '.join(lost)}"


def _with_parameters(root: nn.Module, call: Call | None) -> tuple[nn.Module, Mapping[str, str]]:
    """Return a skeleton with layers for the parameters that the example's run multiplies by, and why others have none."""
    reasons: dict[str, str] = {}
    wanted = known_uses(root)
    if call is not None:
        try:
            seen = uses_of(root, call)
        except Exception:
            return root, {}  # it does not run over stand-ins: what its parameters do is not seen
        wanted = {name: use.forms for name, use in seen.items() if use.forms}
        held = dict(root.named_parameters(remove_duplicate=False))
        reasons = {name: why_float(use, held[name]) for name, use in seen.items()}
    return (with_layers(skeleton(root), wanted) if wanted else root), reasons


def capture_again(root: nn.Module, facts: Mapping[str, Any], factors: Factors) -> Capture:
    """Look at a model in the way that was written down when it was saved."""
    if facts["kind"] == "graph":
        twin, graph = _traced_graph(root)
        return GraphCapture(twin, graph, {k: tuple(v) for k, v in facts["shapes"].items()}, factors)
    seen = Trace.from_json(facts["trace"]) if facts["trace"] is not None else None
    return ModuleCapture(root, seen, facts["why"], factors)


def ready_for(root: nn.Module, facts: Mapping[str, Any]) -> nn.Module:
    """Return a skeleton with every module that a saved model may name."""
    if facts["kind"] == "graph":
        return _traced_graph(root)[0]
    return with_layers(skeleton(root), from_json(facts.get("parameters", {})))


def _traced_graph(root: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Return a skeleton with layers for functional calls, and its graph."""
    twin = skeleton(root)
    graph = _Tracer().trace(twin)
    layers_of_calls(twin, graph)
    return twin, graph


def example_trace(root: nn.Module, call: Call) -> Trace:
    """Watch the whole example: a part of it could take another branch of the model's.

    Raises:
        DataError: If the model does not run on it.
    """
    try:
        return watched_run(root, find_layers(root).keys(), copied_call(call))
    except Exception as error:
        args, kwargs = call
        given = shown(Given(*args, **kwargs), takes(root).positional)
        raise DataError(
            f"the model, which takes {takes(root)}, does not run on the first batch ({given}): {_said(error)}"
        ) from error


_CONTAINERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


class _Tracer(fx.Tracer):
    """Follows the model's own modules; those of torch.nn are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if kind_of(m):
            return True
        # What multiplies by parameters of its own must be seen.
        if isinstance(m, (*STAND_INS, nn.Bilinear, nn.RNNCellBase)):
            return False
        return super().is_leaf_module(m, module_qualified_name) or type(m).__module__.startswith(
            "octavo."
        )


def _obstacle(root: nn.Module, call: Call | None) -> str:
    """Return why tracing would not give the same function; empty if it may."""
    if isinstance(root, fx.GraphModule):
        return ""
    if _Tracer().is_leaf_module(root, ""):
        return "it is a single layer"
    optional = [
        p.name
        for p in parameters_of(root)
        if p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if optional:
        return f"its forward has optional arguments ({', '.join(optional[:3])}{', ...' if len(optional) > 3 else ''})"
    for path, module in root.named_modules():
        if isinstance(module, _CONTAINERS):
            return f"{path or 'the model'} is an nn.{type(module).__name__}, whose layers a graph does not show"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{path} is a module of torch.jit, into which a graph does not see"
        if has_hooks(module) and not _Tracer().is_leaf_module(module, path):
            return f"{path or 'the model'} has forward hooks, which a graph would lose"
    if call is not None and not all(
        isinstance(v, torch.Tensor) for v in [*call[0], *call[1].values()]
    ):
        return "its inputs are not all tensors"
    return ""


def _checked(root: nn.Module, graph: fx.Graph, call: Call) -> dict[str, tuple[int, ...]]:
    """Run graph and module on the example; return the shape of every node's value.

    Raises:
        ValueError: If they differ.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            first = next(tensors_in(result), None)
            if first is not None:
                shapes[n.name] = tuple(first.shape)
            return result

    names = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
    with torch.no_grad():
        expected = list(tensors_in(skeleton(root)(*copied_call(call)[0], **copied_call(call)[1])))
        args, kwargs = copied_call(call)
        got = list(
            tensors_in(
                Shapes(fx.GraphModule(root, graph)).run(
                    *args, *(kwargs[n] for n in names[len(args) :])
                )
            )
        )
    same = len(got) == len(expected) and all(
        a.shape == b.shape
        and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(got, expected, strict=True)
    )
    if not same:
        raise ValueError("the traced graph gives other outputs than the module")
    return shapes


def holds_for(root: nn.Module, graph: fx.Graph, call: Call) -> str:
    """Return why a graph is not the module for one more batch; empty where it is, or where the module does not run on it."""
    try:
        with torch.no_grad():
            args, kwargs = copied_call(call)
            skeleton(root)(*args, **kwargs)
    except Exception:
        return ""  # calibration meets the batch again, and says which one it is
    try:
        _checked(root, graph, call)
    except Exception as error:
        return f"its traced graph does not hold for a batch of other shapes ({_said(error)})"
    return ""


def _said(error: Exception) -> str:
    """Return an error's first line with the line of the model's source that raised it."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in f.filename and f.filename != __file__
    ]
    where = (
        f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}: {frames[-1].line}"
        if frames
        else ""
    )
    return f"{str(error).splitlines()[0] if str(error) else type(error).__name__}{where}"
