"""How the blocks of a model are called: what each is given, batch by batch, so that a block can be
run by itself, as often as wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.run.batches import Call, parameters_of, tensors_in
from octavo.core.errors import SchemeError
from octavo.core.values.trees import PLAIN, is_container, leaves, mapped

Tensor = torch.Tensor
_SHARED = (*PLAIN, torch.dtype, torch.device, torch.layout, type, nn.Module)
"""Values that a block reads and does not write into."""


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One call of a block, without its hidden state.

    Attributes:
        args: Arguments in order; None in the place of the hidden state, where it is one of them.
        kwargs: Arguments by name, without the hidden state.
        place: Where the hidden state goes: a position, or a name.
        valid: Which tokens count, shape (batch, tokens, 1); None for all.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: int | str
    valid: Tensor | None = None

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return what the block puts out: the first tensor of its result.

        Neither the call nor the hidden state is changed, whatever the block does to them.
        """
        args = [_fresh(value) for value in self.args]
        kwargs = {name: _fresh(value) for name, value in self.kwargs.items()}
        own = hidden.clone()
        if isinstance(self.place, int):
            args[self.place] = own
        else:
            kwargs[self.place] = own
        return next(tensors_in(block(*args, **kwargs)))


@dataclass(slots=True)
class BlockCalls:
    """All calls of one block.

    Attributes:
        calls: In order.
        hidden: The hidden states, call by call, but for those that the block before put out.
        follows: All of them are what the block before put out, call by call.
    """

    calls: list[BlockCall] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    follows: bool = False


def block_calls(
    root: nn.Module, paths: Sequence[str], calls: Iterable[Call]
) -> dict[str, BlockCalls]:
    """Run a model, and return how it calls some of its blocks.

    Args:
        root: The model; not changed.
        paths: Of the blocks, in order.
        calls: Batches.

    Returns:
        Path -> its calls.

    Raises:
        SchemeError: If a block is called without a hidden state, or with an object that cannot be
            copied.
    """
    watch = _Watch(root, paths)
    with torch.no_grad():
        for call in calls:
            watch.run(call)
    for path, before in zip(paths[1:], paths, strict=False):
        found = watch.found[path]
        is_paired = len(found.calls) == len(watch.found[before].calls)
        found.follows = is_paired and not found.hidden
    return watch.found


