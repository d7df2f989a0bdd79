"""Tensors that stand for weights which layers hold.

Products by them go to the layer, and anything else reads the decoded numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from octavo.core.errors import SchemeError

from .in_parts import IN_PARTS
from .named_functions import SAME, dtype_asked, viewed, writes
from .place import Place
from .products import Use
from .refs import Ref, whole
from .uses import use_of

Tensor = torch.Tensor
_Arguments = tuple[Any, ...]


def _getters(names: dict[str, str]) -> dict[Any, str]:
    """Return what reads attributes of a tensor -> a name for it."""
    kind: Any = torch.Tensor
    found = {}
    for attribute, name in names.items():
        reader = getattr(kind, attribute).__get__
        found[reader] = name
    return found


_GETTERS = _getters({"T": "t", "mT": "mt", "data": "detach"})
_FACT_NAMES = (
    "shape", "device", "dtype", "ndim", "requires_grad", "is_meta", "grad", "is_leaf", "layout",
    "is_cuda",
)  # fmt: skip
_FACTS = _getters({name: name for name in _FACT_NAMES})
_ASKED = (
    "size", "dim", "numel", "is_floating_point", "is_complex", "nelement", "ndimension", "__len__",
)  # fmt: skip
"""Methods that the tensor answers by itself: its shape is its own."""


class LooseWeight(torch.Tensor):
    """Stands for a weight wherever a model reads it.

    It has the weight's shape, type and device and no numbers of its own. A function that multiplies
    by it calls the layer that holds it; any other one is given the decoded weight. Writing into it
    is refused.

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
        ref = ref or whole(place.shape)
        # What it says of type and device is asked of the place each time: the model may be moved,
        # and while one is copied or read back its modules have no tensors yet.
        made = torch.Tensor._make_wrapper_subclass(cls, ref.shape, dtype=torch.float32)
        made._place = place
        made._ref = ref
        made._cast = dtype
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
        return self._at(place)

    def _at(self, place: Place) -> LooseWeight:
        """Return the same view of a weight that is held elsewhere."""
        return type(self)(place, self._ref, self._cast)

    def __reduce_ex__(self, _: Any) -> _Arguments:
        p = self._place
        place = (p.owner, p.leaf, p.shape, p.layers, p.held)
        return _again, (*place, self._ref, self._cast)

    def __deepcopy__(self, memo: dict[int, Any]) -> LooseWeight:
        p = self._place
        owner = memo.get(id(p.owner), p.owner)
        place = Place(owner, p.leaf, p.shape, p.layers, p.held)
        return self._at(place)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return f"LooseWeight({self._place.leaf}, {self._ref.shape})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: _Arguments = (), kwargs: Any = None
    ) -> Any:
        """Call the layer, or give the function the decoded weight."""
        kwargs = kwargs or {}
        if func in _FACTS:
            return args[0]._fact(_FACTS[func])
        own_name = str(getattr(func, "__name__", ""))
        name = _GETTERS.get(func, own_name)
        if name in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else None
        if isinstance(first, LooseWeight):
            if writes(name):
                raise SchemeError(
                    f"{name} writes into {first._place.leaf!r}, a weight that is held in few bits; "
                    "change the float model and quantize it again"
                )
            view = first._view(name, args[1:], kwargs)
            if view is not None:
                return view
        return _called(func, name.strip("_"), args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: _Arguments = (), kwargs: Any = None
    ) -> Any:
        """Give what comes past the functions' own dispatch the decoded weight."""
        return _on_numbers(func, args, kwargs or {})

    def _fact(self, name: str) -> Any:
        """Return an attribute of the tensor."""
        if name == "shape":
            return torch.Size(self._ref.shape)
        if name == "ndim":
            return len(self._ref.shape)
        if name == "dtype":
            return self._cast or self._place.dtype()
        if name == "layout":
            return torch.strided
        if name == "device":
            return self._place.device()
        if name in ("is_cuda", "is_meta"):
            return self._place.device().type == name.removeprefix("is_")
        if name == "grad":
            return None
        held = self._place.held
        is_trained = held is not None and held.requires_grad
        return is_trained if name == "requires_grad" else not is_trained

    def _view(self, name: str, args: _Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Return what a function of this tensor alone gives without its numbers.

        None where it needs them.
        """
        if name in SAME:
            return self
        ref = viewed(self._ref, name, args)
        if ref is not None:
            return type(self)(self._place, ref, self._cast)
        dtype = dtype_asked(name, args, kwargs)
        if dtype is None:
            return None
        return type(self)(self._place, self._ref, dtype)

    def numbers(self) -> Tensor:
        """Return the decoded view."""
        ref = self._ref
        numbers = self._place.decoded()
        if self._cast is not None:
            numbers = numbers.to(self._cast)
        if ref.picked is not None:
            numbers = numbers.select(*ref.picked)
        rest = sorted(ref.axes)
        order = [rest.index(axis) for axis in ref.axes]
        return numbers.permute(order)


def _again(
    owner: nn.Module, leaf: str, shape: Any, layers: Any, held: Any, ref: Ref, cast: Any
) -> LooseWeight:
    """Return what was pickled."""
    place = Place(owner, leaf, shape, layers, held)
    return LooseWeight(place, ref, cast)


def _on_numbers(func: Any, args: _Arguments, kwargs: dict[str, Any]) -> Any:
    """Return what a function makes of the decoded weights."""
    args = tree_map(_plain, args)
    kwargs = tree_map(_plain, kwargs)
    return func(*args, **kwargs)


def _plain(value: Any) -> Any:
    if isinstance(value, LooseWeight):
        return value.numbers()
    return value


def _loose(args: Any, kwargs: Any) -> Iterator[LooseWeight]:
    """Yield the stand-ins among arguments, and among the items of lists in them."""
    for value in (*args, *kwargs.values()):
        items = value if isinstance(value, list | tuple) else (value,)
        for item in items:
            if isinstance(item, LooseWeight):
                yield item


def _called(func: Any, name: str, args: _Arguments, kwargs: dict[str, Any]) -> Any:
    """Return what a function gives whose arguments hold stand-ins."""
    found = list(_loose(args, kwargs))
    if name in IN_PARTS and _is_worth_parting(found):
        return IN_PARTS[name](*args, **kwargs)
    weight = found[0]
    place = weight._place
    # A call with two weights is a layer's call of neither.
    use = None
    if len(found) == 1:
        use = _use_of(name, args, kwargs)
    if place.uses is not None:
        _note(found, use, name)
    layer: Any = None
    if use is not None:
        layer = place.layer(use.form)
    if use is None or layer is None:
        return _on_numbers(func, args, kwargs)
    if use.index is not None:
        layer = layer[use.index]
    return use.run(_typed(layer, weight._cast, place))


def _note(found: Sequence[LooseWeight], use: Use | None, name: str) -> None:
    """Take down for each weight what it is used for."""
    form = None if use is None else use.form
    for weight in found:
        uses = weight._place.uses
        assert uses is not None
        uses.note(form, name)


def _is_worth_parting(found: Sequence[LooseWeight]) -> bool:
    """Return whether a function of several weights is taken apart.

    One of them is held by a layer, or it is to be seen what it needs.
    """
    for weight in found:
        place = weight._place
        if place.uses is not None or place.layers:
            return True
    return False


def _use_of(name: str, args: _Arguments, kwargs: Mapping[str, Any]) -> Use | None:
    views = [_with_refs(value) for value in args]
    named = {}
    for key, value in kwargs.items():
        named[key] = _with_refs(value)
    return use_of(name, tuple(views), named)


def _with_refs(value: Any) -> Any:
    """Return an argument with views in the place of stand-ins, one list deep."""
    if type(value) in (list, tuple):
        return type(value)(_ref(item) for item in value)
    return _ref(value)


def _ref(value: Any) -> Any:
    return value._ref if isinstance(value, LooseWeight) else value


def _typed(layer: Any, cast: torch.dtype | None, place: Place) -> Callable[[Any], Any]:
    """Return a layer that takes and gives the type to which its weight was cast."""
    same: Callable[[Any], Any] = layer
    if cast is None:
        return same
    own = place.dtype()
    if cast == own:
        return same

    def call(x: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.to(own)
        y: Tensor = layer(x)
        return y.to(cast)

    return call
