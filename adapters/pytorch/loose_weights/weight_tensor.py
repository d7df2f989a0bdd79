"""Tensors that stand for weights which layers hold: products by them go to the layer, and anything else reads the decoded numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from octavo.core.errors import SchemeError

from .in_parts import IN_PARTS
from .uses import Form, Ref, Uses, restored, turned, use_of

Tensor = torch.Tensor


def _getters(names: dict[str, str]) -> dict[Any, str]:
    """Return what reads attributes of a tensor -> a name for it."""
    kind: Any = torch.Tensor
    return {getattr(kind, attribute).__get__: name for attribute, name in names.items()}


_GETTERS = _getters({"T": "t", "mT": "mt", "data": "detach"})
_FACTS = _getters({
    name: name for name in (
        "shape", "device", "dtype", "ndim", "requires_grad", "is_meta", "grad", "is_leaf", "layout", "is_cuda",
    )
})  # fmt: skip
_ASKED = (
    "size",
    "dim",
    "numel",
    "is_floating_point",
    "is_complex",
    "nelement",
    "ndimension",
    "__len__",
)
_SAME = ("detach", "contiguous", "clone", "requires_grad_")
_DTYPES = {
    "float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64,
}  # fmt: skip


class Place:
    """Where a weight is held.

    Args:
        owner: The module whose attribute the stand-in is.
        leaf: The attribute's name.
        shape: Of the weight.
        layers: What the weight is used for -> the owner's child that does it.
        held: The float weight, where no layer holds it yet.
        uses: Takes down what the weight is used for.
    """

    def __init__(
        self,
        owner: nn.Module,
        leaf: str,
        shape: Sequence[int],
        layers: Mapping[Form, str],
        held: Tensor | None = None,
        uses: Uses | None = None,
    ) -> None:
        self.owner, self.leaf, self.shape = owner, leaf, tuple(shape)
        self.layers = dict(layers)
        self.held = held
        self.uses = uses

    def layer(self, form: Form) -> nn.Module | None:
        """Return the layer that does what a form asks for; None where there is none."""
        child = self.layers.get(form)
        return None if child is None else self.owner._modules[child]

    def decoded(self) -> Tensor:
        """Return the weight as float numbers."""
        if self.held is not None:
            return self.held
        if not self.layers:
            return decoded(self.owner)
        form, child = next(iter(self.layers.items()))
        layer = self.owner._modules[child]
        assert layer is not None
        whole = (
            torch.stack([decoded(m) for m in layer])
            if isinstance(layer, Batched)
            else decoded(layer)
        )
        return (
            restored(whole, form, self.shape) if form.kind == "product" else whole.view(self.shape)
        )

    def dtype(self) -> torch.dtype:
        """Return the type that the numbers have."""
        if self.held is not None:
            return self.held.dtype
        layer = self._first()
        weight = layer._parameters.get("weight")
        return weight.dtype if weight is not None else _dtype_of(layer)

    def device(self) -> torch.device:
        """Return where the numbers are."""
        if self.held is not None:
            return self.held.device
        layer = self._first()
        return next(t.device for t in (*layer.parameters(), *layer.buffers()))

    def _first(self) -> nn.Module:
        layer = self.owner._modules[next(iter(self.layers.values()))] if self.layers else self.owner
        assert layer is not None
        return layer[0] if isinstance(layer, Batched) else layer


def _dtype_of(layer: nn.Module) -> torch.dtype:
    found = getattr(layer, "dtype", None)
    assert isinstance(found, torch.dtype)
    return found


def decoded(layer: nn.Module) -> Tensor:
    """Return a layer's weight as float numbers in the shape of the float layer's."""
    read: Callable[[], Tensor] | None = getattr(layer, "decoded_weight", None)
    if read is not None:
        return read()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


class Batched(nn.Module):
    """Linear layers with one matrix each, for a weight of which every index along some axes is a matrix of its own.

    Args:
        layers: The layers, in the order of their indices.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            self.add_module(str(i), layer)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> nn.Module:
        return self.get_submodule(str(index))

    def __iter__(self) -> Iterator[nn.Module]:
        return self.children()

    def forward(self, x: Tensor) -> Tensor:
        """Return the products (matrices, ..., outputs) of values (matrices, ..., inputs)."""
        return torch.stack([layer(x[i]) for i, layer in enumerate(self)])


