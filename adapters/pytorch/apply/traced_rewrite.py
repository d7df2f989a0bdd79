"""A traced model with some ops on integer kernels; codes pass between neighbours where every reader
takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

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


def rewrite(
    capture: GraphCapture,
    parameters: Mapping[str, OpParameters],
    biases: Mapping[str, torch.Tensor | None],
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
        biases: Mapping[str, torch.Tensor | None],
    ) -> None:
        self._capture = capture
        self._parameters = parameters
        self._biases = biases
        self._forms = CodeForms(capture, parameters)
        self._graph = fx.Graph()
        self._shared = skeleton(capture.root)
        in_float = {n: own for n, own in capture.factors.items() if n not in parameters}
        install(self._shared, capture.layers, in_float)
        self._env: dict[
            fx.Node, fx.Node
        ] = {}  # node of the float graph -> of the new one
        self._given: dict[
            fx.Node, Activation
        ] = {}  # new node that gives codes -> their form
        self._codes: dict[tuple[fx.Node, tuple[float, int, int, int]], fx.Node] = {}
        self._parts: dict[str, nn.Module | torch.Tensor] = {}
        self._made: dict[str, nn.Module] = {}
        self._op_at = {  # module that is called at several sites -> its op
            capture.layers[name].path: name
            for name in parameters
            if name not in capture.inner
        }

    def module(self) -> nn.Module:
        """Return the rewritten graph as a module."""
        capture, ends = self._capture, self._forms.ends
        swallowed = {node for name in ends.values() for node in capture.inner[name]}
        for node in capture.graph.nodes:
            if node in ends:
                self._quantize(node)
            elif node in swallowed:
                continue
            elif capture.sites.is_idle(node):
                self._env[node] = self._env[_node(node.args[0])]
            else:
                self._copy(node)
        tie(self._made, self._parameters)
        self._graph.lint()
        self._share()
        self._pass_few_on()
        name = type(capture.root).__name__
        return fx.GraphModule(self._parts, self._graph, name).eval()

    def _copy(self, node: fx.Node) -> None:
        new = self._env[node] = self._graph.node_copy(node, self._env.__getitem__)
        new.type = (
            None  # annotations may be strings, which a graph's pickle cannot hold
        )
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and self._forms.moves(node):
            form = self._given.get(self._env[source])
            if form is not None:
                self._given[new] = form
        path = str(node.target)
        if node.op == "get_attr":
            self._parts[path] = _attribute(self._shared, path)
        elif node.op == "call_module" and path not in self._parts:
            op = self._op_at.get(path)
            self._parts[path] = (
                self._quantized(op)
                if op is not None
                else self._shared.get_submodule(path)
            )

    def _quantize(self, end: fx.Node) -> None:
        """Put one op's quantized layer in the place of the nodes that it stands for."""
        name = self._forms.ends[end]
        path = self._capture.layers[name].path
        self._parts[path] = self._quantized(name)
        new = self._env[end] = self._call(name, path)
        if name in self._forms.gives:
            self._given[new] = self._forms.gives[name]

    def _quantized(self, name: str) -> nn.Module:
        layer = self._capture.layers[name]
        old = self._shared.get_submodule(layer.path)
        gives, own = self._forms.gives.get(name), self._capture.factors.get(name, ())
        decided, bias = self._parameters[name], self._biases[name]
        new = quantized_module(layer, old, decided, bias, gives=gives, own=own)
        self._made[name] = new
        return placed(old, new)

    def _call(self, name: str, path: str) -> fx.Node:
        start = self._capture.inner[name][0]
        source = self._env[_node(start.args[0])]
        form = self._forms.input_form(name, 0)
        args = [source if form is None else self._as_codes(source, form)]
        if name in self._capture.others:
            args.append(self._added(name, args[0]))
        # Initial states, offsets of bags: whatever else the float layer is given.
        rest, named = fx.map_arg((start.args[1:], start.kwargs), self._env.__getitem__)
        return self._graph.call_module(path, (*args, *rest), named)

    def _added(self, name: str, first: fx.Node) -> fx.Node:
        """Return what an op adds, in a form that its kernel may write into."""
        original = self._capture.others[name]
        other = self._env[original]
        if name in self._forms.gives:
            wanted = self._forms.input_form(name, 1)
            assert wanted is not None
            other = self._as_codes(other, wanted)
        order, last = self._capture.order, self._capture.inner[name][-1]
        is_read_again = any(order[user] > order[last] for user in original.users)
        # The kernel may write into what it adds: not where it is the caller's, or is read again,
        # perhaps by the kernel itself.
        if original.op == "placeholder" or is_read_again or other is first:
            return self._graph.call_method("clone", (other,))
        return other

    def _as_codes(self, value: fx.Node, form: Activation) -> fx.Node:
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
        calls = [
            node for node in self._graph.nodes if node.op == "call_module" and node.args
        ]
        reads = ((node.args[0], self._parts[str(node.target)]) for node in calls)
        share((value, part) for value, part in reads if isinstance(part, nn.Module))

    def _pass_few_on(self) -> None:
        """Let few rows stay float where all readers quantize and multiply them in one kernel."""
        for node in self._graph.nodes:
            part = self._parts[str(node.target)] if node.op == "call_module" else None
            if not isinstance(part, Quantize) or not node.users:
                continue
            readers = [self._parts.get(str(user.target)) for user in node.users]
            part.few = min(r.few if isinstance(r, Int8Linear) else 0 for r in readers)


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _attribute(root: nn.Module, path: str) -> torch.Tensor:
    owner, _, leaf = path.rpartition(".")
    value = getattr(root.get_submodule(owner), leaf)
    assert isinstance(value, torch.Tensor)
    return value
