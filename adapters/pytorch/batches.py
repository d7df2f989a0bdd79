"""Batches as the model's forward takes them, and its results as arrays."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from octavo.core.adapter import Batch
from octavo.core.errors import DataError, nearest

from .capture import Call


def parameters_of(model: nn.Module) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a model's forward, without ``self``."""
    return tuple(inspect.signature(model.forward).parameters.values())


def to_call(batch: Batch | Any, model: nn.Module, device: torch.device) -> Call:
    """Return a batch as arguments of ``model``'s forward, arrays as tensors on ``device``.

    Raises:
        DataError: If a name is not one of forward's parameters, or there are more values than it takes.
    """
    known = parameters_of(model)
    positional = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if isinstance(batch, Mapping):
        if not any(p.kind is p.VAR_KEYWORD for p in known):
            names = [p.name for p in known]
            for name in batch:
                if name not in names:
                    raise DataError(f"the model takes {', '.join(names)}; got an input called {name!r}{nearest(name, names)}")
        return (), {k: to_tensor(v, device) for k, v in batch.items()}
    values = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(values) > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in known):
        raise DataError(f"the model takes {len(positional)} inputs ({', '.join(p.name for p in positional)}); the batch has {len(values)}")
    return tuple(to_tensor(v, device) for v in values), {}


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
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from tensors_in(getattr(value, f.name))


def to_arrays(result: Any) -> tuple[np.ndarray, ...]:
    """Return a forward's tensors as NumPy arrays; types that NumPy does not have become float32."""
    found = []
    for tensor in tensors_in(result):
        t = tensor.detach().cpu()
        found.append((t.float() if t.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2) else t).numpy())
    return tuple(found)
