"""One run of an example, watched: which layers are called, in which order, and what feeds what."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from octavo.adapters.pytorch.kernels.posts import POSTS, post
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.run.batches import Call, tensors_in

from .folding import is_batch_norm
from .norms import is_norm
from .trace import BATCH_NORM, Trace

Tensor = torch.Tensor
_PRODUCTS = frozenset({
    "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "linear",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
})  # fmt: skip
_ACTIVATION_NAMES = ("gelu", "silu", "relu", "activation", "swish")
"""What the class of an activation module is called; only those are tried out."""


class _Names:
    """Tensors by identity, without keeping them alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def put(self, tensor: Tensor, name: str) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), name)

    def get(self, tensor: Tensor) -> str | None:
        found = self._known.get(id(tensor))
        if found is None:
            return None
        known, name = found
        # The identity may be another tensor's by now.
        return name if known() is tensor else None


class _Reads(TorchFunctionMode):
    """Notices functions that read a watched tensor, or multiply, outside of the watched modules.

    Args:
        born: Names of the watched tensors.
        escaped: Takes the names of those that are read.
        products: Takes function -> how often it multiplied.

    Attributes:
        inside: How many watched modules are running.
        handed: Identities of the tensors that layers were given.
    """

    def __init__(
        self, born: _Names, escaped: set[str], products: dict[str, int]
    ) -> None:
        super().__init__()
        self.inside = 0
        self.handed: list[int] = []
        self._born = born
        self._escaped = escaped
        self._products = products

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = len(self.handed)
        given = kwargs or {}
        result = func(*args, **given)
        if self.inside:
            return result
        # A product by a parameter may be carried out by a layer, which is watched itself.
        handed = self.handed[before:]
        own_name = getattr(func, "__name__", "")
        name = str(own_name).strip("_")
        if not handed and name in _PRODUCTS:
            self._products[name] = self._products.get(name, 0) + 1
        gives_tensors = next(tensors_in(result), None) is not None
        if gives_tensors:
            self._note_reads((args, given), handed)
        return result

    def _note_reads(self, given: Any, handed: Collection[int]) -> None:
        for tensor in tensors_in(given):
            source = self._born.get(tensor)
            if source is not None and id(tensor) not in handed:
                self._escaped.add(source)


def act_of(module: nn.Module) -> str:
    """Return which activation function a module computes, as :data:`POSTS` names it.

    Empty if it is none. Known by its values, because every family of models brings classes of its
    own.
    """
    name = type(module).__name__.lower()
    if not any(part in name for part in _ACTIVATION_NAMES):
        return ""
    has_parameters = next(module.parameters(), None) is not None
    has_children = next(module.children(), None) is not None
    if has_parameters or has_children:
        return ""
    # From saturation to saturation, in steps of 1/16.
    x = torch.linspace(-6, 6, 193)
    with torch.no_grad():
        try:
            y = module(x.clone())
        except (RuntimeError, TypeError, ValueError):
            return ""
        if not isinstance(y, Tensor) or y.shape != x.shape:
            return ""
        for kind in POSTS:
            # So close that gelu and its approximation by tanh are told apart.
            if kind and torch.allclose(y, post(kind, x), atol=2e-6):
                return kind
        return ""


def watched_run(root: nn.Module, layers: Collection[str], call: Call) -> Trace:
    """Run the example once and write down what was seen.

    Args:
        root: The model; not changed.
        layers: Paths of its layers.
        call: The example, into which the model may write.
    """
    twin = skeleton(root)
    watcher = _Watcher(layers)
    for path, module in twin.named_modules():
        watcher.register(path, module)
    with watcher.mode, torch.no_grad():
        args, kwargs = call
        result = twin(*args, **kwargs)
        returned = list(tensors_in(result))
    return watcher.finished(returned)


class _Watcher:
    """Hooks of one run's modules, which write down what they see.

    Args:
        layers: Paths of the layers.

    Attributes:
        mode: To be on during the run.
    """

    def __init__(self, layers: Collection[str]) -> None:
        self._layers = layers
        self._seen = Trace()
        # Output -> the module that made it.
        self._born = _Names()
        # Input that no watched module made -> the layer that was given it first.
        self._given = _Names()
        self.mode = _Reads(self._born, self._seen.escaped, self._seen.products)

    def register(self, path: str, module: nn.Module) -> None:
        """Watch a module of the skeleton, if it is of interest."""
        if path not in self._layers:
            kind = BATCH_NORM if is_batch_norm(module) else act_of(module)
            if kind:
                self._seen.kinds[path] = kind
        if path in self._layers or path in self._seen.kinds:
            enter = partial(self._enter, path)
            module.register_forward_pre_hook(enter, with_kwargs=True)
            module.register_forward_hook(partial(self._leave, path))
        elif is_norm(module):
            # What a norm does with its input is a read of that input.
            module.register_forward_hook(partial(self._leave_norm, path))

    def finished(self, returned: list[Tensor]) -> Trace:
        """Return what was seen, once the run has returned these tensors."""
        self._seen.results = len(returned)
        names = map(self._born.get, returned)
        self._seen.escaped.update(name for name in names if name is not None)
        return self._seen

    def _count(self, path: str) -> None:
        self._seen.calls[path] = self._seen.calls.get(path, 0) + 1

    def _enter(
        self, path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = list(tensors_in((args, kwargs)))
        self.mode.inside += 1
        self.mode.handed.extend(map(id, given))
        self._count(path)
        if not given:
            # A table that makes its ids itself may be given a shape.
            if path in self._layers and path not in self._seen.order:
                self._seen.order.append(path)
            return
        source = self._born.get(given[0])
        if path in self._seen.kinds:
            self._enter_act(path, source)
        elif self._seen.calls[path] == 1:
            self._enter_layer(path, given[0], source)
        elif source is not None:
            self._seen.escaped.add(source)

    def _enter_act(self, path: str, source: str | None) -> None:
        if source is None:
            return
        acts = self._seen.acts
        if path in acts:
            # Called again, it follows neither of the two alone.
            self._seen.escaped.update((acts[path], source))
        acts[path] = source

    def _enter_layer(self, path: str, x: Tensor, source: str | None) -> None:
        self._seen.order.append(path)
        if source is not None:
            self._seen.values[path] = f"{source}:out"
            return
        first = self._given.get(x)
        self._seen.values[path] = f"{first or path}:in"
        if first is None:
            self._given.put(x, path)

    def _leave(self, path: str, _: nn.Module, args: Any, output: Any) -> None:
        self.mode.inside -= 1
        self._note_output(path, args, output)

    def _leave_norm(self, path: str, _: nn.Module, args: Any, output: Any) -> None:
        self._count(path)
        self._note_output(path, args, output)

    def _note_output(self, path: str, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            is_anothers = self._born.get(output) is not None
            # It hands on what is another module's.
            if is_anothers or any(output is given for given in tensors_in(args)):
                self._seen.escaped.add(path)
            self._born.put(output, path)
        first = next(tensors_in(output), None)
        if first is not None:
            self._seen.shapes.setdefault(path, tuple(first.shape))
