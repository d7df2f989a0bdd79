"""A recipe carried out: a callable that runs on ONNX Runtime, and travels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from octavo.adapters.onnx.kernels.saturation import (
    WIDENED,
    is_signed_product,
    saturates,
    widen_weights,
)
from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.errors import DataError, ModelError, nearest, said
from octavo.core.values.calls import Call, flat
from octavo.core.values.json_form import canonical_json
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe

from . import OnnxConfig
from .files import write
from .fingerprint import digest
from .run import RUNTIME_ERRORS, Compiled, compile_model, skeleton

FILE = "model.onnx"
RECIPE_KEY, LEDGER_KEY = "octavo.recipe", "octavo.ledger"
_EXTERNAL_FROM = 2**31 - 2**20
"""Bytes of tensors from which a model is saved with external data: protobuf ends at 2 GiB."""

_NUMPY = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(int16)": np.int16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64, "tensor(bool)": np.bool_,
}  # fmt: skip


class OnnxCallable:
    """A model on ONNX Runtime: arrays in, arrays out. Picklable; the session is made again where it arrives.

    Attributes:
        graph: The onnx-ir model.
        config: Providers and threads.
    """

    def __init__(
        self, graph: ir.Model, config: OnnxConfig, compiled: Callable[[], Compiled] | None = None
    ) -> None:
        self.graph = graph
        self.config = config
        self._compiled = compiled if compiled is not None else lambda: compile_model(graph, config)
        self._session: ort.InferenceSession | None = None

    @property
    def session(self) -> ort.InferenceSession:
        """The ONNX Runtime session, created at the first use."""
        if self._session is None:
            self._session = self._compiled().session
        return self._session

    @property
    def model(self) -> onnx.ModelProto:
        """The model as a ModelProto, tensors included."""
        return ir.to_proto(self.graph)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run the model.

        Args:
            *arrays: Inputs in the model's order; a single mapping is taken as named inputs.
            **named: Inputs by name.

        Returns:
            The output array, or a tuple of them.

        Raises:
            DataError: If names, ranks or shapes are not the model's.
        """
        batch: Batch = arrays
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            batch = {**arrays[0], **named}
        elif named:
            names = [i.name for i in self.session.get_inputs()]
            batch = {**dict(zip(names, arrays, strict=False)), **named}
        outputs = self.run(batch)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch and return all outputs.

        Raises:
            DataError: If names, ranks or shapes are not the model's, or ONNX Runtime cannot run it on them.
        """
        given = feeds(self.session.get_inputs(), batch)
        try:
            return tuple(self.session.run(None, given))
        except RUNTIME_ERRORS as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
            raise DataError(
                f"ONNX Runtime cannot run the model on {shapes}: {said(error)}"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Tensors travel beside the graph, so that no size limit of protobuf applies.
        proto, held = skeleton(self.graph)
        return (
            _rebuild,
            (
                proto.SerializeToString(),
                {name: np.array(tensor.numpy()) for name, tensor in held.items()},
                self.config,
            ),
        )


def _rebuild(skeleton: bytes, tensors: dict[str, np.ndarray], config: OnnxConfig) -> OnnxCallable:
    model = ir.from_proto(onnx.ModelProto.FromString(skeleton))
    for name, array in tensors.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=name)
    return OnnxCallable(model, config)


def feeds(inputs: Sequence[Any], batch: Batch | Any) -> dict[str, np.ndarray]:
    """Check one batch against a session's inputs and return it by name.

    Args:
        inputs: ``InferenceSession.get_inputs()``.
        batch: By name, in call order, or one array for a model with one input.

    Raises:
        DataError: Expected against got.
    """
    expected = {i.name: i for i in inputs}
    if isinstance(batch, Mapping | tuple | list | Call):
        batch = flat(tuple(batch) if isinstance(batch, list) else batch, tuple(expected))
    listed = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
    if isinstance(batch, Mapping):
        strange = [n for n in batch if n not in expected]
        if strange:
            raise DataError(
                f"the batch holds {strange[0]!r}, which is no input of this model{nearest(strange[0], expected)} (expected {listed})"
            )
        given = dict(batch)
    else:
        rows = batch if isinstance(batch, tuple | list) else (batch,)
        if len(rows) > len(inputs):
            raise DataError(
                f"the batch holds {len(rows)} arrays, the model takes {len(inputs)}: {listed}"
            )
        given = dict(zip(expected, rows, strict=False))
    missing = [n for n in expected if n not in given]
    if missing:
        raise DataError(
            f"the batch lacks input {missing[0]!r}: expected {listed}, got {', '.join(given) or 'nothing'}"
        )
    return {name: _input(expected[name], value) for name, value in given.items()}


def _input(info: Any, value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    wanted = _NUMPY.get(info.type)
    if wanted is not None and array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise DataError(f"input {info.name!r} takes {info.type}, got {array.dtype}; convert it")
        array = array.astype(wanted)
    shape = list(info.shape or ())
    # A value of unknown rank is declared like one without axes: what it takes, the runtime says.
    if shape and (
        len(shape) != array.ndim
        or any(
            isinstance(d, int) and d >= 0 and d != n
            for d, n in zip(shape, array.shape, strict=False)
        )
    ):
        raise DataError(f"input {info.name!r} takes shape {shape}, got {list(array.shape)}")
    return array


class OnnxCandidate(Candidate):
    """A quantized (or the float) model with its ledger."""

    def __init__(self, native: OnnxCallable, recipe: Recipe, ledger: Mapping[str, Applied]) -> None:
        self._native = native
        self.recipe = recipe
        self.ledger = ledger

    @property
    def native(self) -> OnnxCallable:
        """The callable; ``.session`` and ``.model`` are ONNX Runtime's session and the ModelProto."""
        return self._native

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch: arrays in, arrays out."""
        return self._native.run(batch)

    def save(self, folder: Path) -> None:
        """Write ``model.onnx`` (with external data above 2 GB); recipe and ledger travel in its metadata_props."""
        model = self._native.graph
        kept = dict(model.metadata_props)
        model.metadata_props[RECIPE_KEY] = canonical_json(self.recipe.to_json())
        model.metadata_props[LEDGER_KEY] = canonical_json(
            {op: line.to_row() for op, line in self.ledger.items()}
        )
        try:
            size = sum(
                v.const_value.nbytes
                for v in model.graph.initializers.values()
                if v.const_value is not None
            )
            if size >= _EXTERNAL_FROM:
                ir.save(model, folder / FILE, external_data=f"{FILE}.data")
            else:
                write(model, folder / FILE)
        finally:
            model.metadata_props.clear()
            model.metadata_props.update(kept)

    def fingerprint(self) -> str:
        """Digest of the session's tensors as they are now."""
        return digest(self._native.graph)


