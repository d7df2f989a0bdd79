"""LSTM and GRU layers whose weights are stored in few bits, and their integer kernels.

The kernels are those of torch's dynamic quantization: input and state of each step are quantized on their own range
(uint8, asymmetric, per tensor) and multiplied by int8 weights; gates and states are float32. LSTMs that project their state run
on :mod:`~.projected`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from octavo.adapters.pytorch.kernels import fbgemm
from octavo.adapters.pytorch.kernels.faults import fault
from octavo.adapters.pytorch.kernels.layouts import content, forget, layout
from octavo.adapters.pytorch.kernels.operators import is_portable, register
from octavo.adapters.pytorch.kernels.saturation import in_reach
from octavo.adapters.pytorch.modules.kinds import RECURRENT_KINDS, bias_names
from octavo.core.numerics.tensor import QuantizedTensor

from .differentiable import needs_gradient
from .packed_weights import StoredWeight
from .projected_lstm import ProjectedCell, run_projected

Tensor = torch.Tensor
States = tuple[Tensor, ...]
"""Hidden states, and cell states of an LSTM: each (layers * directions, batch, hidden)."""


class StoredRecurrent(nn.Module):
    """An LSTM, GRU or plain recurrent network that decodes one layer's weights at a time and computes in float.

    Args:
        module: The float module, whose biases it shares.
        weights: The quantized weights, in the order of :func:`weight_names`.

    Attributes:
        floats: Names of the tensors that it shares with the float module.
    """

    def __init__(self, module: nn.RNNBase, weights: Sequence[QuantizedTensor]) -> None:
        super().__init__()
        self.kind = RECURRENT_KINDS[type(module)]
        self.function = (
            self.kind if not isinstance(module, nn.RNN) else f"rnn_{module.nonlinearity}"
        )
        self.num_layers, self.hidden_size, self.proj_size = (
            module.num_layers,
            module.hidden_size,
            module.proj_size,
        )
        self.batch_first, self.bidirectional = module.batch_first, module.bidirectional
        weight = module.weight_ih_l0
        assert isinstance(weight, Tensor)
        self.dtype = weight.dtype
        self.weight_codes = nn.ModuleList(StoredWeight(w) for w in weights)
        self.floats = bias_names(module)
        for name in self.floats:
            self.register_parameter(name, getattr(module, name))

    def flatten_parameters(self) -> None:
        """Do nothing: models call it on the float module, whose weights it lays out for cuDNN."""

    def forward(
        self, x: Tensor | PackedSequence, hx: Tensor | States | None = None
    ) -> tuple[Any, Any]:
        """Return outputs and last states, as ``nn.LSTM`` and ``nn.GRU`` do."""
        if isinstance(x, PackedSequence):
            data, states = x.data, self._states(hx, int(x.batch_sizes[0]), x.data)
            y, last = self._run(
                data, x.batch_sizes, tuple(_chosen(s, x.sorted_indices) for s in states)
            )
            last = tuple(_chosen(s, x.unsorted_indices) for s in last)
            return PackedSequence(
                y, x.batch_sizes, x.sorted_indices, x.unsorted_indices
            ), self._given(last)
        if x.ndim == 3:
            y, last = self._run(x, None, self._states(hx, x.shape[0 if self.batch_first else 1], x))
            return y, self._given(last)
        axis = 0 if self.batch_first else 1
        alone = (
            None
            if hx is None
            else tuple(s.unsqueeze(1) for s in ((hx,) if isinstance(hx, Tensor) else hx))
        )
        y, last = self._run(x.unsqueeze(axis), None, self._states(alone, 1, x))
        return y.squeeze(axis), self._given(tuple(s.squeeze(1) for s in last))

    def _states(self, hx: Tensor | States | None, batch: int, like: Tensor) -> States:
        if hx is not None:
            states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
            if len(states) != (2 if self.kind == "lstm" else 1):
                raise ValueError(
                    f"{self.kind} takes {'a hidden and a cell state' if self.kind == 'lstm' else 'one state'}, got {len(states)}"
                )
            return states
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[
            : 2 if self.kind == "lstm" else 1
        ]
        return tuple(
            like.new_zeros(self.num_layers * self._directions, batch, width) for width in widths
        )

    def _given(self, states: States) -> Any:
        return states if self.kind == "lstm" else states[0]

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _matrices(self, cell: int) -> list[StoredWeight]:
        """Return input, recurrent and, where there is one, projection matrix of one layer and direction."""
        count = 3 if self.proj_size else 2
        found: list[Any] = list(self.weight_codes[count * cell : count * (cell + 1)])
        return found

    def _biases(self, cell: int) -> list[Tensor]:
        return [getattr(self, name) for name in self.floats[2 * cell : 2 * cell + 2]]

    def _run(self, x: Tensor, sizes: Tensor | None, states: States) -> tuple[Tensor, States]:
        """Run layer by layer, so that one layer's float weights are there at a time."""
        d = self._directions
        last: list[States] = []
        run: Any = getattr(torch, self.function)
        for layer in range(self.num_layers):
            flat: list[Tensor] = []
            for cell in range(layer * d, (layer + 1) * d):
                decoded = [
                    w.decode(w.codes, slice(0, w.rows)).to(self.dtype) for w in self._matrices(cell)
                ]
                flat += [*decoded[:2], *self._biases(cell), *decoded[2:]]
            own = [s[layer * d : (layer + 1) * d].contiguous() for s in states]
            given: Any = own if self.kind == "lstm" else own[0]
            head: tuple[Any, ...] = (x,) if sizes is None else (x, sizes)
            tail: tuple[Any, ...] = (bool(self.floats), 1, 0.0, False, self.bidirectional)
            x, *after = run(
                *head, given, flat, *tail, *((self.batch_first,) if sizes is None else ())
            )
            last.append(tuple(after))
        return x, tuple(torch.cat(parts) for parts in zip(*last, strict=True))

    def extra_repr(self) -> str:
        """Return its shape."""
        both = ", bidirectional" if self.bidirectional else ""
        return f"{self.kind}, {self.num_layers} layers of {self.hidden_size}{both}"


