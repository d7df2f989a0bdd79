"""Batches as the model's forward takes them, and its results as arrays."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
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


def parameters_of(model: nn.Module) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a model's forward, without ``self``."""
    return tuple(inspect.signature(model.forward).parameters.values())


def takes(model: nn.Module) -> Takes:
    """Return what a model's forward takes, as its signature says."""
    known = parameters_of(model)
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return Takes(
        tuple(p.name for p in known if p.kind in by_place),
        tuple(p.name for p in known if p.kind in by_name),
        frozenset(
            p.name for p in known if p.kind in (*by_place, *by_name) and p.default is p.empty
        ),
        any(p.kind is p.VAR_POSITIONAL for p in known),
        any(p.kind is p.VAR_KEYWORD for p in known),
    )


def to_call(batch: Batch | Any, model: nn.Module, device: torch.device) -> Call:
    """Return a batch as arguments of ``model``'s forward, arrays as tensors on ``device``, wherever they lie in it.

    Raises:
        DataError: If a name is not one of forward's parameters, or there are more values than it takes.
    """
    if isinstance(batch, Mapping | Given):
        args, kwargs = parts(batch)
    else:
        args, kwargs = (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}
    problem = takes(model).problem(Given(*args, **kwargs))
    if problem:
        raise DataError(problem)
    brought = partial(to_tensor, device=device)
    return tuple(mapped(v, brought) for v in args), {
        k: mapped(v, brought) for k, v in kwargs.items()
    }


def run_once(root: nn.Module, device: torch.device, batch: Batch) -> tuple[np.ndarray, ...]:
    """Run a batch on a skeleton of a model; the model may write into its inputs, which stay as they are."""
    args, kwargs = copied_call(to_call(batch, root, device))
    with torch.no_grad():
        return to_arrays(skeleton(root)(*args, **kwargs))


def copied_call(call: Call) -> Call:
    """Return a call whose tensors are copies: the model may write into them."""
    args, kwargs = call
    return tuple(mapped(v, _copied) for v in args), {
        k: mapped(v, _copied) for k, v in kwargs.items()
    }


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
        if not array.flags.writeable:
            array = array.copy()
        try:
            return torch.from_numpy(array).to(device)
        except TypeError as error:
            raise DataError(f"an input array has dtype {array.dtype}: {error}") from error
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
    found = []
    for tensor in tensors_in(result):
        t = tensor.detach().cpu()
        found.append(
            (
                t.float()
                if t.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
                else t
            ).numpy()
        )
    return tuple(found)
