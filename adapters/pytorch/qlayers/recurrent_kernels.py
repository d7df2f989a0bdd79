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


class _CellTensors(NamedTuple):
    """The tensors of one layer and direction.

    Attributes:
        codes: Of each of its matrices.
        scales: Likewise.
        biases: Two in float32, or none.
    """

    codes: Sequence[Tensor]
    scales: Sequence[Tensor]
    biases: list[Tensor]


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
    if network.kind == "lstm" and _is_projected(states):
        y, last = run_projected(
            x,
            sizes,
            states,
            [_projected_cell(cell) for cell in _each_cell(matrices, biases, 3)],
            bidirectional=network.bidirectional,
            batch_first=network.batch_first,
        )
    else:
        cells = [_torch_cell(cell) for cell in _each_cell(matrices, biases, 2)]
        y, last = run_cells(x, sizes, states, cells, network)
    return [y, *last]


def _is_projected(states: Sequence[Tensor]) -> bool:
    """Return whether an LSTM's hidden state is narrower than its cell state."""
    hidden, cell = states
    return hidden.shape[2] != cell.shape[2]


def _each_cell(
    matrices: Sequence[Tensor], biases: Sequence[Tensor], count: int
) -> Iterator[_CellTensors]:
    """Yield what belongs to each layer and direction, whose matrices are ``count``."""
    # Codes and scales take turns.
    span = 2 * count
    for cell in range(len(matrices) // span):
        first = span * cell
        own = matrices[first : first + span]
        shifts = biases[2 * cell : 2 * cell + 2]
        yield _CellTensors(
            codes=own[::2],
            scales=own[1::2],
            biases=[b.float() for b in shifts],
        )


def _projected_cell(cell: _CellTensors) -> ProjectedCell:
    codes, scales, biases = cell
    # Both biases are added to the same sums: they are laid out as one, with the inputs.
    bias = None
    if biases:
        bias = biases[0] + biases[1]
    return ProjectedCell(
        inputs=_rows(codes[0], scales[0], bias),
        state=_rows(codes[1], scales[1], None),
        projection=_rows(codes[2], scales[2], None),
    )


def _torch_cell(cell: _CellTensors) -> Any:
    codes, scales, biases = cell
    if not biases:
        # The kernel's cells always have biases.
        none = torch.zeros(codes[0].shape[0])
        biases = [none, none]
    input_bias, state_bias = biases
    input_rows = _rows(codes[0], scales[0], input_bias)
    state_rows = _rows(codes[1], scales[1], state_bias)
    return make_cell(input_rows, state_rows, input_bias, state_bias)


def _rows(codes: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    def make() -> Any:
        signed = codes.view(torch.int8)
        return fbgemm.pack_rows(signed, scale.reshape(-1), bias)

    key = ("rows", content(scale), content(bias))
    return layout(codes, key, make)


def make_cell(
    input_rows: Any, state_rows: Any, input_bias: Tensor, state_bias: Tensor
) -> Any:
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
            y, *last = lstm(
                *head,
                list(states),
                list(cells),
                *settings,
                dtype=torch.qint8,
                use_dynamic=True,
            )
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
    hidden = states[0].shape[2]
    places = x.shape[:-1]
    y = x.new_empty((*places, hidden * directions))
    last = [torch.empty_like(s) for s in states]
    return [y, *last]


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
    form = NetworkForm(kind, 1, bidirectional=False, batch_first=True)
    y, _ = run_cells(x, None, states, [cell], form)
    weights = [c.double() * 4e-3 for c in codes]
    biases = [bias.double()] * 2
    return y, _expected(kind, x.double(), h.double(), [*weights, *biases])


def _expected(kind: str, x: Tensor, h: Tensor, flat: list[Tensor]) -> Tensor:
    """Return the outputs of a float network of one layer, whose states begin alike."""
    exact: Any = torch.lstm if kind == "lstm" else torch.gru
    given: Any = [h, h] if kind == "lstm" else h
    # Has biases, layers, dropout, training, directions, whether the batch comes first.
    y: Tensor = exact(x, given, flat, True, 1, 0.0, False, False, True)[0]
    return y
