"""A traced model with some ops on integer kernels; codes pass between neighbours where every reader
takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node, map_arg

from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.qlayers.int8 import Int8Linear
from octavo.adapters.pytorch.qlayers.quantize import Quantize
from octavo.core.contract.adapter import OpParameters

from .build import placed, quantized_module, tie
from .code_forms import CodeForms
from .input_maps import install
from .shared_inputs import share

Tensor = torch.Tensor


def rewrite(
    capture: GraphCapture,
    parameters: Mapping[str, OpParameters],
    biases: Mapping[str, Tensor | None],
) -> nn.Module:
    """Return the traced model with the given ops quantized.

    Args:
        capture: The traced model.
        parameters: Op name -> what the core decided.
        biases: Op name -> bias as the op uses it.
    """
    return _Rewriter(capture, parameters, biases).module()


class _Rewriter:
    """The new graph as it is built, node by node."""

    def __init__(
        self,
        capture: GraphCapture,
        parameters: Mapping[str, OpParameters],
        biases: Mapping[str, Tensor | None],
    ) -> None:
        self._capture = capture
        self._parameters = parameters
        self._biases = biases
        self._forms = CodeForms(capture, parameters)
        self._graph = Graph()
        self._shared = skeleton(capture.root)
        in_float = dict(capture.factors)
        for name in parameters:
            in_float.pop(name, None)
        install(self._shared, capture.layers, in_float)
        # Node of the float graph -> of the new one.
        self._env: dict[Node, Node] = {}
        # New node that gives codes -> their form.
        self._given: dict[Node, Activation] = {}
        # Float value of the new graph, and a form's key -> the node that gives its codes.
        self._codes: dict[tuple[Node, tuple[float, int, int, int]], Node] = {}
        self._parts: dict[str, nn.Module | Tensor] = {}
        self._made: dict[str, nn.Module] = {}
        # Module that is called at several sites -> its op.
        self._op_at: dict[str, str] = {}
        for name in parameters:
            if name not in capture.inner:
                path = capture.layers[name].path
                self._op_at[path] = name

    def module(self) -> nn.Module:
        """Return the rewritten graph as a module."""
        capture = self._capture
        ends = self._forms.ends
        swallowed: set[Node] = set()
        for name in ends.values():
            swallowed.update(capture.inner[name])
        for node in capture.graph.nodes:
            if node in ends:
                self._quantize(node)
            elif node in swallowed:
                continue
            elif capture.sites.is_idle(node):
                source = _node(node.args[0])
                self._env[node] = self._env[source]
            else:
                self._copy(node)
        tie(self._made, self._parameters)
        self._graph.lint()
        self._share()
        self._pass_few_on()
        class_name = type(capture.root).__name__
        return GraphModule(self._parts, self._graph, class_name).eval()

    def _copy(self, node: Node) -> None:
        new = self._graph.node_copy(node, self._env.__getitem__)
        self._env[node] = new
        # Annotations may be strings, which a graph's pickle cannot hold.
        new.type = None
        source = node.args[0] if node.args else None
        if isinstance(source, Node) and self._forms.moves(node):
            form = self._given.get(self._env[source])
            if form is not None:
                self._given[new] = form
        path = str(node.target)
        if node.op == "get_attr":
            self._parts[path] = _attribute(self._shared, path)
        elif node.op == "call_module" and path not in self._parts:
            self._parts[path] = self._module_at(path)

    def _module_at(self, path: str) -> nn.Module:
        """Return the module that a copied call runs: quantized where it is an op's."""
        op = self._op_at.get(path)
        if op is None:
            return self._shared.get_submodule(path)
        return self._quantized(op)

    def _quantize(self, end: Node) -> None:
        """Put one op's quantized layer in the place of the nodes that it stands for."""
        name = self._forms.ends[end]
        path = self._capture.layers[name].path
        self._parts[path] = self._quantized(name)
        new = self._call(name, path)
        self._env[end] = new
        if name in self._forms.gives:
            self._given[new] = self._forms.gives[name]

    def _quantized(self, name: str) -> nn.Module:
        layer = self._capture.layers[name]
        old = self._shared.get_submodule(layer.path)
        gives = self._forms.gives.get(name)
        own = self._capture.factors.get(name, ())
        decided = self._parameters[name]
        bias = self._biases[name]
        new = quantized_module(layer, old, decided, bias, gives=gives, own=own)
        self._made[name] = new
        return placed(old, new)

    def _call(self, name: str, path: str) -> Node:
        start = self._capture.inner[name][0]
        read = _node(start.args[0])
        source = self._env[read]
        form = self._forms.input_form(name, 0)
        if form is not None:
            source = self._as_codes(source, form)
        args = [source]
        if name in self._capture.others:
            args.append(self._added(name, source))
        # Initial states, offsets of bags: whatever else the float layer is given.
        further = (start.args[1:], start.kwargs)
        rest, named = map_arg(further, self._env.__getitem__)
        return self._graph.call_module(path, (*args, *rest), named)

    def _added(self, name: str, first: Node) -> Node:
        """Return what an op adds, in a form that its kernel may write into."""
        original = self._capture.others[name]
        other = self._env[original]
        if name in self._forms.gives:
            wanted = self._forms.input_form(name, 1)
            assert wanted is not None
            other = self._as_codes(other, wanted)
        order = self._capture.order
        last = self._capture.inner[name][-1]
        end = order[last]
        is_read_again = any(order[user] > end for user in original.users)
        # The kernel may write into what it adds: not where it is the caller's, or is read again,
        # perhaps by the kernel itself.
        if original.op == "placeholder" or is_read_again or other is first:
            return self._graph.call_method("clone", (other,))
        return other

    def _as_codes(self, value: Node, form: Activation) -> Node:
        if value in self._given:
            return value
        key = (value, form.key())
        if key not in self._codes:
            path = f"{value.name}_codes"
            if any(known is value for known, _ in self._codes):
                path += f"_{len(self._codes)}"
            self._parts[path] = Quantize(form)
            self._codes[key] = self._graph.call_module(path, (value,))
        return self._codes[key]

    def _share(self) -> None:
        """Let linear layers that read one value alike work on it together."""
        reads: list[tuple[object, nn.Module]] = []
        for node in self._graph.nodes:
            if node.op != "call_module" or not node.args:
                continue
            part = self._parts[str(node.target)]
            if isinstance(part, nn.Module):
                reads.append((node.args[0], part))
        share(reads)

    def _pass_few_on(self) -> None:
        """Let few rows stay float where all readers quantize and multiply them in one kernel."""
        for node in self._graph.nodes:
            if node.op != "call_module" or not node.users:
                continue
            part = self._parts[str(node.target)]
            if isinstance(part, Quantize):
                part.few = min(self._few_of(user) for user in node.users)

    def _few_of(self, reader: Node) -> int:
        """Return up to how many elements of an input a reader takes in float."""
        part = self._parts.get(str(reader.target))
        return part.few if isinstance(part, Int8Linear) else 0


def _node(value: object) -> Node:
    assert isinstance(value, Node)
    return value


def _attribute(root: nn.Module, path: str) -> Tensor:
    owner, _, leaf = path.rpartition(".")
    value = getattr(root.get_submodule(owner), leaf)
    assert isinstance(value, Tensor)
    return value