class _Watch:
    """Runs a model whose blocks tell how they are called."""

    def __init__(self, root: nn.Module, paths: Sequence[str]) -> None:
        self.found = {path: BlockCalls() for path in paths}
        self._root = root
        self._twin = skeleton(root)
        self._mask: Tensor | None = None
        self._put_out: tuple[str, list[Tensor]] = ("", [])
        for before, path in zip(["", *paths], paths, strict=False):
            block = self._twin.get_submodule(path)
            block.register_forward_pre_hook(
                self._before(path, before), with_kwargs=True
            )
            block.register_forward_hook(self._after(path))

    def run(self, call: Call) -> None:
        """Run one batch."""
        self._mask = token_mask(self._root, call)
        self._put_out = ("", [])
        args, kwargs = call
        self._twin(*args, **kwargs)

    def _before(self, path: str, before: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # The float block itself, which has no hooks of this watch.
            block = self._root.get_submodule(path)
            place = _place_of_hidden(path, block, args, kwargs)
            hidden = args[place] if isinstance(place, int) else kwargs[place]
            rest = _without(args, kwargs, place)
            call = BlockCall(*rest, place, valid_tokens(self._mask, hidden))
            follows = self._follows(before, hidden, rest)
            own = self.found[path]
            own.calls.append(_repeatable(path, block, call, hidden))
            if not follows:
                own.hidden.append(hidden.detach().clone())

        return hook

    def _follows(self, before: str, hidden: Tensor, rest: Any) -> bool:
        """Return whether a hidden state, and nothing else, is what the block before put out."""
        path, tensors = self._put_out
        if not before or path != before or hidden is not tensors[0]:
            return False
        others = {id(tensor) for tensor in tensors_in(rest)}
        return not any(id(tensor) in others for tensor in tensors)

    def _after(self, path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, result: Any) -> None:
            self._put_out = (path, list(tensors_in(result)))

        return hook


def _place_of_hidden(
    path: str, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int | str:
    """Return where a block's hidden state is: its first argument, else the first of floats."""
    names = [parameter.name for parameter in parameters_of(block)]
    first = names[0] if names else ""
    by_name = sorted(kwargs, key=lambda name: name != first)
    places: list[int | str] = [*range(len(args)), *by_name]
    for place in places:
        value = args[place] if isinstance(place, int) else kwargs[place]
        if isinstance(value, Tensor) and value.is_floating_point():
            return place
    raise SchemeError(
        f"block {path!r} is called without a tensor of floats as hidden state and cannot be "
        "reconstructed by itself"
    )


def _without(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int | str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments without the hidden state."""
    ordered = tuple(None if i == place else value for i, value in enumerate(args))
    named = {name: value for name, value in kwargs.items() if name != place}
    return ordered, named


def _repeatable(
    path: str, block: nn.Module, call: BlockCall, hidden: Tensor
) -> BlockCall:
    """Return a call that can be made again and again.

    An object that is neither a tensor nor a plain value may remember one call for the next, as a
    cache of keys does, whatever it is called. Where the block puts out the same without it, it is
    left out; else every call gets a copy of what it was before the first.
    """
    values = (call.args, dict(call.kwargs))
    if not any(_is_state(leaf) for _, leaf in leaves(values)):
        return call
    try:
        kept = mapped(values, _copied_state)
    except Exception as error:
        raise SchemeError(
            f"block {path!r} is called with an object that cannot be copied, so it cannot be run "
            f"by itself: {error}"
        ) from error
    args, kwargs = kept
    whole = replace(call, args=args, kwargs=kwargs)
    args, kwargs = mapped(values, _no_state)
    bare = replace(call, args=args, kwargs=kwargs)
    return bare if _is_same(block, hidden, bare, whole) else whole


def _is_same(
    block: nn.Module, hidden: Tensor, bare: BlockCall, whole: BlockCall
) -> bool:
    expected = whole(block, hidden)
    try:
        found = bare(block, hidden)
    except Exception:  # it needs what was left out, and may say so in any way
        return False
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


def _is_state(leaf: Any) -> bool:
    return not isinstance(leaf, (Tensor, *_SHARED)) and not callable(leaf)


def _copied_state(leaf: Any) -> Any:
    return copy.deepcopy(leaf) if _is_state(leaf) else leaf


def _no_state(leaf: Any) -> Any:
    return None if _is_state(leaf) else leaf


def _fresh(value: Any) -> Any:
    """Return a value that a block may write into: its containers and states are copies."""
    if not is_container(value):
        return _copied_state(value)
    if type(value) is dict:
        return {key: _fresh(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_fresh(item) for item in value)
    return copy.copy(mapped(value, _copied_state))


def token_mask(root: nn.Module, call: Call) -> Tensor | None:
    """Return a batch's mask of padding, (batch, tokens), where it has one.

    That is an input with "mask" in its name, of zeros and ones, some of them zeros.
    """
    args, kwargs = call
    names = [parameter.name for parameter in parameters_of(root)]
    named = dict(zip(names, args, strict=False)) | kwargs
    for name, value in named.items():
        is_mask = "mask" in name and isinstance(value, Tensor) and value.ndim == 2
        if is_mask and bool(((value == 0) | (value == 1)).all()):
            return None if bool((value == 1).all()) else value
    return None


def valid_tokens(mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Return the mask over a hidden state's tokens, if it is one."""
    if mask is None or hidden.ndim != 3 or hidden.shape[:2] != mask.shape:
        return None
    return mask.to(hidden.device, torch.float32)[..., None]
