"""A traced model with some ops on integer kernels; codes pass between neighbours where every reader takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from octavo.adapters.pytorch.capture.traced import GraphCapture, is_idle
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.qlayers.int8 import Int8Linear
from octavo.adapters.pytorch.qlayers.quantize import Quantize
from octavo.core.contract.adapter import OpParameters

from .build import placed, quantized_module, static_form, tie
from .input_maps import install
from .shared_inputs import share

_MOVING_MODULES = (nn.Flatten, nn.Unflatten)
_MOVING = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze,
    "flatten", "reshape", "view", "permute", "transpose", "unsqueeze", "squeeze", "contiguous",
}  # fmt: skip
_ASKING = {getattr, "size", "dim", "numel"}


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
    def __init__(
        self,
        capture: GraphCapture,
        parameters: Mapping[str, OpParameters],
        biases: Mapping[str, torch.Tensor | None],
    ) -> None:
        self._c = capture
        self._parameters = parameters
        self._biases = biases
        self._starts = {capture.inner[n][0]: n for n in parameters if n in capture.inner}
        self._ends = {capture.inner[n][-1]: n for n in parameters if n in capture.inner}
        self._adding = {
            capture.inner[n][i]: n
            for n in self._ends.values()
            if n in capture.others
            for i in range(1, len(capture.inner[n]))
        }
        self._gives: dict[str, Activation] = {}
        # Readers come later than what they read, so that from the back every reader's own form is known.
        for end in sorted(self._ends, key=capture.order.__getitem__, reverse=True):
            name = self._ends[end]
            form = self._form_wanted(end)
            if (
                form is not None
                and (name not in capture.others or self._static(name))
                and self._can_give(name)
            ):
                self._gives[name] = form

    def _static(self, name: str) -> bool:
        return self._parameters[name].scheme.mode == "static"

    def _can_give(self, name: str) -> bool:
        """True if the op's kernel can write codes."""
        source = self._parameters[name].scheme.input
        return source is not None and source.granularity != "token"

    def _form_wanted(self, end: fx.Node) -> Activation | None:
        """Return the codes in which every reader of a value takes it; None if one of them wants it in float."""
        found: dict[tuple[float, int, int, int], Activation] = {}
        pending = [end]
        while pending:
            node = pending.pop()
            for user in node.users:
                if user.target in _ASKING:
                    continue
                if self._moves(user):
                    pending.append(user)
                    continue
                form = self._form_read(user, node)
                if form is None:
                    return None
                found[form.key()] = form
        return next(iter(found.values())) if len(found) == 1 else None

    def _moves(self, node: fx.Node) -> bool:
        """True for nodes that only move or choose values: codes pass through them as well."""
        if node.op == "call_module":
            return is_idle(self._c, node) or isinstance(
                self._c.modules[str(node.target)], _MOVING_MODULES
            )
        return node.target in _MOVING

    def _form_read(self, user: fx.Node, node: fx.Node) -> Activation | None:
        name = self._starts.get(user)
        if name is not None:
            return self._input_form(name, 0)
        name = self._adding.get(user)
        if name is not None and self._c.others[name] is node and name in self._gives:
            return self._input_form(name, 1)
        return None

    def _input_form(self, name: str, index: int) -> Activation | None:
        # A layer that changes its input does that and quantizes by itself.
        return static_form(self._parameters[name], index) if name not in self._c.factors else None

    def module(self) -> nn.Module:
        """Return the rewritten graph as a module."""
        c = self._c
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        self._graph = graph
        self._codes: dict[tuple[fx.Node, tuple[float, int, int, int]], fx.Node] = {}
        self._forms: dict[fx.Node, Activation] = {}
        shared = skeleton(c.root)
        install(shared, c.layers, {n: f for n, f in c.factors.items() if n not in self._parameters})
        self._parts: dict[str, nn.Module | torch.Tensor] = {}
        self._made: dict[str, nn.Module] = {}
        parts = self._parts
        swallowed = {node for name in self._ends.values() for node in c.inner[name]}
        often = {c.layers[n].path: n for n in self._parameters if n not in c.inner}
        for node in c.graph.nodes:
            if node in self._ends:
                name = self._ends[node]
                path = c.layers[name].path
                parts[path] = self._quantized(name, shared)
                env[node] = self._call(name, path, env)
                if name in self._gives:
                    self._forms[env[node]] = self._gives[name]
            elif node in swallowed:
                continue
            elif is_idle(c, node):
                env[node] = env[_node(node.args[0])]
            else:
                env[node] = graph.node_copy(node, env.__getitem__)
                env[
                    node
                ].type = None  # annotations may be strings, which a graph's pickle cannot hold
                source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
                if source is not None and env[source] in self._forms and self._moves(node):
                    self._forms[env[node]] = self._forms[env[source]]
                if node.op == "call_module":
                    path = str(node.target)
                    if path in often and path not in parts:
                        parts[path] = self._quantized(often[path], shared)
                    parts.setdefault(path, shared.get_submodule(path))
                elif node.op == "get_attr":
                    parts[str(node.target)] = _attribute(shared, str(node.target))
        tie(self._made, self._parameters)
        graph.lint()
        self._share()
        return fx.GraphModule(parts, graph, type(c.root).__name__).eval()

    def _share(self) -> None:
        """Let linear layers that read one value alike work on it together."""
        reads = [
            (n.args[0], self._parts[str(n.target)])
            for n in self._graph.nodes
            if n.op == "call_module" and n.args
        ]
        share((value, part) for value, part in reads if isinstance(part, nn.Module))
        for node in self._graph.nodes:
            part = self._parts[str(node.target)] if node.op == "call_module" else None
            readers = (
                [self._parts.get(str(user.target)) for user in node.users]
                if isinstance(part, Quantize)
                else []
            )
            if isinstance(part, Quantize) and readers:
                part.few = min(
                    reader.few if isinstance(reader, Int8Linear) else 0 for reader in readers
                )

    def _quantized(self, name: str, shared: nn.Module) -> nn.Module:
        layer = self._c.layers[name]
        old = shared.get_submodule(layer.path)
        gives, own = self._gives.get(name), self._c.factors.get(name, ())
        new = quantized_module(
            layer, old, self._parameters[name], self._biases[name], gives=gives, own=own
        )
        self._made[name] = new
        return placed(old, new)

    def _call(self, name: str, path: str, env: Mapping[fx.Node, fx.Node]) -> fx.Node:
        c = self._c
        start = c.inner[name][0]
        source = env[_node(start.args[0])]
        form = self._input_form(name, 0)
        args = [self._as_codes(source, form) if form is not None else source]
        if name in c.others:
            original = c.others[name]
            other = env[original]
            if name in self._gives:
                wanted = self._input_form(name, 1)
                assert wanted is not None
                other = self._as_codes(other, wanted)
            last = c.inner[name][-1]
            read_again = any(c.order[u] > c.order[last] for u in original.users) or other is args[0]
            if original.op == "placeholder" or read_again:
                # The kernel may write into what it adds, and this value is read again, perhaps by the kernel itself.
                other = self._graph.call_method("clone", (other,))
            args.append(other)
        # Initial states, offsets of bags: whatever else the float layer is given.
        rest, named = fx.map_arg((start.args[1:], start.kwargs), env.__getitem__)
        return self._graph.call_module(path, (*args, *rest), named)

    def _as_codes(self, value: fx.Node, form: Activation) -> fx.Node:
        if value in self._forms:
            return value
        key = (value, form.key())
        if key not in self._codes:
            path = (
                f"{value.name}_codes"
                if not any(v is value for v, _ in self._codes)
                else f"{value.name}_codes_{len(self._codes)}"
            )
            self._parts[path] = Quantize(form)
            self._codes[key] = self._graph.call_module(path, (value,))
        return self._codes[key]


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _attribute(root: nn.Module, path: str) -> torch.Tensor:
    owner, _, leaf = path.rpartition(".")
    value = getattr(root.get_submodule(owner), leaf)
    assert isinstance(value, torch.Tensor)
    return value
