"""Values as extra outputs of the model, in parts that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnxruntime as ort
from onnx_ir import DataType, Graph, Model, Value

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.run.compiling import compile_model
from octavo.adapters.onnx.run.feeds import input_infos
from octavo.core.authoring.feeding import feed
from octavo.core.contract.adapter import Batch
from octavo.core.values.calls import flat, named

_BYTES_OF_AN_ELEMENT = 4
"""Of float32, which a prepared model computes in."""


@dataclass(frozen=True)
class Part:
    """Some values, and a session that puts them out.

    Attributes:
        session: Of the whole model.
        names: Of the values.
    """

    session: ort.InferenceSession
    names: list[str]


def make_parts(
    model: Model, config: OnnxConfig, batch: Batch, names: list[str]
) -> list[Part]:
    """Return a session for each part of the values that fits into ``config.observe_megabytes``.

    Sizes follow from the declared shapes and those of the first batch; where one is unknown, a run
    of that batch measures it.
    """
    counts = _declared_sizes(model, batch, names)
    unknown = [name for name in names if name not in counts]
    if unknown:
        counts |= _measured_sizes(model, config, batch, unknown)
    bound = config.observe_megabytes * 2**20
    current: list[str] = []
    parts = [current]
    held = 0
    for name in names:
        size = _BYTES_OF_AN_ELEMENT * counts[name]
        # A value that is larger than the bound by itself has a part of its own.
        if current and held + size > bound:
            current = []
            parts.append(current)
            held = 0
        current.append(name)
        held += size
    return [Part(parts_session(model, config, part), part) for part in parts]


def parts_session(
    model: Model, config: OnnxConfig, names: Sequence[str], *, sizes: bool = False
) -> ort.InferenceSession:
    """Return a session that also puts out the named values, or their element counts."""
    clone = model.clone()
    graph = clone.graph
    outputs = graph.outputs
    values = {v.name: v for node in graph for v in node.outputs}
    present = {v.name for v in outputs}
    for name in names:
        value = values[name]
        if sizes:
            size = _size_of(value, graph)
            outputs.append(size)
        elif name not in present:
            outputs.append(value)
    return compile_model(clone, config, lean=True).session


def _size_of(value: Value, graph: Graph) -> Value:
    """Let a graph count the elements of a value."""
    name = f"{value.name}_size"
    node = ir.node("Size", [value], name=name)
    count = node.outputs[0]
    count.name = name
    count.type = ir.TensorType(DataType.INT64)
    count.shape = ir.Shape([])
    graph.append(node)
    return count


def _measured_sizes(
    model: Model, config: OnnxConfig, batch: Batch, names: Sequence[str]
) -> dict[str, int]:
    """Return value -> elements, as one run of a batch has them."""
    session = parts_session(model, config, names, sizes=True)
    given = feed(batch, input_infos(session.get_inputs()))
    found = session.run([f"{name}_size" for name in names], given)
    return dict(zip(names, map(int, found), strict=True))


def _declared_sizes(model: Model, batch: Batch, names: Sequence[str]) -> dict[str, int]:
    """Return value -> elements, for those whose axes are numbers or axes of an input."""
    axes = _axes_of_inputs(model, batch)
    wanted = frozenset(names)
    found: dict[str, int] = {}
    for node in model.graph:
        for value in node.outputs:
            if value.name not in wanted or value.shape is None:
                continue
            lengths = _lengths(value.shape, axes)
            if lengths is not None:
                found[name_of(value)] = math.prod(lengths)
    return found


def _lengths(shape: ir.Shape, axes: dict[object, int]) -> list[int] | None:
    """Return the lengths of a value's axes; None where one is unknown."""
    found = []
    for axis in shape:
        if isinstance(axis, int):
            found.append(axis)
            continue
        name = axis.value
        if name not in axes:
            return None
        found.append(axes[name])
    return found


def _axes_of_inputs(model: Model, batch: Batch) -> dict[object, int]:
    """Return the lengths that a batch gives to the axes with names."""
    inputs = model.graph.inputs
    order = tuple(map(name_of, inputs))
    call = flat(batch, order)
    arrays = dict(named(call, order))
    found: dict[object, int] = {}
    for value in inputs:
        name = name_of(value)
        array = arrays.get(name)
        declared = value.shape or ()
        lengths = getattr(array, "shape", ())
        for axis, length in zip(declared, lengths, strict=False):
            if isinstance(axis, ir.SymbolicDim) and axis.value is not None:
                found[axis.value] = int(length)
    return found
