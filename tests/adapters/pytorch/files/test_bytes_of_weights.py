"""A weight takes the bytes in a file that are told before anything is quantized, and comes back as
it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.files.stored_weights import read_weight, write_weight
from octavo.adapters.pytorch.offers import capability
from octavo.core.contract.plugins import PluginHost
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.quantizing.weights import WeightRequest, quantize_weight
from octavo.core.values.graph import Op, Weight
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.sizes import scheme_bytes
from tests.helpers import opened_torch

HOST = PluginHost(third_party=False)
SHAPE = (33, 3, 128)
"""An odd number of rows; rows of 384 values are whole groups of 32, 64 and 128."""


def offered() -> list[OpScheme]:
    """Every weight that an offer of the CPU may have, in each format of its scales."""
    found = {
        scheme.weight: scheme
        for offers in capability("cpu").offers.values()
        for offer in offers
        for scheme in offer.schemes
    }
    return [scheme for weight, scheme in found.items() if weight is not None]


def made(scheme: OpScheme, array: torch.Tensor) -> QuantizedTensor:
    op = Op("op", "conv", weight=Weight("w", tuple(array.shape)))
    request = WeightRequest(op, (op,), scheme, frozenset(), {})
    return quantize_weight(request, array, HOST)


@pytest.mark.parametrize("scheme", offered(), ids=lambda s: str(s.weight))
def test_bytes_believed_are_those_in_the_file(scheme: OpScheme) -> None:
    torch.manual_seed(0)
    array = torch.randn(SHAPE) * torch.rand(33, 1, 1)
    weight = made(scheme, array)
    tensors: dict[str, torch.Tensor] = {}
    row = write_weight("op", weight, tensors)
    assert sum(t.nbytes for t in tensors.values()) == scheme_bytes(scheme, SHAPE, 0)
    again = read_weight("op", row, tensors)
    assert again.codes.dtype == weight.codes.dtype
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.params.scale, weight.params.scale)
    assert torch.equal(again.params.zero_point, weight.params.zero_point)
    assert torch.equal(again.dequantize(), weight.dequantize())


def test_zero_points_that_are_no_codes_survive() -> None:
    codes = torch.zeros(2, 32, dtype=torch.uint8)
    spec = QuantSpec(dtype="uint4", symmetric=False, granularity="channel")
    zero_point = torch.tensor([-3, 20], dtype=torch.int32)
    weight = QuantizedTensor(codes, QuantParams(torch.ones(2), zero_point, spec, 0))
    tensors: dict[str, torch.Tensor] = {}
    row = write_weight("op", weight, tensors)
    assert torch.equal(read_weight("op", row, tensors).params.zero_point, zero_point)


def is_stored(scheme: OpScheme, bits: int) -> bool:
    return scheme.mode == "weight_only" and scheme.weight_bits == bits


class Mixed(nn.Module):
    """A table, a linear layer and a head whose weight is the table's."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 128)
        self.body = nn.Linear(128, 128)
        self.head = nn.Linear(128, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(self.table(ids))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_saved_model_has_the_bytes_that_its_space_tells(
    bits: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    batch = (np.arange(10).reshape(2, 5),)
    opened = opened_torch(Mixed().to(dtype).eval(), batch)
    space = build_space(opened)
    choice = {}
    for unit in space.tunable:
        # The last unit stays in float: its bytes are told too.
        fitting = [s for s in unit.choices if is_stored(s, bits)]
        if unit is not space.tunable[-1] and fitting:
            choice[unit.name] = fitting[0]
    assert choice
    recipe = space.recipe(choice)
    candidate = Realizer(opened, space, HOST).candidate(recipe)
    bias = 128 * dtype.itemsize
    assert sum(candidate.bytes_by_op().values()) == space.weight_bytes(recipe) + bias
