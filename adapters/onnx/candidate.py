"""A recipe carried out: a callable that runs on ONNX Runtime, and travels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from octavo.adapters.onnx.describe.owners import Owners, bytes_by_op
from octavo.adapters.onnx.files.fingerprint import digest
from octavo.adapters.onnx.files.message import skeleton
from octavo.adapters.onnx.files.writing import write
from octavo.adapters.onnx.kernels.profiling import profile
from octavo.adapters.onnx.kernels.saturation import (
    WIDENED,
    is_signed_product,
    saturates,
    widen_weights,
)
from octavo.adapters.onnx.run.compiling import RUNTIME_ERRORS, Compiled, compile_model
from octavo.adapters.onnx.run.feeds import input_infos
from octavo.core.authoring.compiled import as_batch
from octavo.core.authoring.feeding import feed
from octavo.core.authoring.recipes import ledger_from_json, ledger_to_json
from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.errors import DataError, ModelError, said
from octavo.core.values.calls import shown
from octavo.core.values.graph import InputInfo
from octavo.core.values.json_form import canonical_json
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe

from . import OnnxConfig

FILE = "model.onnx"
RECIPE_KEY = "octavo.recipe"
LEDGER_KEY = "octavo.ledger"
_EXTERNAL_FROM = 2**31 - 2**20
"""Bytes of tensors from which a model is saved with external data: protobuf ends at 2 GiB."""


class OnnxCallable:
    """A model on ONNX Runtime: arrays in, arrays out.

    Picklable; the session is made again where it arrives.

    Attributes:
        graph: The onnx-ir model.
        config: Providers and threads.
    """

    def __init__(
        self,
        graph: ir.Model,
        config: OnnxConfig,
        compiled: Callable[[], Compiled] | None = None,
    ) -> None:
        self.graph = graph
        self.config = config
        self._compiled = compiled
        self._session: ort.InferenceSession | None = None

    @property
    def session(self) -> ort.InferenceSession:
        """The ONNX Runtime session, created at the first use."""
        if self._session is None:
            if self._compiled is not None:
                self._session = self._compiled().session
            else:
                self._session = compile_model(self.graph, self.config).session
        return self._session

    @cached_property
    def inputs(self) -> tuple[InputInfo, ...]:
        """What the session takes."""
        return input_infos(self.session.get_inputs())

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
        outputs = self.run(as_batch(arrays, named))
        if len(outputs) == 1:
            return outputs[0]
        return outputs

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch and return all outputs.

        Raises:
            DataError: If names, ranks or shapes are not the model's, or ONNX Runtime cannot run it
                on them.
        """
        given = feed(batch, self.inputs)
        try:
            return tuple(self.session.run(None, given))
        except RUNTIME_ERRORS as error:
            raise DataError(
                f"ONNX Runtime cannot run the model on {shown(given)}: {said(error)}"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Tensors travel beside the graph, so that no size limit of protobuf applies.
        proto, held = skeleton(self.graph)
        # Copies: what is mapped from a file is not there in another process.
        arrays = {name: np.array(tensor.numpy()) for name, tensor in held.items()}
        return _rebuild, (proto.SerializeToString(), arrays, self.config)


def _rebuild(
    message: bytes, tensors: dict[str, np.ndarray], config: OnnxConfig
) -> OnnxCallable:
    model = ir.from_proto(onnx.ModelProto.FromString(message))
    for name, array in tensors.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=name)
    return OnnxCallable(model, config)


class OnnxCandidate(Candidate):
    """A quantized (or the float) model with its ledger.

    Args:
        native: What runs.
        recipe: What was asked for.
        ledger: What became of each op.
        owners: Whose its nodes are; None where that is not known any more.
    """

    def __init__(
        self,
        native: OnnxCallable,
        recipe: Recipe,
        ledger: Mapping[str, Applied],
        owners: Owners | None = None,
    ) -> None:
        self._native = native
        self._owners = owners
        self.recipe = recipe
        self.ledger = ledger

    @property
    def native(self) -> OnnxCallable:
        """The callable.

        Its ``.session`` and ``.model`` are ONNX Runtime's session and the ModelProto.
        """
        return self._native

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch: arrays in, arrays out."""
        return self._native.run(batch)

    def save(self, folder: Path) -> None:
        """Write ``model.onnx`` (with external data above 2 GB).

        Recipe and ledger travel in its metadata_props.
        """
        model = self._native.graph
        # The graph that is saved is the one that runs: what the file says beside it goes again.
        kept = dict(model.metadata_props)
        lines = ledger_to_json(self.ledger, self.recipe)
        model.metadata_props[RECIPE_KEY] = canonical_json(self.recipe.to_json())
        model.metadata_props[LEDGER_KEY] = canonical_json(lines)
        try:
            if _bytes_of_tensors(model) >= _EXTERNAL_FROM:
                ir.save(model, folder / FILE, external_data=f"{FILE}.data")
            else:
                write(model, folder / FILE)
        finally:
            model.metadata_props.clear()
            model.metadata_props.update(kept)

    def profile(self, batch: Batch, seconds: float) -> Mapping[str, float]:
        """Return the milliseconds of each op in a call, by ONNX Runtime's profiler."""
        if self._owners is None:
            return {}
        native = self._native
        return profile(native.graph, native.config, self._owners, batch, seconds)

    def bytes_by_op(self) -> Mapping[str, int]:
        """Return the bytes of each op's tensors in the file."""
        if self._owners is None:
            return {}
        return bytes_by_op(self._native.graph, self._owners)

    def fingerprint(self) -> str:
        """Digest of the session's tensors as they are now."""
        return digest(self._native.graph)


def _bytes_of_tensors(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def load_candidate(folder: Path, config: OnnxConfig, read: Any) -> OnnxCandidate:
    """Read what :meth:`OnnxCandidate.save` wrote: its folder, or the model file by itself.

    Raises:
        ModelError: If the folder holds no model that octavo saved.
    """
    if Path(folder).is_file():
        path = Path(folder)
    else:
        path = Path(folder) / FILE
    model = read(path)
    try:
        raw_recipe = model.metadata_props.pop(RECIPE_KEY)
        raw_ledger = model.metadata_props.pop(LEDGER_KEY)
    except KeyError as error:
        raise ModelError(
            f"{path} carries no {error} in its metadata: it was not saved by octavo; "
            "open it as a float model instead"
        ) from error
    recipe = Recipe.from_json(json.loads(raw_recipe))
    ledger = ledger_from_json(recipe, json.loads(raw_ledger))
    # What was saved on a processor with VNNI may saturate on this one.
    if saturates(config.providers) and widen_weights(model):
        ledger = {op: _widened(line) for op, line in ledger.items()}
    return OnnxCandidate(OnnxCallable(model, config), recipe, ledger)


def _widened(line: Applied) -> Applied:
    """Return a line that says that its weight was written anew for this CPU, where it was."""
    weight = line.applied.weight
    if weight is None or weight.reduce_range or not is_signed_product(line.applied):
        return line
    reasons = filter(None, (line.reason, WIDENED))
    return replace(line, reason="; ".join(reasons))
