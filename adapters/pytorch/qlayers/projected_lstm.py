"""LSTMs that project their state (``proj_size``) on integer kernels.

Torch's quantized LSTM does not take them.

Sak, Senior and Beaufays 2014, "Long Short-Term Memory Recurrent Neural Network Architectures for
Large Scale Acoustic Modeling" (arXiv:1402.1128), section 3: the hidden state is W_hr (o * tanh(c)).
A layer's inputs are multiplied for all steps at once, quantized on their range over the whole
sequence; state and projection step by step, each quantized on its own range. All three products are
int8 (uint8 inputs, asymmetric, per tensor); gates and states are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from octavo.adapters.pytorch.kernels import fbgemm
from octavo.adapters.pytorch.kernels.faults import fault

Tensor = torch.Tensor
_States = tuple[Tensor, Tensor]
_Outcome = tuple[Tensor, tuple[Tensor, ...]]
_SCALE = 4e-3
"""Of the weight codes on which the kernel is tried."""


@dataclass(frozen=True)
class ProjectedCell:
    """One layer and direction: its three matrices, each from ``fbgemm.pack_rows``.

    Attributes:
        inputs: (4 * hidden, inputs), with the sum of both biases.
        state: (4 * hidden, projected).
        projection: (projected, hidden).
    """

    inputs: Any
    state: Any
    projection: Any

    def run(
        self, x: Tensor, sizes: Sequence[int], h: Tensor, c: Tensor, *, backwards: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run all steps.

        Args:
            x: The steps' inputs one after the other: float32 (sum of sizes, inputs).
            sizes: How many sequences each step has, the longest sequences first, as packed
                sequences have them.
            h: First hidden state (batch, projected); a sequence keeps its own from its last step
                on.
            c: First cell state (batch, hidden).
            backwards: From the last step to the first.

        Returns:
            Hidden states in the order of ``x``, and the last hidden and cell state.
        """
        from_inputs = fbgemm.linear_rows(x, self.inputs)
        gates = torch.split(from_inputs, list(sizes))
        outputs: list[Tensor] = []
        steps = range(len(sizes))
        for step in reversed(steps) if backwards else steps:
            n = sizes[step]
            from_state = fbgemm.linear_rows(h[:n], self.state)
            total = gates[step] + from_state
            i, f, g, o = total.chunk(4, 1)
            kept = torch.sigmoid(f) * c[:n]
            added = torch.sigmoid(i) * torch.tanh(g)
            cell = kept + added
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            y = fbgemm.linear_rows(hidden, self.projection)
            outputs.append(y)
            h = _beginning(h, y)
            c = _beginning(c, cell)
        if backwards:
            outputs.reverse()
        return torch.cat(outputs), h, c


def _beginning(states: Tensor, new: Tensor) -> Tensor:
    """Return states whose first sequences have new ones."""
    count = len(new)
    if count == len(states):
        return new
    rest = states[count:]
    return torch.cat([new, rest])


def run_projected(
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    cells: Sequence[ProjectedCell],
    *,
    bidirectional: bool,
    batch_first: bool,
) -> _Outcome:
    """Run a whole network.

    Args:
        x: float32 (batch, steps, inputs), or (steps, batch, inputs), or the data of a packed
            sequence.
        sizes: Batch sizes of a packed sequence, else None.
        states: Hidden (layers * directions, batch, projected) and cell states (layers * directions,
            batch, hidden), float32.
        cells: One for each layer and direction.
        bidirectional: Two directions a layer.
        batch_first: The first axis of ``x`` is the batch.

    Returns:
        Outputs in the form of ``x``, and the last states.
    """
    directions = 2 if bidirectional else 1
    if sizes is not None:
        counts = [int(n) for n in sizes]
        return _run_steps(x, counts, states, cells, directions)
    steps = x.transpose(0, 1) if batch_first else x
    count, batch, features = steps.shape
    flat = steps.reshape(-1, features)
    counts = [batch] * count
    y, last = _run_steps(flat, counts, states, cells, directions)
    y = y.view(count, batch, y.shape[-1])
    if batch_first:
        y = y.transpose(0, 1)
    return y, last


def _run_steps(
    flat: Tensor,
    counts: list[int],
    states: Sequence[Tensor],
    cells: Sequence[ProjectedCell],
    directions: int,
) -> _Outcome:
    """Run all layers over steps that lie one after the other, each of so many sequences."""
    hidden, cell_states = states
    last: list[_States] = []
    for first in range(0, len(cells), directions):
        parts = []
        for at in range(first, first + directions):
            is_backwards = at > first
            y, h, c = cells[at].run(
                flat, counts, hidden[at], cell_states[at], backwards=is_backwards
            )
            parts.append(y)
            last.append((h, c))
        flat = parts[0]
        if directions == 2:
            flat = torch.cat(parts, -1)
    by_kind = zip(*last, strict=True)
    after = tuple(torch.stack(kind) for kind in by_kind)
    return flat, after


@cache
def missing_projected() -> str:
    """Return why this machine cannot run them; empty when it did and was right."""
    return fault("quantized::linear_dynamic in an LSTM with projections", 0.05, _probe)


def _probe(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a small network's outputs on the kernel, and in float64."""
    x = torch.randn(2, 5, 16, generator=generator)
    h = torch.zeros(1, 2, 4)
    c = torch.zeros(1, 2, 8)
    bias = torch.linspace(-1, 1, 32)
    inputs = seven_bits((32, 16), generator)
    state = seven_bits((32, 4), generator)
    projection = seven_bits((4, 8), generator)
    wide = torch.full((32,), _SCALE)
    cell = ProjectedCell(
        inputs=fbgemm.pack_rows(inputs, wide, bias),
        state=fbgemm.pack_rows(state, wide, None),
        projection=fbgemm.pack_rows(projection, wide[:4], None),
    )
    y, _ = run_projected(
        x,
        None,
        states=(h, c),
        cells=[cell],
        bidirectional=False,
        batch_first=True,
    )
    no_bias = torch.zeros(32, dtype=torch.float64)
    flat = [
        inputs.double() * _SCALE,
        state.double() * _SCALE,
        bias.double(),
        no_bias,
        projection.double() * _SCALE,
    ]
    exact: Any = torch.lstm
    given = [h.double(), c.double()]
    # Has biases, layers, dropout, training, directions, whether the batch comes first.
    expected = exact(x.double(), given, flat, True, 1, 0.0, False, False, True)[0]
    return y, expected


def seven_bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return random int8 codes of seven bits, on which the kernels of no CPU saturate."""
    return torch.randint(-63, 64, shape, dtype=torch.int8, generator=generator)
