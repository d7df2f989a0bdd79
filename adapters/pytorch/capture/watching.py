"""One run of an example, watched: which layers are called, in which order, and what feeds what."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from octavo.adapters.pytorch.kernels.posts import POSTS, post
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.run.batches import Call, tensors_in

from .folding import is_batch_norm
from .links import is_norm

Tensor = torch.Tensor
BATCH_NORM = "batch_norm"
_PRODUCTS = frozenset({
    "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d",
})  # fmt: skip


@dataclass
class Trace:
    """What one run of the example showed. Modules are named by their paths.

    Attributes:
        order: Layers in the order of their first call.
        calls: Module -> number of calls.
        shapes: Layer -> shape of its first output.
        values: Layer -> name of the value it was given: ``module:out`` of the watched module that made it, or
            ``layer:in`` of the layer that was given the same tensor first.
        acts: Activation module or batch norm -> the layer or batch norm whose output it was given.
        kinds: Activation module -> its function's name; batch norm -> :data:`BATCH_NORM`.
        escaped: Watched modules whose output something else than a layer or an activation module reads.
        results: How many tensors the model returned.
        products: Function -> how often it multiplied outside of the watched modules.
        sometimes: Watched modules that some batches call and others do not.
    """

    order: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    acts: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    escaped: set[str] = field(default_factory=set)
    results: int = 1
    products: dict[str, int] = field(default_factory=dict)
    sometimes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            **asdict(self),
            "escaped": sorted(self.escaped),
            "shapes": {k: list(v) for k, v in self.shapes.items()},
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        shapes = {k: tuple(v) for k, v in raw["shapes"].items()}
        return cls(**{**raw, "escaped": set(raw["escaped"]), "shapes": shapes})

    def follower(self, path: str) -> str:
        """Return the activation module or batch norm that is all that reads a module's output; empty if there is none."""
        found = [a for a, source in self.acts.items() if source == path and self.calls[a] == 1]
        alone = len(found) == 1 and path not in self.escaped and self.calls[path] == 1
        return found[0] if alone and f"{path}:out" not in self.values.values() else ""

    def readers(self, path: str) -> list[str]:
        """Return the layers that were given a module's output; none if anything else reads it too."""
        if path in self.escaped or self.calls.get(path) != 1 or path in self.acts.values():
            return []
        found = [layer for layer, value in self.values.items() if value == f"{path}:out"]
        return found if all(self.calls[layer] == 1 for layer in found) else []


class _Names:
    """Tensors by identity, without keeping them alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def put(self, tensor: Tensor, name: str) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), name)

    def get(self, tensor: Tensor) -> str | None:
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None


class _Reads(TorchFunctionMode):
    """Notices functions that read a watched tensor, or multiply, outside of the watched modules.

    Attributes:
        inside: How many watched modules are running.
        handed: Identities of the tensors that layers were given.
    """

    def __init__(self, born: _Names, escaped: set[str], products: dict[str, int]) -> None:
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
        result = func(*args, **(kwargs or {}))
        # A product by a parameter may be carried out by a layer, which is watched itself.
        handed = self.handed[before:]
        name = str(getattr(func, "__name__", "")).strip("_")
        if not self.inside and not handed and name in _PRODUCTS:
            self._products[name] = self._products.get(name, 0) + 1
        if not self.inside and next(tensors_in(result), None) is not None:
            for tensor in tensors_in((args, kwargs or {})):
                source = self._born.get(tensor)
                if source is not None and id(tensor) not in handed:
                    self._escaped.add(source)
        return result


def act_of(module: nn.Module) -> str:
    """Return which activation function a module computes, as :data:`~.kernels.POSTS` names it; empty if it is none.

    Known by its values, because every family of models brings classes of its own.
    """
    name = type(module).__name__.lower()
    if not any(part in name for part in ("gelu", "silu", "relu", "activation", "swish")):
        return ""
    if next(module.parameters(), None) is not None or next(module.children(), None) is not None:
        return ""
    x = torch.linspace(-6, 6, 193)
    with torch.no_grad():
        try:
            y = module(x.clone())
        except (RuntimeError, TypeError, ValueError):
            return ""
        fits = [
            kind
            for kind in POSTS
            if kind
            and isinstance(y, Tensor)
            and y.shape == x.shape
            and torch.allclose(y, post(kind, x), atol=2e-6)
        ]
    return fits[0] if fits else ""


def trace(root: nn.Module, layers: Collection[str], call: Call) -> Trace:
    """Run the example once and write down what was seen."""
    twin = skeleton(root)
    seen = Trace()
    born, given = _Names(), _Names()
    mode = _Reads(born, seen.escaped, seen.products)

    def enter(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mode.inside += 1
            mode.handed.extend(id(tensor) for tensor in tensors_in((args, kwargs)))
            seen.calls[path] = seen.calls.get(path, 0) + 1
            x = next(tensors_in((args, kwargs)), None)
            if x is None:  # a table that makes its ids itself may be given a shape
                if path in layers and path not in seen.order:
                    seen.order.append(path)
                return
            source = born.get(x)
            if path in seen.kinds:
                if source is not None:
                    if path in seen.acts:
                        seen.escaped.update((seen.acts[path], source))
                    seen.acts[path] = source
            elif seen.calls[path] == 1:
                seen.order.append(path)
                if source is not None:
                    seen.values[path] = f"{source}:out"
                else:
                    first = given.get(x)
                    seen.values[path] = f"{first or path}:in"
                    if first is None:
                        given.put(x, path)
            elif source is not None:
                seen.escaped.add(source)

        return hook

    def leave(path: str, *, watched: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if watched:
                mode.inside -= 1
            else:
                seen.calls[path] = seen.calls.get(path, 0) + 1
            if isinstance(output, Tensor):
                if born.get(output) is not None or any(output is t for t in tensors_in(args)):
                    seen.escaped.add(path)  # it hands on what is another module's
                born.put(output, path)
            first = next(tensors_in(output), None)
            if first is not None:
                seen.shapes.setdefault(path, tuple(first.shape))

        return hook

    for path, module in twin.named_modules():
        if path not in layers:
            kind = BATCH_NORM if is_batch_norm(module) else act_of(module)
            if kind:
                seen.kinds[path] = kind
        if path in layers or path in seen.kinds:
            module.register_forward_pre_hook(enter(path), with_kwargs=True)
            module.register_forward_hook(leave(path, watched=True))
        elif is_norm(module):
            # What a norm does with its input is a read of that input.
            module.register_forward_hook(leave(path, watched=False))
    with mode, torch.no_grad():
        args, kwargs = call
        returned = list(tensors_in(twin(*args, **kwargs)))
    seen.results = len(returned)
    seen.escaped.update(name for name in map(born.get, returned) if name is not None)
    return seen
