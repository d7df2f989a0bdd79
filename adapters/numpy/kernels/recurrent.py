"""LSTM, GRU and RNN: a loop over time, whole batches at a time.

The input products of all steps are one BLAS call. Source: the ONNX operators LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .activations import (
    elu,
    hard_sigmoid,
    leaky_relu,
    relu,
    sigmoid,
    softplus,
    softsign,
    thresholded_relu,
)
from .registry import Build, Kernel, compiled

Activation = Callable[[Array], Array]
States = tuple[Array, ...]


def _affine(x: Array, alpha: float, beta: float) -> Any:
    kind = x.dtype.type
    return x * kind(alpha) + kind(beta)


def _scaled_tanh(x: Array, alpha: float, beta: float) -> Any:
    kind = x.dtype.type
    return kind(alpha) * np.tanh(x * kind(beta))


_PLAIN: dict[str, Any] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": relu,
    "softplus": softplus,
    "softsign": softsign,
}
"""Activations that take no parameter."""

_WITH: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "leakyrelu": (leaky_relu, {"alpha": 0.01}),
    "thresholdedrelu": (thresholded_relu, {"alpha": 1.0}),
    "elu": (elu, {"alpha": 1.0}),
    "hardsigmoid": (hard_sigmoid, {"alpha": 0.2, "beta": 0.5}),
    "affine": (_affine, {"alpha": 1.0, "beta": 0.0}),
    "scaledtanh": (_scaled_tanh, {"alpha": 1.0, "beta": 1.0}),
}
"""Activations that take parameters, and the parameters' defaults."""


def _activations(
    build: Build, default: tuple[str, ...], directions: int
) -> list[list[Activation]]:
    """Return the activations of each direction."""
    names = build.get("activations", default * directions)
    # Alphas and betas are listed for those activations that take one, in order.
    listed = {
        "alpha": list(build.get("activation_alpha", ())),
        "beta": list(build.get("activation_beta", ())),
    }
    found: list[Activation] = []
    for name in names:
        key = name.lower()
        if key in _PLAIN:
            found.append(_PLAIN[key])
            continue
        function, defaults = _WITH[key]
        given = dict(defaults)
        for parameter in defaults:
            if listed[parameter]:
                given[parameter] = listed[parameter].pop(0)
        found.append(partial(function, **given))
    each = len(default)
    return [found[i * each : (i + 1) * each] for i in range(directions)]


@dataclass(frozen=True, slots=True, eq=False)
class _Direction:
    """What a cell is made of.

    Attributes:
        weight: Recurrent weight, (gates * size, size).
        bias: Of the input's and of the recurrent products, (2 * gates * size,).
        peepholes: (3 * size,), of an LSTM that has them.
        activations: One for each kind of gate.
        clip: Limits what goes into an activation.
        size: Length of the hidden state.
        build: The node.
    """

    weight: Array
    bias: Array
    peepholes: Array | None
    activations: list[Activation]
    clip: Activation
    size: int
    build: Build


Cell = Callable[[Array, States], States]
"""(input product of one step, states) -> new states; the first state is the hidden output."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of recurrent layer: gates, default activations, states, and how its cell is made."""

    gates: int
    activations: tuple[str, ...]
    states: int
    make: Callable[[_Direction], Cell]


def _sweep(
    gates: Array, states: States, cell: Cell, lengths: Array | None, backwards: bool
) -> tuple[Array, States]:
    """Run a cell over time (steps, batch, gates); return its outputs and last states.

    Steps beyond a sequence's length leave its states and write zero.
    """
    steps, batch = gates.shape[:2]
    outputs = np.zeros((steps, batch, states[0].shape[-1]), gates.dtype)
    if lengths is None:
        order = reversed(range(steps)) if backwards else range(steps)
        for t in order:
            states = cell(gates[t], states)
            outputs[t] = states[0]
        return outputs, states
    rows = np.arange(batch)
    for i in range(steps):
        is_live = i < lengths
        # Each sequence is walked from its own end.
        at = np.where(is_live, lengths - 1 - i, i) if backwards else np.full(batch, i)
        live = is_live[:, None]
        new = cell(gates[at, rows], states)
        states = tuple(np.where(live, n, s) for n, s in zip(new, states, strict=True))
        outputs[at, rows] = np.where(live, new[0], 0)
    return outputs, states


@dataclass(frozen=True, slots=True)
class _Layer:
    """A recurrent node.

    Attributes:
        kind: RNN, GRU or LSTM.
        build: The node.
        hidden: Length of the hidden state; 0 where the weight says it.
        backwards: For each direction, whether it goes from the end to the beginning.
        activations: Of each direction.
        batch_first: The batch is the first axis, not the second.
    """

    kind: _Kind
    build: Build
    hidden: int
    backwards: tuple[bool, ...]
    activations: list[list[Activation]]
    batch_first: bool


def _recurrent(build: Build, kind: _Kind) -> Kernel:
    direction = build.get("direction", "forward")
    backwards: tuple[bool, ...] = (direction == "reverse",)
    if direction == "bidirectional":
        backwards = (False, True)
    layer = _Layer(
        kind,
        build,
        hidden=build.get("hidden_size", 0),
        backwards=backwards,
        activations=_activations(build, kind.activations, len(backwards)),
        batch_first=bool(build.get("layout", 0)),
    )
    return partial(_run, layer)


