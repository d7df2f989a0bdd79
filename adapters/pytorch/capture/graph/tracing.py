"""The graph of a model, where that is the same function as the model."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Tracer

from octavo.adapters.pytorch.capture.norms import is_norm
from octavo.adapters.pytorch.capture.standins.functional import layers_of_calls
from octavo.adapters.pytorch.capture.standins.modules import STAND_INS
from octavo.adapters.pytorch.modules.kinds import kind_of
from octavo.adapters.pytorch.modules.shared_copy import has_hooks, skeleton
from octavo.adapters.pytorch.run.batches import (
    Call,
    copied_call,
    parameters_of,
    tensors_in,
)

Tensor = torch.Tensor
_CONTAINERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
"""Modules of torch.nn that are leaves of a graph and have layers in them."""
_OURS = ("/capture/choosing.py", "/capture/graph/tracing.py")
"""Files whose lines say nothing of a model."""


class _Tracer(Tracer):
    """Follows the model's own modules; those of torch.nn are leaves, and norms of any class.

    Args:
        norms: Identities of norms: their gain is theirs, whatever operators compute them.
    """

    def __init__(self, norms: Collection[int] = ()) -> None:
        super().__init__()
        self._norms = norms

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if kind_of(m) or id(m) in self._norms:
            return True
        # What multiplies by parameters of its own must be seen.
        if isinstance(m, (*STAND_INS, nn.Bilinear, nn.RNNCellBase)):
            return False
        is_octavos = type(m).__module__.startswith("octavo.")
        return is_octavos or super().is_leaf_module(m, module_qualified_name)


def traced_graph(root: nn.Module) -> tuple[nn.Module, Graph]:
    """Return a skeleton with layers for functional calls, and its graph."""
    twin = skeleton(root)
    # Before tracing: norms are known by running them.
    norms = {id(module) for module in twin.modules() if is_norm(module)}
    graph = _Tracer(norms).trace(twin)
    layers_of_calls(twin, graph)
    return twin, graph


def why_not_traced(root: nn.Module, call: Call | None) -> str:
    """Return why tracing would not give the same function; empty if it may.

    Args:
        root: The model.
        call: The example, or None.
    """
    if isinstance(root, GraphModule):
        return ""
    if _Tracer().is_leaf_module(root, ""):
        return "it is a single layer"
    optional = list(_optional_arguments(root))
    if optional:
        more = ", ..." if len(optional) > 3 else ""
        return f"its forward has optional arguments ({', '.join(optional[:3])}{more})"
    for path, module in root.named_modules():
        why = _why_not_followed(path, module)
        if why:
            return why
    given = [*call[0], *call[1].values()] if call is not None else []
    if not all(isinstance(value, Tensor) for value in given):
        return "its inputs are not all tensors"
    return ""


def _optional_arguments(root: nn.Module) -> Iterable[str]:
    for parameter in parameters_of(root):
        is_rest = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if is_rest or parameter.default is not parameter.empty:
            yield parameter.name


def _why_not_followed(path: str, module: nn.Module) -> str:
    """Return why a graph would not show what a module does; empty if it may."""
    where = path or "the model"
    if isinstance(module, _CONTAINERS):
        return f"{where} is an nn.{type(module).__name__}, whose layers a graph does not show"
    if isinstance(module, torch.jit.ScriptModule):
        return f"{path} is a module of torch.jit, into which a graph does not see"
    if has_hooks(module) and not _Tracer().is_leaf_module(module, path):
        return f"{where} has forward hooks, which a graph would lose"
    return ""


class _Shapes(Interpreter):
    """Runs a graph and notes the shape of each node's value."""

    def __init__(self, program: GraphModule) -> None:
        super().__init__(program)
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        first = next(tensors_in(result), None)
        if first is not None:
            self.found[n.name] = tuple(first.shape)
        return result


def checked(root: nn.Module, graph: Graph, call: Call) -> dict[str, tuple[int, ...]]:
    """Run graph and module on a batch; return the shape of every node's value.

    Raises:
        ValueError: If they differ.
    """
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    shapes = _Shapes(GraphModule(root, graph))
    with torch.no_grad():
        # Each gets copies of its own: the model may write into its inputs.
        args, kwargs = copied_call(call)
        expected = list(tensors_in(skeleton(root)(*args, **kwargs)))
        args, kwargs = copied_call(call)
        named = (kwargs[name] for name in names[len(args) :])
        got = list(tensors_in(shapes.run(*args, *named)))
    are_alike = len(got) == len(expected)
    if not are_alike or not all(map(_is_close, got, expected)):
        raise ValueError("the traced graph gives other outputs than the module")
    return shapes.found


def _is_close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5, equal_nan=True)


def why_it_does_not_hold(root: nn.Module, graph: Graph, call: Call) -> str:
    """Return why a graph is not the module for one more batch.

    Empty where it is, or where the module does not run on it.
    """
    try:
        with torch.no_grad():
            args, kwargs = copied_call(call)
            skeleton(root)(*args, **kwargs)
    except Exception:
        return ""  # calibration meets the batch again, and says which one it is
    try:
        checked(root, graph, call)
    except Exception as error:
        return f"its traced graph does not hold for a batch of other shapes ({said(error)})"
    return ""


def said(error: Exception) -> str:
    """Return an error's first line with the line of the model's source that raised it."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        is_models = "/torch/" not in frame.filename and not frame.filename.endswith(
            _OURS
        )
        if is_models:
            name = frame.filename.rpartition("/")[2]
            where = f" at {name}:{frame.lineno}: {frame.line}"
    return f"{first}{where}"