class Int8Recurrent(StoredRecurrent):
    """An LSTM or GRU with int8 products. In exported programs it decodes its weights instead.

    Args:
        module: The float module.
        weights: int8 codes, symmetric, per tensor or per output channel.
    """

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for tensor in self.buffers():
            forget(tensor)

    def _run(self, x: Tensor, sizes: Tensor | None, states: States) -> tuple[Tensor, States]:
        if needs_gradient(x, *states):
            # The integer kernel's values, with the gradient of the decoded layer.
            smooth, last = super()._run(x, sizes, states)
            with torch.no_grad():
                exact, own = self._run(x, sizes, states)
            pairs = zip((exact, *own), (smooth, *last), strict=True)
            y, *after = (value + (like - like.detach()) for value, like in pairs)
            return y, tuple(after)
        compiling = torch.compiler.is_compiling()
        stored: Any = self.weight_codes
        saturating = not compiling and not all(_in_reach(w.codes) for w in stored)
        if saturating or (compiling and is_portable()):
            return super()._run(x, sizes, states)
        matrices = [t for w in stored for t in (w.codes, w.scale)]
        biases = [getattr(self, name) for name in self.floats]
        run: Any = torch.ops.octavo.int8_recurrent if compiling else run_layers
        given = [s.detach().float() for s in states]
        try:
            y, *last = run(
                x.detach().float(),
                sizes,
                given,
                matrices,
                [b.detach() for b in biases],
                *self._form(),
            )
        except RuntimeError:
            if compiling or all(bool(t.isfinite().all()) for t in (x, *states)):
                raise
            return super()._run(x, sizes, states)  # the kernels find no range in what is not finite
        return y.to(self.dtype), tuple(s.to(self.dtype) for s in last)

    def _form(self) -> tuple[str, int, bool, bool]:
        return self.kind, self.num_layers, self.bidirectional, self.batch_first