def _run(
    layer: _Layer,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    h: Any = None,
    c: Any = None,
    p: Any = None,
) -> Any:
    initial = [h, c][: layer.kind.states]
    if layer.batch_first:
        x = x.swapaxes(0, 1)
        initial = [None if s is None else s.swapaxes(0, 1) for s in initial]
    steps, batch = x.shape[:2]
    is_ragged = lengths is not None and (lengths != steps).any()
    ragged = lengths if is_ragged else None
    rows = x.reshape(steps * batch, -1)
    size = layer.hidden or r.shape[-1]
    none = np.zeros((batch, size), x.dtype)
    no_bias = np.zeros(2 * layer.kind.gates * size, x.dtype)
    clip = _clipped(layer.build)
    outputs = []
    finals = []
    for d, backwards in enumerate(layer.backwards):
        bias = no_bias if b is None else b[d]
        peepholes = None if p is None else p[d]
        parts = _Direction(
            r[d], bias, peepholes, layer.activations[d], clip, size, layer.build
        )
        starts = tuple(none if s is None else s[d] for s in initial)
        products = rows @ w[d].T
        gates = products.reshape(steps, batch, -1)
        cell = layer.kind.make(parts)
        y, states = _sweep(gates, starts, cell, ragged, backwards)
        outputs.append(y)
        finals.append(states)
    y = np.stack(outputs, axis=1)  # steps, directions, batch, hidden
    last = [np.stack(states) for states in zip(*finals, strict=True)]
    if layer.batch_first:
        y = y.transpose(2, 0, 1, 3)
        last = [s.swapaxes(0, 1) for s in last]
    return y, *last


def _clipped(build: Build) -> Activation:
    limit = build.get("clip", None)
    if limit is None:
        return lambda x: x

    def clipped(x: Array) -> Any:
        bound = x.dtype.type(limit)
        return np.clip(x, -bound, bound)

    return clipped


def _rnn_cell(of: _Direction) -> Cell:
    n, clip = of.size, of.clip
    (activation,) = of.activations
    bias = of.bias[:n] + of.bias[n:]
    weight = of.weight.T

    def cell(g: Array, s: States) -> States:
        y = g + s[0] @ weight + bias
        return (activation(clip(y)),)

    return cell


def _gru_cell(of: _Direction) -> Cell:
    n, clip = of.size, of.clip
    gate, hidden = of.activations
    # Gates z (update), r (reset), h (candidate), in this order.
    gates = slice(0, 2 * n)
    candidate = slice(2 * n, 3 * n)
    gate_weight = np.ascontiguousarray(of.weight[gates].T)
    candidate_weight = np.ascontiguousarray(of.weight[candidate].T)
    w_bias, r_bias = np.split(of.bias, 2)
    gate_bias = w_bias[gates] + r_bias[gates]
    candidate_bias = w_bias[candidate]
    inner_bias = r_bias[candidate]
    resets_product = of.build.get("linear_before_reset", 0)

    def cell(g: Array, s: States) -> States:
        (h,) = s
        y = g[:, gates] + h @ gate_weight + gate_bias
        both = gate(clip(y))
        z = both[:, :n]
        reset = both[:, n:]
        if resets_product:
            inner = reset * (h @ candidate_weight + inner_bias)
        else:
            inner = (reset * h) @ candidate_weight + inner_bias
        new = hidden(clip(g[:, candidate] + inner + candidate_bias))
        return ((1 - z) * new + z * h,)

    return cell


def _lstm_cell(of: _Direction) -> Cell:
    n, clip = of.size, of.clip
    gate, candidate, output = of.activations
    weight = np.ascontiguousarray(of.weight.T)
    bias = of.bias[: 4 * n] + of.bias[4 * n :]
    none = np.zeros(3 * n, of.weight.dtype)
    peepholes = none if of.peepholes is None else of.peepholes
    # Gates i (input), o (output), f (forget), c (candidate), in this order.
    at_i, at_o, at_f, at_c = (slice(k * n, (k + 1) * n) for k in range(4))
    peep_i = peepholes[at_i]
    peep_o = peepholes[at_o]
    peep_f = peepholes[at_f]
    coupled = of.build.get("input_forget", 0)

    def cell(g: Array, s: States) -> States:
        h, c = s
        y = g + h @ weight + bias
        i = gate(clip(y[:, at_i] + peep_i * c))
        if coupled:
            f = 1 - i
        else:
            f = gate(clip(y[:, at_f] + peep_f * c))
        proposed = candidate(clip(y[:, at_c]))
        new = f * c + i * proposed
        # The output gate looks at the new cell state, the others at the old.
        o = gate(clip(y[:, at_o] + peep_o * new))
        return o * output(new), new

    return cell


_RNN = _Kind(1, ("Tanh",), 1, _rnn_cell)
_GRU = _Kind(3, ("Sigmoid", "Tanh"), 1, _gru_cell)
_LSTM = _Kind(4, ("Sigmoid", "Tanh", "Tanh"), 2, _lstm_cell)


@compiled("RNN")
def rnn(build: Build) -> Kernel:
    """ONNX RNN, Elman's network: outputs of all steps, the last one."""
    return _recurrent(build, _RNN)


@compiled("GRU")
def gru(build: Build) -> Kernel:
    """ONNX GRU, the gated recurrent unit, with either place of the reset."""
    return _recurrent(build, _GRU)


@compiled("LSTM")
def lstm(build: Build) -> Kernel:
    """ONNX LSTM, with peepholes and coupled gates.

    Outputs of all steps, last hidden state, last cell.
    """
    return _recurrent(build, _LSTM)
