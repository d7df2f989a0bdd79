"""A quantized weight as arrays that broadcast against each other, for runtimes that decode it by
(codes - zero points) * scales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.tensor import QuantizedTensor

Shape = tuple[int, ...]


class WeightParts(NamedTuple):
    """Arrays of one rank that broadcast.

    Attributes:
        codes: As the tensor has them; in blocks, shape (rows, blocks, size).
        scale: float32; float16 where the tensor's scales are stored so.
        zero_point: In the codes' own type; None where all are 0.
        shape: That of the weight in the runtime's graph: ``codes`` has another one in blocks.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    shape: Shape


def weight_parts(
    tensor: QuantizedTensor, shape: Shape | None = None, axis: int = 0
) -> WeightParts:
    """Return a weight's codes, scales and zero points.

    Args:
        tensor: With codes in the shape that its op states.
        shape: The same elements as the runtime's graph has them: the groups of a convolution as an
            axis of their own in front, or further axes of one; None for the tensor's own.
        axis: Axis of the output channels in the tensor's own shape.

    Returns:
        ``group:N`` needs rows first (axis 0), and whole groups.
    """
    codes = to_numpy(tensor.codes)
    scale = to_numpy(tensor.params.scale)
    zero_point = to_numpy(tensor.params.zero_point)
    wanted = tuple(codes.shape) if shape is None else shape
    size = tensor.params.spec.group_size
    if size is not None:
        rows = codes.shape[0]
        codes = codes.reshape(rows, -1, size)
        meets: Shape = (rows, codes.shape[1], 1)
    else:
        meets = _meeting(tuple(codes.shape), wanted, axis)
        codes = codes.reshape(wanted)
    kind = np.float16 if tensor.params.spec.scale_dtype == "float16" else np.float32
    zeros = None
    if zero_point.any():
        zeros = _shaped(zero_point.astype(codes.dtype), meets)
    return WeightParts(codes, _shaped(scale.astype(kind), meets), zeros, wanted)


def _shaped(array: np.ndarray, meets: Shape) -> np.ndarray:
    """Return one number for each channel or block in a shape that broadcasts; one for all too."""
    return array.reshape(meets if array.ndim else (1,) * len(meets))


def _meeting(own: Shape, wanted: Shape, axis: int) -> Shape:
    """Return the shape in which one number per output channel meets a weight."""
    shape = [1] * len(wanted)
    has_groups = len(wanted) > len(own) and wanted[0] != own[0]
    if has_groups and axis == 0:
        # Groups, and the outputs of each.
        shape[0], shape[1] = wanted[0], wanted[1]
    else:
        place = axis + has_groups
        shape[place] = wanted[place]
    return tuple(shape)


__all__ = ["WeightParts", "weight_parts"]
