"""What becomes a float flatbuffer before LiteRT takes it: TensorFlow's models and ONNX files.

TensorFlow's own converter does it, once; it folds batch normalization and fuses activations. What
this module adds are the user's words: inputs and outputs in the order of the model's call, and
operators named by the layers that they come from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from octavo.plugin import Batch, Call, MissingFramework, ModelError, raised_as

from .layer_names import named_by_layers

KERAS_FILES = (".keras", ".h5", ".hdf5")

SAVED_MODEL = "saved_model.pb"
"""The file by which a folder is known as a SavedModel."""

ENTRY = "serving_default"
"""The signature that tools of TensorFlow call where none is named."""

HALVES = ("float16", "bfloat16")

REMEDY = "does the model run by itself, and has it operators that LiteRT has?"


@dataclass(frozen=True)
class _Converted:
    """A flatbuffer, with what the user calls its parts.

    Attributes:
        data: The file.
        inputs: Names in the order of the model's call; empty where the signature's stays.
        outputs: Likewise.
        model: The Keras model, whose layers name operators; None where there is none.
    """

    data: bytes
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    model: Any = None


def to_flatbuffer(source: Any, example: Batch | None = None) -> bytes:
    """Return a model as the bytes of a float ``.tflite`` file.

    Args:
        source: A path of ``.onnx``, ``.keras``, ``.h5`` or of a SavedModel folder; a Keras model;
            a ``tf.function``, concrete or not; what ``tf.saved_model.load`` returns.
        example: One batch; it gives a function that was never traced its shapes, and builds a
            Keras model that was never called.

    Raises:
        MissingFramework: If it is a model of TensorFlow, which is not installed.
        ModelError: If it cannot be read or converted.
    """
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is not None and path.suffix == ".onnx":
        return _from_onnx(path)
    tensorflow = _tensorflow()
    with raised_as(ModelError, "TensorFlow cannot convert the model", REMEDY):
        if path is not None:
            converted = _of_path(tensorflow, path)
        elif hasattr(source, "get_concrete_function"):
            converted = _of_function(tensorflow, _traced(tensorflow, source, example))
        elif hasattr(source, "structured_input_signature"):
            converted = _of_function(tensorflow, source)
        elif hasattr(source, "signatures"):
            converted = _of_function(tensorflow, source.signatures[ENTRY], source)
        else:
            converted = _of_keras(tensorflow, source, example)
        return _in_users_words(converted)


def is_converted(source: Any) -> bool:
    """True for what LiteRT takes as it is: a ``.tflite`` file, or one that is read already."""
    is_path = isinstance(source, (str, Path))
    return (
        Path(source).suffix == ".tflite"
        if is_path
        else isinstance(source, schema.ModelT)
    )


def _tensorflow() -> Any:
    """Import TensorFlow.

    Raises:
        MissingFramework: If it is not installed.
    """
    try:
        import tensorflow
    except ImportError as error:
        raise MissingFramework(
            f"TensorFlow converts this model, and cannot be loaded: {error}; "
            'pip install "octavo[tensorflow]"'
        ) from error
    return tensorflow


def _from_onnx(path: Path) -> bytes:
    try:
        from .onnx_door import converted
    except ImportError as error:
        raise MissingFramework(
            f"the onnx package reads {path.name}, and cannot be loaded: {error}; "
            'pip install "octavo[litert]" onnx'
        ) from error
    return converted(path)


def _of_path(tensorflow: Any, path: Path) -> _Converted:
    if path.suffix in KERAS_FILES:
        # What is not Keras' own (custom layers, functions) is not loaded without the user's word.
        with raised_as(
            ModelError,
            f"Keras cannot load {path}",
            "load it yourself (with custom_objects=...) and pass the model",
        ):
            model = tensorflow.keras.models.load_model(path, compile=False)
        return _of_keras(tensorflow, model, None)
    if not (path / SAVED_MODEL).is_file():
        raise ModelError(f"{path} is no SavedModel: it holds no {SAVED_MODEL}")
    return _of_saved_model(tensorflow, path, str(path))


def _of_saved_model(tensorflow: Any, folder: Path, what: str) -> _Converted:
    with raised_as(ModelError, f"{what} cannot be converted", REMEDY):
        loaded = tensorflow.saved_model.load(str(folder))
        if ENTRY not in loaded.signatures:
            raise ModelError(
                f"{what} has no signature {ENTRY!r} (it has {sorted(loaded.signatures)}); "
                "pass the concrete function: tf.saved_model.load(folder).signatures[name]"
            )
        converter = tensorflow.lite.TFLiteConverter.from_saved_model(
            str(folder), signature_keys=[ENTRY]
        )
        names = _inputs(tensorflow, loaded.signatures[ENTRY])
        return _Converted(_by_converter(converter, what), names)


def _by_converter(converter: Any, what: str) -> bytes:
    """Run TensorFlow's converter.

    Raises:
        ModelError: With the remedy for recurrent layers, which it takes for one batch size only.
    """
    try:
        return bytes(converter.convert())
    except Exception as error:
        if "TensorList" not in str(error):
            raise
        raise ModelError(
            f"TensorFlow cannot convert the recurrent layers of {what} for any batch size: give "
            "the model a fixed one (keras.Input(batch_shape=(1, ...))), or its layers unroll=True"
        ) from error


def _of_keras(tensorflow: Any, model: Any, example: Batch | None) -> _Converted:
    if not getattr(model, "built", True) or not getattr(model, "inputs", None):
        if example is None:
            raise ModelError(
                "the Keras model has never been called, so its shapes are unknown: call it on a "
                "batch, or give calibration data"
            )
        # Keras' models take one tree of arrays; of (inputs, labels) it is the first.
        call = example.args if isinstance(example, Call) else example
        model(call if isinstance(call, Mapping) else call[0])
    halves = [
        layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "compute_dtype", None) in HALVES
    ]
    if halves:
        raise ModelError(
            f"layer {halves[0]!r} of the Keras model computes in 16 bits, and LiteRT's kernels do "
            "not: build the model with dtype policy 'float32' and load its weights into that"
        )
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        model.export(folder, verbose=False)
        what = f"the Keras model {model.name!r}"
        found = _of_saved_model(tensorflow, Path(folder), what)
    inputs = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
    outputs = getattr(model, "output_names", None) or ()
    return _Converted(found.data, inputs, outputs, model)


def _of_function(tensorflow: Any, function: Any, owner: Any = None) -> _Converted:
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions(
        [function], owner or function
    )
    data = _by_converter(converter, "the function")
    return _Converted(data, _inputs(tensorflow, function))


def _inputs(tensorflow: Any, function: Any) -> list[str]:
    """Return the names of a concrete function's inputs in the order of its call."""
    arguments, named = function.structured_input_signature
    specs = [*tensorflow.nest.flatten(arguments), *tensorflow.nest.flatten(named)]
    return [str(spec.name) for spec in specs if hasattr(spec, "shape")]