class LooseWeight(torch.Tensor):
    """Stands for a weight wherever a model reads it.

    It has the weight's shape, type and device and no numbers of its own. A function that multiplies by it calls the layer
    that holds it; any other one is given the decoded weight. Writing into it is refused.

    Args:
        place: Where the weight is held.
        ref: Which view of it this is; None for the whole.
        dtype: What it was cast to; None for the weight's own type.
    """

    _place: Place
    _ref: Ref
    _cast: torch.dtype | None

    @staticmethod
    def __new__(  # noqa: D102
        cls, place: Place, ref: Ref | None = None, dtype: torch.dtype | None = None
    ) -> LooseWeight:
        ref = ref or Ref(place.shape, tuple(range(len(place.shape))))
        # What it says of type and device is asked of the place each time: the model may be moved, and while
        # one is copied or read back its modules have no tensors yet.
        made = torch.Tensor._make_wrapper_subclass(cls, ref.shape, dtype=torch.float32)
        made._place, made._ref, made._cast = place, ref, dtype
        result: LooseWeight = made
        return result

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def rebound(self, table: Mapping[int, nn.Module]) -> LooseWeight:
        """Return the same for the module that replaces the owner."""
        p = self._place
        owner = table.get(id(p.owner))
        if owner is None:
            return self
        place = Place(owner, p.leaf, p.shape, p.layers, p.held, p.uses)
        return type(self)(place, self._ref, self._cast)

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        p = self._place
        return _again, (p.owner, p.leaf, p.shape, p.layers, p.held, self._ref, self._cast)

    def __deepcopy__(self, memo: dict[int, Any]) -> LooseWeight:
        p = self._place
        owner = memo.get(id(p.owner), p.owner)
        return type(self)(Place(owner, p.leaf, p.shape, p.layers, p.held), self._ref, self._cast)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"LooseWeight({self._place.leaf}, {self._ref.shape})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the layer, or give the function the decoded weight."""
        kwargs = kwargs or {}
        if func in _FACTS:
            return args[0]._fact(_FACTS[func])
        name = _GETTERS.get(func) or str(getattr(func, "__name__", ""))
        if name in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], LooseWeight) else None
        if first is not None:
            if _writes(name):
                raise SchemeError(
                    f"{name} writes into {first._place.leaf!r}, a weight that is held in few bits; change the float model "
                    "and quantize it again"
                )
            view = first._view(name, args[1:], kwargs)
            if view is not None:
                return view
        return _called(func, name.strip("_"), args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Give what comes past the functions' own dispatch the decoded weight."""
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs or {}))

    def _fact(self, name: str) -> Any:
        if name == "shape":
            return torch.Size(self._ref.shape)
        if name == "dtype":
            return self._cast or self._place.dtype()
        if name in ("device", "is_cuda", "is_meta"):
            device = self._place.device()
            return device if name == "device" else device.type == name.removeprefix("is_")
        if name == "ndim":
            return len(self._ref.shape)
        if name == "layout":
            return torch.strided
        if name == "grad":
            return None
        held = self._place.held
        trained = held is not None and held.requires_grad
        return trained if name == "requires_grad" else not trained

    def _view(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what a function of this tensor alone gives without its numbers; None where it needs them."""
        ref, count = self._ref, len(self._ref.shape)
        if name in _SAME:
            return self
        if name in ("t", "mt", "adjoint", "numpy_T") and count == 2:
            return self._as(turned(ref))
        if name == "mt":
            return self._as(turned(ref))
        if name in ("transpose", "swapaxes", "swapdims") and len(args) == 2:
            return self._as(turned(ref, *args))
        if name == "permute":
            order = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
            if len(order) == count:
                shape, axes = (tuple(v[i] for i in order) for v in (ref.shape, ref.axes))
                return self._as(Ref(shape, axes, ref.picked))
        if name == "__getitem__" and type(args[0]) is int and count == 3 and ref.axes == (0, 1, 2):
            index = range(ref.shape[0])[args[0]]
            return self._as(Ref(ref.shape[1:], ref.axes[1:], (0, index)))
        dtype = _dtype_asked(name, args, kwargs)
        return None if dtype is None else type(self)(self._place, ref, dtype)

    def _as(self, ref: Ref) -> LooseWeight:
        return type(self)(self._place, ref, self._cast)

    def numbers(self) -> Tensor:
        """Return the decoded view."""
        whole, ref = self._place.decoded(), self._ref
        whole = whole if self._cast is None else whole.to(self._cast)
        if ref.picked is not None:
            whole = whole.select(*ref.picked)
        rest = sorted(ref.axes)
        return whole.permute([rest.index(a) for a in ref.axes])


def _again(
    owner: nn.Module, leaf: str, shape: Any, layers: Any, held: Any, ref: Ref, cast: Any
) -> LooseWeight:
    return LooseWeight(Place(owner, leaf, shape, layers, held), ref, cast)


def _writes(name: str) -> bool:
    return name in ("__setitem__", "__set__") or (
        name.endswith("_") and not name.endswith("__") and name not in _SAME
    )


def _dtype_asked(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """Return the type that a cast asks for; None where the function is no cast, or does more."""
    if name in _DTYPES and not args:
        return _DTYPES[name]
    if name == "type_as" and len(args) == 1:
        kind: torch.dtype = args[0].dtype
        return kind
    if name not in ("to", "type"):
        return None
    asked = [*args, *(v for k, v in kwargs.items() if k == "dtype")]
    return asked[0] if len(asked) == 1 and isinstance(asked[0], torch.dtype) else None


def _plain(value: Any) -> Any:
    return value.numbers() if isinstance(value, LooseWeight) else value


def _ref(value: Any) -> Any:
    return value._ref if isinstance(value, LooseWeight) else value


def _loose(args: Any, kwargs: Any) -> Iterator[LooseWeight]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, LooseWeight):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, LooseWeight))


def _called(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    found = list(_loose(args, kwargs))
    if name in IN_PARTS and _worth(found, name):
        return IN_PARTS[name](*args, **kwargs)
    weight = found[0]
    place = weight._place
    use = None
    if len(found) == 1:
        use = use_of(name, tuple(map(_deep, args)), {k: _deep(v) for k, v in kwargs.items()})
    if place.uses is not None:
        for other in found:
            other._place.uses.note(use.form if use else None, name)  # type: ignore[union-attr]
    layer = place.layer(use.form) if use is not None else None
    if use is not None and layer is not None:
        single: Any = layer
        if use.index is not None:
            single = single[use.index]
        return use.run(_typed(single, weight._cast, place))
    return func(*tree_map(_plain, args), **tree_map(_plain, kwargs))


def _worth(found: Sequence[LooseWeight], name: str) -> bool:
    """True where a function of several weights is taken apart: one of them is held by a layer, or it is to be seen what it needs."""
    return any(w._place.uses is not None or w._place.layers for w in found)


def _deep(value: Any) -> Any:
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(map(_ref, value)) if type(value) in (list, tuple) else value
    return _ref(value)


def _typed(layer: Any, cast: torch.dtype | None, place: Place) -> Callable[[Any], Any]:
    """Return a layer that takes and gives the type to which its weight was cast."""
    if cast is None or cast == place.dtype():
        return layer  # type: ignore[no-any-return]
    own = place.dtype()

    def call(x: Tensor) -> Tensor:
        y: Tensor = layer(x.to(own) if x.is_floating_point() else x)
        return y.to(cast)

    return call