def load_candidate(folder: Path, config: OnnxConfig, read: Any) -> OnnxCandidate:
    """Read what :meth:`OnnxCandidate.save` wrote: its folder, or the model file by itself.

    Raises:
        ModelError: If the folder holds no model that octavo saved.
    """
    path = Path(folder) if Path(folder).is_file() else Path(folder) / FILE
    model = read(path)
    try:
        raw_recipe, raw_ledger = (
            model.metadata_props.pop(RECIPE_KEY),
            model.metadata_props.pop(LEDGER_KEY),
        )
    except KeyError as error:
        raise ModelError(
            f"{path} carries no {error} in its metadata: it was not saved by octavo; open it as a float model instead"
        ) from error
    recipe = Recipe.from_json(json.loads(raw_recipe))
    lines = json.loads(raw_ledger)
    ledger = {op: Applied.from_row(recipe[op], line) for op, line in lines.items()}
    if saturates(config.providers) and widen_weights(model):
        ledger = {op: _widened(line) for op, line in ledger.items()}
    return OnnxCandidate(OnnxCallable(model, config), recipe, ledger)


def _widened(line: Applied) -> Applied:
    """Return a line that says that its weight was written anew for this CPU, where it was."""
    whole = line.applied.weight is not None and not line.applied.weight.reduce_range
    if not (whole and is_signed_product(line.applied)):
        return line
    return replace(line, reason="; ".join(filter(None, (line.reason, WIDENED))))
