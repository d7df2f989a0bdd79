"""Programs of torch.export as modules again: their graphs call operators where the model called
layers."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from .exported_layers import layer_for

_ATEN = torch.ops.aten

_FUNCTIONS: Mapping[Any, Any] = {
    _ATEN.linear.default: nn.functional.linear,
    _ATEN.conv1d.default: torch.conv1d,
    _ATEN.conv2d.default: torch.conv2d,
    _ATEN.conv3d.default: torch.conv3d,
    _ATEN.conv1d.padding: torch.conv1d,
    _ATEN.conv2d.padding: torch.conv2d,
    _ATEN.conv3d.padding: torch.conv3d,
    _ATEN.relu.default: torch.relu,
    _ATEN.relu_.default: torch.relu,
    _ATEN.gelu.default: nn.functional.gelu,
    _ATEN.silu.default: nn.functional.silu,
    _ATEN.silu_.default: nn.functional.silu,
    _ATEN.add.Tensor: operator.add,
    _ATEN.matmul.default: torch.matmul,
    _ATEN.bmm.default: torch.bmm,
    _ATEN.scaled_dot_product_attention.default: nn.functional.scaled_dot_product_attention,
}
"""Operator -> the function of the same arguments that layers and fusions are known by."""
_CHECKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
"""Tables of the hooks that check what the program was exported for: sizes, for one."""
_OF_THE_PROGRAM = (
    "_in_spec",
    "validate_inputs",
    "range_constraints",
    "module_call_graph",
)
"""Attributes of an exported program's module that its checks read."""
_IN_PLACE = frozenset({_ATEN.relu_.default, _ATEN.silu_.default})


def is_exported(root: nn.Module) -> bool:
    """True for a graph that calls ATen operators, as torch.export makes it."""
    if not isinstance(root, GraphModule):
        return False
    return any(
        isinstance(node.target, torch._ops.OpOverload) for node in root.graph.nodes
    )


def recovered(root: GraphModule) -> GraphModule:
    """Return the same program with layers, where operators read parameters that a layer of the
    exported model held.

    Args:
        root: A skeleton; it is not changed, and the parameters are shared.
    """
    program = GraphModule(root, copy.deepcopy(root.graph))
    for node in list(program.graph.nodes):
        made = layer_for(program, node)
        if made is not None:
            path, source, module = made
            _put(program, path, module)
            _call(program.graph, node, path, source)
    for node in program.graph.nodes:
        if (
            node.op == "call_function"
            and node.target in _FUNCTIONS
            and _takes_the_same(node)
        ):
            node.target = _FUNCTIONS[node.target]
    for node in list(program.graph.nodes):
        if node.op == "get_attr" and not node.users:
            program.graph.erase_node(node)
    for table in _CHECKS:
        getattr(program, table).update(getattr(root, table))
    for name in _OF_THE_PROGRAM:
        if name in root.__dict__:
            program.__dict__[name] = root.__dict__[name]
    program.recompile()
    return program.eval()


def _put(program: GraphModule, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    program.get_submodule(owner)._modules[leaf] = module


def _call(graph: Graph, node: Node, path: str, source: Node) -> None:
    """Let a graph call a layer in the place of an operator."""
    with graph.inserting_before(node):
        call = graph.call_module(path, (source,))
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    graph.erase_node(node)


def _takes_the_same(node: Node) -> bool:
    if node.target in _IN_PLACE:
        # Whoever else reads what is written to must go on seeing it.
        sources = node.all_input_nodes
        return all(
            len(source.users) == 1 and source.op != "placeholder" for source in sources
        )
    # a + alpha * b has no operator of Python's.
    return node.target is not _ATEN.add.Tensor or not node.kwargs
