"""Recurrent layers whose weights are stored in few bits and whose arithmetic is float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from octavo.adapters.pytorch.modules.kinds import RECURRENT_KINDS, bias_names
from octavo.core.numerics.tensor import QuantizedTensor

from .packed_weights import StoredWeight

Tensor = torch.Tensor
States = tuple[Tensor, ...]
"""Hidden states, and cell states of an LSTM: each (layers * directions, batch, hidden)."""
Outcome = tuple[Tensor, States]
"""Outputs, and the last states."""
_Result = tuple[Any, Any]
Given = Tensor | States
"""States as callers give them."""


class StoredRecurrent(nn.Module):
    """An LSTM, GRU or plain recurrent network that decodes one layer at a time, computed in float.

    Args:
        module: The float module, whose biases it shares.
        weights: The quantized weights, in the order of :func:`~.kinds.weight_names`.

    Attributes:
        floats: Names of the tensors that it shares with the float module.
    """

    def __init__(self, module: nn.RNNBase, weights: Sequence[QuantizedTensor]) -> None:
        super().__init__()
        self.kind = RECURRENT_KINDS[type(module)]
        self.function = self.kind
        if isinstance(module, nn.RNN):
            self.function = f"rnn_{module.nonlinearity}"
        self.num_layers = module.num_layers
        self.hidden_size = module.hidden_size
        self.proj_size = module.proj_size
        self.batch_first = module.batch_first
        self.bidirectional = module.bidirectional
        weight = module.weight_ih_l0
        assert isinstance(weight, Tensor)
        self.dtype = weight.dtype
        stored = [StoredWeight(w) for w in weights]
        self.weight_codes = nn.ModuleList(stored)
        self.floats = bias_names(module)
        for name in self.floats:
            shared = getattr(module, name)
            self.register_parameter(name, shared)

    def flatten_parameters(self) -> None:
        """Do nothing: models call it on the float module, whose weights it lays out for cuDNN."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Given | None = None
    ) -> _Result:
        """Return outputs and last states, as ``nn.LSTM`` and ``nn.GRU`` do.

        Raises:
            ValueError: The states are not as many as the network has.
        """
        x = input  # torch.nn's name: a layer alone may be called by it
        if isinstance(x, PackedSequence):
            return self._forward_packed(x, hx)
        batch_axis = 0 if self.batch_first else 1
        if x.ndim != 3:
            return self._forward_alone(x, hx, batch_axis)
        batch = x.shape[batch_axis]
        states = self._states(hx, batch, x)
        y, last = self._run(x, None, states)
        return y, self._given(last)

    def _forward_packed(self, x: PackedSequence, hx: Given | None) -> _Result:
        sizes = x.batch_sizes
        # The first step has all sequences.
        batch = int(sizes[0])
        states = self._states(hx, batch, x.data)
        ordered = _chosen(states, x.sorted_indices)
        y, last = self._run(x.data, sizes, ordered)
        last = _chosen(last, x.unsorted_indices)
        packed = PackedSequence(y, sizes, x.sorted_indices, x.unsorted_indices)
        return packed, self._given(last)

    def _forward_alone(self, x: Tensor, hx: Given | None, batch_axis: int) -> _Result:
        """Run one sequence that has no axis for the batch."""
        batched: States | None = None
        if hx is not None:
            batched = tuple(s.unsqueeze(1) for s in _several(hx))
        states = self._states(batched, 1, x)
        one = x.unsqueeze(batch_axis)
        y, last = self._run(one, None, states)
        y = y.squeeze(batch_axis)
        last = tuple(s.squeeze(1) for s in last)
        return y, self._given(last)

    def _states(self, hx: Given | None, batch: int, like: Tensor) -> States:
        """Return the states to begin with: those that are given, else zeros."""
        if hx is None:
            return self._zero_states(batch, like)
        states = _several(hx)
        count = len(states)
        if self.kind == "lstm" and count != 2:
            raise ValueError(
                f"{self.kind} takes a hidden and a cell state, got {count}"
            )
        if self.kind != "lstm" and count != 1:
            raise ValueError(f"{self.kind} takes one state, got {count}")
        return states

    def _zero_states(self, batch: int, like: Tensor) -> States:
        count = self.num_layers * self._directions
        width = self.proj_size or self.hidden_size
        hidden = like.new_zeros(count, batch, width)
        if self.kind != "lstm":
            return (hidden,)
        cell = like.new_zeros(count, batch, self.hidden_size)
        return hidden, cell

    def _given(self, states: States) -> Any:
        if self.kind == "lstm":
            return states
        return states[0]

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _matrices(self, cell: int) -> list[StoredWeight]:
        """Return input, recurrent and any projection matrix of one layer and direction."""
        count = 3 if self.proj_size else 2
        first = count * cell
        end = first + count
        found: list[Any] = list(self.weight_codes[first:end])
        return found

    def _biases(self, cell: int) -> list[Tensor]:
        first = 2 * cell
        end = first + 2
        names = self.floats[first:end]
        return [getattr(self, name) for name in names]

    def _decoded(self, cells: range) -> list[Tensor]:
        """Return the float tensors of some cells, in the order of torch's functions."""
        flat: list[Tensor] = []
        for cell in cells:
            matrices = []
            for stored in self._matrices(cell):
                matrix = stored.whole()
                matrices.append(matrix.to(self.dtype))
            first, second, *projection = matrices
            flat += [first, second]
            # Biases stand before the projection.
            flat += self._biases(cell)
            flat += projection
        return flat

    def _run(self, x: Tensor, sizes: Tensor | None, states: States) -> Outcome:
        """Run layer by layer, so that one layer's float weights are there at a time."""
        directions = self._directions
        last: list[States] = []
        for layer in range(self.num_layers):
            first = layer * directions
            end = first + directions
            own = [s[first:end].contiguous() for s in states]
            cells = range(first, end)
            flat = self._decoded(cells)
            x, after = self._run_layer(x, sizes, own, flat)
            last.append(after)
        by_kind = zip(*last, strict=True)
        return x, tuple(torch.cat(parts) for parts in by_kind)

    def _run_layer(
        self, x: Tensor, sizes: Tensor | None, states: list[Tensor], flat: list[Tensor]
    ) -> Outcome:
        run: Any = getattr(torch, self.function)
        given: Any = states
        if self.kind != "lstm":
            given = states[0]
        # Has biases, layers, dropout, training, directions.
        has_biases = bool(self.floats)
        settings = (has_biases, 1, 0.0, False, self.bidirectional)
        if sizes is None:
            y, *after = run(x, given, flat, *settings, self.batch_first)
        else:
            y, *after = run(x, sizes, given, flat, *settings)
        return y, tuple(after)

    def extra_repr(self) -> str:
        """Return its shape."""
        both = ", bidirectional" if self.bidirectional else ""
        return f"{self.kind}, {self.num_layers} layers of {self.hidden_size}{both}"


def _several(given: Given) -> States:
    """Return states as a tuple, of which a single one may be given alone."""
    if isinstance(given, Tensor):
        return (given,)
    return tuple(given)


def _chosen(states: States, indices: Tensor | None) -> States:
    """Return the states of some sequences, in that order; all of them if no indices are given."""
    if indices is None:
        return states
    return tuple(s.index_select(1, indices) for s in states)
