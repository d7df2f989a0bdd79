"""LSTMs that project their state (``proj_size``) on integer kernels, which torch's quantized LSTM does not take.

Sak, Senior and Beaufays 2014, "Long Short-Term Memory Recurrent Neural Network Architectures for Large Scale Acoustic Modeling"
(arXiv:1402.1128), section 3: the hidden state is W_hr (o * tanh(c)). A layer's inputs are multiplied for all steps at once, quantized
on their range over the whole sequence; state and projection step by step, each quantized on its own range. All three products are
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
    """One layer and direction: its three matrices, each from ``kernels.pack_rows``.

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
            sizes: How many sequences each step has, the longest sequences first, as packed sequences have them.
            h: First hidden state (batch, projected); a sequence keeps its own from its last step on.
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
            i, f, g, o = (gates[step] + fbgemm.linear_rows(h[:n], self.state)).chunk(4, 1)
            cell = torch.sigmoid(f) * c[:n] + torch.sigmoid(i) * torch.tanh(g)
            outputs[step] = fbgemm.linear_rows(torch.sigmoid(o) * torch.tanh(cell), self.projection)
            h, c = _beginning(h, outputs[step]), _beginning(c, cell)
        return torch.cat(outputs), h, c


def _beginning(states: Tensor, new: Tensor) -> Tensor:
    """Return states whose first sequences have new ones."""
    return new if len(new) == len(states) else torch.cat([new, states[len(new) :]])


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
        x: float32 (batch, steps, inputs), or (steps, batch, inputs), or the data of a packed sequence.
        sizes: Batch sizes of a packed sequence, else None.
        states: Hidden (layers * directions, batch, projected) and cell states (layers * directions, batch, hidden), float32.
        cells: One for each layer and direction.
        bidirectional: Two directions a layer.
        batch_first: The first axis of ``x`` is the batch.

    Returns:
        Outputs in the form of ``x``, and the last states.
    """
    turned = sizes is None and batch_first
    steps = x.transpose(0, 1) if turned else x
    each = [steps.shape[1]] * steps.shape[0] if sizes is None else [int(n) for n in sizes]
    flat = steps.reshape(-1, x.shape[-1])
    directions = 2 if bidirectional else 1
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(0, len(cells), directions):
        parts = []
        for at in range(layer, layer + directions):
            y, h, c = cells[at].run(flat, each, states[0][at], states[1][at], backwards=at > layer)
            parts.append(y)
            last.append((h, c))
        flat = parts[0] if directions == 1 else torch.cat(parts, -1)
    y = flat if sizes is not None else flat.view(*steps.shape[:2], flat.shape[-1])
    return y.transpose(0, 1) if turned else y, tuple(
        torch.stack(parts) for parts in zip(*last, strict=True)
    )


@cache
def missing_projected() -> str:
    """Return why this machine cannot run them; empty when it did and was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, h, c = (
            torch.randn(2, 5, 16, generator=generator),
            torch.zeros(1, 2, 4),
            torch.zeros(1, 2, 8),
        )
        codes = [
            torch.randint(-63, 64, shape, dtype=torch.int8, generator=generator)
            for shape in ((32, 16), (32, 4), (4, 8))
        ]
        bias = torch.linspace(-1, 1, 32)
        rows = [
            fbgemm.pack_rows(m, torch.full((len(m),), 4e-3), b)
            for m, b in zip(codes, (bias, None, None), strict=True)
        ]
        cell = ProjectedCell(*rows)
        y, _ = run_projected(x, None, (h, c), [cell], bidirectional=False, batch_first=True)
        first, second, third = (m.double() * 4e-3 for m in codes)
        flat = [first, second, bias.double(), torch.zeros(32, dtype=torch.float64), third]
        function: Any = torch.lstm
        return y, function(
            x.double(), [h.double(), c.double()], flat, True, 1, 0.0, False, False, True
        )[0]

    return fault("quantized::linear_dynamic in an LSTM with projections", 0.05, run)