def _traced(tensorflow: Any, function: Any, example: Batch | None) -> Any:
    """Return a ``tf.function`` for one signature: its own, or an example's with any batch size."""
    if function.input_signature is not None:
        return function.get_concrete_function()
    if example is None:
        raise ModelError(
            "the tf.function takes any shapes: give it an input_signature, or calibration data"
        )
    if isinstance(example, Mapping):
        ordered, named = (), dict(example)
    elif isinstance(example, Call):
        ordered, named = example.args, dict(example.kwargs)
    else:
        # What is beyond its parameters are labels.
        count = len(signature(function.python_function).parameters)
        ordered, named = tuple(example)[:count], {}
    kind = _any_batch(tensorflow)
    specs, by_name = tensorflow.nest.map_structure(kind, (ordered, named))
    return function.get_concrete_function(*specs, **by_name)


def _any_batch(tensorflow: Any) -> Any:
    def spec(value: Any) -> Any:
        array = np.asarray(value)
        shape = (None, *array.shape[1:]) if array.ndim else ()
        return tensorflow.TensorSpec(shape, array.dtype)

    return spec


def _in_users_words(converted: _Converted) -> bytes:
    """Return the file with inputs and outputs in the model's order, and named operators."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(converted.data), 0)
    main = model.subgraphs[0]
    for entry in model.signatureDefs or ():
        if entry.subgraphIndex == 0:
            main.inputs = _ordered(main.inputs, entry.inputs, converted.inputs)
            main.outputs = _ordered(main.outputs, entry.outputs, converted.outputs)
    if converted.model is not None:
        named_by_layers(model, converted.model)
    writer = flatbuffers.Builder(1024)
    writer.Finish(model.Pack(writer), b"TFL3")
    return bytes(writer.Output())


def _ordered(
    tensors: Iterable[int], entries: Sequence[Any], names: Sequence[str]
) -> list[int]:
    """Return a graph's ends as the user's names are ordered; as they are where names differ.

    The converter has them in an order of its own; callers without names need theirs.
    """
    known = {entry.name.decode(): int(entry.tensorIndex) for entry in entries or ()}
    if sorted(known) != sorted(names):
        names = sorted(known, key=_numbered)
    ordered = [known[name] for name in names]
    present = [int(index) for index in tensors]
    return ordered if sorted(ordered) == sorted(present) else present


def _numbered(name: str) -> tuple[str, int]:
    """Return what sorts names by the number at their end: output_2 before output_10."""
    word, _, number = name.rpartition("_")
    return (word, int(number)) if number.isdigit() else (name, -1)