def run_layers(
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    kind: str,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    """Return outputs and last states of :func:`run_cells`, from plain tensors: each matrix is laid out at the first call.

    Args:
        x: See :func:`run_cells`, as the arguments that are not named here.
        sizes: See there.
        states: See there.
        matrices: int8 codes in uint8 (rows, features), and float32 scales, of input, recurrent and any projection matrix of each cell.
        biases: Input and recurrent bias of each cell; or none.
        kind: See there.
        layers: See there.
        bidirectional: See there.
        batch_first: See there.
    """
    projected = kind == "lstm" and states[0].shape[2] != states[1].shape[2]
    each, cells = 3 if projected else 2, []
    for cell in range(len(matrices) // (2 * each)):
        at = 2 * each * cell
        codes, scales = matrices[at : at + 2 * each : 2], matrices[at + 1 : at + 2 * each : 2]
        own = [b.float() for b in biases[2 * cell : 2 * cell + 2]]
        if projected:
            with_bias = [own[0] + own[1] if own else None, None, None]
            cells.append(
                ProjectedCell(
                    *(_rows(*parts) for parts in zip(codes, scales, with_bias, strict=True))
                )
            )
        else:
            own = own or [torch.zeros(codes[0].shape[0])] * 2
            cells.append(
                make_cell(*(_rows(*parts) for parts in zip(codes, scales, own, strict=True)), *own)
            )
    if projected:
        y, last = run_projected(
            x, sizes, states, cells, bidirectional=bidirectional, batch_first=batch_first
        )
    else:
        y, last = run_cells(kind, x, sizes, states, cells, layers, bidirectional, batch_first)
    return [y, *last]


def _in_reach(codes: Tensor) -> bool:
    """Return :func:`~.saturation.in_reach`, looked up once for each weight."""
    # A list, because a layout that is false in itself would be made again.
    (answer,) = layout(codes, "reach", lambda: [in_reach(codes)])
    return bool(answer)


def _rows(codes: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    return layout(
        codes,
        ("rows", content(scale), content(bias)),
        lambda: fbgemm.pack_rows(codes.view(torch.int8), scale.reshape(-1), bias),
    )


def _layers_form(
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    matrices: Sequence[Tensor],
    *rest: Any,
) -> list[Tensor]:
    *_, bidirectional, _ = rest
    return [
        x.new_empty((*x.shape[:-1], states[0].shape[2] * (2 if bidirectional else 1))),
        *(torch.empty_like(s) for s in states),
    ]


register(
    "int8_recurrent(Tensor x, Tensor? sizes, Tensor[] states, Tensor[] matrices, Tensor[] biases, str kind, int layers, "
    "bool bidirectional, bool batch_first) -> Tensor[]",
    lambda *arguments: [y.contiguous() for y in run_layers(*arguments)],
    _layers_form,
)


def _chosen(states: Tensor, indices: Tensor | None) -> Tensor:
    return states if indices is None else states.index_select(1, indices)


def make_cell(input_rows: Any, state_rows: Any, input_bias: Tensor, state_bias: Tensor) -> Any:
    """Return one layer and direction for :func:`run_cells`, from what ``kernels.pack_rows`` made of its two matrices."""
    return torch.ops.quantized.make_quantized_cell_params_dynamic(
        input_rows, state_rows, input_bias, state_bias, False
    )


def run_cells(
    kind: str,
    x: Tensor,
    sizes: Tensor | None,
    states: Sequence[Tensor],
    cells: Sequence[Any],
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, States]:
    """Run a whole recurrent network on integer kernels.

    Args:
        kind: ``lstm`` or ``gru``.
        x: float32 (batch, steps, inputs), or (steps, batch, inputs), or the data of a packed sequence.
        sizes: Batch sizes of a packed sequence, else None.
        states: Of which each is (layers * directions, batch, hidden), float32.
        cells: One for each layer and direction.
        layers: How many layers.
        bidirectional: Two directions a layer.
        batch_first: The first axis of ``x`` is the batch.
    """
    head: tuple[Any, ...] = (x,) if sizes is None else (x, sizes)
    tail: tuple[Any, ...] = (
        True,
        layers,
        0.0,
        False,
        bidirectional,
        *((batch_first,) if sizes is None else ()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its quantized tensors
        if kind == "lstm":
            y, *last = torch.quantized_lstm(
                *head, list(states), list(cells), *tail, dtype=torch.qint8, use_dynamic=True
            )
        else:
            y, *last = torch.quantized_gru(*head, states[0], list(cells), *tail)
    return y, tuple(last)


@cache
def missing_recurrent(kind: str) -> str:
    """Return why the int8 kernel of ``lstm`` or ``gru`` cannot be used here; empty when it was run and was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        gates = 4 if kind == "lstm" else 3
        x, h = torch.randn(2, 5, 16, generator=generator), torch.zeros(1, 2, 8)
        codes = [
            torch.randint(-63, 64, (8 * gates, n), dtype=torch.int8, generator=generator)
            for n in (16, 8)
        ]
        scale, bias = torch.full((8 * gates,), 4e-3), torch.linspace(-1, 1, 8 * gates)
        cell = make_cell(
            fbgemm.pack_rows(codes[0], scale, bias),
            fbgemm.pack_rows(codes[1], scale, bias),
            bias,
            bias,
        )
        states = [h, h] if kind == "lstm" else [h]
        y, _ = run_cells(kind, x, None, states, [cell], 1, False, True)
        flat = [*(c.double() * 4e-3 for c in codes), bias.double(), bias.double()]
        function: Any = torch.lstm if kind == "lstm" else torch.gru
        given = [s.double() for s in states] if kind == "lstm" else h.double()
        return y, function(x.double(), given, flat, True, 1, 0.0, False, False, True)[0]

    return fault(f"torch.quantized_{kind}", 0.03, run)
