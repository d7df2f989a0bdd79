"""Whether the tensors of a file can be trusted: what ``onnx.checker`` and ``onnx.load`` leave out.

Duplicate initializers, tensors with two payloads, external files that are too short or lie outside
the model's folder.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import onnx
import onnx_ir as ir

from octavo.core.errors import ModelError, UnsafeFile

from .mending import graphs

_PAYLOADS = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)


def check_tensors(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Look at every tensor of a model.

    Args:
        proto: As it was given.
        folder: Where its external data lies; None for a message that came from no file.

    Raises:
        ModelError: If a tensor is ambiguous, or its data is not there.
        UnsafeFile: If external data points outside the folder.
    """
    for graph in graphs(proto.graph):
        seen: set[str] = set()
        for tensor in graph.initializer:
            if tensor.name in seen:
                raise ModelError(
                    f"initializer {tensor.name!r} occurs twice in graph {graph.name!r}; "
                    "remove one, as runtimes differ in which they take"
                )
            seen.add(tensor.name)
            _check_tensor(tensor, folder)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _check_tensor(attribute.t, folder)


def _check_tensor(tensor: onnx.TensorProto, folder: Path | None) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, folder)
    held = [name for name in _PAYLOADS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        held.append("raw_data")
    if len(held) > 1:
        raise ModelError(
            f"tensor {tensor.name!r} has two payloads ({' and '.join(held)}); "
            "keep one, as runtimes differ in which they read"
        )


def _check_external(tensor: onnx.TensorProto, folder: Path | None) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"tensor {tensor.name!r} lies in external file {location!r}, and a ModelProto does not "
            "know its folder: give the model's path, or load the data first with "
            "onnx.load_external_data_for_model"
        )
    _check_place(tensor, folder, location)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", "-1"))
    except ValueError as error:
        raise ModelError(
            f"tensor {tensor.name!r} has a malformed external offset or length: {entries}; "
            "save the model again"
        ) from error
    _check_extent(tensor, folder, location, (offset, length))


def _check_place(tensor: onnx.TensorProto, folder: Path, location: str) -> None:
    """Refuse a location that leads out of the model's folder, by whatever way."""
    said = f"external data {location!r} of tensor {tensor.name!r}"
    relative = Path(location)
    is_outside = relative.is_absolute() or ".." in relative.parts or "\\" in location
    if not location or is_outside:
        raise UnsafeFile(
            f"external data of tensor {tensor.name!r} lies at {location!r}: "
            "only relative paths inside the model's folder are read"
        )
    # Any step of the way may be a link, not the file alone.
    step = folder
    for name in relative.parts:
        step = step / name
        if step.is_symlink():
            raise UnsafeFile(
                f"{said} is a symbolic link; put the file itself into the model's folder"
            )
    if not step.is_file():
        raise ModelError(f"{said} is missing in {folder}; copy it beside the model")
    if os.stat(step).st_nlink > 1:
        raise UnsafeFile(
            f"{said} is a hard link to another file; copy it beside the model"
        )


def _check_extent(
    tensor: onnx.TensorProto, folder: Path, location: str, extent: tuple[int, int]
) -> None:
    """Refuse a tensor that claims other bytes than it needs, or bytes that are not there.

    Args:
        tensor: Declares what it needs.
        folder: The model's.
        location: Of the file, in the folder.
        extent: At which byte the tensor begins, and how many it claims; -1 where it does not say.
    """
    offset, length = extent
    dtype = ir.DataType(tensor.data_type)
    bits = math.prod(tensor.dims) * dtype.bitwidth
    needed = -(-bits // 8)  # rounded up
    if length >= 0 and length != needed:
        raise ModelError(
            f"tensor {tensor.name!r} needs {needed} bytes and claims {length} of {location!r}; "
            "save the model again"
        )
    size = (folder / location).stat().st_size
    if offset < 0 or offset + needed > size:
        raise ModelError(
            f"external file {location!r} is too short: tensor {tensor.name!r} needs bytes "
            f"{offset} to {offset + needed}, it has {size}"
        )
