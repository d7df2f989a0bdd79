"""The float model as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.run.batches import Call, takes, tensors_in
from octavo.core.errors import ModelError
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import named_leaves
from octavo.core.values.trees import mapped

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]
"""Name of an input or result -> its value."""
OPSET = 20
"""Pinned: the exporters' own defaults are newer than what runtimes have kernels for."""


@dataclass(frozen=True, slots=True)
class _Export:
    """What an exporter is given.

    Attributes:
        model: Takes tensors in order and returns a flat tuple.
        inputs: Name -> example.
        results: Name -> what the model makes of the examples.
        axes: Name of an input or result -> its axes that may vary -> their names.
    """

    model: nn.Module
    inputs: Tensors
    results: Tensors
    axes: Mapping[str, dict[int, str]]

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The examples in order."""
        return tuple(self.inputs.values())

    @property
    def settings(self) -> dict[str, Any]:
        """What both exporters are told."""
        return {
            "input_names": list(self.inputs),
            "output_names": list(self.results),
            "opset_version": OPSET,
        }


class _Plain(nn.Module):
    """Takes the tensors of its inputs in order and returns a flat tuple, as any exporter asks."""

    def __init__(self, model: nn.Module, example: Call) -> None:
        super().__init__()
        self.model = model
        self.example = example

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)

        def filled(leaf: Any) -> Any:
            return next(given) if isinstance(leaf, Tensor) else leaf

        return self.run(self.example, filled)

    def run(
        self, call: Call, filled: Callable[[Any], Any] = lambda leaf: leaf
    ) -> tuple[Tensor, ...]:
        """Run a call, each leaf as ``filled`` gives it."""
        args, kwargs = call
        ordered = [mapped(value, filled) for value in args]
        by_name = {key: mapped(value, filled) for key, value in kwargs.items()}
        result = self.model(*ordered, **by_name)
        return tuple(tensors_in(result))


def export_onnx(
    model: nn.Module, example: Call, path: Path, others: Sequence[Call] = ()
) -> None:
    """Write ``model``; inputs are its arguments' tensors, named by their paths.

    Dynamic are first axes, and those that differ in ``others``. The TorchScript exporter needs no
    other package and goes first; torch.export takes what it cannot.

    Raises:
        ModelError: If neither can.
    """
    export = _prepared(model, example, others)
    errors: list[str] = []
    for name, exporter in (("script", _by_script), ("export", _by_export)):
        try:
            with _quiet(), torch.no_grad():
                exporter(export, path)
            return
        except Exception as error:  # exporters raise whatever comes up inside of them
            said = str(error).strip() or type(error).__name__
            first_line = said.splitlines()[0]
            errors.append(f"{name}: {first_line}")
    raise ModelError(f"the model cannot be exported to ONNX ({'; '.join(errors)})")


def _prepared(model: nn.Module, example: Call, others: Sequence[Call]) -> _Export:
    """Run a model, and find out its results and which axes vary."""
    order = takes(model).positional
    inputs = _tensors(example, order)
    plain = _Plain(model, example).eval()
    with torch.no_grad():
        made = plain(*inputs.values())
    names = ["output"]
    if len(made) != 1:
        names = [f"output_{i}" for i in range(len(made))]
    results = dict(zip(names, made, strict=True))
    every = {**inputs, **results}
    axes = {name: {0: "batch"} for name, tensor in every.items() if tensor.ndim}
    for call in others:
        _add_axes(axes, inputs, _tensors(call, order))
        with torch.no_grad():
            other_results = plain.run(call)
        # Another branch of the model may return fewer.
        by_name = dict(zip(names, other_results, strict=False))
        _add_axes(axes, results, by_name)
    return _Export(plain, inputs, results, axes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from printing and warning."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _tensors(call: Call, order: Sequence[str]) -> dict[str, Tensor]:
    args, kwargs = call
    leaves = named_leaves(Given(*args, **kwargs), order)
    return {path: leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _add_axes(
    axes: dict[str, dict[int, str]],
    some: Tensors,
    other: Tensors,
) -> None:
    """Name the axes in which tensors differ."""
    for name, tensor in some.items():
        another = other.get(name)
        if another is None or another.ndim != tensor.ndim:
            continue
        sizes = zip(tensor.shape, another.shape, strict=True)
        for axis, (size, other_size) in enumerate(sizes):
            if size != other_size:
                axes[name].setdefault(axis, f"{name}_{axis}")


def _by_script(export: _Export, path: Path) -> None:
    torch.onnx.export(
        export.model,
        export.values,
        str(path),
        dynamic_axes=export.axes,
        dynamo=False,
        # The exporter would fold batch norms away, and with them what they tell of ranges; who
        # opens the file folds them all the same. The model is in eval mode, and stays so.
        training=torch.onnx.TrainingMode.PRESERVE,
        **export.settings,
    )


def _by_export(export: _Export, path: Path) -> None:
    moving: list[dict[int, Any] | None] = []
    for name, value in export.inputs.items():
        # torch.export takes an axis of size 1 for a constant, and refuses it as a dynamic one.
        wide = [axis for axis in export.axes.get(name, ()) if value.shape[axis] > 1]
        moving.append(dict.fromkeys(wide, torch.export.Dim.DYNAMIC) or None)
    torch.onnx.export(
        export.model,
        export.values,
        str(path),
        dynamic_shapes=(tuple(moving),),
        dynamo=True,
        external_data=False,
        verbose=False,
        **export.settings,
    )
