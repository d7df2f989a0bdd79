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
        gates = torch.split(fbgemm.linear_rows(x, self.inputs), list(sizes))
        outputs: list[Tensor] = [x] * len(sizes)
        steps = range(len(sizes))
        for step in reversed(steps) if backwards else steps:
            n = sizes[step]
            total = gates[step] + fbgemm.linear_rows(h[:n], self.state)
            i, f, g, o = total.chunk(4, 1)
            cell = torch.sigmoid(f) * c[:n] + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs[step] = fbgemm.linear_rows(hidden, self.projection)
            h = _beginning(h, outputs[step])
            c = _beginning(c, cell)
        return torch.cat(outputs), h, c


def _beginning(states: Tensor, new: Tensor) -> Tensor:
    """Return states whose first sequences have new ones."""
    if len(new) == len(states):
        return new
    return torch.cat([new, states[len(new) :]])


def run_projected(
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    cells: Sequence[ProjectedCell],
    *,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
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
        return _run_steps(x.reshape(-1, x.shape[-1]), counts, states, cells, directions)
    steps = x.transpose(0, 1) if batch_first else x
    count, batch = steps.shape[:2]
    flat = steps.reshape(-1, x.shape[-1])
    y, last = _run_steps(flat, [batch] * count, states, cells, directions)
    y = y.view(count, batch, y.shape[-1])
    return y.transpose(0, 1) if batch_first else y, last


def _run_steps(
    flat: Tensor,
    counts: list[int],
    states: Sequence[Tensor],
    cells: Sequence[ProjectedCell],
    directions: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run all layers over steps that lie one after the other, each of so many sequences."""
    hidden, cell_states = states
    last: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(cells), directions):
        parts = []
        for at in range(first, first + directions):
            is_backwards = at > first
            y, h, c = cells[at].run(
                flat, counts, hidden[at], cell_states[at], backwards=is_backwards
            )
            parts.append(y)
            last.append((h, c))
        flat = parts[0] if directions == 1 else torch.cat(parts, -1)
    return flat, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


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
    cell = ProjectedCell(
        fbgemm.pack_rows(inputs, torch.full((32,), 4e-3), bias),
        fbgemm.pack_rows(state, torch.full((32,), 4e-3), None),
        fbgemm.pack_rows(projection, torch.full((4,), 4e-3), None),
    )
    y, _ = run_projected(x, None, (h, c), [cell], bidirectional=False, batch_first=True)
    biases = [bias.double(), torch.zeros(32, dtype=torch.float64)]
    first, second, third = (m.double() * 4e-3 for m in (inputs, state, projection))
    flat = [first, second, *biases, third]
    exact: Any = torch.lstm
    given = [h.double(), c.double()]
    expected = exact(x.double(), given, flat, True, 1, 0.0, False, False, True)[0]
    return y, expected


def seven_bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return random int8 codes of seven bits, on which the kernels of no CPU saturate."""
    return torch.randint(-63, 64, shape, dtype=torch.int8, generator=generator)
