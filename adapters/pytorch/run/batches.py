"""Batches as the model's forward takes them, and its results as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.core.contract.adapter import Batch
from octavo.core.errors import DataError
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import parts
from octavo.core.values.takes import Takes
from octavo.core.values.trees import children, is_container, mapped

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of the model's forward."""


_NOT_IN_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def parameters_of(model: nn.Module) -> tuple[Parameter, ...]:
    """Return the parameters of a model's forward, without ``self``."""
    declared = signature(model.forward).parameters
    return tuple(declared.values())


def takes(model: nn.Module) -> Takes:
    """Return what a model's forward takes, as its signature says."""
    known = parameters_of(model)
    kinds = {p.kind for p in known}
    positional = [p.name for p in known if p.kind in _BY_PLACE]
    named = [p.name for p in known if p.kind in _BY_NAME]
    single = {*positional, *named}
    without_default = {p.name for p in known if p.default is p.empty}
    return Takes(
        tuple(positional),
        tuple(named),
        frozenset(without_default & single),
        Parameter.VAR_POSITIONAL in kinds,
        Parameter.VAR_KEYWORD in kinds,
    )


def to_call(batch: Batch | Any, model: nn.Module, device: torch.device) -> Call:
    """Return a batch as arguments of ``model``'s forward.

    Arrays are tensors on ``device`` then, wherever they lie in it.

    Raises:
        DataError: If a name is not one of forward's parameters, or there are more values than it
            takes.
    """
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}
    if isinstance(batch, Mapping | Given):
        args, kwargs = parts(batch)
    elif isinstance(batch, tuple | list):
        args = tuple(batch)
    else:
        args = (batch,)
    problem = takes(model).problem(Given(*args, **kwargs))
    if problem:
        raise DataError(problem)
    return _mapped_call(args, kwargs, partial(to_tensor, device=device))


def _mapped_call(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Any], Any]
) -> Call:
    """Return a call with each leaf of its arguments changed."""
    ordered = tuple(mapped(value, change) for value in args)
    named = {key: mapped(value, change) for key, value in kwargs.items()}
    return ordered, named


def run_once(
    root: nn.Module, device: torch.device, batch: Batch
) -> tuple[np.ndarray, ...]:
    """Run a batch on a skeleton of a model.

    The model may write into its inputs, which stay as they are.
    """
    args, kwargs = copied_call(to_call(batch, root, device))
    twin = skeleton(root)
    with torch.no_grad():
        result = twin(*args, **kwargs)
        return to_arrays(result)


def copied_call(call: Call) -> Call:
    """Return a call whose tensors are copies: the model may write into them."""
    args, kwargs = call
    return _mapped_call(args, kwargs, _copied)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def to_tensor(value: Any, device: torch.device) -> Any:
    """Return arrays and tensors as tensors on ``device``; other values as they are.

    Raises:
        DataError: If an array has a dtype that torch does not know.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        # torch shares an array's memory, and warns of one that must not be written to.
        if not array.flags.writeable:
            array = array.copy()
        try:
            return torch.from_numpy(array).to(device)
        except TypeError as error:
            raise DataError(
                f"an input array has dtype {array.dtype}: {error}"
            ) from error
    return value


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a result, in order: of tuples, lists, mappings and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_container(value):
        for _, item in children(value):
            yield from tensors_in(item)


def to_arrays(result: Any) -> tuple[np.ndarray, ...]:
    """Return a forward's tensors as NumPy arrays; types that NumPy does not have become float32."""
    found: list[np.ndarray] = []
    for tensor in tensors_in(result):
        plain = tensor.detach().cpu()
        if plain.dtype in _NOT_IN_NUMPY:
            plain = plain.float()
        found.append(plain.numpy())
    return tuple(found)
