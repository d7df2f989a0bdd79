"""Functions of several weights in terms of functions of one.

These are cells of recurrent networks, bilinear forms, and products with a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor
_linear = nn.functional.linear


def lstm_cell(
    x: Tensor,
    state: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Any = None,
    b_hh: Any = None,
) -> tuple[Tensor, Tensor]:
    """Return hidden and cell state after one step, as ``torch.lstm_cell`` does."""
    hidden, cell = state
    from_input = _linear(x, w_ih, b_ih)
    from_state = _linear(hidden, w_hh, b_hh)
    gates = from_input + from_state
    i, f, g, o = gates.chunk(4, -1)
    kept = torch.sigmoid(f) * cell
    added = torch.sigmoid(i) * torch.tanh(g)
    cell = kept + added
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gru_cell(
    x: Tensor,
    hidden: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Any = None,
    b_hh: Any = None,
) -> Tensor:
    """Return the state after one step, as ``torch.gru_cell`` does."""
    from_input = _linear(x, w_ih, b_ih)
    from_state = _linear(hidden, w_hh, b_hh)
    r, z, n = from_input.chunk(3, -1)
    h_r, h_z, h_n = from_state.chunk(3, -1)
    update = torch.sigmoid(z + h_z)
    reset = torch.sigmoid(r + h_r)
    new = torch.tanh(n + reset * h_n)
    return new + update * (hidden - new)


def _rnn_cell(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        x: Tensor,
        hidden: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Any = None,
        b_hh: Any = None,
    ) -> Tensor:
        from_input = _linear(x, w_ih, b_ih)
        from_state = _linear(hidden, w_hh, b_hh)
        return act(from_input + from_state)

    return cell


def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """Return x1 W_o x2 for each output o, as ``F.bilinear`` does.

    Args:
        x1: (..., inputs 1).
        x2: (..., inputs 2).
        weight: (outputs, inputs 1, inputs 2).
        bias: (outputs,), or None.
    """
    half = torch.tensordot(x1, weight, ([-1], [1]))  # (..., outputs, inputs 2)
    terms = half * x2.unsqueeze(-2)
    y: Tensor = terms.sum(-1)
    return y if bias is None else y + bias


def addmm(
    start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Return beta start + alpha left @ right, as ``torch.addmm`` and ``torch.baddbmm`` do."""
    y = torch.matmul(left, right)
    if alpha != 1:
        y = y * alpha
    # A beta of zero ignores whatever start holds.
    if beta == 0:
        return y
    if beta != 1:
        start = start * beta
    return y + start


IN_PARTS: dict[str, Callable[..., Any]] = {
    "lstm_cell": lstm_cell,
    "gru_cell": gru_cell,
    "rnn_tanh_cell": _rnn_cell(torch.tanh),
    "rnn_relu_cell": _rnn_cell(torch.relu),
    "bilinear": bilinear,
    "addmm": addmm,
    "baddbmm": addmm,
}
"""Name of a function -> the same in parts."""
