"""Whole LSTMs and GRUs on torch's integer kernels, from plain tensors; as an operator too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from octavo.adapters.pytorch.kernels import fbgemm
from octavo.adapters.pytorch.kernels.faults import fault
from octavo.adapters.pytorch.kernels.layouts import content, layout
from octavo.adapters.pytorch.kernels.operators import register

from .projected_lstm import ProjectedCell, run_projected, seven_bits

Tensor = torch.Tensor
States = tuple[Tensor, ...]
CellTensors = tuple[Sequence[Tensor], Sequence[Tensor], list[Tensor]]
"""Codes and scales of a cell's matrices, and its biases in float32 (two, or none)."""


class NetworkForm(NamedTuple):
    """What a network is, beside its tensors.

    Attributes:
        kind: ``lstm`` or ``gru``.
        layers: How many layers.
        bidirectional: Two directions a layer.
        batch_first: The first axis of the input is the batch.
    """

    kind: str
    layers: int
    bidirectional: bool
    batch_first: bool


def run_layers(
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    *form: Any,
) -> list[Tensor]:
    """Run a network; each matrix is laid out at the first call.

    Args:
        x: float32 (batch, steps, inputs), or (steps, batch, inputs), or the data of a packed
            sequence.
        sizes: Batch sizes of a packed sequence, else None.
        states: Of which each is (layers * directions, batch, hidden), float32.
        matrices: int8 codes in uint8 (rows, features), and float32 scales, of input, recurrent and
            any projection matrix of each cell.
        biases: Input and recurrent bias of each cell; or none.
        form: What :class:`NetworkForm` takes, one by one, as operators pass it.

    Returns:
        Outputs, and the last states.
    """
    network = NetworkForm(*form)
    is_projected = network.kind == "lstm" and states[0].shape[2] != states[1].shape[2]
    each = _each_cell(matrices, biases, 3 if is_projected else 2)
    if is_projected:
        y, last = run_projected(
            x,
            sizes,
            states,
            [_projected_cell(*tensors) for tensors in each],
            bidirectional=network.bidirectional,
            batch_first=network.batch_first,
        )
    else:
        cells = [_torch_cell(*tensors) for tensors in each]
        y, last = run_cells(x, sizes, states, cells, network)
    return [y, *last]


def _each_cell(
    matrices: Sequence[Tensor], biases: Sequence[Tensor], count: int
) -> Iterator[CellTensors]:
    """Yield what belongs to each layer and direction, whose matrices are ``count``."""
    span = 2 * count
    for cell in range(len(matrices) // span):
        own = matrices[span * cell : span * (cell + 1)]
        shifts = [b.float() for b in biases[2 * cell : 2 * cell + 2]]
        yield own[::2], own[1::2], shifts


def _projected_cell(
    codes: Sequence[Tensor], scales: Sequence[Tensor], biases: list[Tensor]
) -> ProjectedCell:
    # Both biases are added to the same sums: they are laid out as one, with the inputs.
    bias = biases[0] + biases[1] if biases else None
    return ProjectedCell(
        inputs=_rows(codes[0], scales[0], bias),
        state=_rows(codes[1], scales[1], None),
        projection=_rows(codes[2], scales[2], None),
    )


def _torch_cell(codes: Sequence[Tensor], scales: Sequence[Tensor], biases: list[Tensor]) -> Any:
    shifts = biases or [torch.zeros(codes[0].shape[0])] * 2
    rows = [_rows(*parts) for parts in zip(codes, scales, shifts, strict=True)]
    return make_cell(*rows, *shifts)


def _rows(codes: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    key = ("rows", content(scale), content(bias))
    return layout(
        codes,
        key,
        lambda: fbgemm.pack_rows(codes.view(torch.int8), scale.reshape(-1), bias),
    )


def make_cell(input_rows: Any, state_rows: Any, input_bias: Tensor, state_bias: Tensor) -> Any:
    """Return one layer and direction for :func:`run_cells`.

    Args:
        input_rows: What ``fbgemm.pack_rows`` made of the input matrix.
        state_rows: And of the recurrent one.
        input_bias: float32 (gates * hidden,).
        state_bias: Likewise.
    """
    return torch.ops.quantized.make_quantized_cell_params_dynamic(
        input_rows, state_rows, input_bias, state_bias, False
    )


def run_cells(
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    cells: Sequence[Any],
    form: NetworkForm,
) -> tuple[Tensor, States]:
    """Run a network on torch's integer kernels.

    Args:
        x: See :func:`run_layers`.
        sizes: See there.
        states: See there.
        cells: One from :func:`make_cell` for each layer and direction.
        form: What the network is.

    Returns:
        Outputs, and the last states.
    """
    head = (x,) if sizes is None else (x, sizes)
    # Has biases, layers, dropout, training, directions.
    settings: tuple[Any, ...] = (True, form.layers, 0.0, False, form.bidirectional)
    if sizes is None:
        settings = (*settings, form.batch_first)
    with warnings.catch_warnings():
        # torch announces the end of its quantized tensors
        warnings.simplefilter("ignore")
        if form.kind == "lstm":
            lstm: Any = torch.quantized_lstm
            how = {"dtype": torch.qint8, "use_dynamic": True}
            y, *last = lstm(*head, list(states), list(cells), *settings, **how)
        else:
            gru: Any = torch.quantized_gru
            y, *last = gru(*head, states[0], list(cells), *settings)
    return y, tuple(last)


def _result_form(
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    *form: Any,
) -> list[Tensor]:
    directions = 2 if NetworkForm(*form).bidirectional else 1
    width = states[0].shape[2] * directions
    y = x.new_empty((*x.shape[:-1], width))
    return [y, *(torch.empty_like(s) for s in states)]


register(
    "int8_recurrent(Tensor x, Tensor? sizes, Tensor[] states, Tensor[] matrices, Tensor[] biases, "
    "str kind, int layers, bool bidirectional, bool batch_first) -> Tensor[]",
    lambda *arguments: [y.contiguous() for y in run_layers(*arguments)],
    _result_form,
)


@cache
def missing_recurrent(kind: str) -> str:
    """Return why the int8 kernel of ``lstm`` or ``gru`` cannot be used here.

    Empty when it was run and was right.
    """
    return fault(f"torch.quantized_{kind}", 0.03, lambda g: _probe(kind, g))


def _probe(kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a small network's outputs on the kernel, and in float64."""
    rows = 8 * (4 if kind == "lstm" else 3)
    x = torch.randn(2, 5, 16, generator=generator)
    h = torch.zeros(1, 2, 8)
    codes = [seven_bits((rows, columns), generator) for columns in (16, 8)]
    scale = torch.full((rows,), 4e-3)
    bias = torch.linspace(-1, 1, rows)
    packed = [fbgemm.pack_rows(c, scale, bias) for c in codes]
    cell = make_cell(packed[0], packed[1], bias, bias)
    states = [h, h] if kind == "lstm" else [h]
    y, _ = run_cells(x, None, states, [cell], NetworkForm(kind, 1, False, True))
    flat = [*(c.double() * 4e-3 for c in codes), bias.double(), bias.double()]
    exact: Any = torch.lstm if kind == "lstm" else torch.gru
    given = [s.double() for s in states] if kind == "lstm" else h.double()
    expected = exact(x.double(), given, flat, True, 1, 0.0, False, False, True)[0]
    return y, expected
