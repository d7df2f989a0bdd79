"""Models that cannot be traced: their layers are replaced in the module tree, and a run of the example tells what feeds what."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from octavo.core.adapter import OpParameters
from octavo.core.graph import Op

from .batches import tensors_in
from .build import quantized_module
from .capture import Call, Capture
from .layers import Layer, find_layers, with_shapes
from .rescale import Link, is_norm
from .skeleton import copy_hooks, set_submodule, skeleton


@dataclass
class Trace:
    """What one run of the example showed.

    Attributes:
        order: Layer paths in the order of their first call.
        calls: Layer path -> number of calls.
        shapes: Layer path -> shape of its first output.
        sources: Layer path -> path of the norm whose output it was given, unchanged; or of the layer that was given the
            same tensor first.
        escaped: Norms whose output something else than a layer reads.
        results: How many tensors the model returned.
    """

    order: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    escaped: set[str] = field(default_factory=set)
    results: int = 1


class _Reads(TorchFunctionMode):
    """Notices functions that read a watched tensor outside of the layers."""

    def __init__(self, identity: Callable[[Any], str | None], escaped: set[str]) -> None:
        super().__init__()
        self.inside = 0
        self._identity = identity
        self._escaped = escaped

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside and any(True for _ in tensors_in(result)):
            for tensor in tensors_in((args, kwargs or {})):
                norm = self._identity(tensor)
                if norm is not None:
                    self._escaped.add(norm)
        return result


def trace(root: nn.Module, paths: Collection[str], call: Call) -> Trace:
    """Run the example once and note which layers are called, in which order, and which norm feeds which."""
    twin = skeleton(root)
    seen = Trace()
    born: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}
    given: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}

    def lookup(table: Mapping[int, tuple[weakref.ref[torch.Tensor], str]], tensor: Any) -> str | None:
        found = table.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    mode = _Reads(lambda t: lookup(born, t), seen.escaped)

    def enter(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mode.inside += 1
            x = next(tensors_in((args, kwargs)), None)
            seen.calls[path] = seen.calls.get(path, 0) + 1
            if seen.calls[path] > 1 or x is None:
                return
            seen.order.append(path)
            source = lookup(born, x) or lookup(given, x)
            if source is not None:
                seen.sources[path] = source
            else:
                given[id(x)] = (weakref.ref(x), path)

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            mode.inside -= 1
            if isinstance(output, torch.Tensor):
                seen.shapes.setdefault(path, tuple(output.shape))

        return hook

    def norm_leave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                if any(name == path for _, name in born.values()):
                    seen.escaped.add(path)
                born[id(output)] = (weakref.ref(output), path)

        return hook

    for path, module in twin.named_modules():
        if path in paths:
            module.register_forward_pre_hook(enter(path), with_kwargs=True)
            module.register_forward_hook(leave(path))
        elif is_norm(module):
            # What a norm itself does with its input is a read of that input.
            module.register_forward_hook(norm_leave(path))
    with mode, torch.no_grad():
        args, kwargs = call
        output = twin(*args, **kwargs)
    returned = list(tensors_in(output))
    seen.results = len(returned)
    seen.escaped.update(name for name in (lookup(born, t) for t in returned) if name is not None)
    return seen


class ModuleCapture(Capture):
    """A module tree.

    Args:
        root: A skeleton.
        seen: What the example's run showed; None without an example.
        why: Why the graph could not be traced, for the ledger.
    """

    def __init__(self, root: nn.Module, seen: Trace | None, why: str) -> None:
        self.root = root
        self._seen = seen
        self._why = why
        ops = find_layers(root)
        order = [p for p in seen.order if p in ops] if seen else list(ops)
        layers = [Layer(self._op(ops[p], p, ops), p) for p in order]
        self.layers = {layer.op.name: layer for layer in layers}
        notes = [why] if why else []
        if seen and (idle := [p for p in ops if p not in seen.calls]):
            notes.append(f"not called by the example, left in float: {', '.join(idle)}")
        self.notes = tuple(notes)
        self.links = {link.group.name: link for link in self._links()}
        self.groups = tuple(link.group for link in self.links.values())
        self.outputs = tuple(f"output_{i}" for i in range(seen.results)) if seen else ("output_0",)

    def facts(self) -> Mapping[str, Any]:
        """Return what a saved model needs to be seen the same way again."""
        return {"kind": "modules"}

    def on(self, root: nn.Module) -> ModuleCapture:
        """Return the same view over another skeleton."""
        return ModuleCapture(root, self._seen, self._why)

    def _op(self, op: Op, path: str, ops: Mapping[str, Op]) -> Op:
        if self._seen is None:
            return op
        source = self._seen.sources.get(path)
        if source is not None and self._seen.calls[path] == 1:
            value = f"{ops[source].name}:in" if source in ops else f"{source}:out"
            op = replace(op, inputs=(value,))
        return with_shapes(op, self._seen.shapes.get(path))

    def _links(self) -> Iterator[Link]:
        if self._seen is None:
            return
        readers: dict[str, list[Layer]] = {}
        for layer in self.layers.values():
            readers.setdefault(self._seen.sources.get(layer.path, ""), []).append(layer)
        for path, module in self.root.named_modules():
            members = readers.get(path, [])
            fit = members and all(m.op.type == "linear" and self._seen.calls[m.path] == 1 for m in members)
            if path and fit and path not in self._seen.escaped and not any(m.op.weight and m.op.weight.shared_with for m in members):
                yield Link.of_norm(path, module, members, f"{path}:out")

    def watch(self, values: Collection[str], sink: Callable[[str, torch.Tensor], None]) -> Callable[[Call], Any]:
        """Return a runner of the float model that hands each named value to ``sink``."""
        twin = skeleton(self.root)
        wanted = set(values)
        taken: set[str] = set()
        for layer in self.layers.values():
            module = twin.get_submodule(layer.path)
            source, result = layer.op.inputs[0], layer.op.outputs[0]
            if source in wanted and source not in taken:
                taken.add(source)
                module.register_forward_pre_hook(_feed(source, sink), with_kwargs=True)
            if result in wanted:
                module.register_forward_hook(_drain(result, sink))
        return lambda call: twin(*call[0], **call[1])

    def build(
        self, parameters: Mapping[str, OpParameters], biases: Mapping[str, torch.Tensor | None]
    ) -> tuple[nn.Module, Mapping[str, str]]:
        """Return the module tree with the given layers replaced."""
        twin = skeleton(self.root)
        for name, decided in parameters.items():
            layer = self.layers[name]
            old = twin.get_submodule(layer.path)
            new = quantized_module(layer, old, decided, biases[name])
            copy_hooks(old, new)
            if layer.path:
                set_submodule(twin, layer.path, new)
            else:
                twin = new
        return twin, {}


def _feed(value: str, sink: Callable[[str, torch.Tensor], None]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(tensors_in((args, kwargs)), None)
        if x is not None:
            sink(value, x)

    return hook


def _drain(value: str, sink: Callable[[str, torch.Tensor], None]) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, output: Any) -> None:
        sink(value, output)

    return hook
