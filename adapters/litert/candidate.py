"""A .tflite model to run, with the recipe it was made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from octavo.plugin import (
    Applied,
    CompiledCandidate,
    InputInfo,
    ModelError,
    QuantParams,
    QuantSpec,
    Recipe,
    dequantize,
    quantize,
    raised_as,
)

from . import LitertConfig

Entry = Mapping[str, Any]
"""What the interpreter tells of an input or output."""

MODEL = "model.tflite"
"""The file of a saved candidate that plain LiteRT loads."""


class Running:
    """An interpreter and the shapes it was prepared for.

    Args:
        model: A file's bytes.
        config: Threads and delegate.

    Raises:
        ModelError: If LiteRT cannot run the model.
    """

    def __init__(self, model: bytes, config: LitertConfig) -> None:
        kind = OpResolverType.BUILTIN
        if not config.delegate:
            kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        with raised_as(ModelError, "LiteRT cannot run the model"):
            self.interpreter = Interpreter(
                model_content=model,
                num_threads=config.threads,
                experimental_op_resolver_type=kind,
            )
            self.interpreter.allocate_tensors()
        self._inputs = self.interpreter.get_input_details()
        self._outputs = self.interpreter.get_output_details()
        self._shapes = [tuple(map(int, entry["shape"])) for entry in self._inputs]
        # An interpreter holds one call's values.
        self._lock = Lock()

    def __call__(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Run arrays in the order of the inputs; returns copies of the outputs."""
        with self._lock:
            self._fit([array.shape for array in arrays])
            for entry, array in zip(self._inputs, arrays, strict=True):
                self.interpreter.set_tensor(entry["index"], _given(entry, array))
            self.interpreter.invoke()
            return tuple(self._result(entry) for entry in self._outputs)

    def _result(self, entry: Entry) -> np.ndarray:
        """Return an output's copy, in float where the model puts out codes."""
        array: np.ndarray = self.interpreter.get_tensor(entry["index"])
        params = _params(entry)
        return array if params is None else np.asarray(dequantize(array, params))

    def _fit(self, shapes: list[tuple[int, ...]]) -> None:
        """Prepare the interpreter for inputs of other shapes."""
        if shapes == self._shapes:
            return
        for entry, shape in zip(self._inputs, shapes, strict=True):
            self.interpreter.resize_tensor_input(entry["index"], shape)
        # Forgotten until it has succeeded: a call after a failure prepares anew.
        self._shapes = []
        self.interpreter.allocate_tensors()
        self._shapes = shapes


def _given(entry: Entry, array: np.ndarray) -> np.ndarray:
    """Return what an input is fed: codes where the model takes them."""
    params = _params(entry)
    if params is not None:
        array = np.asarray(quantize(array, params)).astype(entry["dtype"])
    return np.ascontiguousarray(array)


def _params(entry: Entry) -> QuantParams | None:
    """Return what the codes of an input or output mean; None for numbers."""
    scale, zero = entry["quantization"]
    if not scale:
        return None
    spec = QuantSpec(dtype=np.dtype(entry["dtype"]).name, symmetric=False)
    return QuantParams(np.float32(scale), np.int32(zero), spec)


class LitertCandidate(CompiledCandidate):
    """A model's bytes; the interpreter is made at the first call.

    Args:
        model: A file's bytes.
        recipe: What was asked for.
        ledger: What became of each op.
        inputs: What the model takes.
        config: Threads and delegate.
        sizes: Op name -> bytes of its constants in the file; empty where that is not known.
    """

    model: bytes

    def __init__(
        self,
        model: bytes,
        recipe: Recipe,
        ledger: Mapping[str, Applied],
        inputs: Sequence[InputInfo],
        config: LitertConfig,
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__(model, recipe, ledger, inputs)
        self.config = config
        self._sizes = dict(sizes)

    def bytes_by_op(self) -> Mapping[str, int]:
        """Return the bytes of each op's constants; what several share counts with the first."""
        return self._sizes

    def compile(self) -> Running:
        """Return an interpreter of the model."""
        return Running(self.model, self.config)

    def run_compiled(
        self, compiled: Running, fed: Mapping[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """Run one batch."""
        return compiled(list(fed.values()))

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        return self.model

    def from_bytes(self, data: bytes) -> Any:
        """Return the same."""
        return data

    def write(self, folder: Path) -> None:
        """Write ``model.tflite``."""
        (folder / MODEL).write_bytes(self.model)
