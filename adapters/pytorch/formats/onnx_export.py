"""The float model as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.run.batches import Call, takes, tensors_in
from octavo.core.errors import ModelError
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import named_leaves
from octavo.core.values.trees import mapped

OPSET = 20
"""Pinned: the exporters' own defaults are newer than what runtimes have kernels for."""


class _Plain(nn.Module):
    """Takes the tensors of its inputs in order and returns a flat tuple, which every exporter understands."""

    def __init__(self, model: nn.Module, example: Call) -> None:
        super().__init__()
        self.model = model
        self.example = example

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(values)

        def filled(leaf: Any) -> Any:
            return next(given) if isinstance(leaf, torch.Tensor) else leaf

        return self.run(self.example, filled)

    def run(
        self, call: Call, filled: Callable[[Any], Any] = lambda leaf: leaf
    ) -> tuple[torch.Tensor, ...]:
        """Run a call, each leaf as ``filled`` gives it."""
        args, kwargs = call
        ordered = [mapped(v, filled) for v in args]
        by_name = {k: mapped(v, filled) for k, v in kwargs.items()}
        return tuple(tensors_in(self.model(*ordered, **by_name)))


def export_onnx(model: nn.Module, example: Call, path: Path, others: Sequence[Call] = ()) -> None:
    """Write ``model``; inputs are its arguments' tensors, named by their paths. Dynamic are first axes, and those that differ in ``others``.

    The TorchScript exporter needs no other package and goes first; torch.export takes what it cannot.

    Raises:
        ModelError: If neither can.
    """
    order = takes(model).positional
    values = _tensors(example, order)
    plain = _Plain(model, example).eval()
    with torch.no_grad():
        results = plain(*values.values())
    outputs = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    shared: dict[str, Any] = {
        "input_names": list(values),
        "output_names": outputs,
        "opset_version": OPSET,
    }
    named_results = dict(zip(outputs, results, strict=True))
    axes = {name: {0: "batch"} for name, t in {**values, **named_results}.items() if t.ndim}
    for call in others:
        _add_axes(axes, values, _tensors(call, order))
        with torch.no_grad():
            others_results = plain.run(call)
        _add_axes(axes, named_results, dict(zip(outputs, others_results, strict=False)))
    errors: list[str] = []
    for exporter in (_script, _export):
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
                torch.no_grad(),
            ):
                warnings.simplefilter("ignore")
                exporter(plain, tuple(values.values()), path, axes, shared)
            return
        except Exception as error:
            errors.append(
                f"{exporter.__name__[1:]}: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            )
    raise ModelError(f"the model cannot be exported to ONNX ({'; '.join(errors)})")


def _tensors(call: Call, order: Sequence[str]) -> dict[str, torch.Tensor]:
    args, kwargs = call
    return {
        path: leaf
        for path, leaf in named_leaves(Given(*args, **kwargs), order)
        if isinstance(leaf, torch.Tensor)
    }


def _add_axes(
    axes: dict[str, dict[int, str]],
    some: Mapping[str, torch.Tensor],
    other: Mapping[str, torch.Tensor],
) -> None:
    """Name the axes in which tensors differ."""
    for name, tensor in some.items():
        if name in other and other[name].ndim == tensor.ndim:
            for axis, (a, b) in enumerate(zip(tensor.shape, other[name].shape, strict=True)):
                if a != b:
                    axes[name].setdefault(axis, f"{name}_{axis}")


def _script(
    model: nn.Module,
    values: tuple[torch.Tensor, ...],
    path: Path,
    axes: dict[str, Any],
    shared: dict[str, Any],
) -> None:
    torch.onnx.export(model, values, str(path), dynamic_axes=axes, dynamo=False, **shared)


def _export(
    model: nn.Module,
    values: tuple[torch.Tensor, ...],
    path: Path,
    axes: dict[str, Any],
    shared: dict[str, Any],
) -> None:
    batch = torch.export.Dim.DYNAMIC
    given: list[str] = shared["input_names"]
    moving = [
        {axis: batch for axis in axes.get(n, ()) if v.shape[axis] > 1}
        for n, v in zip(given, values, strict=True)
    ]
    shapes = (tuple(m or None for m in moving),)
    torch.onnx.export(
        model,
        values,
        str(path),
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
        **shared,
    )
