"""What moves elements and computes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .building import Shape, Value, channels_last, identity
from .layout import Conversion, Writer, lasting
from .reading import Node


def transpose(state: Conversion, node: Node) -> None:
    """Transpose: the axes get other names, and nothing moves before somebody asks."""
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    axes = node.attributes.get("perm", range(rank)[::-1])
    state.tensor(node.inputs[0], value.natural)
    held = {
        tuple(list(axes).index(axis) for axis in order): index
        for order, index in value.held.items()
    }
    shape = tuple(value.shape[axis] for axis in axes)
    state.same(node, node.inputs[0], Value(shape, value.dtype, held))


def passed(state: Conversion, node: Node) -> None:
    """Identity, Dropout: what does nothing when a model is used."""
    state.same(node, node.inputs[0], state.value(node.inputs[0]))


def reshape(state: Conversion, node: Node) -> None:
    """Reshape and Flatten."""
    value = state.value(node.inputs[0])
    shape = _wanted(state, node, value)
    if value.shape == shape:
        passed(state, node)
        return
    source = value.natural
    is_image = source == channels_last(4) and value.held
    flattens = len(shape) == 2 and shape[0] == value.shape[0]
    moves = lasting(source, value.shape) != lasting(identity(len(source)), value.shape)
    if is_image and flattens and moves:
        state.same(node, node.inputs[0], Value(shape, value.dtype, image=value))
        return
    batch, channels, *sizes = value.shape if is_image else (0, 0)
    if is_image and shape == (batch, channels, int(np.prod(sizes))):
        # Rows and columns lie beside each other: they become one axis where they are.
        stored = state.reshaped(
            value.held[source], node.name, (batch, shape[2], channels), value.dtype
        )
        state.values[node.outputs[0]] = Value(shape, value.dtype, {(0, 2, 1): stored})
        return
    order = identity(len(source)) if moves or not value.held else source
    x = state.tensor(node.inputs[0], order)
    index = state.reshaped(x, node.name, shape, value.dtype)
    state.values[node.outputs[0]] = Value(
        shape, value.dtype, {identity(len(shape)): index}
    )


def squeeze(state: Conversion, node: Node) -> None:
    """Squeeze and Unsqueeze: axes of one element come and go, the others stay as they lie."""
    value = state.value(node.inputs[0])
    shape = state.graph.shape(node.outputs[0])
    old, new = value.natural, len(shape)
    x = state.tensor(node.inputs[0], old)
    rank = new if node.kind == "Unsqueeze" else len(old)
    found = state.known(node, "axes", 1)
    if found is None:
        found = [axis for axis, size in enumerate(value.shape) if size == 1]
    axes = {axis % rank for axis in found}
    kept = [axis for axis in range(rank) if axis not in axes]
    if node.kind == "Unsqueeze":
        order = [kept[axis] for axis in old]
        for axis in sorted(axes):
            # Before the axis that follows it in ONNX, or else last.
            place = order.index(axis + 1) if axis + 1 in order else len(order)
            order.insert(place, axis)
    else:
        order = [kept.index(axis) for axis in old if axis in kept]
    stored = tuple(shape[axis] for axis in order)
    index = state.reshaped(x, node.name, stored, value.dtype)
    state.values[node.outputs[0]] = Value(shape, value.dtype, {tuple(order): index})


def _wanted(state: Conversion, node: Node, value: Value) -> Shape:
    """Return the shape that a node asks for, with one size at most that is not known."""
    found = state.graph.shape(node.outputs[0])
    if node.kind == "Reshape" and found.count(-1) > 1:
        asked = state.known(node, "shape", 1) or []
        found = _by_ratio(value.shape, asked)
    if found.count(-1) > 1:
        raise node.refused(
            "several sizes are only known when the model runs; export it with fixed shapes"
        )
    return found


def _by_ratio(old: Shape, asked: Sequence[int]) -> Shape:
    """Return what is asked for (0: as before; -1: the rest), where a size is not known that stays
    as it was."""
    new = [old[i] if size == 0 else size for i, size in enumerate(asked)]
    stays = [i for i, size in enumerate(asked) if size == 0 and old[i] < 0]
    rest = [i for i, size in enumerate(asked) if size == -1]
    if len(rest) == 1 and len(stays) == old.count(-1):
        total = int(np.prod([size for size in old if size > 0]))
        others = int(np.prod([size for size in new if size > 0]))
        new[rest[0]] = total // others
    return tuple(new)


def concat(state: Conversion, node: Node) -> None:
    """Concat along one axis."""
    rank = len(state.graph.shape(node.outputs[0]))
    order = state.common(node.inputs, rank)
    options = schema.ConcatenationOptionsT()
    options.axis = order.index(node.attributes["axis"] % rank)
    tensors = [state.tensor(name, order) for name in node.inputs]
    state.emit(node, "CONCATENATION", tensors, order, options)


def split(state: Conversion, node: Node) -> None:
    """Split into known sizes."""
    value = state.value(node.inputs[0])
    order = value.natural
    axis = node.attributes.get("axis", 0) % len(value.shape)
    sizes = [state.graph.shape(name)[axis] for name in node.outputs]
    x = state.tensor(node.inputs[0], order)
    made = [state.made(node, order, i) for i in range(len(node.outputs))]
    place = state.builder.constant("axis", np.array(order.index(axis), np.int32))
    options = schema.SplitVOptionsT()
    options.numSplits = len(made)
    tensors = [x, state.integers(sizes), place]
    state.builder.operator("SPLIT_V", tensors, made, options)


def slices(state: Conversion, node: Node) -> None:
    """Slice with known bounds."""
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    starts, ends = state.known(node, "starts", 1), state.known(node, "ends", 2)
    axes = state.known(node, "axes", 3) or list(range(len(starts)))
    steps = state.known(node, "steps", 4) or [1] * len(starts)
    if min(steps) < 1:
        raise node.refused("it goes backwards")
    order = value.natural
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    open_ends = set(range(rank))
    largest = np.iinfo(np.int32).max
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = order.index(axis % rank)
        begin[place], stride[place] = max(min(start, largest), -largest), step
        end[place] = max(min(stop, largest), -largest)
        if stop < largest:
            open_ends.discard(place)
    options: Any = schema.StridedSliceOptionsT()
    options.endMask = sum(1 << place for place in open_ends)
    bounds = [state.integers(numbers) for numbers in (begin, end, stride)]
    x = state.tensor(node.inputs[0], order)
    state.emit(node, "STRIDED_SLICE", [x, *bounds], order, options)


def gather(state: Conversion, node: Node) -> None:
    """Gather: rows of a table by number."""
    rank = len(state.value(node.inputs[0]).shape)
    options = schema.GatherOptionsT()
    options.axis = node.attributes.get("axis", 0) % rank
    indices = state.constant(node.inputs[1])
    if indices is None:
        where = state.tensor(node.inputs[1])
    else:
        size = state.value(node.inputs[0]).shape[options.axis]
        positive = np.where(indices < 0, indices + size, indices)
        where = state.builder.constant("indices", positive.astype(np.int32))
    x = state.tensor(node.inputs[0])
    state.emit(node, "GATHER", [x, where], options=options)


def pad(state: Conversion, node: Node) -> None:
    """Pad with a constant or mirrored."""
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    mode = node.attributes.get("mode", "constant")
    widths = state.known(node, "pads", 1)
    if mode not in ("constant", "reflect") or node.given(3) or min(widths) < 0:
        raise node.refused(f"LiteRT has no such padding ({mode})")
    order = value.natural
    pairs = [(widths[axis], widths[axis + rank]) for axis in order]
    stored = state.builder.constant("paddings", np.array(pairs, np.int32))
    x = state.tensor(node.inputs[0], order)
    if mode == "reflect":
        options: Any = schema.MirrorPadOptionsT()
        options.mode = schema.MirrorPadMode.REFLECT
        state.emit(node, "MIRROR_PAD", [x, stored], order, options)
        return
    filled = (state.known(node, "value", 2) or [0.0])[0]
    if filled == 0:
        state.emit(node, "PAD", [x, stored], order, schema.PadOptionsT())
        return
    number = state.number(filled)
    state.emit(node, "PADV2", [x, stored, number], order, schema.PadV2OptionsT())


def expand(state: Conversion, node: Node) -> None:
    """Expand: repeat along axes of one element."""
    value = state.value(node.inputs[0])
    shape = state.graph.shape(node.outputs[0])
    if value.shape == shape:
        passed(state, node)
        return
    x = state.tensor(node.inputs[0])
    options = schema.BroadcastToOptionsT()
    state.emit(node, "BROADCAST_TO", [x, state.sizes(node, shape)], options=options)


def cast(state: Conversion, node: Node) -> None:
    """Cast to another dtype."""
    value = state.value(node.inputs[0])
    if state.graph.dtype(node.outputs[0]) == value.dtype:
        passed(state, node)
        return
    order = value.natural
    x = state.tensor(node.inputs[0], order)
    state.emit(node, "CAST", [x], order, schema.CastOptionsT())


WRITERS: dict[str, Writer] = {
    "Transpose": transpose,
    "Identity": passed,
    "Dropout": passed,
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand,
    "Cast": cast,
}
